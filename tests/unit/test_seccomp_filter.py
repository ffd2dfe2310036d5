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
READ, MMAP = 0, 9  # of x86-64
MAP_SHARED_VALIDATE, MAP_FIXED = 3, 0x10

# What classic BPF calls them.
LOAD, AND, JUMP_IF_EQUAL, RETURN = 0x20, 0x54, 0x15, 0x06


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
        elif code == AND:
            accumulator &= k
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
        verdict, _ = run(instructions, arch, nr, [3, uapi.VFIO_GROUP_GET_DEVICE_FD, 1])
        assert (verdict == USER_NOTIF) == ((arch, nr) in IOCTLS), (arch, nr)


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
    others = set(range(400)) - {READ, MMAP, 16}
    assert {run(instructions, X86_64, nr)[1] for nr in others} == {13}


def test_a_read_of_nothing_is_noticed(instructions):
    for length, verdict in [(0, USER_NOTIF), (1, ALLOW), (1 << 32, ALLOW), (2**64 - 1, ALLOW)]:
        assert run(instructions, X86_64, READ, [3, 0x1000, length])[0] == verdict
        assert run(instructions, I386, READ, [3, 0x1000, length])[0] == ALLOW


@pytest.mark.parametrize(
    ("flags", "verdict"),
    [
        (mmap.MAP_SHARED, USER_NOTIF),
        (MAP_SHARED_VALIDATE, USER_NOTIF),
        (mmap.MAP_SHARED | MAP_FIXED, USER_NOTIF),
        (mmap.MAP_SHARED | mmap.MAP_ANONYMOUS, ALLOW),
        (mmap.MAP_PRIVATE, ALLOW),
        (mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, ALLOW),
    ],
)
def test_an_mmap_of_a_file_that_shares_it_is_noticed(instructions, flags, verdict):
    assert run(instructions, X86_64, MMAP, [0, 4096, 3, flags, 3, 0])[0] == verdict


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
