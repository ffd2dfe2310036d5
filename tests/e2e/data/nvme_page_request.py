"""A client of `nvme` with PRI: buffers of its commands are mapped when it asks for them."""

import ctypes
import fcntl
import mmap
import os
import struct
import time

SUCCESS, INVALID = 0, 1
ARENA, BUFFER = 0x100000, 0x200000


def call(fd, number, layout, *fields):
    data = bytearray(struct.pack(layout, struct.calcsize(layout), *fields))
    fcntl.ioctl(fd, number, data)
    return struct.unpack(layout, data)


iommu = os.open("/dev/iommu", os.O_RDWR)
file = os.open("/dev/vfio/devices/vfio0", os.O_RDWR)
dev_id = call(file, 0x3B76, "=IIiI", 0, iommu, 0)[3]
ioas = call(iommu, 0x3B81, "=III", 0, 0)[2]
fault_id, requests = call(iommu, 0x3B8E, "=IIII", 0, 0, 0)[2:]
hwpt = call(iommu, 0x3B89, "=IIIIIIIIQII", 4, dev_id, ioas, 0, 0, 0, 0, 0, fault_id, 0)[4]
call(file, 0x3B77, "=III", 0, hwpt)
os.pwrite(file, b"\x06\x00", (7 << 40) + 4)  # memory decoding, bus mastering
bar = mmap.mmap(file, 8192)
arena = mmap.mmap(-1, 4 * 4096)  # submission and completion queue, then two buffers


def map_page(page, iova):
    address = ctypes.addressof(ctypes.c_char.from_buffer(arena)) + page * 4096
    call(iommu, 0x3B85, "=IIIIQQQ", 7, ioas, 0, address, 4096, iova)


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


def asked():
    """(dev_id, perm, addr, cookie) of the next request."""
    _, device, _, _, perm, _, addr, _, cookie = struct.unpack(
        "=IIIIIIQII", until(lambda: os.read(requests, 40))
    )
    return device, perm, addr, cookie


identify(1, BUFFER)
device, perm, addr, cookie = asked()
assert (device, perm, addr) == (dev_id, 2, BUFFER)
assert status(1) is None
map_page(2, BUFFER)
os.write(requests, struct.pack("=II", cookie, SUCCESS))
until(lambda: status(1) is not None)
assert status(1) == 0
assert arena[2 * 4096 + 4 : 2 * 4096 + 13] == b"iommufs-1"

identify(2, BUFFER + 4096)
cookie = asked()[3]
os.write(requests, struct.pack("=II", cookie, INVALID))
until(lambda: status(2) is not None)
assert status(2) == 4, status(2)  # data transfer error

identify(3, BUFFER + 4096)
asked()
fcntl.ioctl(file, 0x3B6F)  # VFIO_DEVICE_RESET: nobody answers
assert bar[0x1C] == 0
print("completed on request")
