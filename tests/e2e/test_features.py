"""Features that return descriptors, in a client under `iommufs run` (features/ask.py)."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.mount

ASK = Path(__file__).with_name("features") / "ask.py"
TOPOLOGY = """
[[function]]
bdf = "00:01.0"
model = "edu"
options = { migration = true }

[[function]]
bdf = "00:02.0"
model = "edu"
options = { migration = true }
"""
ANSWERS = """
stream ('r', True) ESPIPE EBADF
early ENOMSG True 0
same stream -1
stream ('w', True) ESPIPE EBADF
written True
running -1 fefdfcfb
ended ENODEV
stopped -1 ENODEV
no more EMFILE
state (3, -1)
running -1
dma-buf ('rw', True) ('r', False)
as a file EINVAL EINVAL
mmap EINVAL
map 0
decoding off ENODEV
closed ENODEV
"""


def iommufs(runs, *arguments, **options):
    command = [sys.executable, "-m", "iommufs.cli", *map(str, arguments)]
    return subprocess.run(
        command, env=runs.environment, capture_output=True, text=True, timeout=60, **options
    )


def test_streams_and_dma_bufs_arrive_as_on_linux(runs, tmp_path):
    config = tmp_path / "machine.toml"
    config.write_text(TOPOLOGY)
    devices = ("/dev/vfio/devices/vfio0", "/dev/vfio/devices/vfio1")
    result = iommufs(runs, "run", "--config", config, "--", sys.executable, ASK, *devices)
    assert result.stderr == ""
    assert result.stdout.split() == ANSWERS.split()
