"""Random calls, as a real Linux answered them: random_calls/ask.py asks us the same ones."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
KINDS = {"intel": "vtd", "amd": "amd"}
RUNS = {path.stem: path for path in (HERE / "random_calls").glob("linux-7.3-*.txt")}


@pytest.mark.mount
@pytest.mark.parametrize("fast", ["1", "0"], ids=["in C", "in Python"])
@pytest.mark.parametrize("name", sorted(RUNS))
def test_answers_are_those_of_linux(name, fast, machine):
    *_, iommu, kind, seed = name.split("-")
    expected = RUNS[name].read_text().splitlines()
    command = [
        *(sys.executable, "-m", "iommufs.cli", "run", "--config", machine(KINDS[iommu]), "--"),
        *(sys.executable, HERE / "random_calls" / "ask.py", kind, seed, "2000"),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False,
        stdin=subprocess.DEVNULL, env=os.environ | {"IOMMUFS_FAST": fast},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    answers = done.stdout.splitlines()
    assert len(answers) == len(expected)
    first = next((pair for pair in zip(expected, answers, strict=True) if pair[0] != pair[1]), None)
    assert first is None, "Linux: {}\nours:  {}".format(*first)
