"""A client of `pri`: moves a page that is mapped only when the device asks for it."""

import ctypes
import mmap
import struct
import sys

from page_client import INVALID, READ, SUCCESS, WRITE, Device


class Pri(Device):
    def __init__(self):
        super().__init__()
        self.bar = mmap.mmap(self.file, 4096)

    def run(self, iova, command):
        self.bar[0:8] = struct.pack("=Q", iova)
        self.bar[8:12] = struct.pack("=I", command)

    def done(self):
        """STATUS, when the device has done."""
        while struct.unpack("=I", self.bar[8:12])[0] & 1:
            pass
        return struct.unpack("=I", self.bar[12:16])[0]


device, iova = Pri(), 0xFED00000
page = mmap.mmap(-1, 4096)
address = ctypes.addressof(ctypes.c_char.from_buffer(page))
page[:] = b"\x42" * 4096

device.run(iova + 8, 3)
dev_id, perm, addr, cookie = device.asked()
assert (dev_id, perm, addr) == (device.dev_id, READ, iova), (dev_id, perm, hex(addr))
device.respond(cookie, SUCCESS)  # although nothing is there: it asks again
assert device.asked()[1:3] == (READ, iova)
device.map(address, iova)
device.respond(1, SUCCESS)
assert device.done() == 0

page[:] = bytes(4096)
device.run(iova, 1)
assert device.done() == 0
assert page[:] == b"\x42" * 4096

device.run(iova + 4096, 1)
_, perm, addr, cookie = device.asked()
assert (perm, addr) == (WRITE, iova + 4096)
device.respond(cookie, INVALID)
assert device.done() == 1

device.run(iova + 4096, 3)
assert device.asked()[1:3] == (READ, iova + 4096)
device.detach()  # nobody will answer
assert device.done() == 1
print("moved on request", file=sys.stdout)
