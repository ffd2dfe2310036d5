"""IOMMU_IOAS_NOIOMMU_GET_PA: not there."""

from iommufs import uapi
from tests.contract.client import PAGE, refused


async def test_it_is_eopnotsupp(client, file, ioas):
    for length in (0, PAGE):
        with refused("EOPNOTSUPP"):
            await client.call(
                file,
                uapi.IOMMU_IOAS_NOIOMMU_GET_PA,
                "iommu_ioas_noiommu_get_pa",
                ioas_id=ioas,
                length=length,
            )
