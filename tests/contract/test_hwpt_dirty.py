"""IOMMU_HWPT_SET_DIRTY_TRACKING and IOMMU_HWPT_GET_DIRTY_BITMAP, of an IOMMU without either."""

import pytest

from iommufs import uapi
from tests.contract.client import PAGE, U64_MAX, refused

SET = uapi.IOMMU_HWPT_SET_DIRTY_TRACKING, "iommu_hwpt_set_dirty_tracking"
GET = uapi.IOMMU_HWPT_GET_DIRTY_BITMAP, "iommu_hwpt_get_dirty_bitmap"


@pytest.fixture
async def hwpt(client, file):
    bound = await client.bind(file, 0)
    return await client.hwpt_alloc(file, bound.devid, await client.ioas_alloc(file))


async def test_set(client, file, hwpt):
    for flags in (2, 1 << 31):
        with refused("EOPNOTSUPP"):
            await client.call(file, *SET, hwpt_id=9999, flags=flags)
    for hwpt_id in (0, 9999, hwpt - 1, hwpt - 2):
        with refused("ENOENT"):
            await client.call(file, *SET, hwpt_id=hwpt_id, flags=1)
    for flags in (0, 1):
        with refused("EOPNOTSUPP"):
            await client.call(file, *SET, hwpt_id=hwpt, flags=flags, __reserved=1)


async def test_get(client, file, hwpt):
    for bad in ({"flags": 2}, {"__reserved": 1}):
        with refused("EOPNOTSUPP"):
            await client.call(file, *GET, hwpt_id=9999, **bad)
    for hwpt_id in (0, 9999, hwpt - 1):
        with refused("ENOENT"):
            await client.call(file, *GET, hwpt_id=hwpt_id)
    for name, bad in [
        ("EINVAL", {"iova": U64_MAX, "length": 0}),
        ("EOVERFLOW", {"iova": U64_MAX, "length": 2}),
        ("EINVAL", {"iova": 1, "length": PAGE, "page_size": PAGE}),
        ("EINVAL", {"iova": PAGE, "length": PAGE + 1, "page_size": PAGE}),
        ("EINVAL", {"iova": PAGE, "length": PAGE}),
        ("EINVAL", {"iova": PAGE, "length": 2 * PAGE, "page_size": 2 * PAGE}),
        ("EOPNOTSUPP", {"iova": PAGE, "length": PAGE, "page_size": PAGE}),
    ]:
        with refused(name):
            await client.call(file, *GET, hwpt_id=hwpt, **bad)
