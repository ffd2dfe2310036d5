"""IOMMU_VIOMMU_ALLOC and what needs a vIOMMU, where no IOMMU has them."""

from iommufs import uapi
from tests.contract.client import U64_MAX, refused

VIOMMU = uapi.IOMMU_VIOMMU_ALLOC, "iommu_viommu_alloc"
VDEVICE = uapi.IOMMU_VDEVICE_ALLOC, "iommu_vdevice_alloc"
VEVENTQ = uapi.IOMMU_VEVENTQ_ALLOC, "iommu_veventq_alloc"
HW_QUEUE = uapi.IOMMU_HW_QUEUE_ALLOC, "iommu_hw_queue_alloc"


async def test_viommu_alloc(client, file):
    bound = await client.bind(file, 0)
    for bad in ({"flags": 1, "type": 1}, {"type": 0}):
        with refused("EOPNOTSUPP"):
            await client.call(file, *VIOMMU, dev_id=9999, hwpt_id=9999, **bad)
    with refused("ENOENT"):
        await client.call(file, *VIOMMU, type=1, dev_id=9999, hwpt_id=9999)
    with refused("EOPNOTSUPP"):
        await client.call(file, *VIOMMU, type=1, dev_id=bound.devid, hwpt_id=9999)


async def test_vdevice_alloc(client, file):
    ioas = await client.ioas_alloc(file)
    for viommu in (0, 9999, ioas):
        with refused("ENOENT"):
            await client.call(file, *VDEVICE, viommu_id=viommu, dev_id=9999)


async def test_veventq_alloc(client, file):
    good = {"type": 1, "veventq_depth": 1}
    for bad in ({"flags": 1}, {"__reserved": 1}, {"type": 0, "veventq_depth": 0}):
        with refused("EOPNOTSUPP"):
            await client.call(file, *VEVENTQ, **good | bad)
    for depth in (0, 524289):
        with refused("EINVAL"):
            await client.call(file, *VEVENTQ, **good | {"veventq_depth": depth})
    for depth in (1, 524288):
        with refused("ENOENT"):
            await client.call(file, *VEVENTQ, **good | {"veventq_depth": depth})


async def test_hw_queue_alloc(client, file):
    for bad in ({"flags": 1, "type": 1}, {"type": 0}):
        with refused("EOPNOTSUPP"):
            await client.call(file, *HW_QUEUE, length=0, **bad)
    with refused("EINVAL"):
        await client.call(file, *HW_QUEUE, type=1, nesting_parent_iova=U64_MAX)
    with refused("EOVERFLOW"):
        await client.call(file, *HW_QUEUE, type=1, nesting_parent_iova=U64_MAX, length=2)
    with refused("ENOENT"):
        await client.call(file, *HW_QUEUE, type=1, nesting_parent_iova=U64_MAX, length=1)
