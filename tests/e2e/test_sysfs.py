"""A program that asks /sys gets the answers of the reference guest.

data/ask_sysfs.py is the program, data/ask_sysfs.txt what it printed there.
"""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.mount

ROOT = Path(__file__).parents[2]
DATA = Path(__file__).parent / "data"
LONG = 60  # seconds after which something hangs


def test_sys_answers_as_in_the_reference_guest():
    result = subprocess.run(
        [sys.executable, "-m", "iommufs.cli", "run", "--", sys.executable, DATA / "ask_sysfs.py"],
        cwd=ROOT, capture_output=True, text=True, timeout=LONG, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert result.stdout.splitlines() == (DATA / "ask_sysfs.txt").read_text().splitlines()
    assert (result.returncode, result.stderr) == (0, "")
