"""IOMMU_IOAS_ALLOC, and the ids that all objects share."""

import mmap

import pytest

from iommufs import uapi
from tests.contract.client import refused


async def test_ids_count_from_1_and_the_lowest_free_one_is_next(client, file):
    assert [await client.ioas_alloc(file) for _ in range(4)] == [1, 2, 3, 4]
    await client.destroy(file, 3)
    await client.destroy(file, 1)
    assert [await client.ioas_alloc(file) for _ in range(3)] == [1, 3, 5]


async def test_files_have_ids_of_their_own(client, file):
    other = await client.open()
    assert await client.ioas_alloc(file) == await client.ioas_alloc(other) == 1


@pytest.mark.parametrize("flags", [1, 1 << 31])
async def test_a_flag_is_eopnotsupp(client, file, flags):
    with refused("EOPNOTSUPP"):
        await client.call(file, uapi.IOMMU_IOAS_ALLOC, "iommu_ioas_alloc", flags=flags)
    assert await client.ioas_alloc(file) == 1


async def test_the_field_for_the_id_is_not_read(client, file):
    cmd = await client.call(file, uapi.IOMMU_IOAS_ALLOC, "iommu_ioas_alloc", out_ioas_id=1234)
    assert cmd.out_ioas_id == 1


async def test_an_id_that_cannot_be_told_is_free_again(client, file, memory):
    memory.write(0, (12).to_bytes(4, "little"))
    address = memory.protect(0, mmap.PROT_READ)
    with refused("EFAULT"):
        await client.ioctl(file, uapi.IOMMU_IOAS_ALLOC, address)
    assert await client.ioas_alloc(file) == 1
