"""RESET, GET_PCI_HOT_RESET_INFO, PCI_HOT_RESET; source: oracle probe, sections reset and group."""

import struct

import pytest

from iommufs import uapi
from iommufs.vfio import reset
from tests.contract.client import refused
from tests.contract.vfio_client import CONFIG, EDU, EDU_BRIDGE, IGB, NIC0, NIC1, NVME, TESTDEV

NOT_OWNED = 0xFFFFFFFF


async def hot_reset_info(vfio, df, argsz=268):
    """Flags and (id, bus, devfn) of each function."""
    cmd = await vfio.call(
        df, uapi.VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, "vfio_pci_hot_reset_info",
        tail=bytes(256), argsz=argsz,
    )  # fmt: skip
    entries = [struct.unpack_from("<IHBB", vfio.tail, 8 * i) for i in range(cmd.count)]
    assert all(segment == 0 for _, segment, _, _ in entries)
    return cmd.flags, [(id, bus, devfn) for id, _, bus, devfn in entries]


async def hot_reset(vfio, df, **fields):
    await vfio.call(df, uapi.VFIO_DEVICE_PCI_HOT_RESET, "vfio_pci_hot_reset", **fields)


@pytest.mark.parametrize("index", [NVME, NIC0, NIC1, IGB])
async def test_config_space_survives_a_reset(vfio, index):
    df = await vfio.bound(index)
    await vfio.pwrite(df, b"\x46\x01", CONFIG + 4)
    await vfio.pwrite(df, b"\x10", CONFIG + 0xC)
    await vfio.pwrite(df, b"\x55", CONFIG + 0x3C)
    await vfio.pwrite(df, b"\0\0\xad\xde", CONFIG + 0x10)
    before = await vfio.pread(df, 256, CONFIG)
    await vfio.ioctl(df, uapi.VFIO_DEVICE_RESET)
    assert await vfio.pread(df, 256, CONFIG) == before
    assert df.function.counters["resets"] == 1


async def test_memory_of_the_device_does_not(vfio):
    df = await vfio.bound(NIC0)
    await vfio.pwrite(df, b"left", 0)
    await vfio.ioctl(df, uapi.VFIO_DEVICE_RESET)
    assert await vfio.pread(df, 4, 0) == bytes(4)


async def test_a_reset_wakes_the_function_up(vfio):
    df = await vfio.bound(NIC0)
    await vfio.pwrite(df, b"\x03", CONFIG + 0xCC)
    with refused("EIO"):
        await vfio.pread(df, 4, 0)
    await vfio.ioctl(df, uapi.VFIO_DEVICE_RESET)
    assert await vfio.pread(df, 1, CONFIG + 0xCC) == b"\0"
    await vfio.pread(df, 4, 0)


@pytest.mark.parametrize("index", [EDU, EDU_BRIDGE, TESTDEV])
async def test_a_device_that_cannot_be_reset_alone_is_einval(vfio, index):
    df = await vfio.bound(index)
    with refused("EINVAL"):
        await vfio.ioctl(df, uapi.VFIO_DEVICE_RESET)


@pytest.mark.parametrize(
    ("methods", "scope", "alone"),
    [
        ((), ("a",), False),
        (("flr",), (), True),
        (("pm", "bus"), ("a", "b"), True),
        (("bus",), ("a", "b"), False),
        (("bus",), ("a",), True),
        (("bus",), (), False),
    ],
)
def test_what_works_alone(methods, scope, alone):
    assert reset.works_alone(methods, scope) is alone


async def test_a_device_on_the_root_bus_has_no_hot_reset(vfio):
    df = await vfio.bound(EDU)
    with refused("ENODEV"):
        await hot_reset_info(vfio, df)
    with refused("ENODEV"):
        await hot_reset(vfio, df)


async def test_the_info_names_the_device_itself(vfio):
    df = await vfio.bound(NVME)
    assert await hot_reset_info(vfio, df) == (3, [(df.iommu_device.id, 1, 0)])


@pytest.mark.parametrize("argsz", [12, 19])
async def test_too_little_room_tells_the_count(vfio, argsz):
    df = await vfio.bound(NVME)
    with refused("ENOSPC"):
        await hot_reset_info(vfio, df, argsz)
    assert (vfio.cmd.count, vfio.cmd.flags) == (1, 0)
    with refused("EINVAL"):
        await hot_reset_info(vfio, df, 11)
    await hot_reset_info(vfio, df, 20)


async def test_a_sibling_of_the_group_is_owned_without_an_id(vfio):
    _, fd = vfio.iommufd()
    first = await vfio.bound(NIC0, fd)
    assert await hot_reset_info(vfio, first) == (3, [(first.iommu_device.id, 2, 0), (0, 2, 1)])
    await hot_reset(vfio, first)
    second = await vfio.bound(NIC1, fd)
    ids = [(first.iommu_device.id, 2, 0), (second.iommu_device.id, 2, 1)]
    assert await hot_reset_info(vfio, second) == (3, ids)
    await hot_reset(vfio, second)
    assert first.function.counters["resets"] == second.function.counters["resets"] == 2


async def test_a_device_behind_the_same_bridge(vfio):
    _, fd = vfio.iommufd()
    edu, testdev = await vfio.bound(EDU_BRIDGE, fd), await vfio.bound(TESTDEV, fd)
    ids = [(edu.iommu_device.id, 4, 8), (testdev.iommu_device.id, 4, 16)]
    assert await hot_reset_info(vfio, testdev) == (3, ids)
    vfio.close(edu)
    assert await hot_reset_info(vfio, testdev) == (3, [(0, 4, 8), ids[1]])
    await hot_reset(vfio, testdev)


@pytest.mark.parametrize("fields", [{"argsz": 11}, {"flags": 1}, {"count": 1}], ids=str)
async def test_hot_reset_refuses(vfio, fields):
    df = await vfio.bound(NVME)
    with refused("EINVAL"):
        await hot_reset(vfio, df, **fields)


async def test_what_is_not_owned_is_said_and_not_reset(vfio):
    df = await vfio.bound(NVME)
    stranger = vfio.add("0000:01:00.1", vfio.inert, scope_of=NVME)
    assert await hot_reset_info(vfio, df) == (1, [(df.iommu_device.id, 1, 0), (NOT_OWNED, 1, 1)])
    with refused("EINVAL"):
        await hot_reset(vfio, df)
    assert stranger.function.counters["resets"] == 0


async def test_a_function_that_is_no_device_of_ours_forbids_it(vfio):
    df = await vfio.bound(NVME)
    df.device.dev_set.scope["0000:01:00.7"] = 9
    assert (await hot_reset_info(vfio, df))[1][1] == (NOT_OWNED, 1, 7)
    with refused("EINVAL"):
        await hot_reset(vfio, df)


async def test_what_cannot_be_reset_alone_is_reset_when_all_are_closed(vfio):
    """Oracle: the interrupt line of an edu behind a bridge is down when it is opened again."""
    _, fd = vfio.iommufd()
    edu, testdev = await vfio.bound(EDU_BRIDGE, fd), await vfio.bound(TESTDEV, fd)
    await vfio.pwrite(edu, b"\1\0\0\0", 0x60)
    assert edu.function.intx_level
    vfio.close(edu)
    assert vfio.devices[EDU_BRIDGE].function.intx_level
    vfio.close(testdev)
    assert not vfio.devices[EDU_BRIDGE].function.intx_level
