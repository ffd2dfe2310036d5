"""Cores stay awake while calls come close together, and only then (native/pm_qos.c)."""

import inspect
import os
from pathlib import Path

import pytest
import trio

from tests.e2e.mounted import COUNT, serving

LATENCY = Path("/dev/cpu_dma_latency")
DRIVER = Path("/sys/devices/system/cpu/cpuidle/current_driver")

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(
        not os.access(LATENCY, os.W_OK)
        or not DRIVER.exists()
        or DRIVER.read_text() != "haltpoll\n"
        or os.sysconf("SC_NPROCESSORS_ONLN") > 4,
        reason="idle cores of this machine do not halt, or are many, or are not ours to keep awake",
    ),
]


def held(process):
    """Whether it keeps cores awake. Clients have to look too."""
    directory = f"/proc/{process}/fd/"
    for fd in os.listdir(directory):
        try:
            if os.readlink(directory + fd) == "/dev/cpu_dma_latency":
                return True
        except FileNotFoundError:
            pass
    return False


CALLS = f"""
    f = dev()
    print("calls", flush=True)
    while not refused(fcntl.ioctl, f, {COUNT}):
        pass
    sys.exit(3)
"""


@pytest.fixture
async def mounted(tmp_path, monkeypatch):
    async with serving(tmp_path, monkeypatch) as mounted:
        yield mounted


async def wait_until(condition):
    with trio.fail_after(60):
        while not condition():
            await trio.sleep(0.001)


async def test_calls_close_together_keep_cores_awake_until_they_end(mounted):
    async with mounted.started(CALLS):
        await wait_until(lambda: held("self"))
    await wait_until(lambda: not held("self"))


async def test_calls_now_and_then_do_not(mounted):
    calls = f"""
for _ in range(64):
    fcntl.ioctl(f, {COUNT})
    assert not held(os.getppid())
    time.sleep(0.001)
"""
    await mounted.client("f = dev()\n" + inspect.getsource(held) + calls)


async def test_a_mount_that_ends_amid_calls_lets_cores_sleep(tmp_path, monkeypatch):
    async with serving(tmp_path, monkeypatch) as mounted:
        client = await trio.lowlevel.open_process(mounted.command(CALLS))
        await wait_until(lambda: held("self"))
    assert not held("self")
    with trio.fail_after(60):
        assert await client.wait() == 3
