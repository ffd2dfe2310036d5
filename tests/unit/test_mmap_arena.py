"""The file behind what clients map through an iommufd."""

import os

from iommufs.iommufd.mmap import Arena
from iommufs.limits import PAGE_SIZE as PAGE


def test_lowest_offsets_first():
    arena = Arena()
    assert [arena.allocate(n * PAGE) for n in (2, 1, 3)] == [PAGE, 3 * PAGE, 4 * PAGE]
    arena.free(PAGE)
    assert arena.allocate(3 * PAGE) == 7 * PAGE
    assert arena.allocate(PAGE) == PAGE
    assert arena.allocate(PAGE) == 2 * PAGE
    assert os.fstat(arena.fd).st_size == 10 * PAGE


def test_memory_is_zero_again():
    arena = Arena()
    offset = arena.allocate(PAGE)
    os.pwrite(arena.fd, b"secret", offset)
    arena.free(offset)
    assert arena.allocate(PAGE) == offset
    assert os.pread(arena.fd, PAGE, offset) == bytes(PAGE)
