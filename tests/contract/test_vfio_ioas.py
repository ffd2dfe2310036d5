"""IOMMU_VFIO_IOAS."""

from iommufs import uapi
from tests.contract.client import refused

GET = uapi.IOMMU_VFIO_IOAS_GET
SET = uapi.IOMMU_VFIO_IOAS_SET
CLEAR = uapi.IOMMU_VFIO_IOAS_CLEAR


async def vfio_ioas(client, file, op, ioas=0, **fields):
    cmd = await client.call(
        file, uapi.IOMMU_VFIO_IOAS, "iommu_vfio_ioas", op=op, ioas_id=ioas, **fields
    )
    return cmd.ioas_id


async def test_set_get_clear(client, file):
    first, second = await client.ioas_alloc(file), await client.ioas_alloc(file)
    for ioas in (first, second, second):
        await vfio_ioas(client, file, SET, ioas)
        assert await vfio_ioas(client, file, GET, 77) == ioas
    for _ in range(2):
        await vfio_ioas(client, file, CLEAR, 9999)
        with refused("ENODEV"):
            await vfio_ioas(client, file, GET)


async def test_the_chosen_ioas_is_not_held(client, file):
    ioas = await client.ioas_alloc(file)
    await vfio_ioas(client, file, SET, ioas)
    await client.destroy(file, ioas)
    with refused("ENODEV"):
        await vfio_ioas(client, file, GET)
    assert await client.ioas_alloc(file) == ioas
    with refused("ENODEV"):
        await vfio_ioas(client, file, GET)


async def test_errors(client, file):
    bound = await client.bind(file, 0)
    for ioas in (0, 9999, bound.devid):
        with refused("ENOENT"):
            await vfio_ioas(client, file, SET, ioas)
    for op in (3, 0xFFFF):
        with refused("EOPNOTSUPP"):
            await vfio_ioas(client, file, op)
    for op in (GET, SET, CLEAR, 3):
        with refused("EOPNOTSUPP"):
            await vfio_ioas(client, file, op, 9999, __reserved=1)
