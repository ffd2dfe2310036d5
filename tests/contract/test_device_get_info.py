"""GET_INFO, GET_REGION_INFO, GET_IRQ_INFO; source: oracle probe, section info, and functions."""

import contextlib
import struct

import pytest

from iommufs import uapi
from iommufs.devices.inert import Inert
from iommufs.errors import UapiError
from iommufs.vfio.model import Bar, Description
from tests.contract.client import refused
from tests.contract.vfio_client import ALL, EDU, EDU_BRIDGE, IGB, NIC0, NIC1, NVME, TESTDEV

# Regions (flags, size) and interrupt counts as the oracle's program "functions" showed them.
BIG, CAPS = 0x7, 0xF
NIC = [
    (BIG, 0x20000), (BIG, 0x20000), (3, 0x20), (CAPS, 0x4000), (0, 0), (0, 0), (1, 0x40000),
    (3, 0x1000),
]  # fmt: skip
ONE_MEGABYTE = [(BIG, 0x100000), *[(0, 0)] * 6, (3, 0x100)]
REGIONS = {
    EDU: ONE_MEGABYTE,
    NVME: [(CAPS, 0x4000), *[(0, 0)] * 6, (3, 0x1000)],
    NIC0: NIC,
    NIC1: NIC,
    EDU_BRIDGE: ONE_MEGABYTE,
    TESTDEV: [(BIG, 0x1000), (3, 0x100), (BIG, 0x200000), *[(0, 0)] * 4, (3, 0x100)],
    IGB: [*NIC[:6], (0, 0), (3, 0x1000)],
}
IRQS = {
    EDU: (1, 1, 0), NVME: (1, 0, 65), NIC0: (1, 1, 5), NIC1: (1, 1, 5), EDU_BRIDGE: (1, 1, 0),
    TESTDEV: (0, 0, 0), IGB: (1, 1, 10),
}  # fmt: skip
RESETTABLE = {NVME, NIC0, NIC1, IGB}


def region_info(vfio, df, **fields):
    return vfio.call(df, uapi.VFIO_DEVICE_GET_REGION_INFO, "vfio_region_info", **fields)


@pytest.mark.parametrize("index", ALL)
async def test_info(vfio, index):
    df = await vfio.bound(index)
    info = await vfio.call(df, uapi.VFIO_DEVICE_GET_INFO, "vfio_device_info", cap_offset=0x1111)
    assert info.flags == 2 | (index in RESETTABLE)
    assert (info.num_regions, info.num_irqs, info.cap_offset, info.argsz) == (9, 5, 0, 24)


@pytest.mark.parametrize("argsz", [16, 19, 20, 21, 23, 24, 25, 4096])
async def test_info_fills_as_much_as_argsz_says(vfio, argsz):
    df = await vfio.bound(NVME)
    info = await vfio.call(
        df, uapi.VFIO_DEVICE_GET_INFO, "vfio_device_info",
        argsz=argsz, cap_offset=0x11111111, pad=0x22222222,
    )  # fmt: skip
    written = (bytes(4) + bytes(4))[: max(argsz - 16, 0)]
    tail = (b"\x11" * 4 + b"\x22" * 4)[len(written) :]
    assert info.num_irqs == 5
    seen = info.cap_offset.to_bytes(4, "little") + info.pad.to_bytes(4, "little")
    assert seen == written + tail


@pytest.mark.parametrize("index", ALL)
async def test_regions(vfio, index):
    df = await vfio.bound(index)
    for region, (flags, size) in enumerate(REGIONS[index]):
        info = await region_info(vfio, df, index=region, tail=bytes(64))
        assert (info.flags, info.size) == (flags, size)
        assert info.offset == region << 40
        if flags & 8:
            assert info.cap_offset == 32
            assert vfio.tail[:8] == bytes((3, 0, 1, 0, 0, 0, 0, 0))
        else:
            assert info.cap_offset == 0
            assert vfio.tail == bytes(64)
    for region in (8, 9, 10):
        with refused("EINVAL"):
            await region_info(vfio, df, index=region)


@pytest.mark.parametrize(
    ("argsz", "needed", "cap_offset"), [(32, 40, 0), (39, 40, 0), (40, 40, 32)]
)
async def test_a_chain_that_has_no_room_says_how_much_it_takes(vfio, argsz, needed, cap_offset):
    df = await vfio.bound(NVME)
    info = await region_info(vfio, df, index=0, argsz=argsz, tail=bytes(8))
    assert (info.argsz, info.cap_offset, info.flags) == (needed, cap_offset, 15)


@pytest.mark.parametrize("index", ALL)
async def test_irqs(vfio, index):
    df = await vfio.bound(index)
    intx, msi, msix = IRQS[index]
    expected = [(7, intx), (9, msi), (1 if msix else 9, msix), (9, 1), (9, 1)]
    for irq, answer in enumerate(expected):
        info = await vfio.call(
            df, uapi.VFIO_DEVICE_GET_IRQ_INFO, "vfio_irq_info", index=irq, count=0x3333
        )
        assert (info.flags, info.count) == answer
    with refused("EINVAL"):
        await vfio.call(df, uapi.VFIO_DEVICE_GET_IRQ_INFO, "vfio_irq_info", index=5)


@pytest.mark.parametrize(
    ("number", "struct", "argsz"),
    [
        (uapi.VFIO_DEVICE_GET_INFO, "vfio_device_info", 15),
        (uapi.VFIO_DEVICE_GET_REGION_INFO, "vfio_region_info", 31),
        (uapi.VFIO_DEVICE_GET_IRQ_INFO, "vfio_irq_info", 15),
    ],
)
async def test_too_small_is_einval_and_no_memory_is_efault(vfio, number, struct, argsz):
    df = await vfio.bound(NVME)
    with refused("EINVAL"):
        await vfio.call(df, number, struct, argsz=argsz)
    with refused("EFAULT"):
        await vfio.ioctl(df, number, 0)


SPARSE = Description(
    vendor=1, device=1, class_code=0, msix_vectors=4, msix_table=(2, 0), msix_pba=(2, 0x1000),
    bars={
        0: Bar(0x4000, mappable=True, mapped=((0x1000, 0x1000), (0x3000, 0x1000))),
        2: Bar(0x4000, mappable=True, mapped=((0x2000, 0x2000),)),
    },
)  # fmt: skip


async def sparse(vfio):
    device = vfio.add("0000:00:1e.0", lambda host: Inert(host, {"description": SPARSE}))
    return await vfio.bound(device.index)


async def test_parts_that_can_be_mapped_are_told(vfio):
    df = await sparse(vfio)
    info = await region_info(vfio, df, index=0, tail=bytes(48))
    assert (info.flags, info.size, info.cap_offset) == (15, 0x4000, 32)
    header = struct.pack("<HHIII", 1, 1, 0, 2, 0)
    assert vfio.tail == header + struct.pack("<QQQQ", 0x1000, 0x1000, 0x3000, 0x1000)


@pytest.mark.parametrize(
    ("argsz", "needed", "cap_offset"), [(32, 72, 0), (71, 72, 0), (72, 72, 32), (80, 80, 32)]
)
async def test_two_capabilities_are_one_chain(vfio, argsz, needed, cap_offset):
    df = await sparse(vfio)
    info = await region_info(vfio, df, index=2, argsz=argsz, tail=bytes(48))
    assert (info.argsz, info.cap_offset, info.flags) == (needed, cap_offset, 15)
    chain = struct.pack("<HHIHHIIIQQ", 3, 1, 40, 1, 1, 0, 1, 0, 0x2000, 0x2000)
    assert vfio.tail == (chain if cap_offset else bytes(40)) + bytes(8)


@pytest.mark.parametrize(
    ("length", "offset", "allowed"),
    [
        (0x1000, 0x1000, True),
        (0x1000, 0x3000, True),
        (0x1000, 0, False),
        (0x2000, 0x1000, False),
        (0x3000, 0x1000, False),
        (0x2000, 0x3000, False),
        (0x2000, 2 << 40 | 0x2000, True),
    ],
)
async def test_gaps_cannot_be_mapped(vfio, length, offset, allowed):
    df = await sparse(vfio)
    if allowed:
        df.check_mmap(vfio.caller, -1, length, 3, offset)
    else:
        with refused("EINVAL"), as_os_error():
            df.check_mmap(vfio.caller, -1, length, 3, offset)


@contextlib.contextmanager
def as_os_error():
    try:
        yield
    except UapiError as error:
        raise OSError(error.errno, str(error)) from error
