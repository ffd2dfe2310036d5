"""IOMMU_IOAS_MAP."""

import mmap

import pytest

from iommufs import uapi
from iommufs._native import ffi
from tests.contract.client import FIXED, PAGE, READ, RW, U64_MAX, WRITE, refused

KIND = uapi.IOMMU_IOAS_MAP, "iommu_ioas_map"


async def mapped_bytes(client, file, ioas):
    """Unmaps all."""
    return await client.unmap(file, ioas, 0, U64_MAX)


@pytest.mark.parametrize("flags", [READ, WRITE, RW])
async def test_a_fixed_iova_is_kept(client, file, ioas, memory, flags):
    for iova in (0, 0x10000, 0x7FFF0000, 0xFFFF_FFFF_F000):
        assert await client.map(file, ioas, memory.address, PAGE, iova, flags) == iova
    assert await mapped_bytes(client, file, ioas) == 4 * PAGE


async def test_errors_come_in_order(client, file, memory, ioas):
    good = {"user_va": memory.address, "length": PAGE, "iova": 0x10000}
    bad = {"ioas_id": 9999, "user_va": U64_MAX, "length": U64_MAX, "iova": U64_MAX}
    with refused("EOPNOTSUPP"):
        await client.call(file, *KIND, **bad, flags=8)
    with refused("EOPNOTSUPP"):
        await client.call(file, *KIND, **bad, __reserved=1)
    with refused("EOVERFLOW"):
        await client.call(file, *KIND, **good | {"ioas_id": 9999, "iova": U64_MAX})
    with refused("EOVERFLOW"):
        await client.call(file, *KIND, **good | {"ioas_id": 9999, "length": U64_MAX})
    with refused("EINVAL"):
        await client.call(file, *KIND, **good, ioas_id=9999, flags=FIXED)
    with refused("ENOENT"):
        await client.call(file, *KIND, **good | {"user_va": U64_MAX}, ioas_id=9999, flags=RW)
    with refused("EOVERFLOW"):
        await client.map(file, ioas, U64_MAX - PAGE + 1, PAGE, 0x10000)
    with refused("EINVAL"):
        await client.map(file, ioas, memory.address, 0, 0x10000)
    with refused("EINVAL"):
        await client.map(file, ioas, 0, U64_MAX - PAGE + 1, 0x10000)
    assert await mapped_bytes(client, file, ioas) == 0


async def test_a_range_past_the_end_of_iovas_is_eoverflow(client, file, memory):
    ioas = await client.ioas_alloc(file)
    with refused("EOVERFLOW"):
        await client.map(file, ioas, memory.address, 2 * PAGE, U64_MAX - PAGE + 1)
    await client.map(file, ioas, memory.address, PAGE, U64_MAX - PAGE + 1)


async def test_an_overlap_is_eexist(client, file, ioas, memory):
    await client.map(file, ioas, memory.address, 2 * PAGE, 0x10000)
    for iova, pages in [(0x10000, 2), (0xF000, 2), (0x11000, 4), (0xF000, 8)]:
        with refused("EEXIST"):
            await client.map(file, ioas, memory.address, pages * PAGE, iova)
    await client.map(file, ioas, memory.address, PAGE, 0xF000)
    await client.map(file, ioas, memory.address, PAGE, 0x12000)


async def test_reserved_iovas_are_einval(client, file, memory):
    ioas = await client.ioas_with_domains(file, 1)
    for iova, pages in [(0xFEE00000, 1), (0xFEDFF000, 2), (2**48, 1), (2**48 - PAGE, 2)]:
        with refused("EINVAL"):
            await client.map(file, ioas, memory.address, pages * PAGE, iova)
    await client.map(file, ioas, memory.address, PAGE, 0xFEDFF000)
    await client.map(file, ioas, memory.address, PAGE, 2**48 - PAGE)


async def test_alignment_counts_with_a_page_table_only(client, file, ioas, domains, memory):
    for address, length, iova in [(16, PAGE, 0x10000), (0, 1, 0x20000), (0, PAGE, 0x30010)]:
        if domains:
            with refused("EINVAL"):
                await client.map(file, ioas, memory.address + address, length, iova)
        else:
            await client.map(file, ioas, memory.address + address, length, iova)


async def test_memory_counts_with_a_page_table_only(client, file, ioas, domains, memory):
    hole = memory.protect(2, 0)
    read_only = memory.protect(4, mmap.PROT_READ)
    iova = 0x100000
    for address, length, flags in [
        (hole, PAGE, READ),
        (hole - PAGE, 2 * PAGE, RW),
        (0, PAGE, RW),
        (0xFFFF_8880_0000_0000, PAGE, RW),
        (read_only, PAGE, RW),
        (read_only - PAGE, 3 * PAGE, WRITE),
    ]:
        if domains:
            with refused("EFAULT"):
                await client.map(file, ioas, address, length, iova, flags)
        else:
            await client.map(file, ioas, address, length, iova, flags)
        iova += length
    await client.map(file, ioas, read_only, PAGE, 0x10000, READ)
    assert await mapped_bytes(client, file, ioas) == PAGE * (1 if domains else 10)


async def test_automatic_iovas(client, file, ioas, domains, memory):
    aligned = memory.address + -memory.address % (8 * PAGE)
    assert await client.map(file, ioas, aligned, PAGE, iova=None) == 0x1000
    assert await client.map(file, ioas, aligned + PAGE, PAGE) == 0x2000
    # As aligned as length and address both are, lowest first.
    assert await client.map(file, ioas, aligned, 8 * PAGE) == 0x8000
    assert await client.map(file, ioas, aligned + PAGE, 2 * PAGE) == 0x3000
    if not domains:
        assert await client.map(file, ioas, aligned + 0x10, PAGE) == 0x5010


async def test_the_iova_of_an_automatic_map_is_not_read(client, file, ioas, memory):
    cmd = await client.call(
        file, *KIND, ioas_id=ioas, user_va=memory.address, length=PAGE, iova=0x123, flags=RW
    )
    assert cmd.iova == 0x1000


async def test_no_room_is_enospc(client, file, ioas, domains):
    half = 2**63 - 2 * PAGE
    if not domains:
        await client.map(file, ioas, 0, half)
    with refused("ENOSPC"):
        await client.map(file, ioas, 0, half)


async def test_half_of_all_iovas_and_more_cannot_be_found_automatically(client, file):
    ioas = await client.ioas_alloc(file)
    with refused("EOVERFLOW"):
        await client.map(file, ioas, 0, 2**63)
    await client.map(file, ioas, 0, 2**63, 0)


async def test_the_mapping_stays_if_the_answer_cannot_be_written(client, file, ioas, memory):
    cmd = uapi.new(
        "iommu_ioas_map",
        size=40,
        ioas_id=ioas,
        flags=RW | FIXED,
        user_va=memory.address,
        length=PAGE,
        iova=0x10000,
    )
    memory.write(PAGE, bytes(ffi.buffer(cmd)))
    address = memory.protect(1, mmap.PROT_READ)
    with refused("EFAULT"):
        await client.ioctl(file, uapi.IOMMU_IOAS_MAP, address)
    assert await client.unmap(file, ioas, 0x10000, PAGE) == PAGE
