"""What goes wrong in a model is its device's trouble: EIO, a counter, lines in the log."""

import errno
import os
import time

import pytest
import trio

from iommufs import uapi
from iommufs.errors import UapiError
from iommufs.vfio import guard, watch
from iommufs.vfio.model import Bar, Description, Model
from tests.contract.client import refused
from tests.contract.vfio_client import EDU

BAR = [index << 40 for index in range(6)]

pytestmark = pytest.mark.logs("a device model failed")
ADDRESS = "0000:00:1e.0"


class Works(Model):
    """A model without a fault; tests put one in."""

    def describe(self):
        return Description(1, 2, 3, bars={0: Bar(4096), 1: Bar(4096, mappable=True)})

    def open(self):
        self.host.watch(1, 0, 4)


@pytest.fixture
def device(vfio):
    return vfio.add(ADDRESS, lambda host: Works(host, {}), scope_of=EDU)


@pytest.fixture
async def df(vfio, device):
    return await vfio.bound(-1)


@pytest.fixture
async def edu_goes_on(vfio):
    """After all, another device still works."""
    yield
    edu = await vfio.bound(0)
    assert await vfio.pread(edu, 4, BAR[0]) == b"\xed\x00\x00\x01"


pytestmark = [pytestmark, pytest.mark.usefixtures("edu_goes_on")]


def raises(error):
    def call(*args):
        raise error

    return call


async def waits(*args):
    raise AssertionError("nobody waits for it")


class Odd:
    """What is no answer at all."""


FAULTS = {
    "raises": raises(RuntimeError("out of order")),
    "exits": raises(SystemExit(1)),
    "recurses": lambda *args: FAULTS["recurses"](*args),
    "is async": waits,
}
WRONG = {
    "None": None,
    "text": "42",
    "float": 1.0,
    "negative": -1,
    "too wide": 1 << 32,
    "odd": Odd(),
}


@pytest.mark.parametrize("fault", [*FAULTS, *WRONG])
async def test_read(vfio, df, monkeypatch, fault):
    wrong = WRONG.get(fault)
    monkeypatch.setattr(df.function.model, "read", FAULTS.get(fault, lambda *args: wrong))
    with refused("EIO"):
        await vfio.pread(df, 4, BAR[0])
    assert df.function.counters["model_errors"] == 1
    monkeypatch.undo()
    assert await vfio.pread(df, 4, BAR[0]) == bytes(4)


@pytest.mark.parametrize("fault", FAULTS)
async def test_write(vfio, df, monkeypatch, fault):
    monkeypatch.setattr(df.function.model, "write", FAULTS[fault])
    with refused("EIO"):
        await vfio.pwrite(df, bytes(4), BAR[0])
    assert df.function.counters["model_errors"] == 1


@pytest.mark.parametrize("fault", FAULTS)
async def test_open_and_reset_fail_the_bind(vfio, device, monkeypatch, fault):
    for call in "open", "reset":
        monkeypatch.setattr(device.function, "can_reset", True)
        monkeypatch.setattr(device.function.model, call, FAULTS[fault])
        with refused("EIO"):
            await vfio.bound(-1)
        assert device.bound is None
        monkeypatch.undo()
    assert device.function.counters["model_errors"] >= 2
    df = await vfio.bound(-1)
    assert await vfio.pread(df, 4, BAR[0]) == bytes(4)


async def test_close(vfio, df, monkeypatch):
    monkeypatch.setattr(df.function.model, "close", FAULTS["raises"])
    vfio.close(df)
    assert df.function.counters["model_errors"] == 1
    assert df.function.iommu_device is None


async def test_reset(vfio, df, monkeypatch):
    monkeypatch.setattr(df.function, "can_reset", True)
    monkeypatch.setattr(df.function.model, "reset", FAULTS["raises"])
    with refused("EIO"):
        await vfio.ioctl(df, uapi.VFIO_DEVICE_RESET, 0)


@pytest.mark.parametrize("fault", FAULTS)
async def test_stores_through_a_mapping(df, monkeypatch, fault):
    monkeypatch.setattr(df.function.model, "stores", FAULTS[fault])
    os.pwrite(df.function.bars.fd, b"\x01\0\0\0", 1 << 40)
    with trio.fail_after(10):
        while not df.function.counters["model_errors"]:
            watch.drain(64)
            await trio.lowlevel.checkpoint()


def group():
    raise ExceptionGroup("two at once", [RuntimeError("one"), SystemError("two")])


async def swallows():
    try:
        group()
    finally:
        await trio.sleep(0)


TASKS = {
    **FAULTS,
    "is async": None,
    "is not async": lambda: 42,
    "raises a group": group,
    "raises later": swallows,
}


@pytest.mark.parametrize("fault", TASKS)
async def test_task(vfio, df, fault):
    async def task():
        TASKS[fault]()

    df.function.host.start(TASKS[fault] if fault in ("is not async", "raises later") else task)
    with trio.fail_after(10):
        while not df.function.counters["model_errors"]:
            await trio.lowlevel.checkpoint()
    assert await vfio.pread(df, 4, BAR[0]) == bytes(4)


@pytest.fixture
def short_clock(monkeypatch):
    monkeypatch.setattr(guard, "STRIKE_SECONDS", 0.05)
    monkeypatch.setattr(guard._clock, "_runs", False)


def loops(*args):
    while True:
        pass


@pytest.mark.parametrize("endless", [loops, lambda *args: time.sleep(1000)])
@pytest.mark.usefixtures("short_clock")
async def test_a_call_without_an_end(vfio, df, monkeypatch, endless):
    monkeypatch.setattr(df.function.model, "read", endless)
    for n in 1, 2:
        with refused("EIO"):
            await vfio.pread(df, 4, BAR[0])
        assert df.function.counters["model_errors"] == n


@pytest.mark.usefixtures("short_clock")
async def test_a_task_without_an_end(df):
    async def task():
        await trio.sleep(0)
        loops()

    df.function.host.start(task)
    with trio.fail_after(10):
        while not df.function.counters["model_errors"]:
            await trio.lowlevel.checkpoint()


@pytest.mark.usefixtures("short_clock")
async def test_a_task_that_waits_is_not_struck_and_can_be_cancelled(df, monkeypatch):
    """The fault at the end is for the log mark of this file."""
    ended = trio.Event()

    async def task():
        try:
            await trio.sleep(0.3)
            await trio.sleep_forever()
        finally:
            ended.set()

    df.function.host.start(task)
    await trio.sleep(0.4)
    assert not ended.is_set()
    df.function.host.cancel_tasks()
    with trio.fail_after(10):
        await ended.wait()
    assert df.function.counters["model_errors"] == 0
    monkeypatch.setattr(df.function.model, "read", FAULTS["raises"])
    with pytest.raises(UapiError) as caught:
        df.function.read_bar(0, 0, 4)
    assert caught.value.errno == errno.EIO


async def test_a_model_that_fails_all_the_time_does_not_fill_the_log(
    vfio, df, monkeypatch, log_lines
):
    monkeypatch.setattr(df.function.model, "read", FAULTS["raises"])
    for _ in range(100):
        with refused("EIO"):
            await vfio.pread(df, 4, BAR[0])
    assert [line["count"] for line in log_lines] == [*range(1, 9), 16, 32, 64]
    assert {(line["device"], line["call"]) for line in log_lines} == {(ADDRESS, "read")}
