"""VFIO_DEVICE_BIND_IOMMUFD; source: vfio_df_ioctl_bind_iommufd(), oracle probe, section bind."""

import os

import pytest

from iommufs import uapi
from iommufs._native import ffi
from tests.contract.client import refused
from tests.contract.vfio_client import CONFIG, EDU, NIC0, NIC1, NVME

UNKNOWN = 0x3B63


async def test_the_device_gets_an_id_of_the_iommufd(vfio):
    ctx, fd = vfio.iommufd()
    df = vfio.open(NVME)
    devid = await vfio.bind(df, fd, argsz=16)
    assert ctx.objects.counts() == {"Device": 1}
    assert devid == df.iommu_device.id > 0


async def test_before_it_everything_else_is_einval(vfio):
    df = vfio.open(NVME)
    numbers = [n for n in range(0x3B64, 0x3B79) if n != uapi.VFIO_DEVICE_BIND_IOMMUFD]
    for number in [*numbers, UNKNOWN, 0x786B]:
        with refused("EINVAL"):
            await vfio.ioctl(df, number)
    with refused("EINVAL"):
        await vfio.pread(df, 4, CONFIG)
    with refused("EINVAL"):
        await vfio.pwrite(df, b"\0\0", CONFIG + 4)


async def test_after_it_an_unknown_ioctl_is_enotty(vfio):
    df = await vfio.bound(NVME)
    for number in (UNKNOWN, 0x786B):
        with refused("ENOTTY"):
            await vfio.ioctl(df, number)


@pytest.mark.parametrize(
    ("fields", "errno"),
    [
        ({"argsz": 0}, "EINVAL"),
        ({"argsz": 15}, "EINVAL"),
        ({"flags": 2}, "EINVAL"),
        ({"iommufd": -1}, "EINVAL"),
        ({"iommufd": 9999}, "EBADF"),
        ({"flags": 1}, "EFAULT"),
        ({"flags": 1, "argsz": 16}, "EFAULT"),
    ],
)
async def test_what_is_refused(vfio, fields, errno):
    df = vfio.open(NVME)
    with refused(errno):
        await vfio.bind(df, **{"iommufd": vfio.iommufd()[1], **fields})
    assert not vfio.devices[NVME].bound


async def test_a_token_for_a_device_without_one_is_einval(vfio):
    token = ffi.new("char[16]")
    pointer = int(ffi.cast("uintptr_t", token))
    with refused("EINVAL"):
        await vfio.bind(vfio.open(NVME), vfio.iommufd()[1], flags=1, token_uuid_ptr=pointer)


async def test_another_kind_of_file_is_ebadfd(vfio):
    df = vfio.open(NVME)
    for fd in (os.open("/dev/null", os.O_RDWR), vfio.files.stand_in(df)):
        with refused("EBADFD"):
            await vfio.bind(df, vfio.fd(fd))


async def test_a_nonzero_tail_is_e2big(vfio):
    df = vfio.open(NVME)
    fd = vfio.iommufd()[1]
    struct = "vfio_device_bind_iommufd"
    with refused("E2BIG"):
        await vfio.call(df, uapi.VFIO_DEVICE_BIND_IOMMUFD, struct, iommufd=fd, tail=b"\1")
    await vfio.call(df, uapi.VFIO_DEVICE_BIND_IOMMUFD, struct, iommufd=fd, tail=bytes(64))


async def test_binding_twice_is_einval_through_any_file(vfio):
    _, fd = vfio.iommufd()
    df = await vfio.bound(NVME, fd)
    with refused("EINVAL"):
        await vfio.bind(df, fd)
    second = vfio.open(NVME)
    with refused("EINVAL"):
        await vfio.bind(second, fd)
    with refused("EINVAL"):
        await vfio.call(second, uapi.VFIO_DEVICE_GET_INFO, "vfio_device_info")
    vfio.close(second)
    await vfio.call(df, uapi.VFIO_DEVICE_GET_INFO, "vfio_device_info")


async def test_a_group_has_one_iommufd(vfio):
    _, fd = vfio.iommufd()
    await vfio.bound(NIC0, fd)
    sibling = vfio.open(NIC1)
    with refused("EPERM"):
        await vfio.bind(sibling, vfio.iommufd()[1])
    await vfio.bind(sibling, fd)


async def test_an_id_that_cannot_be_told_undoes_it(vfio, read_only_page):
    ctx, fd = vfio.iommufd()
    df = vfio.open(EDU)
    cmd = uapi.new("vfio_device_bind_iommufd", argsz=24, iommufd=fd)
    address = read_only_page(bytes(ffi.buffer(cmd)))
    with refused("EFAULT"):
        await vfio.ioctl(df, uapi.VFIO_DEVICE_BIND_IOMMUFD, address)
    assert ctx.objects.counts() == {}
    assert not df.granted
    await vfio.bind(df, fd)


async def test_closing_the_file_unbinds(vfio):
    ctx, fd = vfio.iommufd()
    df = await vfio.bound(NVME, fd)
    vfio.close(df)
    assert ctx.objects.counts() == {}
    assert not vfio.devices[NVME].bound
    await vfio.bound(NVME, fd)


async def test_closing_the_iommufd_does_not_end_it(vfio):
    ctx, fd = vfio.iommufd()
    ioas = await vfio.ioas(ctx)
    df = await vfio.bound(NVME, fd)
    vfio.ctxs.remove(ctx)
    ctx.release()
    await vfio.call(df, uapi.VFIO_DEVICE_GET_INFO, "vfio_device_info")
    await vfio.attach(df, ioas)
    await vfio.detach(df)


@pytest.mark.logs("a device model failed")
async def test_a_model_that_fails_at_open_is_eio_and_leaves_nothing(vfio, monkeypatch):
    def fail():
        raise RuntimeError("out of order")

    ctx, fd = vfio.iommufd()
    monkeypatch.setattr(vfio.devices[EDU].function.model, "open", fail)
    with refused("EIO"):
        await vfio.bind(vfio.open(EDU), fd)
    assert ctx.objects.counts() == {}
