"""What only a mount shows of devices: clients that are killed, and BARs that are mapped."""

import contextlib
import mmap
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.contract.client import PAGE
from tests.contract.device_client import STAGES
from tests.contract.mount_client import ROOT, MountClient

pytestmark = pytest.mark.mount

LIVENESS, ID = 4, 0
COMMAND = (7 << 40) + 4


def open_files(server):
    """How many the server has, but for what it holds while calls come close together (pm_qos.c)."""
    targets = []
    for fd in Path(f"/proc/{server._process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            targets.append(os.readlink(fd))
    return len([target for target in targets if target != "/dev/cpu_dma_latency"])


def run_and_kill(server, stage):
    """Returns what lived before, while and after a client got as far as this."""
    before = server.statistics()
    client = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("device_client.py")), server.path, stage],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    with client:
        assert client.stdout.readline() == "there\n"
        meanwhile = server.statistics()
        client.kill()
    return before, meanwhile, server.statistics()


@pytest.fixture(scope="module")
def warm(server):
    """The server after a first client: what it opens once for all is open."""
    run_and_kill(server, STAGES[-1])
    return server


@pytest.mark.parametrize("stage", STAGES)
def test_a_client_that_is_killed_leaves_nothing(warm, stage):
    files = open_files(warm)
    before, meanwhile, after = run_and_kill(warm, stage)
    assert before != meanwhile
    assert before == after
    assert open_files(warm) == files


def until(condition):
    """Wait for what the poller of mapped BARs does by itself."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it never came"


@pytest.fixture
async def edu(server):
    """An edu device, bound, and its BAR mapped."""
    client = MountClient(server.path)
    device = await client.bind(await client.open(), 0)
    os.pwrite(device.fd, b"\x06\0", COMMAND)
    try:
        memory = mmap.mmap(device.fd, PAGE)
    except OSError as error:
        await client.close_all()
        pytest.skip(f"BARs cannot be mapped here: {error}")
    yield device.fd, memory
    memory.close()
    await client.close_all()


def load(memory, offset):
    return int.from_bytes(memory[offset : offset + 4], "little")


async def test_a_store_to_a_mapped_bar_reaches_the_model(edu):
    fd, memory = edu
    assert load(memory, ID) == 0x010000ED
    memory[LIVENESS : LIVENESS + 4] = (0x12345678).to_bytes(4, "little")
    until(lambda: load(memory, LIVENESS) == 0xEDCBA987)
    assert os.pread(fd, 4, LIVENESS) == (0xEDCBA987).to_bytes(4, "little")


async def test_a_write_to_the_file_is_seen_through_the_mapping(edu):
    fd, memory = edu
    os.pwrite(fd, (0x0F0F0F0F).to_bytes(4, "little"), LIVENESS)
    assert load(memory, LIVENESS) == 0xF0F0F0F0
