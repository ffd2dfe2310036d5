"""A client of `nvme` with PRI: buffers of its commands are mapped when it asks for them."""

import ctypes
import fcntl
import mmap
import struct
import time

from page_client import INVALID, SUCCESS, WRITE, Device

ARENA, BUFFER = 0x100000, 0x200000

nvme = Device()
bar = mmap.mmap(nvme.file, 8192)
arena = mmap.mmap(-1, 4 * 4096)  # submission and completion queue, then two buffers


def map_page(page, iova):
    nvme.map(ctypes.addressof(ctypes.c_char.from_buffer(arena)) + page * 4096, iova)


def store(offset, value):
    bar[offset : offset + 4] = struct.pack("=I", value)


def until(condition):
    end = time.monotonic() + 20
    while not (found := condition()):
        assert time.monotonic() < end
    return found


map_page(0, ARENA)
map_page(1, ARENA + 4096)
store(0x24, 15 << 16 | 15)
bar[0x28:0x38] = struct.pack("=QQ", ARENA, ARENA + 4096)
store(0x14, 4 << 20 | 6 << 16 | 1)
until(lambda: bar[0x1C] & 1)


def identify(number, iova):
    """Ask for the controller's identity."""
    command = struct.pack("=BBH20xQQI20x", 6, 0, number, iova, 0, 1)
    arena[64 * (number - 1) : 64 * number] = command
    store(0x1000, number)


def status(number):
    """Of a command that is done, or None."""
    cid, found = struct.unpack_from("=HH", arena, 4096 + 16 * (number - 1) + 12)
    assert not found or cid == number
    return found >> 1 if found else None


identify(1, BUFFER)
dev_id, perm, addr, cookie = nvme.asked()
assert (dev_id, perm, addr) == (nvme.dev_id, WRITE, BUFFER)
assert status(1) is None
map_page(2, BUFFER)
nvme.respond(cookie, SUCCESS)
until(lambda: status(1) is not None)
assert status(1) == 0
assert arena[2 * 4096 + 4 : 2 * 4096 + 13] == b"iommufs-1"

identify(2, BUFFER + 4096)
cookie = nvme.asked()[3]
nvme.respond(cookie, INVALID)
until(lambda: status(2) is not None)
assert status(2) == 4, status(2)  # data transfer error

identify(3, BUFFER + 4096)
nvme.asked()
fcntl.ioctl(nvme.file, 0x3B6F)  # VFIO_DEVICE_RESET: nobody answers
assert bar[0x1C] == 0
print("completed on request")
