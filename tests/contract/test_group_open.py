"""Opening a group, and its status; source: vfio_group_fops_open(), oracle (tests/e2e/groups)."""

import pytest

from iommufs import uapi
from tests.contract.client import refused
from tests.contract.vfio_client import EDU, NIC0, NIC1, NVME

VIABLE = uapi.VFIO_GROUP_FLAGS_VIABLE


async def test_a_group_is_open_once(vfio):
    group, _ = vfio.open_group(NIC0)
    with refused("EBUSY"):
        vfio.open_group(NIC1)
    vfio.open_group(EDU)
    vfio.close(group)
    vfio.open_group(NIC1)


async def test_no_group_while_a_cdev_of_it_is_bound(vfio):
    df = await vfio.bound(NIC0)
    with refused("EBUSY"):
        vfio.open_group(NIC1)
    vfio.open_group(NVME)
    vfio.close(df)
    vfio.open_group(NIC1)


async def test_no_cdev_is_bound_while_its_group_is_open(vfio):
    group, _ = vfio.open_group(NIC0)
    _, fd = vfio.iommufd()
    df = vfio.open(NIC1)
    for number in (fd, 9999):
        with refused("EBUSY"):
            await vfio.bind(df, number)
    with refused("EINVAL"):
        await vfio.bind(df, -1)
    await vfio.bind(vfio.open(NVME), fd)
    vfio.close(group)
    await vfio.bind(df, fd)


@pytest.mark.parametrize("argsz", [8, 9, 4096])
async def test_a_group_that_nobody_owns_is_viable(vfio, argsz):
    group, _ = vfio.open_group(EDU)
    assert await vfio.group_status(group, argsz=argsz) == VIABLE


@pytest.mark.parametrize("argsz", [0, 7])
async def test_status_wants_its_argsz(vfio, argsz):
    group, _ = vfio.open_group(EDU)
    with refused("EINVAL"):
        await vfio.group_status(group, argsz=argsz)


async def test_status_of_a_bad_pointer_is_efault(vfio, read_only_page):
    group, _ = vfio.open_group(EDU)
    data = (8).to_bytes(4, "little") + bytes(4)
    for at in (0, read_only_page(data), read_only_page(data[:4], at_the_end=True)):
        with refused("EFAULT"):
            await vfio.ioctl(group, uapi.VFIO_GROUP_GET_STATUS, at)


async def test_a_group_has_four_ioctls(vfio):
    group, _ = vfio.open_group(EDU)
    known = range(uapi.VFIO_GROUP_GET_STATUS, uapi.VFIO_GROUP_GET_DEVICE_FD + 1)
    for number in set(range(0x3B64, 0x3BA1)) - set(known):
        with refused("ENOTTY"):
            await vfio.ioctl(group, number)


async def test_a_group_is_neither_read_nor_written(vfio):
    group, _ = vfio.open_group(EDU)
    with refused("EINVAL"):
        await vfio.pread(group, 8, 0)
    with refused("EINVAL"):
        await vfio.pwrite(group, bytes(8), 0)
