"""The native core through its binding: one mapping, one domain, DMA both ways."""

import errno
import mmap
import os

import pytest

from iommufs._native import ffi, lib

RW = lib.IOFS_READ | lib.IOFS_WRITE
PAGE = 4096


def address_of(memory: mmap.mmap) -> int:
    return int(ffi.cast("uintptr_t", ffi.from_buffer(memory)))


def counts() -> dict[str, int]:
    stats = ffi.new("struct iofs_stats *")
    lib.iofs_statistics(stats)
    names = [name for name, _ in ffi.typeof("struct iofs_stats").fields]
    return {name: getattr(stats, name) for name in names}


@pytest.fixture
def space():
    """An iopt, the handle of our own memory, and a check that nothing stays behind."""
    before = counts()
    out = ffi.new("struct iofs_mm **")
    assert lib.iofs_mm_open_process(os.getpid(), out) == 0
    iopt = lib.iofs_iopt_new()
    yield iopt, out[0]
    lib.iofs_iopt_free(iopt)
    lib.iofs_mm_put(out[0])
    assert counts() == before


@pytest.fixture
def domain():
    config = ffi.new("struct iofs_domain_config *", [0, (1 << 48) - 1, 0x40201000])
    out = ffi.new("struct iofs_domain **")
    assert lib.iofs_domain_new(config, out) == 0
    yield out[0]
    lib.iofs_domain_put(out[0])


def map_memory(space, memory: mmap.mmap, iova: int) -> int:
    charge = ffi.new("struct iofs_charge *")
    where = ffi.new("uint64_t *", iova)
    iopt, mm = space
    return lib.iofs_iopt_map_user(iopt, mm, charge, address_of(memory), len(memory), RW, 1, where)


@pytest.mark.parametrize("flags", [mmap.MAP_PRIVATE, mmap.MAP_SHARED], ids=["private", "shared"])
def test_a_device_reads_and_writes_client_memory(space, domain, flags):
    memory = mmap.mmap(-1, 2 * PAGE, flags | mmap.MAP_ANONYMOUS)
    fault = ffi.new("struct iofs_dma_fault *")
    assert map_memory(space, memory, 0x100000) == 0
    assert lib.iofs_iopt_add_domain(space[0], domain) == 0
    assert counts()["pinned_pages"] == 2

    memory[PAGE - 2 : PAGE + 2] = b"abcd"
    buf = ffi.new("char[]", 4)
    assert lib.iofs_dma_read(domain, 0x100000 + PAGE - 2, buf, 4, fault) == 0
    assert ffi.buffer(buf)[:] == b"abcd"
    assert lib.iofs_dma_write(domain, 0x100000 + PAGE - 1, b"XYZ", 3, fault) == 0
    assert memory[PAGE - 2 : PAGE + 2] == b"aXYZ"

    assert lib.iofs_dma_read(domain, 0x100000 + 2 * PAGE - 1, buf, 2, fault) == -errno.EFAULT
    assert (fault.iova, fault.write, fault.reason) == (
        0x100000 + 2 * PAGE,
        0,
        lib.IOFS_DMA_UNMAPPED,
    )
    lib.iofs_iopt_remove_domain(space[0], domain)
    assert counts()["pinned_pages"] == 0


def test_a_domain_over_a_hole_is_efault(space, domain):
    memory = mmap.mmap(-1, PAGE, prot=mmap.PROT_READ)
    assert map_memory(space, memory, 0x100000) == 0
    assert lib.iofs_iopt_add_domain(space[0], domain) == -errno.EFAULT
    assert lib.iofs_iopt_alignment(space[0]) == 1
