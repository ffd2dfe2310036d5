"""Clients that behave badly: the server says nothing, goes on serving, and nothing is left."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.contract.mount_client import MountServer

pytestmark = pytest.mark.mount

HOSTILE = Path(__file__).with_name("hostile.py")
LONG = 60
# Reported are refused DMA, what a controller cannot do, and ioctls that return descriptors outside
# of `iommufs run`.
EXPECTED = (
    r": (DMA (refused|outside the buffer) |a call that returns a file descriptor failed"
    r"|the controller was enabled with values that it does not take|fatal: a com)"
)


@pytest.fixture
def server(tmp_path):
    server = MountServer(tmp_path)
    yield server
    server.end(EXPECTED)  # and nothing else


def start(server, seed, n_calls):
    command = [sys.executable, str(HOSTILE), str(server.path), str(seed), str(n_calls)]
    client = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert client.stdout.readline() == b"begun\n", client.stderr.read().decode()
    return client


def settled(server, wanted):
    """What lives, when it has become `wanted` or a minute is over: releases are asynchronous."""
    deadline = time.monotonic() + LONG
    while (found := server.statistics()) != wanted and time.monotonic() < deadline:
        time.sleep(0.01)
    return found


def finish(client, kill):
    if kill:
        client.kill()
    out, err = client.communicate(timeout=LONG)
    assert kill or client.returncode == 0, (out, err.decode())


@pytest.mark.parametrize("seed", range(8))
def test_random_calls_leave_nothing(server, seed):
    before = server.statistics()
    finish(start(server, seed, 1500), kill=False)
    assert settled(server, before) == before, f"seed {seed}: something is left"


def test_clients_killed_anywhere_leave_nothing(server):
    """Twice two at once, so that one has what the other wants."""
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    before = server.statistics()
    for _ in range(20):
        clients = [start(server, rng.getrandbits(32), 0) for _ in range(2)]
        for client in clients:
            time.sleep(rng.random() * 0.05)
            finish(client, kill=True)
        found = settled(server, before)
        assert found == before, f"seed {seed}: something is left: {json.dumps(found)}"


CLOSES_ITS_IOMMUFD = """
import ctypes, os, struct, threading
libc = ctypes.CDLL(None, use_errno=True)
iommu, over = os.open("/dev/iommu", os.O_RDWR), False

def alloc():
    global over
    for _ in range(300):
        data = ctypes.create_string_buffer(struct.pack("<IIII", 16, 0, 0, 0))
        if libc.ioctl(iommu, ctypes.c_ulong(0x3B8E), data) == 0:
            os.close(struct.unpack("<IIII", data.raw[:16])[3])
    over = True

def close():
    while not over:
        os.close(iommu)
        os.open("/dev/iommu", os.O_RDWR)

threads = [threading.Thread(target=work) for work in (alloc, alloc, close)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print("over")
"""


def test_files_closed_during_their_own_call(tmp_path):
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "iommufs.cli",
            "run",
            "--",
            sys.executable,
            "-c",
            CLOSES_ITS_IOMMUFD,
        ],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=LONG,
    )
    said = [line for line in result.stderr.splitlines() if "returns a file descriptor" not in line]
    assert (result.returncode, result.stdout, said) == (0, "over\n", [])
