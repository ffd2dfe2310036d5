"""Containers of groups; source: vfio_group_ioctl_set_container(), oracle (tests/e2e/groups)."""

import os

from iommufs import uapi
from tests.contract.client import refused
from tests.contract.vfio_client import EDU, NVME

VIABLE = uapi.VFIO_GROUP_FLAGS_VIABLE
SET = VIABLE | uapi.VFIO_GROUP_FLAGS_CONTAINER_SET


async def test_the_container_has_an_ioas_from_then_on(vfio):
    ctx, fd = vfio.iommufd()
    group, _ = vfio.open_group(EDU)
    await vfio.set_container(group, fd)
    assert ctx.objects.counts() == {"Ioas": 1}
    first = ctx.vfio_ioas
    other, _ = vfio.open_group(NVME)
    await vfio.set_container(other, fd)
    assert ctx.objects.counts() == {"Ioas": 1}
    assert ctx.vfio_ioas is first
    assert await vfio.group_status(group) == SET


async def test_an_ioas_that_was_chosen_stays(vfio):
    ctx, fd = vfio.iommufd()
    chosen = await vfio.ioas(ctx)
    ctx.vfio_ioas = ctx.objects.find(chosen, object)
    group, _ = vfio.open_group(EDU)
    await vfio.set_container(group, fd)
    assert ctx.vfio_ioas.id == chosen
    assert len(ctx.objects) == 1


async def test_one_container_at_a_time(vfio):
    _, fd = vfio.iommufd()
    group, group_fd = vfio.open_group(EDU)
    await vfio.set_container(group, fd)
    for number, error in ((fd, "EINVAL"), (group_fd, "EINVAL"), (-1, "EBADF")):
        with refused(error):
            await vfio.set_container(group, number)
    await vfio.ioctl(group, uapi.VFIO_GROUP_UNSET_CONTAINER)
    with refused("EINVAL"):
        await vfio.ioctl(group, uapi.VFIO_GROUP_UNSET_CONTAINER)
    assert await vfio.group_status(group) == VIABLE
    await vfio.set_container(group, fd)


async def test_what_is_no_container(vfio):
    group, group_fd = vfio.open_group(EDU)
    null = vfio.fd(os.open("/dev/null", os.O_RDWR))
    for number, error in ((null, "EBADFD"), (group_fd, "EBADFD"), (-1, "EBADF"), (9999, "EBADF")):
        with refused(error):
            await vfio.set_container(group, number)
    for at in (0, 2, 1 << 63):
        with refused("EFAULT"):
            await vfio.ioctl(group, uapi.VFIO_GROUP_SET_CONTAINER, at)
    assert await vfio.group_status(group) == VIABLE
