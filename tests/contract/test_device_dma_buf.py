"""BARs as dma-bufs (VFIO_DEVICE_FEATURE_DMA_BUF); source: vfio_pci_dmabuf.c."""

import os
import struct

import pytest
import trio
import trio.testing

from iommufs import uapi
from iommufs._native import ffi
from iommufs.errors import UapiError
from tests.contract.client import PAGE, refused
from tests.contract.vfio_client import CONFIG, EDU, EDU_BRIDGE, NIC0, NVME

GET, SET, DMA_BUF = 1 << 16, 1 << 17, 11


def request(region, *ranges, flags=0, open_flags=os.O_CLOEXEC | os.O_RDWR):
    head = struct.pack("<IIII", region, open_flags, flags, len(ranges))
    return head + b"".join(struct.pack("<QQ", *pair) for pair in ranges)


async def feature(vfio, df, flags, data=b""):
    await vfio.call(df, uapi.VFIO_DEVICE_FEATURE, "vfio_device_feature", tail=data, flags=flags)
    return vfio.result


async def export(vfio, df, region=0, *ranges, **fields):
    """The dma-buf, and an fd that stands for it."""
    data = request(region, *(ranges or [(0, PAGE)]), **fields)
    dmabuf = vfio.descriptors[await feature(vfio, df, GET | DMA_BUF, data)]
    return dmabuf, vfio.fd(vfio.files.stand_in(dmabuf))


async def map_file(vfio, ctx, ioas, fd, length=PAGE, start=0, iova=0x10000):
    cmd = uapi.new(
        "iommu_ioas_map_file", size=uapi.sizeof("iommu_ioas_map_file"), flags=7, ioas_id=ioas,
        fd=fd, start=start, length=length, iova=iova,
    )  # fmt: skip
    await vfio.ioctl(ctx, uapi.IOMMU_IOAS_MAP_FILE, int(ffi.cast("uintptr_t", cmd)))


@pytest.mark.parametrize(
    ("data", "errno"),
    [
        (request(0), "EINVAL"),
        (request(0, (0, 4096), flags=1), "EINVAL"),
        (request(1, (0, 4096)), "ENODEV"),
        (request(6, (0, 4096)), "ENODEV"),
        (request(0, (0, 0)), "EINVAL"),
        (request(0, (0, 4095)), "EINVAL"),
        (request(0, (1, 4096)), "EINVAL"),
        (request(0, (0x4000, 4096)), "EINVAL"),
        (request(0, (0, 4096), (0x4000, 4096)), "EINVAL"),
        (request(0, (0, 1 << 63)), "EINVAL"),
        (request(0, (0, 2**64 - 4096), (0, 8192)), "EINVAL"),
        (request(0, (2**64 - 4096, 8192)), "EOVERFLOW"),
        (request(0, (2**64 - 4096, 4096)), "EOVERFLOW"),
        (request(0, (0, 4096))[:-1], "EFAULT"),
    ],
)
async def test_ranges_are_checked(vfio, read_only_page, data, errno):
    df = await vfio.bound(NVME)
    head = struct.pack("<II", 8 + len(data), GET | DMA_BUF)
    with refused(errno):
        await vfio.ioctl(df, uapi.VFIO_DEVICE_FEATURE, read_only_page(head + data, at_the_end=True))


async def test_ports_are_no_memory(vfio):
    df = await vfio.bound(NIC0)
    with refused("EINVAL"):
        await export(vfio, df, 2)


async def test_dma_of_another_device_reaches_the_bar(vfio):
    """An edu writes a register of the other one, which sees a store as of a client's mapping."""
    ctx, iommufd = vfio.iommufd()
    ioas = await vfio.ioas(ctx)
    target = await vfio.bound(EDU_BRIDGE, iommufd)
    _, fd = await export(vfio, target)
    source = await vfio.bound(EDU, iommufd)
    await vfio.attach(source, ioas)
    await map_file(vfio, ctx, ioas, fd)
    await vfio.pwrite(source, b"\x06\0", CONFIG + 4)
    source.function.model._buffer[:4] = b"\1\2\3\4"
    for register, value in enumerate((0x40000, 0x10004, 4, 3)):
        await vfio.pwrite(source, value.to_bytes(8, "little"), 0x80 + 8 * register)
    with trio.fail_after(10):
        while (await vfio.pread(source, 8, 0x98))[0] & 1:
            await trio.lowlevel.checkpoint()
    assert bytes(target.function.bars.view(0)[4:8]) == b"\1\2\3\4"


async def test_what_can_be_mapped_of_it(vfio):
    ctx, iommufd = vfio.iommufd()
    ioas = await vfio.ioas(ctx)
    df = await vfio.bound(EDU, iommufd)
    dmabuf, fd = await export(vfio, df, 0, (PAGE, 2 * PAGE))
    assert dmabuf.length == 2 * PAGE
    await map_file(vfio, ctx, ioas, fd, PAGE, start=PAGE)
    with refused("EINVAL"):
        await map_file(vfio, ctx, ioas, fd, 2 * PAGE, start=PAGE, iova=0x20000)
    _, pieces = await export(vfio, df, 0, (0, PAGE), (2 * PAGE, PAGE))
    with refused("EOPNOTSUPP"):
        await map_file(vfio, ctx, ioas, pieces, PAGE, iova=0x30000)


async def reset(vfio, df):
    await vfio.ioctl(df, uapi.VFIO_DEVICE_RESET)


WITHDRAWN = {
    "memory decoding": lambda vfio, df: vfio.pwrite(df, b"\0\0", CONFIG + 4),
    "low power": lambda vfio, df: feature(vfio, df, SET | 3),
    "reset": reset,
}


@pytest.mark.parametrize("how", WITHDRAWN)
async def test_it_is_withdrawn_while_the_device_cannot_be_reached(vfio, how):
    ctx, iommufd = vfio.iommufd()
    ioas = await vfio.ioas(ctx)
    df = await vfio.bound(NVME, iommufd)
    await vfio.pwrite(df, b"\2\0", CONFIG + 4)
    dmabuf, fd = await export(vfio, df)
    await map_file(vfio, ctx, ioas, fd)
    withdrawn = []
    dmabuf.revoke, revoke = lambda: (withdrawn.append(how), revoke()), dmabuf.revoke
    await WITHDRAWN[how](vfio, df)
    assert withdrawn == [how]
    if how != "reset":
        with refused("ENODEV"):
            await map_file(vfio, ctx, ioas, fd, iova=0x20000)
        await vfio.pwrite(df, b"\2\0", CONFIG + 4)
        await feature(vfio, df, SET | 5)
    await map_file(vfio, ctx, ioas, fd, iova=0x20000)


async def test_made_while_memory_decoding_is_off_it_begins_withdrawn(vfio):
    ctx, iommufd = vfio.iommufd()
    ioas = await vfio.ioas(ctx)
    df = await vfio.bound(NVME, iommufd)
    await vfio.pwrite(df, b"\0\0", CONFIG + 4)
    _, fd = await export(vfio, df)
    with refused("ENODEV"):
        await map_file(vfio, ctx, ioas, fd)
    await vfio.pwrite(df, b"\2\0", CONFIG + 4)
    await map_file(vfio, ctx, ioas, fd)


async def test_it_outlives_the_device_withdrawn_for_good(vfio):
    ctx, iommufd = vfio.iommufd()
    ioas = await vfio.ioas(ctx)
    df = await vfio.bound(NVME, iommufd)
    _, fd = await export(vfio, df)
    vfio.close(df)
    df = await vfio.bound(NVME, iommufd)
    await vfio.pwrite(df, b"\2\0", CONFIG + 4)
    with refused("ENODEV"):
        await map_file(vfio, ctx, ioas, fd)


async def test_as_a_file_it_is_mapped_read_and_written_by_nobody(vfio):
    dmabuf, _ = await export(vfio, await vfio.bound(NVME))
    for call in (dmabuf.read(0, 8), dmabuf.write(0, b"x")):
        with pytest.raises(UapiError):
            await call
    with pytest.raises(UapiError):
        dmabuf.check_mmap(vfio.caller, -1, PAGE, 1, 0)
    assert dmabuf.poll() == 5


@pytest.mark.parametrize(
    ("flags", "mode", "stays"),
    [
        (os.O_RDWR | os.O_CLOEXEC, os.O_RDWR, False),
        (os.O_RDONLY, os.O_RDONLY, True),
        (os.O_WRONLY | os.O_APPEND, os.O_WRONLY, True),
    ],
)
async def test_flags_are_those_that_the_client_asked_for(vfio, flags, mode, stays):
    dmabuf, _ = await export(vfio, await vfio.bound(NVME), open_flags=flags)
    assert (dmabuf.access_mode, dmabuf.stays_on_exec) == (mode, stays)
