"""IOMMU_IOAS_CHANGE_PROCESS."""

from iommufs import uapi
from tests.contract.client import PAGE, refused

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
