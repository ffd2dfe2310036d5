"""Devices opened through a group; source: vfio_df_group_open(), oracle (tests/e2e/groups)."""

import pytest

from iommufs import uapi
from tests.contract.client import refused
from tests.contract.vfio_client import CONFIG, EDU, IGB, NIC0, NIC1, NVME

GET_DEVICE_FD = uapi.VFIO_GROUP_GET_DEVICE_FD
TOKEN = "bd8d9d2b-5a5f-4f5a-a211-f591514ba1f3"


async def grouped(vfio, index):
    """The group of a device, with a container: group, its fd, context, fd of that."""
    group, group_fd = vfio.open_group(index)
    ctx, fd = vfio.iommufd()
    await vfio.set_container(group, fd)
    return group, group_fd, ctx, fd


async def test_the_first_one_binds_and_attaches(vfio):
    group, _, ctx, _ = await grouped(vfio, NVME)
    number = await vfio.device_fd(group, NVME)
    df = vfio.descriptors[number]
    assert df.granted
    assert df.iommu_device.attached
    assert ctx.objects.counts() == {"Ioas": 1, "Device": 1, "HwptPaging": 1}
    assert await vfio.pread(df, 4, CONFIG) == bytes.fromhex("361b1000")


async def test_the_last_close_ends_it(vfio):
    group, _, ctx, _ = await grouped(vfio, NVME)
    numbers = [await vfio.device_fd(group, NVME) for _ in range(3)]
    df = vfio.descriptors[numbers[0]]
    for number in numbers:
        assert await vfio.pread(df, 4, CONFIG) == bytes.fromhex("361b1000")
        vfio.descriptors.pop(number).release()
    assert not vfio.devices[NVME].bound
    assert ctx.objects.counts() == {"Ioas": 1}


@pytest.mark.parametrize(
    ("words", "error"),
    [("x", "ENODEV"), (".1", "ENODEV"), (" x", "EINVAL"), (f" vf_token={TOKEN}", "EINVAL")],
)
async def test_names_that_are_refused(vfio, words, error):
    group, *_ = await grouped(vfio, NVME)
    with refused(error):
        await vfio.device_fd(group, NVME, words)
    with refused("ENODEV"):
        await vfio.device_fd(group, EDU)
    assert not vfio.devices[NVME].bound


async def test_a_physical_function_takes_a_token(vfio):
    group, *_ = await grouped(vfio, IGB)
    await vfio.device_fd(group, IGB, f"  vf_token={TOKEN.upper()} ")
    assert vfio.devices[IGB].vf_token == bytes.fromhex(TOKEN.replace("-", ""))
    for words in (f" vf_token={TOKEN[:-1]}", f" vf_token={TOKEN} vf_token={TOKEN}"):
        with refused("EINVAL"):
            await vfio.device_fd(group, IGB, words)


async def test_without_a_container_it_is_einval_after_the_name(vfio):
    group, _ = vfio.open_group(NVME)
    with refused("EINVAL"):
        await vfio.device_fd(group, NVME)
    with refused("ENODEV"):
        await vfio.device_fd(group, EDU)
    with refused("EFAULT"):
        await vfio.ioctl(group, GET_DEVICE_FD, 0)


async def test_without_an_ioas_it_is_enodev_and_not_bound(vfio):
    group, _, ctx, _ = await grouped(vfio, NVME)
    ctx.vfio_ioas = None
    with refused("ENODEV"):
        await vfio.device_fd(group, NVME)
    assert not vfio.devices[NVME].bound
    assert not vfio.devices[NVME].group.iommu_group.owned


async def test_a_sibling_in_another_container_is_eperm(vfio):
    group, *_ = await grouped(vfio, NIC0)
    await vfio.device_fd(group, NIC0)
    await vfio.ioctl(group, uapi.VFIO_GROUP_UNSET_CONTAINER)
    assert await vfio.group_status(group) == 0
    await vfio.set_container(group, vfio.iommufd()[1])
    with refused("EPERM"):
        await vfio.device_fd(group, NIC1)


async def test_a_device_outlives_its_group_being_open(vfio):
    group, _, _, fd = await grouped(vfio, NIC0)
    df = vfio.descriptors[number := await vfio.device_fd(group, NIC0)]
    vfio.close(group)
    assert await vfio.pread(df, 4, CONFIG) == bytes.fromhex("8680d310")
    cdev = vfio.open(NIC0)
    with refused("EINVAL"):
        await vfio.bind(cdev, fd)
    await vfio.bind(vfio.open(NIC1), fd)
    vfio.descriptors.pop(number).release()
    await vfio.bind(cdev, fd)


async def test_what_is_only_for_cdevs(vfio):
    group, _, _, fd = await grouped(vfio, NVME)
    df = vfio.descriptors[await vfio.device_fd(group, NVME)]
    with refused("EINVAL"):
        await vfio.bind(df, fd)
    for number in (uapi.VFIO_DEVICE_ATTACH_IOMMUFD_PT, uapi.VFIO_DEVICE_DETACH_IOMMUFD_PT):
        with refused("ENOTTY"):
            await vfio.ioctl(df, number)


async def hot_reset(vfio, df, *fds):
    data = b"".join(fd.to_bytes(4, "little", signed=True) for fd in fds)
    struct = "vfio_pci_hot_reset"
    await vfio.call(df, uapi.VFIO_DEVICE_PCI_HOT_RESET, struct, tail=data, count=len(fds))


async def test_a_hot_reset_wants_the_groups_of_all_that_it_hits(vfio):
    group, group_fd, _, fd = await grouped(vfio, NIC0)
    _, other_fd = vfio.open_group(NVME)
    df = vfio.descriptors[await vfio.device_fd(group, NIC0)]
    cases = [((), "EINVAL"), ((other_fd,), "EINVAL"), ((fd,), "EINVAL"), ((9999,), "EBADF")]
    cases += [((group_fd,) * 3, "EINVAL"), ((group_fd, 9999), "EBADF")]
    for fds, error in cases:
        with refused(error):
            await hot_reset(vfio, df, *fds)
    assert df.function.counters["resets"] == 0
    for fds in ((group_fd,), (group_fd, other_fd)):
        await hot_reset(vfio, df, *fds)
    assert vfio.devices[NIC1].function.counters["resets"] == 2


async def test_its_info_names_groups(vfio):
    group, *_ = await grouped(vfio, NIC0)
    df = vfio.descriptors[await vfio.device_fd(group, NIC0)]
    number = uapi.VFIO_DEVICE_GET_PCI_HOT_RESET_INFO
    cmd = await vfio.call(df, number, "vfio_pci_hot_reset_info", tail=bytes(16))
    assert (cmd.flags, cmd.count) == (0, 2)
    assert vfio.tail == bytes.fromhex("0a000000 0000 02 00 0a000000 0000 02 01")
