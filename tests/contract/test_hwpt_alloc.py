"""IOMMU_HWPT_ALLOC."""

import mmap

import pytest

from iommufs import uapi
from iommufs._native import ffi
from tests.contract.client import PAGE, refused

NEST_PARENT = uapi.IOMMU_HWPT_ALLOC_NEST_PARENT
DIRTY_TRACKING = uapi.IOMMU_HWPT_ALLOC_DIRTY_TRACKING
FAULT_ID_VALID = uapi.IOMMU_HWPT_FAULT_ID_VALID
PASID = uapi.IOMMU_HWPT_ALLOC_PASID
VTD_S1 = uapi.IOMMU_HWPT_DATA_VTD_S1


@pytest.fixture
async def bound(client, file):
    return await client.bind(file, 0)


@pytest.fixture
async def ioas(client, file, bound):
    return await client.ioas_alloc(file)


@pytest.mark.parametrize("flags", [0, PASID])
async def test_each_is_a_new_page_table(client, file, bound, ioas, flags):
    first = await client.hwpt_alloc(file, bound.devid, ioas, flags=flags)
    second = await client.hwpt_alloc(file, bound.devid, ioas, flags=flags)
    assert (first, second) == (ioas + 1, ioas + 2)


async def test_the_shortest_structure_will_do(client, file, bound, ioas):
    await client.hwpt_alloc(file, bound.devid, ioas, size=24)


@pytest.mark.parametrize("flags", [1, 2, 3, 6, 16, 1 << 31])
async def test_what_the_iommu_does_not_have_is_eopnotsupp(client, file, bound, ioas, flags):
    with refused("EOPNOTSUPP"):
        await client.hwpt_alloc(file, bound.devid, ioas, flags=flags)


async def test_a_fault_queue_must_be_one(client, file, bound, ioas):
    for fault_id in (0, 9999, ioas, bound.devid):
        with refused("ENOENT"):
            await client.hwpt_alloc(
                file, bound.devid, ioas, flags=FAULT_ID_VALID, fault_id=fault_id
            )
    hwpt = await client.hwpt_alloc(file, bound.devid, ioas, fault_id=9999)
    assert hwpt == ioas + 1, "an id was lost"


async def test_errors_come_in_order(client, file, bound, ioas):
    data = {"data_type": VTD_S1, "data_len": 24, "data_uptr": 1}
    with refused("EOPNOTSUPP"):
        await client.hwpt_alloc(file, 9999, 9999, __reserved=1, data_len=1)
    for bad in ({"data_len": 24}, {"data_type": VTD_S1}):
        with refused("EINVAL"):
            await client.hwpt_alloc(file, 9999, 9999, flags=256, **bad)
    for devid in (0, 9999, ioas):
        with refused("ENOENT"):
            await client.hwpt_alloc(file, devid, 9999, flags=256)
    for pt_id in (0, 9999, bound.devid):
        with refused("EINVAL"):
            await client.hwpt_alloc(file, bound.devid, pt_id, flags=256)
    with refused("EOPNOTSUPP"):
        await client.hwpt_alloc(file, bound.devid, ioas, **data)
    assert await client.hwpt_alloc(file, bound.devid, ioas, __reserved2=1) == ioas + 1


async def test_no_page_table_is_a_parent(client, file, bound, ioas):
    """Intel's driver could nest, and its page tables of legacy mode are none to nest in."""
    parent = await client.hwpt_alloc(file, bound.devid, ioas)
    with refused("EOPNOTSUPP"):
        await client.hwpt_alloc(file, bound.devid, parent)
    with refused("EINVAL"):
        await client.hwpt_alloc(file, bound.devid, parent, data_type=VTD_S1, data_len=24)


async def test_it_is_filled_at_once(client, file, bound, ioas, memory):
    iova = await client.map(file, ioas, memory.protect(1, 0), PAGE)
    with refused("EFAULT"):
        await client.hwpt_alloc(file, bound.devid, ioas)
    await client.unmap(file, ioas, iova, PAGE)
    for at in (2**48, 2**48 - 100):
        iova = await client.map(file, ioas, memory.address, 100, at)
        with refused("EADDRINUSE"):
            await client.hwpt_alloc(file, bound.devid, ioas)
        await client.unmap(file, ioas, iova, 100)
    assert await client.hwpt_alloc(file, bound.devid, ioas) == ioas + 1, "an id was lost"


async def test_the_msi_window_is_no_matter_before_a_device_is_attached(
    client, file, bound, ioas, memory
):
    await client.map(file, ioas, memory.address, PAGE, 0xFEE00000)
    hwpt = await client.hwpt_alloc(file, bound.devid, ioas)
    with refused("EADDRINUSE"):
        await bound.attach(hwpt)


async def test_one_that_cannot_be_told_is_gone(client, file, bound, ioas, memory):
    cmd = uapi.new("iommu_hwpt_alloc", size=48, dev_id=bound.devid, pt_id=ioas)
    memory.write(0, bytes(ffi.buffer(cmd)))
    address = memory.protect(0, mmap.PROT_READ)
    with refused("EFAULT"):
        await client.ioctl(file, uapi.IOMMU_HWPT_ALLOC, address)
    await client.destroy(file, ioas)
