"""One server for hundreds of clients: when they are gone it holds what it held before them."""

import json
import os
import random
import re
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from tests.contract.client import refused
from tests.contract.mount_client import ioctl

pytestmark = pytest.mark.mount

DATA = Path(__file__).parent / "data"
ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
IOMMUFS = [sys.executable, "-m", "iommufs.cli"]
LONG = 300
MACHINE = """
[iommu]
kind = "amd"

[[function]]
bdf = "00:01.0"
model = "pri"
group = 1
reset_methods = ["flr"]

[[function]]
bdf = "00:02.0"
model = "edu"
group = 2
options = { migration = true }

[[function]]
bdf = "00:03.0"
model = "nvme"
group = 3
reset_methods = ["flr"]

[[function]]
bdf = "00:04.0"
model = "igb"
group = 4
reset_methods = ["flr"]

[[mediated]]
uuid = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001"
model = "serial"
group = 5
"""
ANYWHERE = ["files", "maps", "edu", "nvme", "igb", "serial"]
IN_A_RUN = [*ANYWHERE, "faults", "queues", "group", "exports", "migrates"]
# What devices report whose client is killed.
EXPECTED = r": (DMA refused[ ,]|fatal: a command could not be fetched )"
# Clients of each kind, a multiple of the three ways to end: more than there are threads that wait
# for work, so that who left one for each would be found.
EACH = 15
# What depends on who met whom; none of it is one for each client.
COUNTS = ("threads", "known")


class Server:
    """crowd_server.py on a directory, by a name."""

    def __init__(self, directory):
        self.tree = directory / "tree"
        self.tree.mkdir()
        config = directory / "machine.toml"
        config.write_text(MACHINE)
        self.name = f"test-{uuid.uuid4()}"
        options = ["--name", self.name, "--config", str(config), str(self.tree)]
        self.said = (directory / "said").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, DATA / "crowd_server.py", *options],
            env=ENVIRONMENT, stdin=-1, stdout=-1, stderr=self.said, text=True,
        )  # fmt: skip
        assert self.process.stdout.readline() == f"iommufs: serving on {self.tree}\n"
        self.barrier = os.open(self.tree / "dev/iommu", os.O_RDWR)

    def held(self):
        with refused("ENOTTY"):  # what was closed before is released
            ioctl(self.barrier, 0x3BFF, 0)
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def settled(self, wanted):
        """What it holds when that has become `wanted`, but for COUNTS, or in the end."""
        deadline = time.monotonic() + 60
        while without_counts(found := self.held()) != wanted and time.monotonic() < deadline:
            time.sleep(0.05)
        return found

    def end(self):
        os.close(self.barrier)
        self.process.terminate()
        self.process.communicate()
        self.said.seek(0)
        with self.said:
            said = [line for line in self.said if not re.search(EXPECTED, line)]
        assert (self.process.returncode, said) == (0, [])


def without_counts(held):
    return {key: value for key, value in held.items() if key not in COUNTS}


def crowd(before, *arguments):
    """How many of each kind got to their end."""
    result = subprocess.run(
        [*before, sys.executable, DATA / "crowd.py", *map(str, arguments)],
        cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=LONG,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return json.loads(result.stdout)


@pytest.fixture
def server(tmp_path):
    server = Server(tmp_path)
    try:
        yield server
    finally:
        server.end()


def test_a_server_holds_afterwards_what_it_held_before(server):
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    guest = [*IOMMUFS, "run", "--connect", server.name, "--"]

    def come_and_go(each):
        outside = crowd([], server.tree / "dev", seed, each * len(ANYWHERE), *ANYWHERE)
        inside = crowd(guest, "/dev", seed, each * len(IN_A_RUN), *IN_A_RUN)
        return outside, inside

    come_and_go(3)  # what is opened once for all is open
    before = server.held()
    for done in come_and_go(EACH):
        assert min(done.values()) >= EACH * 2 // 3, done
    after = server.settled(without_counts(before))
    assert without_counts(after) == without_counts(before)
    for name in COUNTS:
        assert after[name] < before[name] + EACH, name
