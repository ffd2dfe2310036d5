"""IOMMU_IOAS_UNMAP."""

import pytest

from iommufs import uapi
from iommufs._native import ffi
from tests.contract.client import PAGE, U64_MAX, refused


@pytest.fixture
async def mapped(client, file, ioas, memory):
    """2 pages at 0x10000, 2 right behind them, 1 after a gap of one."""
    for iova, pages in [(0x10000, 2), (0x12000, 2), (0x15000, 1)]:
        await client.map(file, ioas, memory.address, pages * PAGE, iova)
    return ioas


async def test_whole_mappings(client, file, mapped):
    assert await client.unmap(file, mapped, 0x12000, 2 * PAGE) == 2 * PAGE
    assert await client.unmap(file, mapped, 0x10000, 2 * PAGE) == 2 * PAGE
    assert await client.unmap(file, mapped, 0x15000, PAGE) == PAGE


async def test_holes_in_the_range_do_not_matter(client, file, mapped):
    assert await client.unmap(file, mapped, 0xF123, 0x10000) == 5 * PAGE


async def test_a_part_of_a_mapping_is_enoent(client, file, mapped):
    for iova, length in [(0x10000, PAGE), (0x11000, PAGE), (0x10800, PAGE), (0x15000, 1)]:
        with refused("ENOENT"):
            await client.unmap(file, mapped, iova, length)
    assert await client.unmap(file, mapped, 0, U64_MAX) == 5 * PAGE


async def test_what_lies_before_the_part_is_gone_all_the_same(client, file, mapped):
    with refused("ENOENT"):
        await client.unmap(file, mapped, 0x10000, 3 * PAGE)
    with refused("ENOENT"):
        await client.unmap(file, mapped, 0x10000, 2 * PAGE)
    assert await client.unmap(file, mapped, 0, U64_MAX) == 3 * PAGE


async def test_on_failure_the_length_is_not_written(client, file, mapped, memory):
    cmd = uapi.new("iommu_ioas_unmap", size=24, ioas_id=mapped, iova=0x10000, length=3 * PAGE)
    raw = bytes(ffi.buffer(cmd))
    address = memory.write(0, raw)
    with refused("ENOENT"):
        await client.ioctl(file, uapi.IOMMU_IOAS_UNMAP, address)
    assert memory[0:24] == raw


async def test_nothing_mapped_is_enoent_unless_all_is_unmapped(client, file, ioas):
    for iova, length in [(0, 1), (0x10000, PAGE), (0, U64_MAX - 1)]:
        with refused("ENOENT"):
            await client.unmap(file, ioas, iova, length)
    assert await client.unmap(file, ioas, 0, U64_MAX) == 0


async def test_all(client, file, mapped):
    assert await client.unmap(file, mapped, 0, U64_MAX) == 5 * PAGE
    assert await client.unmap(file, mapped, 0, U64_MAX) == 0


async def test_errors_come_in_order(client, file, mapped):
    with refused("ENOENT"):
        await client.unmap(file, 9999, U64_MAX, U64_MAX)
    for iova, length in [(U64_MAX, 0), (U64_MAX, 1), (PAGE, U64_MAX), (1, U64_MAX)]:
        with refused("EOVERFLOW"):
            await client.unmap(file, mapped, iova, length)
    with refused("EINVAL"):
        await client.unmap(file, mapped, U64_MAX - 1, 0)
    with refused("EOVERFLOW"):
        await client.unmap(file, mapped, U64_MAX - 1, 3)
    with refused("ENOENT"):
        await client.unmap(file, mapped, U64_MAX - 1, 2)
