"""Random calls to two address spaces, made on a real /dev/iommu or on the native core.

    iopt_calls.py linux|core SEED N

prints one line for each call: its result (a negative errno) and what came back. The calls follow
from the seed alone, so two runs can be compared line by line: tests/data/iopt_linux_7.3.txt is what
Linux said, with /dev/vfio/devices/vfio1 behind an Intel IOMMU of 48 bits. This file needs nothing
but Python to run there. Memory lies at fixed addresses; the process is used up by a run.
"""

import ctypes
import errno
import itertools
import os
import struct
import sys

PAGE = 4096
U64_MAX = 2**64 - 1
MEMORY = 0x10000000000  # 1024 pages: 300-309 are no memory, 400-419 read-only, 500-599 shared
FIXED, WRITEABLE, READABLE = 1, 2, 4

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [
    *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p]


class Random:
    """splitmix64: the same everywhere and for ever."""

    def __init__(self, seed):
        self.state = seed

    def __call__(self, n):
        z = self.state = (self.state + 0x9E3779B97F4A7C15) & U64_MAX
        z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & U64_MAX
        z = ((z ^ z >> 27) * 0x94D049BB133111EB) & U64_MAX
        return (z ^ z >> 31) % n

    def of(self, *choices):
        return choices[self(len(choices))]


class Calls:
    """The calls of a seed. For a while they are page aligned, then for a while they are not."""

    def __init__(self, seed):
        self.random = Random(seed)
        self.odd = False

    def __iter__(self):
        while True:
            if self.random(40) == 0:
                self.odd = not self.odd
            yield self.one()

    def length(self):
        if self.odd and self.random(10) < 6:
            return self.random.of(1, 16, 100, 0x800, 0x801, 0x1001) + self.random(2)
        return self.random.of(1, 1, 1, 2, 2, 3, 4, 8, 16, 512) * PAGE

    def iova(self):
        near = (0xFEDFF000, 0xFEE00000, 0xFEEFE000, 0xFEF00000)  # the MSI window
        far = (2**48 - PAGE, 2**48 - 2 * PAGE, 2**48, 2**64 - 2 * PAGE, 2**64 - PAGE)
        iova = self.random(64) * PAGE
        if self.random(4) == 0:
            iova = self.random.of(*near, *far, 0x200000, 0x400000)
        if self.odd and self.random(3):
            iova += self.random.of(1, 8, 0x10, 0x800, 0xFFF)
        return iova

    def address(self):
        address = MEMORY + self.random(1100) * PAGE
        if self.random(20) == 0:
            address = self.random.of(0, PAGE, 1 << 47, 1 << 63)
        if self.odd and self.random(3):
            address += self.random.of(1, 8, 0x10, 0x800, 0x810, 0xFFF, 0xA00)
        if self.random(9) == 0:
            address &= ~0x1FFFFF
        return address

    def flags(self):
        prot = self.random.of(6, 6, 6, READABLE, WRITEABLE, READABLE)
        return prot | (FIXED if self.random(3) == 0 else 0)

    def ranges(self):
        starts = [self.iova() for _ in range(self.random(4))]
        return [
            (start, min(start + max(self.length() * self.random(20) - self.random(2), 0), U64_MAX))
            for start in starts
        ]

    def one(self):
        i, kind = self.random(2), self.random(100)
        if kind < 30:
            return "map", i, self.flags(), self.address(), self.length(), self.iova()
        if kind < 36:
            start = self.random.of(0, 0x1000, 0x2000, 0x10, 0x1FFFFF)
            file = self.random(4)
            return "map_file", i, self.flags(), file, start, self.length(), self.iova()
        if kind < 56:
            return "unmap", i, self.iova(), self.length()
        if kind < 62:
            start = self.random.of(0, 0x8000, 0x20000)
            return "unmap", i, start, self.random.of(0x8000, 0x20000, 0x1000000, 1 << 40)
        if kind < 78:
            to = self.random(2)
            return "copy", i, to, self.flags(), self.iova(), self.iova(), self.length()
        if kind < 83:
            return "allow", i, self.ranges()
        if kind < 88:
            return "holes", i
        if kind < 90:
            return "huge_pages", i, 0 if self.random(3) == 0 else 1
        if kind < 92:
            return "unmap_all", i
        return ("attach", i) if kind < 96 else ("detach",)


def prepare():
    """The memory, and the files to map: large, small, no memory, none."""
    private, shared, fixed = 0x22, 0x21, 0x10

    def place(first, n, flags):
        at = MEMORY + first * PAGE
        assert libc.mmap(at, n * PAGE, 3, flags | fixed, -1, 0) == at

    place(0, 1024, private)
    libc.munmap(MEMORY + 300 * PAGE, 10 * PAGE)
    libc.mprotect(MEMORY + 400 * PAGE, 20 * PAGE, 1)
    place(500, 100, shared)
    large, small = os.memfd_create("large"), os.memfd_create("small")
    os.ftruncate(large, 0x200000)
    os.ftruncate(small, 0x1800)
    return [large, small, os.open("/dev/zero", os.O_RDWR), -1]


class Linux:
    """A real /dev/iommu and a device."""

    def __init__(self):
        self.files = prepare()
        self.fd = os.open("/dev/iommu", os.O_RDWR)
        self.ids = [self.ioctl(0x3B81, "III", 12, 0, 0)[1][2] for _ in range(2)]
        self.device = os.open("/dev/vfio/devices/vfio1", os.O_RDWR)
        assert self.ioctl(0x3B76, "IIiI", 16, 0, self.fd, 0, fd=self.device)[0] == 0

    def ioctl(self, cmd, fields, *values, fd=None):
        buf = ctypes.create_string_buffer(struct.pack(fields, *values), struct.calcsize(fields))
        result = libc.ioctl(self.fd if fd is None else fd, cmd, buf)
        return -ctypes.get_errno() if result < 0 else result, struct.unpack(fields, buf.raw)

    def map(self, i, flags, address, length, iova):
        fields = 40, flags, self.ids[i], 0, address, length, iova
        result, out = self.ioctl(0x3B85, "IIIIQQQ", *fields)
        return result, out[6]

    def map_file(self, i, flags, file, start, length, iova):
        fields = 40, flags, self.ids[i], self.files[file], start, length, iova
        result, out = self.ioctl(0x3B8F, "IIIiQQQ", *fields)
        return result, out[6]

    def copy(self, i, to, flags, src_iova, dst_iova, length):
        fields = 40, flags, self.ids[to], self.ids[i], length, dst_iova, src_iova
        result, out = self.ioctl(0x3B83, "IIIIQQQ", *fields)
        return result, out[5]

    def unmap(self, i, iova, length):
        result, out = self.ioctl(0x3B86, "IIQQ", 24, self.ids[i], iova, length)
        return result, out[3]

    def unmap_all(self, i):
        return self.unmap(i, 0, U64_MAX)

    def allow(self, i, ranges):
        array = (ctypes.c_uint64 * (2 * len(ranges) + 1))(*sum(ranges, ()))
        fields = 24, self.ids[i], len(ranges), 0, ctypes.addressof(array)
        return self.ioctl(0x3B82, "IIIIQ", *fields)[0], None

    def holes(self, i):
        array = (ctypes.c_uint64 * 64)()
        fields = 32, self.ids[i], 32, 0, ctypes.addressof(array), 0
        result, out = self.ioctl(0x3B84, "IIIIQQ", *fields)
        return result, [out[5], *array[: 2 * out[2]]]

    def huge_pages(self, i, value):
        return self.ioctl(0x3B87, "IIHHIQ", 24, 1, 0, 0, self.ids[i], value)[0], None

    def attach(self, i):
        return self.ioctl(0x3B77, "III", 12, 0, self.ids[i], fd=self.device)[0], None

    def detach(self):
        return self.ioctl(0x3B78, "II", 8, 0, fd=self.device)[0], None


class Core:
    """Two iopts of the native core, and what iommufd does before it asks them."""

    DEVICE = 1  # owns the reserved range

    def __init__(self):
        from iommufs._native import ffi, lib

        self.ffi, self.lib, self.files = ffi, lib, prepare()
        out = ffi.new("struct iofs_mm **")
        assert lib.iofs_mm_open_process(os.getpid(), out) == 0
        self.source = out[0], ffi.new("struct iofs_charge *")
        self.iopts = [lib.iofs_iopt_new() for _ in range(2)]
        self.attached = None

    @staticmethod
    def prot(flags):
        return (1 if flags & READABLE else 0) | (2 if flags & WRITEABLE else 0)

    def place(self, function, i, flags, *source, length, iova):
        if U64_MAX in (length, iova):
            return -errno.EOVERFLOW, None
        out = self.ffi.new("uint64_t *", iova)
        prot = self.prot(flags)
        return function(
            self.iopts[i], *self.source, *source, length, prot, flags & FIXED, out
        ), out[0]

    def map(self, i, flags, address, length, iova):
        return self.place(self.lib.iofs_iopt_map_user, i, flags, address, length=length, iova=iova)

    def map_file(self, i, flags, file, start, length, iova):
        source = self.files[file], start
        return self.place(self.lib.iofs_iopt_map_file, i, flags, *source, length=length, iova=iova)

    def copy(self, i, to, flags, src_iova, dst_iova, length):
        if U64_MAX in (length, src_iova, dst_iova):
            return -errno.EOVERFLOW, None
        pieces = self.ffi.new("struct iofs_piece_list **")
        out = self.ffi.new("uint64_t *", dst_iova)
        result = self.lib.iofs_iopt_get_pieces(self.iopts[i], src_iova, length, pieces)
        if result == 0:
            prot, fixed = self.prot(flags), flags & FIXED
            result = self.lib.iofs_iopt_map_pieces(self.iopts[to], pieces[0], prot, fixed, out)
            self.lib.iofs_piece_list_free(pieces[0])
        return result, out[0]

    def unmap(self, i, iova, length):
        if U64_MAX in (iova, length):
            return -errno.EOVERFLOW, None
        out, pinned = self.ffi.new("uint64_t *"), self.ffi.new("struct iofs_range *")
        result = self.lib.iofs_iopt_unmap(self.iopts[i], iova, length, out, pinned)
        return result if result or out[0] else -errno.ENOENT, out[0]

    def unmap_all(self, i):
        out, pinned = self.ffi.new("uint64_t *"), self.ffi.new("struct iofs_range *")
        return self.lib.iofs_iopt_unmap_all(self.iopts[i], out, pinned), out[0]

    def allow(self, i, ranges):
        array = self.ffi.new("struct iofs_range[]", [list(pair) for pair in ranges])
        return self.lib.iofs_iopt_set_allowed(self.iopts[i], array, len(ranges)), None

    def holes(self, i):
        array = self.ffi.new("struct iofs_range[]", 32)
        n = self.lib.iofs_iopt_holes(self.iopts[i], array, 32)
        flat = [number for hole in array[0:n] for number in (hole.start, hole.last)]
        return 0, [self.lib.iofs_iopt_alignment(self.iopts[i]), *flat]

    def huge_pages(self, i, value):
        return self.lib.iofs_iopt_set_huge_pages(self.iopts[i], value), None

    def attach(self, i):
        iopt, out = self.iopts[i], self.ffi.new("struct iofs_domain **")
        result = self.lib.iofs_iopt_reserve(iopt, 0xFEE00000, 0xFEEFFFFF, self.DEVICE)
        if result < 0:
            return result, None
        config = self.ffi.new("struct iofs_domain_config *", [0, 2**48 - 1, 0x40201000])
        assert self.lib.iofs_domain_new(config, out) == 0
        result = self.lib.iofs_iopt_add_domain(iopt, out[0])
        self.attached = iopt, out[0]
        if result < 0:
            self.leave()
        return result, None

    def leave(self):
        iopt, domain = self.attached
        self.lib.iofs_iopt_remove_reserved(iopt, self.DEVICE)
        self.lib.iofs_domain_put(domain)
        self.attached = None

    def detach(self):
        if self.attached:
            self.lib.iofs_iopt_remove_domain(*self.attached)
            self.leave()
        return 0, None


def run(target, seed, n):
    """Make n calls; one line for each."""
    attached = False
    for name, *args in itertools.islice(Calls(seed), n):
        if name == "attach" and attached:
            continue  # it would be a replace, which is no business of an address space
        result, out = getattr(target, name)(*args)
        if name in ("attach", "detach"):
            attached = name == "attach" and result == 0
        yield f"{result}" if result < 0 or out is None else f"{result} {out}"


if __name__ == "__main__":
    for line in run(
        {"linux": Linux, "core": Core}[sys.argv[1]](), int(sys.argv[2]), int(sys.argv[3])
    ):
        print(line)
