"""Low power by VFIO_DEVICE_FEATURE; source: the oracle guest, asked with edu, nvme and e1000e."""

import os

import pytest

from iommufs import uapi
from tests.contract.client import refused
from tests.contract.vfio_client import CONFIG, EDU, NIC0, NVME, event

SET = 1 << 17
ENTRY, WAKEUP, EXIT = 3, 4, 5


async def feature(vfio, df, index, data=b"", **fields):
    await vfio.call(
        df, uapi.VFIO_DEVICE_FEATURE, "vfio_device_feature", tail=data, flags=SET | index, **fields
    )


def with_eventfd(fd):
    return fd.to_bytes(4, "little", signed=True) + b"\7\0\0\0"


@pytest.fixture(params=[EDU, NVME, NIC0])
async def df(vfio, request):
    return await vfio.bound(request.param)


async def test_it_is_entered_once_and_left_any_number_of_times(vfio, df):
    await feature(vfio, df, ENTRY)
    with refused("EINVAL"):
        await feature(vfio, df, ENTRY)
    with refused("EINVAL"):
        await feature(vfio, df, WAKEUP, with_eventfd(vfio.eventfd()))
    for _ in range(2):
        await feature(vfio, df, EXIT)
    await feature(vfio, df, ENTRY)


@pytest.mark.parametrize(("fd", "errno"), [(-1, "EINVAL"), (9999, "EBADF")])
async def test_the_wakeup_eventfd_must_be_one(vfio, df, fd, errno):
    with refused(errno):
        await feature(vfio, df, WAKEUP, with_eventfd(fd))
    assert not df.low_power.entered


async def ioctl(vfio, df, number):
    try:
        await vfio.ioctl(df, number, 0)
    except OSError:
        return


USES = {
    "config": lambda vfio, df: vfio.pread(df, 4, CONFIG),
    "write": lambda vfio, df: vfio.pwrite(df, b"\0", CONFIG + 0x3C),
    "bar": lambda vfio, df: vfio.pread(df, 4, 0),
    "a refused ioctl": lambda vfio, df: ioctl(vfio, df, uapi.VFIO_DEVICE_GET_INFO),
    "an unknown ioctl": lambda vfio, df: ioctl(vfio, df, 0x3BFF),
    "exit": lambda vfio, df: feature(vfio, df, EXIT),
}


@pytest.mark.parametrize("use", USES)
async def test_any_use_wakes_it_and_tells_once(vfio, df, use):
    e = vfio.eventfd()
    for _ in range(2):
        await feature(vfio, df, WAKEUP, with_eventfd(e))
        assert event(e) == 0
        await USES[use](vfio, df)
        assert event(e) == 1
        await USES[use](vfio, df)
        assert event(e) == 0


async def test_entering_again_is_a_use_too(vfio, df):
    first, second = vfio.eventfd(), vfio.eventfd()
    await feature(vfio, df, WAKEUP, with_eventfd(first))
    await feature(vfio, df, WAKEUP, with_eventfd(second))
    assert (event(first), event(second)) == (1, 0)


async def test_without_an_eventfd_it_sleeps_again(vfio, df):
    await feature(vfio, df, ENTRY)
    for _ in range(2):
        await vfio.pread(df, 4, 0)
        assert df.low_power.entered
    with refused("EINVAL"):
        await feature(vfio, df, ENTRY)


async def test_no_use_of_nothing_wakes_it(vfio, df):
    e = vfio.eventfd()
    await feature(vfio, df, WAKEUP, with_eventfd(e))
    assert await vfio.pread(df, 0, CONFIG) == b""
    assert event(e) == 0


@pytest.mark.parametrize("index", [NVME, NIC0])
async def test_asleep_it_is_in_d3hot_and_config_space_is_as_before(vfio, index):
    df = await vfio.bound(index)
    await vfio.pwrite(df, b"\x06\0", CONFIG + 4)
    before = await vfio.pread(df, 64, CONFIG)
    await feature(vfio, df, ENTRY)
    assert df.function.power == 3
    assert not df.function.bus_master
    assert await vfio.pread(df, 64, CONFIG) == before
    assert df.function.power == 3
    await feature(vfio, df, EXIT)
    assert df.function.power == 0
    assert df.function.bus_master
    assert await vfio.pread(df, 64, CONFIG) == before


async def test_its_line_is_heard_when_it_wakes(vfio):
    df = await vfio.bound(EDU)
    e = vfio.eventfd()
    await vfio.set_irqs(df, 0x24, 0, data=e.to_bytes(4, "little"))
    await feature(vfio, df, ENTRY)
    df.function.set_intx(True)
    assert event(e) == 0
    await vfio.pread(df, 4, CONFIG)
    assert event(e) == 1
    df.function.set_intx(False)
    await feature(vfio, df, EXIT)


async def test_a_line_that_the_client_masked_stays_masked(vfio):
    df = await vfio.bound(EDU)
    e = vfio.eventfd()
    await vfio.set_irqs(df, 0x24, 0, data=e.to_bytes(4, "little"))
    await vfio.set_irqs(df, 0x09, 0)
    await feature(vfio, df, ENTRY)
    await feature(vfio, df, EXIT)
    df.function.set_intx(True)
    assert event(e) == 0


async def test_a_device_can_wake_by_itself(vfio, df):
    e = vfio.eventfd()
    await feature(vfio, df, WAKEUP, with_eventfd(e))
    df.function.host.wake()
    assert event(e) == 1
    df.function.host.wake()
    assert event(e) == 0
    await feature(vfio, df, ENTRY)
    df.function.host.wake()
    assert df.low_power.entered


async def test_a_reset_of_its_bus_wakes_it(vfio):
    df = await vfio.bound(NIC0)
    e = vfio.eventfd()
    await feature(vfio, df, WAKEUP, with_eventfd(e))
    df.device.dev_set.reset()
    assert event(e) == 1


async def test_the_eventfd_goes_with_the_device_untold(vfio):
    df = await vfio.bound(NVME)
    e = vfio.eventfd()
    before = len(os.listdir("/proc/self/fd"))
    await feature(vfio, df, WAKEUP, with_eventfd(e))
    vfio.close(df)
    assert len(os.listdir("/proc/self/fd")) == before
    assert event(e) == 0
