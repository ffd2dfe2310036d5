"""The core answers thousands of random calls as Linux did; tests/oracle/iopt_calls.py makes them.

To record anew, print "seed S" and the output of `iopt_calls.py linux S 700` for each seed there.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent.parent
PROGRAM = TESTS / "oracle" / "iopt_calls.py"


def recorded() -> dict[int, list[str]]:
    answers: dict[int, list[str]] = {}
    for line in (TESTS / "data" / "iopt_linux_7.3.txt").read_text().splitlines():
        if line.startswith("seed "):
            lines = answers[int(line[5:])] = []
        else:
            lines.append(line)
    return answers


@pytest.mark.parametrize(("seed", "expected"), recorded().items())
def test_every_answer_is_that_of_linux(seed, expected):
    env = {**os.environ, "PYTHONPATH": str(TESTS.parent)}
    command = [sys.executable, str(PROGRAM), "core", str(seed), "700"]
    run = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    assert run.stdout.splitlines() == expected
