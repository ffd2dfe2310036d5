"""VFIO_DEVICE_ATTACH_IOMMUFD_PT and DETACH; source: oracle probe, section attach."""

import pytest

from iommufs import uapi
from iommufs._native import ffi
from tests.contract.client import refused
from tests.contract.vfio_client import NIC0, NIC1, NVME


@pytest.fixture
async def bound(vfio):
    """An nvme, its context, two IOAS."""
    ctx, fd = vfio.iommufd()
    ioases = [await vfio.ioas(ctx) for _ in range(2)]
    return await vfio.bound(NVME, fd), ctx, *ioases


async def test_an_ioas_gets_a_page_table_of_its_own(vfio, bound):
    df, ctx, a, _ = bound
    hwpt = await vfio.attach(df, a, argsz=12)
    assert hwpt not in (a, df.iommu_device.id)
    assert ctx.objects.counts()["HwptPaging"] == 1
    assert await vfio.attach(df, a) == hwpt
    await vfio.detach(df, argsz=8)
    assert "HwptPaging" not in ctx.objects.counts()
    with refused("ENOENT"):
        await vfio.attach(df, hwpt)


async def test_attaching_again_replaces(vfio, bound):
    df, _, a, b = bound
    assert await vfio.attach(df, a) != await vfio.attach(df, b)


@pytest.mark.parametrize(
    ("fields", "errno"),
    [
        ({"argsz": 11}, "EINVAL"),
        ({"flags": 2}, "EINVAL"),
        ({"pt_id": 0}, "ENOENT"),
        ({"pt_id": 9999}, "ENOENT"),
        ({"flags": 1, "pasid": 1}, "EINVAL"),
        ({"flags": 1, "pasid": 1, "argsz": 15}, "EINVAL"),
        ({"flags": 1, "pasid": 1, "pt_id": 9999}, "ENOENT"),
        ({"flags": 1, "pasid": 1 << 31}, "ENOSPC"),
    ],
)
async def test_what_is_refused(vfio, bound, fields, errno):
    df, _, a, _ = bound
    with refused(errno):
        await vfio.attach(df, **{"pt_id": a, **fields})


async def test_a_device_is_nothing_to_attach_to(vfio, bound):
    df = bound[0]
    with refused("EINVAL"):
        await vfio.attach(df, df.iommu_device.id)


async def test_siblings_share_and_a_replace_moves_both(vfio):
    ctx, fd = vfio.iommufd()
    a, b = [await vfio.ioas(ctx) for _ in range(2)]
    first, second = await vfio.bound(NIC0, fd), await vfio.bound(NIC1, fd)
    hwpt = await vfio.attach(first, a)
    with refused("EINVAL"):
        await vfio.attach(second, b)
    assert await vfio.attach(second, a) == hwpt
    moved = await vfio.attach(first, b)
    assert await vfio.attach(second, b) == moved != hwpt


async def test_an_id_that_cannot_be_told_detaches(vfio, bound, read_only_page):
    df, _, a, _ = bound
    cmd = uapi.new("vfio_device_attach_iommufd_pt", argsz=16, pt_id=a)
    address = read_only_page(bytes(ffi.buffer(cmd)))
    with refused("EFAULT"):
        await vfio.ioctl(df, uapi.VFIO_DEVICE_ATTACH_IOMMUFD_PT, address)
    assert not df.iommu_device.attached


@pytest.mark.parametrize("fields", [{"flags": 2}, {"argsz": 7}, {"flags": 1, "argsz": 11}], ids=str)
async def test_detach_refuses(vfio, bound, fields):
    with refused("EINVAL"):
        await vfio.detach(bound[0], **fields)


async def test_detaching_what_is_not_attached_succeeds(vfio, bound):
    df, _, a, _ = bound
    await vfio.detach(df)
    await vfio.detach(df, flags=1, pasid=1)
    await vfio.attach(df, a)
    await vfio.detach(df)
    await vfio.detach(df)


async def test_pasid_0_is_the_rid_under_a_name_of_its_own(vfio, bound):
    """Source: oracle, random calls; IOMMU_NO_PASID is 0."""
    df, _, a, b = bound
    hwpt = await vfio.attach(df, a, flags=1, pasid=0)
    assert df.iommu_device.attached
    with refused("EBUSY"):
        await vfio.attach(df, a)
    await vfio.detach(df)
    assert await vfio.attach(df, b, flags=1, pasid=0) != hwpt
    await vfio.detach(df, flags=1, pasid=0)
    assert not df.iommu_device.attached
    await vfio.attach(df, a)
    with refused("EBUSY"):
        await vfio.attach(df, b, flags=1, pasid=0)
    await vfio.detach(df, flags=1, pasid=0)
    assert df.iommu_device.attached


async def test_closing_an_attached_device_leaves_nothing(vfio, bound):
    df, ctx, a, _ = bound
    await vfio.attach(df, a)
    vfio.close(df)
    assert ctx.objects.counts() == {"Ioas": 2}
