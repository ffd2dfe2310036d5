"""The filter of a run, instruction by instruction: which system calls it notices."""

import itertools
import mmap
import random
import struct

import pytest

from iommufs import seccomp, uapi
from iommufs._native import ffi, lib

ALLOW, USER_NOTIF = 0x7FFF0000, 0x7FC00000
X86_64, I386, AARCH64 = 0xC000003E, 0x40000003, 0xC00000B7
X32 = 0x40000000
IOCTLS = {(X86_64, 16), (X86_64, X32 | 514), (I386, 54)}
E2BIG = 7
READ, WRITE, MMAP, PREAD, PWRITE = 0, 1, 9, 17, 18  # of x86-64
TRANSFERS = READ, WRITE, PREAD, PWRITE
LSEEK, FSTAT, FSTATAT, STATX = 8, 5, 262, 332
# Always noticed: lseek and fstat, and those of the other tables.
ALWAYS = {
    *((X86_64, x32 | nr) for x32 in (0, X32) for nr in (LSEEK, FSTAT)),
    *((I386, nr) for nr in (19, 140, 197)),
}
# With AT_EMPTY_PATH: (the call, which argument has the flags).
WITH_FLAG = {
    *((X86_64, x32 | nr, arg) for x32 in (0, X32) for nr, arg in ((FSTATAT, 3), (STATX, 2))),
    *((I386, nr, arg) for nr, arg in ((300, 3), (383, 2))),
}
AT_SYMLINK_NOFOLLOW, AT_EMPTY_PATH, MAP_DENYWRITE = 0x100, 0x1000, 0x800
MAP_SHARED_VALIDATE, MAP_FIXED = 3, 0x10

# What classic BPF calls them.
LOAD, JUMP_IF_EQUAL, JUMP_IF_SET, RETURN = 0x20, 0x15, 0x45, 0x06


def program(requests):
    out = ffi.new("struct iofs_bpf[128]")
    length = lib.iofs_seccomp_program(requests, len(requests), out, 128)
    assert length > 0
    return [(word.code, word.jt, word.jf, word.k) for word in out[0:length]]


def run(instructions, arch, nr, args=()):
    """The filter's verdict, and how many instructions it took."""
    args = [*args, *[0] * (6 - len(args))]
    data = struct.pack("=IIQ6Q", nr & 0xFFFFFFFF, arch, 0x400000, *args)
    accumulator, at = 0, 0
    for step in itertools.count(1):
        code, then, otherwise, k = instructions[at]
        at += 1
        if code == LOAD:
            accumulator = struct.unpack_from("=I", data, k)[0]
        elif code == JUMP_IF_SET:
            at += then if accumulator & k else otherwise
        elif code == JUMP_IF_EQUAL:
            at += then if accumulator == k else otherwise
        else:
            assert code == RETURN
            return k, step


@pytest.fixture(scope="module")
def instructions():
    return program(seccomp.REQUESTS)


@pytest.mark.parametrize("arch", [X86_64, I386, AARCH64, 0])
def test_of_other_calls_no_argument_is_looked_at(instructions, arch):
    for nr in [*range(1024), *range(X32, X32 + 1024), -1]:
        args = [3, uapi.VFIO_GROUP_GET_DEVICE_FD, 1, mmap.MAP_ANONYMOUS]
        verdict, _ = run(instructions, arch, nr, args)
        assert (verdict == USER_NOTIF) == ((arch, nr) in IOCTLS | ALWAYS), (arch, nr)


@pytest.mark.parametrize(("arch", "nr"), sorted(IOCTLS))
def test_only_the_given_requests_are_noticed(instructions, arch, nr):
    for request in range(1 << 16):
        verdict, _ = run(instructions, arch, nr, [3, request])
        assert (verdict == USER_NOTIF) == (request in seccomp.REQUESTS), hex(request)


def test_upper_half_of_the_request_is_as_invisible_as_to_the_kernel(instructions):
    request = 0xDEADBEEF << 32 | uapi.IOMMU_FAULT_QUEUE_ALLOC
    assert run(instructions, X86_64, 16, [3, request])[0] == USER_NOTIF
    request = uapi.IOMMU_FAULT_QUEUE_ALLOC << 32
    assert run(instructions, X86_64, 16, [3, request])[0] == ALLOW


def test_other_arguments_do_not_matter(instructions):
    generator = random.Random(1)
    for _ in range(200):
        others = [generator.getrandbits(64) for _ in range(5)]
        args = [others[0], uapi.IOMMU_VEVENTQ_ALLOC, *others[1:]]
        assert run(instructions, X86_64, 16, args)[0] == USER_NOTIF


def test_other_calls_take_a_fixed_few_instructions(instructions):
    """Linux answers those that look at arch and nr alone from a bitmap, without running them."""
    others = set(range(400)) - {*TRANSFERS, MMAP, LSEEK, FSTAT, FSTATAT, STATX, 16}
    assert len({run(instructions, X86_64, nr)[1] for nr in others}) == 1


@pytest.mark.parametrize("nr", TRANSFERS)
def test_a_read_or_write_of_nothing_is_noticed(instructions, nr):
    for length, verdict in [(0, USER_NOTIF), (1, ALLOW), (1 << 32, ALLOW), (2**64 - 1, ALLOW)]:
        assert run(instructions, X86_64, nr, [3, 0x1000, length])[0] == verdict
        assert run(instructions, I386, nr, [3, 0x1000, length])[0] == ALLOW


@pytest.mark.parametrize(
    ("flags", "verdict"),
    [
        (mmap.MAP_SHARED, USER_NOTIF),
        (MAP_SHARED_VALIDATE, USER_NOTIF),
        (mmap.MAP_SHARED | MAP_FIXED, USER_NOTIF),
        (mmap.MAP_SHARED | mmap.MAP_ANONYMOUS, ALLOW),
        (mmap.MAP_PRIVATE, USER_NOTIF),
        (mmap.MAP_PRIVATE | MAP_DENYWRITE, ALLOW),  # as ld.so maps a library, and the rest of it
        (mmap.MAP_PRIVATE | MAP_FIXED | MAP_DENYWRITE, ALLOW),
        (mmap.MAP_PRIVATE | MAP_FIXED, ALLOW),
        (mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, ALLOW),
        (mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_FIXED, ALLOW),
    ],
)
def test_an_mmap_of_a_file_is_noticed_unless_it_is_a_loaders(instructions, flags, verdict):
    assert run(instructions, X86_64, MMAP, [0, 4096, 3, flags, 3, 0])[0] == verdict


@pytest.mark.parametrize(("arch", "nr", "argument"), sorted(WITH_FLAG))
def test_attributes_are_noticed_where_a_descriptor_may_be_meant(instructions, arch, nr, argument):
    for flags, verdict in [
        (0, ALLOW),
        (AT_SYMLINK_NOFOLLOW, ALLOW),
        (AT_EMPTY_PATH, USER_NOTIF),
        (AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW, USER_NOTIF),
        (0xFFFFFFFF, USER_NOTIF),
    ]:
        args = [3, 0x1000, 0, 0]
        args[argument] = flags
        assert run(instructions, arch, nr, args)[0] == verdict


@pytest.mark.parametrize("n", [0, 1, 64])
def test_any_number_of_requests(n):
    requests = list(range(0x3B00, 0x3B00 + n))
    instructions = program(requests)
    noticed = [
        r for r in range(0x3A00, 0x3C00) if run(instructions, X86_64, 16, [0, r])[0] != ALLOW
    ]
    assert noticed == requests


def test_too_many_requests_are_refused():
    out = ffi.new("struct iofs_bpf[128]")
    assert lib.iofs_seccomp_program([0] * 65, 65, out, 128) == -E2BIG
    assert lib.iofs_seccomp_program([0] * 8, 8, out, 8) == -E2BIG
