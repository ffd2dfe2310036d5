"""VFIO groups under `iommufs run`: a program that asked a real Linux asks us, line by line.

groups/linux_7.3.txt is what groups/ask.py printed in the reference guest (CONFIG_VFIO_GROUP,
CONFIG_IOMMUFD_VFIO_CONTAINER, no type1 container).
"""

import random
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.mount

ROOT = Path(__file__).parents[2]
ASK = Path(__file__).parent / "groups" / "ask.py"
STRESS = Path(__file__).parent / "groups" / "stress.py"
EXPECTED = (Path(__file__).parent / "groups" / "linux_7.3.txt").read_text().splitlines()
SECTIONS = list(dict.fromkeys(line.partition(":")[0] for line in EXPECTED))
LONG = 60  # seconds after which something hangs

# Who opens a file by name gets O_LARGEFILE.
DIFFERENT = {"device_fd: flags: 0x2": "device_fd: flags: 0x8002"}


def run(*program):
    result = subprocess.run(
        [sys.executable, "-m", "iommufs.cli", "run", "--", sys.executable, *map(str, program)],
        cwd=ROOT, capture_output=True, text=True, timeout=LONG, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout.splitlines()


@pytest.fixture(scope="module")
def answers():
    return run(ASK)


def of_section(lines, section):
    return [line for line in lines if line.startswith(f"{section}:")]


@pytest.mark.parametrize("section", SECTIONS)
def test_answers_are_those_of_linux(answers, section):
    expected = [DIFFERENT.get(line, line) for line in of_section(EXPECTED, section)]
    assert of_section(answers, section) == expected


def test_there_are_no_other_sections(answers):
    assert list(dict.fromkeys(line.partition(":")[0] for line in answers)) == SECTIONS


def test_every_difference_is_needed():
    assert DIFFERENT.keys() <= set(EXPECTED)


def test_clients_killed_anywhere_leave_every_group_free():
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    assert run(STRESS, seed) == ["[5, 9, 10, 10, 11, 11, 12]"]
