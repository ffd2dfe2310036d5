"""IOMMU_IOAS_CHANGE_PROCESS by the process itself; by others: test_processes.py."""

import os

from iommufs import uapi
from tests.contract.client import PAGE, U64_MAX, refused
from tests.contract.test_ioas_map_file import map_file, memfd

__all__ = ["memfd"]

KIND = uapi.IOMMU_IOAS_CHANGE_PROCESS, "iommu_ioas_change_process"


async def test_without_mappings(client, file, ioas):
    await client.call(file, *KIND)


async def test_a_mapping_of_user_memory_is_einval(client, file, ioas, memory):
    await client.map(file, ioas, memory.address, PAGE)
    with refused("EINVAL"):
        await client.call(file, *KIND)


async def test_a_reserved_field_is_eopnotsupp(client, file):
    with refused("EOPNOTSUPP"):
        await client.call(file, *KIND, __reserved=1)


async def test_mappings_of_files(client, file, ioas, domains, memfd):
    await map_file(client, file, ioas, memfd, 0, 4 * PAGE, 0x10000)
    for _ in range(2):
        await client.call(file, *KIND)
    assert await client.unmap(file, ioas, 0, U64_MAX) == 4 * PAGE


async def test_any_file_is_a_file(client, file):
    ioas = await client.ioas_alloc(file)
    fd = os.open("/dev/null", os.O_RDWR)
    await map_file(client, file, ioas, fd, 0, PAGE, 0x10000)
    os.close(fd)
    await client.call(file, *KIND)


async def test_every_ioas_counts(client, file, ioas, memory, memfd):
    await map_file(client, file, ioas, memfd, 0, PAGE, 0x10000)
    other = await client.ioas_alloc(file)
    await client.map(file, other, memory.address, PAGE)
    with refused("EINVAL"):
        await client.call(file, *KIND)
    await client.destroy(file, other)
    await client.call(file, *KIND)
