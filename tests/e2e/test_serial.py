"""The serial device, without an IOMMU: a program that asked Linux' own sample asks ours.

serial/linux_7.3.txt is what serial/ask.py printed in the reference guest, with a kernel that has
the sample driver mtty (CONFIG_SAMPLE_VFIO_MDEV_MTTY), before it the devices of our default machine.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from iommufs import topology_file

pytestmark = pytest.mark.mount

SERIAL = Path(__file__).with_name("serial")
EXPECTED = (SERIAL / "linux_7.3.txt").read_text().splitlines()
DEVICE = """
[[mediated]]
uuid = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001"
model = "serial"
"""


@pytest.fixture
def config(tmp_path):
    path = Path(topology_file.__file__).parent / "topologies" / "default.toml"
    text = path.read_text().replace('"default/', f'"{path.parent}/default/')
    config = tmp_path / "machine.toml"
    config.write_text(text + DEVICE)
    return config


def run(runs, config, *arguments):
    command = [sys.executable, "-m", "iommufs.cli", "run", "--config", config, "--"]
    result = subprocess.run(
        [*command, sys.executable, SERIAL / "ask.py", *arguments],
        env=runs.environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout.splitlines()


def test_every_answer_is_that_of_linux(runs, config):
    assert run(runs, config) == EXPECTED
