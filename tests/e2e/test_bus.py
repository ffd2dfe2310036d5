"""A program that changes the machine through /sys gets the answers of the reference guest.

data/ask_*.py are the programs, data/ask_*.txt what they printed there.
"""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.mount

ROOT = Path(__file__).parents[2]
DATA = Path(__file__).parent / "data"
LONG = 60  # seconds after which something hangs


def run(*command):
    return subprocess.run(
        [sys.executable, "-m", "iommufs.cli", "run", "--", *command],
        cwd=ROOT, capture_output=True, text=True, timeout=LONG, stdin=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.mark.parametrize("topic", ["bus", "sriov"])
def test_the_machine_changes_as_in_the_reference_guest(topic):
    result = run(sys.executable, DATA / f"ask_{topic}.py")
    expected = (DATA / f"ask_{topic}.txt").read_text().splitlines()
    assert result.stdout.splitlines() == expected
    assert (result.returncode, result.stderr) == (0, "")


def test_device_numbers_lead_to_our_devices_and_the_machines():
    links = "/sys/dev/char/251:0/device/vendor", "/sys/dev/char/1:3/uevent"
    result = run("cat", *links)
    assert result.stdout.startswith("0x1234\nMAJOR=1\nMINOR=3\n")
    assert (result.returncode, result.stderr) == (0, "")
