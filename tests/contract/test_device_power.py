"""What a device in D3hot has and refuses; source: random calls to configuration space."""

from iommufs import uapi
from tests.contract.client import refused
from tests.contract.test_device_set_irqs import EVENTFD, MSI, MSIX, NONE, TRIGGER, fd_data
from tests.contract.vfio_client import CONFIG, IGB, NIC0, NIC1

ROM = 6
E1000E_PM_CONTROL, IGB_PM_CONTROL, IGB_MSIX_CONTROL = CONFIG + 0xCC, CONFIG + 0x44, CONFIG + 0x72
D0, D3HOT = b"\x00\x00", b"\x03\x00"
ENABLED = 0x80
COMMAND = CONFIG + 4


async def rom(vfio, df):
    info = await vfio.call(df, uapi.VFIO_DEVICE_GET_REGION_INFO, "vfio_region_info", index=ROM)
    return info.flags, info.size


async def test_no_image_is_found_in_the_rom_of_a_device_in_d3hot(vfio):
    df = await vfio.bound(NIC0)
    assert await rom(vfio, df) == (uapi.VFIO_REGION_INFO_FLAG_READ, 0x40000)
    await vfio.pwrite(df, D3HOT, E1000E_PM_CONTROL)
    assert await rom(vfio, df) == (0, 0)
    assert not df.fast.read(ROM << 40, 4)
    await vfio.pwrite(df, D0, E1000E_PM_CONTROL)
    assert await rom(vfio, df) == (uapi.VFIO_REGION_INFO_FLAG_READ, 0x40000)


async def test_messages_are_enabled_in_d0_only(vfio):
    df = await vfio.bound(IGB)
    await vfio.pwrite(df, D3HOT, IGB_PM_CONTROL)
    for index in (MSI, MSIX):
        with refused("EINVAL"):
            await vfio.set_irqs(df, EVENTFD | TRIGGER, index, data=fd_data(vfio.eventfd()))
    # Which check comes first is not the same for both.
    for name, index in (("EINVAL", MSI), ("ERANGE", MSIX)):
        with refused(name):
            await vfio.set_irqs(df, EVENTFD | TRIGGER, index, count=0)
    await vfio.pwrite(df, D0, IGB_PM_CONTROL)
    await vfio.set_irqs(df, EVENTFD | TRIGGER, MSIX, data=fd_data(vfio.eventfd()))


async def test_messages_that_were_disabled_in_d3hot_stay_so(vfio):
    df = await vfio.bound(IGB)
    await vfio.set_irqs(df, EVENTFD | TRIGGER, MSIX, data=fd_data(vfio.eventfd()))
    await vfio.pwrite(df, D3HOT, IGB_PM_CONTROL)
    assert (await vfio.pread(df, 2, IGB_MSIX_CONTROL))[1] & ENABLED
    await vfio.set_irqs(df, NONE | TRIGGER, MSIX, count=0)
    await vfio.pwrite(df, D0, IGB_PM_CONTROL)
    assert not (await vfio.pread(df, 2, IGB_MSIX_CONTROL))[1] & ENABLED


async def test_who_wakes_a_device_clears_its_power_register(vfio):
    df = await vfio.bound(NIC0)
    await vfio.pwrite(df, b"\x03\x18", E1000E_PM_CONTROL)
    assert await vfio.pread(df, 2, E1000E_PM_CONTROL) == b"\x03\x18"
    await vfio.ioctl(df, uapi.VFIO_DEVICE_RESET)
    assert await vfio.pread(df, 2, E1000E_PM_CONTROL) == b"\0\0"


async def test_a_function_may_decode_memory_when_its_client_may_not_reach_it(vfio):
    df = await vfio.bound(NIC1)
    await vfio.pwrite(df, b"\x03", COMMAND)
    await vfio.pwrite(df, D3HOT, E1000E_PM_CONTROL)
    await vfio.pwrite(df, b"\x00", COMMAND)
    with refused("ENOMEM"):
        await vfio.pread(df, 4, ROM << 40)
    await vfio.ioctl(df, uapi.VFIO_DEVICE_RESET)  # restores what was before D3hot
    assert (await vfio.pread(df, 1, COMMAND))[0] & 2
    with refused("EIO"):
        await vfio.pread(df, 4, ROM << 40)
