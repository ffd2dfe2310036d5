"""A client of `pri`: moves a page that is mapped only when the device asks for it."""

import ctypes
import fcntl
import mmap
import os
import struct
import sys

READ, WRITE = 1, 2
SUCCESS, INVALID = 0, 1


def call(fd, number, layout, *fields):
    data = bytearray(struct.pack(layout, struct.calcsize(layout), *fields))
    fcntl.ioctl(fd, number, data)
    return struct.unpack(layout, data)


class Device:
    def __init__(self):
        self.iommu = os.open("/dev/iommu", os.O_RDWR)
        self.file = os.open("/dev/vfio/devices/vfio0", os.O_RDWR)
        self.dev_id = call(self.file, 0x3B76, "=IIiI", 0, self.iommu, 0)[3]
        self.ioas = call(self.iommu, 0x3B81, "=III", 0, 0)[2]
        fault_id, self.queue = call(self.iommu, 0x3B8E, "=IIII", 0, 0, 0)[2:]
        fields = (4, self.dev_id, self.ioas, 0, 0, 0, 0, 0, fault_id, 0)  # FAULT_ID_VALID
        hwpt = call(self.iommu, 0x3B89, "=IIIIIIIIQII", *fields)[4]
        call(self.file, 0x3B77, "=III", 0, hwpt)
        os.pwrite(self.file, b"\x06\x00", (7 << 40) + 4)  # memory decoding, bus mastering
        self.bar = mmap.mmap(self.file, 4096)

    def run(self, iova, command):
        self.bar[0:8] = struct.pack("=Q", iova)
        self.bar[8:12] = struct.pack("=I", command)

    def asked(self):
        """(dev_id, perm, addr, cookie) of the next request."""
        while len(record := os.read(self.queue, 40)) == 0:
            pass
        _, dev_id, _, _, perm, _, addr, _, cookie = struct.unpack("=IIIIIIQII", record)
        return dev_id, perm, addr, cookie

    def respond(self, cookie, code):
        assert os.write(self.queue, struct.pack("=II", cookie, code)) == 8

    def map(self, address, iova):
        call(self.iommu, 0x3B85, "=IIIIQQQ", 7, self.ioas, 0, address, 4096, iova)

    def done(self):
        """STATUS, when the device has done."""
        while struct.unpack("=I", self.bar[8:12])[0] & 1:
            pass
        return struct.unpack("=I", self.bar[12:16])[0]


device, iova = Device(), 0xFED00000
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
call(device.file, 0x3B78, "=II", 0)  # detached: nobody will answer
assert device.done() == 1
print("moved on request", file=sys.stdout)
