"""IOMMU_IOAS_COPY."""

import pytest

from iommufs import uapi
from tests.contract.client import FIXED, PAGE, READ, RW, U64_MAX, WRITE, refused

KIND = uapi.IOMMU_IOAS_COPY, "iommu_ioas_copy"


@pytest.fixture
async def source(client, file, memory):
    """An IOAS with 4 pages at 0x100000, 1 more right behind them, a read-only one at 0x200000."""
    ioas = await client.ioas_alloc(file)
    await client.map(file, ioas, memory.address, 4 * PAGE, 0x100000)
    await client.map(file, ioas, memory.address + 8 * PAGE, PAGE, 0x104000)
    await client.map(file, ioas, memory.address, PAGE, 0x200000, READ)
    return ioas


async def copy(client, file, dst, src, length, dst_iova, src_iova, flags=RW):
    if dst_iova is not None:
        flags |= FIXED
    cmd = await client.call(
        file,
        *KIND,
        dst_ioas_id=dst,
        src_ioas_id=src,
        length=length,
        dst_iova=dst_iova or 0,
        src_iova=src_iova,
        flags=flags,
    )
    return cmd.dst_iova


async def test_any_part_of_neighbouring_mappings(client, file, ioas, source):
    for iova, pages in [(0x100000, 4), (0x101000, 1), (0x103000, 2), (0x100000, 5)]:
        await copy(client, file, ioas, source, pages * PAGE, iova, iova)
        assert await client.unmap(file, ioas, 0, U64_MAX) == pages * PAGE


async def test_each_mapping_of_the_source_becomes_one_of_the_destination(
    client, file, ioas, source
):
    await copy(client, file, ioas, source, 5 * PAGE, 0x500000, 0x100000)
    with refused("ENOENT"):
        await client.unmap(file, ioas, 0x501000, 3 * PAGE)
    assert await client.unmap(file, ioas, 0x500000, 4 * PAGE) == 4 * PAGE
    assert await client.unmap(file, ioas, 0x504000, PAGE) == PAGE


async def test_the_source_may_go(client, file, ioas, source):
    await copy(client, file, ioas, source, 4 * PAGE, 0, 0x100000)
    await client.destroy(file, source)
    bound = await client.bind(file, 1)
    await bound.attach(ioas)


async def test_an_automatic_iova_is_as_aligned_as_the_memory(client, file, ioas, source, memory):
    aligned = -memory.address % (4 * PAGE)
    await client.map(file, source, memory.address + aligned, 4 * PAGE, 0x300000)
    assert await copy(client, file, ioas, source, 4 * PAGE, None, 0x300000) == 0x4000
    assert await copy(client, file, ioas, source, PAGE, None, 0x302000) == 0x1000


async def test_within_one_ioas(client, file, source):
    await copy(client, file, source, source, 4 * PAGE, 0x400000, 0x100000)
    with refused("EEXIST"):
        await copy(client, file, source, source, 4 * PAGE, 0x102000, 0x100000)


async def test_a_gap_in_the_source_is_enoent(client, file, ioas, source):
    for iova, pages in [(0x900000, 1), (0x104000, 2), (0xFF000, 2)]:
        with refused("ENOENT"):
            await copy(client, file, ioas, source, pages * PAGE, 0x10000, iova)


async def test_an_overlap_is_eexist_and_nothing_of_it_stays(client, file, ioas, source):
    await copy(client, file, ioas, source, PAGE, 0x504000, 0x100000)
    with refused("EEXIST"):
        await copy(client, file, ioas, source, 5 * PAGE, 0x500000, 0x100000)
    assert await client.unmap(file, ioas, 0, U64_MAX) == PAGE


async def test_write_access_cannot_be_gained(client, file, ioas, source):
    for flags in (RW, WRITE):
        with refused("EPERM"):
            await copy(client, file, ioas, source, PAGE, 0x10000, 0x200000, flags)
    await copy(client, file, ioas, source, PAGE, 0x10000, 0x200000, READ)
    await copy(client, file, ioas, source, PAGE, 0x20000, 0x100000, WRITE)


async def test_memory_counts_with_a_page_table_only(client, file, ioas, domains, source, memory):
    memory.protect(2, 0)
    if domains:
        with refused("EFAULT"):
            await copy(client, file, ioas, source, 5 * PAGE, 0x500000, 0x100000)
    else:
        await copy(client, file, ioas, source, 5 * PAGE, 0x500000, 0x100000)
    assert await client.unmap(file, ioas, 0, U64_MAX) == PAGE * (0 if domains else 5)


async def test_alignment_counts_with_a_page_table_only(client, file, ioas, domains, source):
    for src_iova, length in [(0x100800, PAGE), (0x100000, 100)]:
        if domains:
            with refused("EINVAL"):
                await copy(client, file, ioas, source, length, 0x10000, src_iova)
        else:
            await copy(client, file, ioas, source, length, 0x10000, src_iova)
            await client.unmap(file, ioas, 0, U64_MAX)


async def test_errors_come_in_order(client, file, ioas, source):
    top = U64_MAX - PAGE + 1
    with refused("EOPNOTSUPP"):
        await client.call(file, *KIND, flags=8, length=U64_MAX)
    for name in ("length", "src_iova", "dst_iova"):
        with refused("EOVERFLOW"):
            await client.call(file, *KIND, **{name: U64_MAX})
    with refused("EINVAL"):
        await client.call(file, *KIND, src_ioas_id=9999, flags=FIXED)
    with refused("ENOENT"):
        await copy(client, file, 9999, 9999, 0, 0, 0)
    with refused("EINVAL"):
        await copy(client, file, 9999, source, 0, 0, 0x900000)
    with refused("EOVERFLOW"):
        await copy(client, file, 9999, source, 2 * PAGE, 0, top)
    with refused("ENOENT"):
        await copy(client, file, 9999, source, PAGE, top, 0x100000)
    with refused("EOVERFLOW"):
        await copy(client, file, ioas, source, 2 * PAGE, top, 0x100000)
