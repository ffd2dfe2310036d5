"""A client that does everything at random with our files, argv: mount, seed, number of calls.

It knows the real numbers and shapes, so that much of what it does goes deep, and spoils them: wrong
sizes, junk flags, bad pointers, closed and foreign descriptors, memory that is not there, huge
lengths. What it gets does not matter. With 0 calls it never ends.
"""

import contextlib
import ctypes
import itertools
import mmap
import os
import random
import struct
import sys

MOUNT, SEED, N_CALLS = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
rng = random.Random(SEED)
libc = ctypes.CDLL(None, use_errno=True)
libc.ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p]

memory = mmap.mmap(-1, 1 << 20)
MEMORY = ctypes.addressof(ctypes.c_char.from_buffer(memory))
read_only = mmap.mmap(-1, 4096, prot=mmap.PROT_READ)
memfd = os.memfd_create("memory")
os.ftruncate(memfd, 1 << 20)
eventfd = os.eventfd(0, os.EFD_NONBLOCK)
null = os.open("/dev/null", os.O_RDWR)
NODES = ["iommu", *(f"vfio/devices/vfio{i}" for i in range(7))]
iommufds = [os.open(f"{MOUNT}/dev/iommu", os.O_RDWR)]
devices = [os.open(f"{MOUNT}/dev/vfio/devices/vfio0", os.O_RDWR)]

U64 = [0, 1, 4095, 4096, 8192, 1 << 20, 1 << 32, 1 << 47, 1 << 48, 0xFEE00000, 1 << 63]
U64 += [2**64 - 4096, 2**64 - 2, 2**64 - 1]


def u64():
    return rng.choice((rng.choice(U64), rng.randrange(64) << 12, rng.getrandbits(64)))


def address():
    inside = MEMORY + rng.randrange(256) * 4096
    return rng.choice((inside, inside, inside, 0, 4096, 1 << 46, 2**64 - 4096, MEMORY + 7))


def fd():
    others = (memfd, eventfd, eventfd, null, -1, -2, 999, 2**31 - 1)
    return rng.choice((*iommufds, *iommufds, *devices, *others))


def u32():
    return rng.choice((rng.randrange(12), rng.randrange(12), 1 << 20, 2**31, 2**32 - 1))


def zero():
    """Fields that should be 0."""
    return 0 if rng.random() < 0.9 else rng.choice((1, 2, 2**31))


def small():
    return rng.choice((0, 0, 0, 1, 1, 1, 2, 64)) if rng.random() < 0.9 else u32()


def irq_flags():
    return rng.choice((0x24, 0x24, 0x21, 0x22, 0x09, 0x11, 0x14)) if rng.random() < 0.9 else flags()


def flags():
    return rng.choice((0, 1, 2, 3, 6, 7, 7, 7, 4, 8, 0x21, 0x24, 0x24, 0x11, 0x14, 0x09, 2**31))


# Number: the fields behind the size, as functions that make a value each, with their format.
SHAPES = {
    0x3B80: ("I", [u32]),
    0x3B81: ("II", [zero, u32]),
    0x3B82: ("IIIQ", [u32, lambda: rng.randrange(4), zero, address]),
    0x3B83: ("IIIQQQ", [flags, u32, u32, u64, u64, u64]),
    0x3B84: ("IIIQQ", [u32, u32, zero, address, u64]),
    0x3B85: ("IIIQQQ", [flags, u32, zero, address, u64, u64]),
    0x3B86: ("IQQ", [u32, u64, u64]),
    0x3B87: ("IHHIQ", [u32, lambda: rng.randrange(3), zero, u32, u64]),
    0x3B88: ("IHH", [u32, lambda: rng.randrange(4), zero]),
    0x3B89: ("IIIIIIIQII", [flags, u32, u32, u32, zero, u32, u32, address, u32, u32]),
    0x3B8A: ("IIIQIIQ", [flags, u32, u32, address, u32, zero, u64]),
    0x3B8B: ("III", [flags, u32, u32]),
    0x3B8C: ("IIIQQQQ", [u32, flags, zero, u64, u64, u64, address]),
    0x3B8D: ("IQIIII", [u32, address, u32, u32, u32, zero]),
    0x3B8F: ("IIiQQQ", [flags, u32, fd, u64, u64, u64]),
    0x3B90: ("IIIIIIIQ", [flags, u32, u32, u32, u32, u32, u32, address]),
    0x3B91: ("IIIQ", [u32, u32, u32, u64]),
    0x3B92: ("I", [zero]),
    0x3B6B: ("IIIII", [u32, u32, u32, u32, u32]),
    0x3B6C: ("IIIQQ", [u32, lambda: rng.randrange(11), u32, u64, u64]),
    0x3B6D: ("III", [u32, lambda: rng.randrange(7), u32]),
    0x3B6E: ("IIIIiiii", [irq_flags, lambda: rng.randrange(6), small, small, fd, fd, fd, fd]),
    0x3B6F: ("", []),
    0x3B70: ("II", [u32, u32]),
    0x3B71: ("IIi", [u32, u32, fd]),
    0x3B74: ("IQQiI", [flags, u64, u64, fd, u32]),
    0x3B75: ("IQQ", [lambda: rng.getrandbits(19), u64, u64]),
    0x3B76: ("IiIQ", [zero, fd, u32, address]),
    0x3B77: ("III", [zero, u32, u32]),
    0x3B78: ("II", [zero, u32]),
}  # fmt: skip


def target(number):
    """Mostly a file that knows the number."""
    fitting = iommufds if number & 0xFF >= 0x80 else devices
    return rng.choice(fitting if rng.random() < 0.95 else iommufds + devices)


def call_ioctl():
    number = rng.choice(NUMBERS) if rng.random() < 0.95 else 0x3B00 | rng.randrange(256)
    number = number if rng.random() < 0.98 else rng.getrandbits(32)
    shape, makers = SHAPES.get(number, ("QQ", [u64, u64]))
    fields = (pack(code, make()) for code, make in zip(shape, makers, strict=True))
    body = b"".join(fields)
    size = 4 + len(body)
    if rng.random() < 0.1:
        size = rng.choice((0, 8, 4096, 2**32 - 1, u32()))
    payload = pack("I", size) + body
    at = rng.randrange(0, (1 << 20) - 4096)
    memory[at : at + len(payload)] = payload
    arg = MEMORY + at if rng.random() < 0.95 else rng.choice((address(), MEMORY + (1 << 20) - 8))
    libc.ioctl(target(number), number, ctypes.c_void_p(arg))


def pack(code, value):
    bits = {"H": 16, "I": 32, "Q": 64}.get(code)
    value = value & (1 << bits) - 1 if bits else max(min(value, 2**31 - 1), -(2**31))
    return struct.pack(f"<{code}", value)


def open_or_close():
    files, names = rng.choice(((iommufds, NODES[:1]), (devices, NODES[1:])))
    if len(files) > 1 and (len(files) > 6 or rng.random() < 0.4):
        os.close(files.pop(rng.randrange(len(files))))
    else:
        files.append(os.open(f"{MOUNT}/dev/{rng.choice(names)}", os.O_RDWR))


def read_or_write():
    offset = (rng.randrange(11) << 40) + rng.choice(
        (0, 4, 0x60, 0x80, 0x98, 2, 3, rng.getrandbits(20))
    )
    length = rng.choice((1, 2, 4, 8, 3, 64, 4096, 1 << 17))
    with contextlib.suppress(OSError):
        if rng.random() < 0.5:
            os.pread(rng.choice(devices), length, offset)
        else:
            os.pwrite(rng.choice(devices), rng.randbytes(length), offset)


def map_region():
    offset, at = rng.randrange(9) << 40, rng.randrange(1024) * 4
    with (
        contextlib.suppress(OSError, ValueError),
        mmap.mmap(rng.choice(devices), 4096, offset=offset) as mapped,
    ):
        mapped[at : at + 4] = rng.randbytes(4)


# Those first that the rest needs: address spaces, bound devices, attachments, mappings.
NUMBERS = [*SHAPES, *[0x3B81, 0x3B85, 0x3B8F, 0x3B76, 0x3B77] * 4]
WORK = [call_ioctl] * 20 + [open_or_close] + [read_or_write] * 3 + [map_region]
print("begun", flush=True)
for _ in range(N_CALLS) if N_CALLS else itertools.count():
    rng.choice(WORK)()
