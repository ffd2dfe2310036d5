"""Asks the kernel, or iommufs, about mmap() and transfers of nothing: one line per answer.

Run on a Linux with the devices of the default machine, its answers are linux_7.3.txt.
"""

import ctypes
import errno
import fcntl
import os
import struct

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_size_t, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
for call in (libc.read, libc.write):
    call.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
for call in (libc.pread, libc.pwrite):
    call.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_long]
FAILED = ctypes.c_void_p(-1).value

BIND, FAULT_QUEUE_ALLOC = 0x3B76, 0x3B8E
SET_IOMMU, SET_CONTAINER, GET_DEVICE_FD = 0x3B66, 0x3B68, 0x3B6A
READ, WRITE, EXEC = 1, 2, 4
RW = READ | WRITE
SHARED, PRIVATE, VALIDATE, FIXED, ANONYMOUS = 1, 2, 3, 0x10, 0x20
LOCKED, HUGETLB, SYNC, NOREPLACE = 0x2000, 0x40000, 0x80000, 0x100000
PAGE, MIB = 4096, 1 << 20
BAR_1, ROM, CONFIG, VGA = 1 << 40, 6 << 40, 7 << 40, 8 << 40


def tell(name, result, failed):
    print(f"{name}: {errno.errorcode[ctypes.get_errno()] if failed else result}")


def map_(name, fd, offset=0, length=PAGE, prot=RW, flags=SHARED, at=0):
    address = libc.mmap(at, length, prot, flags, fd, offset)
    tell(name, "mapped", address == FAILED)
    if address != FAILED:
        libc.munmap(address, length)


def move_nothing(name, fd):
    for call in ("read", "write"):
        result = getattr(libc, call)(fd, None, 0)
        tell(f"{name} {call} 0", result, result < 0)
    for call in ("pread", "pwrite"):
        for position in (0, CONFIG, 1 << 62, -1):
            result = getattr(libc, call)(fd, None, 0, position)
            tell(f"{name} {call} 0 at {position:#x}", result, result < 0)


def a_place():
    """Two pages of ours."""
    return libc.mmap(0, 2 * PAGE, RW, PRIVATE | ANONYMOUS, -1, 0)


def ask_what_is_never_mapped(name, path):
    read_write, read_only, write_only = (
        os.open(path, mode) for mode in (os.O_RDWR, os.O_RDONLY, os.O_WRONLY)
    )
    map_(f"{name}", read_write)
    map_(f"{name} prot none", read_write, prot=0)
    map_(f"{name} prot unknown", read_write, prot=0x1000)
    map_(f"{name} exec", read_write, prot=READ | EXEC)
    map_(f"{name} length 0", read_write, length=0)
    map_(f"{name} length 0, exec", read_write, length=0, prot=READ | EXEC)
    map_(f"{name} odd length", read_write, length=100)
    map_(f"{name} odd offset", read_write, offset=12)
    map_(f"{name} last offset", read_write, offset=-PAGE)
    map_(f"{name} last offset but one", read_write, offset=-2 * PAGE)
    map_(f"{name} great offset", read_write, offset=1 << 62)
    map_(f"{name} negative offset", read_write, offset=-1 << 63)
    map_(f"{name} read-only", read_only, prot=READ)
    map_(f"{name} read-only, exec", read_only, prot=READ | EXEC)
    map_(f"{name} read-only, for writing", read_only)
    map_(f"{name} write-only, for reading", write_only, prot=READ)
    map_(f"{name} write-only, for writing", write_only, prot=WRITE)
    map_(f"{name} validate", read_write, flags=VALIDATE)
    map_(f"{name} validate sync", read_write, flags=VALIDATE | SYNC)
    map_(f"{name} validate unknown", read_write, flags=VALIDATE | 0x800000)
    map_(f"{name} validate locked", read_write, flags=VALIDATE | LOCKED)
    map_(f"{name} hugetlb", read_write, flags=SHARED | HUGETLB, length=2 * MIB)
    map_(f"{name} locked", read_write, flags=SHARED | LOCKED)
    map_(f"{name} odd place", read_write, flags=SHARED | FIXED, at=a_place() + 5)
    map_(f"{name} over another", read_write, flags=SHARED | FIXED, at=a_place())
    map_(f"{name} not over another", read_write, flags=SHARED | NOREPLACE, at=a_place())
    map_(f"{name} half of user space", read_write, length=1 << 46)
    for shift in (47, 63):
        map_(f"{name} 1 << {shift} bytes", read_write, length=1 << shift)
    map_(f"{name} all", read_write, length=(1 << 64) - 1)
    map_(f"{name} private", read_write, prot=READ, flags=PRIVATE)
    move_nothing(name, read_write)
    move_nothing(f"{name} read-only", read_only)
    move_nothing(f"{name} write-only", write_only)


def bound(number, iommu):
    fd = os.open(f"/dev/vfio/devices/vfio{number}", os.O_RDWR)
    fcntl.ioctl(fd, BIND, struct.pack("IIiIQ", 16, 0, iommu, 0, 0))
    return fd


def ask_device(iommu):
    edu = bound(0, iommu)
    map_("edu page", edu)
    map_("edu validate", edu, flags=VALIDATE)
    map_("edu exec", edu, prot=READ | EXEC)
    map_("edu odd length", edu, length=100)
    map_("edu all", edu, length=MIB)
    map_("edu almost all", edu, length=MIB - 1)
    map_("edu one more", edu, length=MIB + 1)
    map_("edu last page", edu, offset=MIB - PAGE)
    map_("edu past last page", edu, offset=MIB - PAGE, length=2 * PAGE)
    map_("edu past the end", edu, offset=MIB)
    map_("edu far past the end", edu, offset=BAR_1 - PAGE)
    map_("edu into the next", edu, offset=BAR_1 - PAGE, length=2 * PAGE)
    for name, offset in (("BAR1", BAR_1), ("ROM", ROM), ("config", CONFIG), ("VGA", VGA)):
        map_(f"edu {name}", edu, offset=offset, prot=READ)
    map_("edu region 9", edu, offset=9 << 40)
    map_("edu region 4096", edu, offset=4096 << 40)
    read_only = os.open("/dev/vfio/devices/vfio0", os.O_RDONLY)
    map_("edu not bound through this", read_only, prot=READ)
    move_nothing("edu", edu)
    mapped = libc.mmap(0, PAGE, RW, SHARED, edu, 0)
    config = bytearray(os.pread(edu, 2, CONFIG + 4))
    config[0] |= 2
    os.pwrite(edu, config, CONFIG + 4)
    print("edu mapped word:", hex(ctypes.c_uint32.from_address(mapped).value))
    ctypes.c_uint32.from_address(mapped + 4).value = 0x12345678
    # Behind a mapping a model takes its time.
    while (word := os.pread(edu, 4, 4)) == bytes(4):
        pass
    print("edu stored word, inverted:", word[::-1].hex())
    nic = bound(2, iommu)
    for bar in range(6):
        map_(f"e1000e BAR{bar}", nic, offset=bar << 40)
    testdev = bound(5, iommu)
    for bar in range(3):
        map_(f"testdev BAR{bar}", testdev, offset=bar << 40)
    map_("testdev past the last page", testdev, length=2 * PAGE)


def ask_device_of_group(group):
    container = os.open("/dev/vfio/vfio", os.O_RDWR)
    fcntl.ioctl(group, SET_CONTAINER, struct.pack("i", container))
    fcntl.ioctl(container, SET_IOMMU, 3)
    nvme = fcntl.ioctl(group, GET_DEVICE_FD, bytearray(b"0000:01:00.0\0"))
    map_("device of group", nvme)
    map_("device of group, exec", nvme, prot=READ | EXEC)
    map_("device of group, private exec", nvme, prot=READ | EXEC, flags=PRIVATE)
    map_("device of group, past the end exec", nvme, offset=BAR_1, prot=READ | EXEC)
    os.close(nvme)


def ask_others(iommu):
    argument = bytearray(struct.pack("IIII", 16, 0, 0, 0))
    fcntl.ioctl(iommu, FAULT_QUEUE_ALLOC, argument)
    faults = struct.unpack("IIII", argument)[3]
    move_nothing("faults", faults)
    map_("faults", faults)
    map_("faults length 0", faults, length=0)
    map_("faults exec", faults, prot=READ | EXEC)
    map_("faults length 0, exec", faults, length=0, prot=READ | EXEC)
    map_("faults private exec", faults, prot=READ | EXEC, flags=PRIVATE)
    group = os.open("/dev/vfio/9", os.O_RDWR)
    move_nothing("group", group)
    map_("group", group)
    ask_device_of_group(group)
    path = os.open("/dev/iommu", os.O_PATH)
    move_nothing("path", path)
    map_("path", path)
    closed = os.dup(path)
    os.close(closed)
    move_nothing("closed", closed)
    map_("closed", closed)
    directory = os.open("/dev/vfio", os.O_RDONLY)
    move_nothing("directory", directory)
    map_("directory", directory, prot=READ)


iommu = os.open("/dev/iommu", os.O_RDWR)
ask_what_is_never_mapped("iommufd", "/dev/iommu")
ask_what_is_never_mapped("container", "/dev/vfio/vfio")
ask_what_is_never_mapped("unbound", "/dev/vfio/devices/vfio0")
ask_others(iommu)
ask_device(iommu)
