"""Two clients that want the same: a program that asked a real Linux asks us, line by line.

clients/linux_7.3.txt is what clients/ask.py printed in the reference guest, unbound_7.3.txt with
02:00.1 left to nobody.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from iommufs import topology_file

pytestmark = pytest.mark.mount

CLIENTS = Path(__file__).with_name("clients")
EXPECTED = (CLIENTS / "linux_7.3.txt").read_text().splitlines()
SECTIONS = list(dict.fromkeys(line.partition(":")[0] for line in EXPECTED))


def run(runs, *arguments, config=()):
    command = [sys.executable, "-m", "iommufs.cli", "run", *config, "--", sys.executable]
    result = subprocess.run(
        [*command, CLIENTS / "ask.py", *arguments],
        env=runs.environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout.splitlines()


@pytest.mark.parametrize("section", SECTIONS)
def test_each_refusal_is_that_of_linux(runs, section):
    lines = [line for line in EXPECTED if line.startswith(f"{section}:")]
    assert run(runs, section) == lines


def test_a_reset_scope_with_a_function_that_nobody_has(runs, tmp_path):
    path = Path(topology_file.__file__).parent / "topologies" / "default.toml"
    text = path.read_text().replace('"default/', f'"{path.parent}/default/')
    text, count = re.subn('(bdf = "0000:02:00.1"\n)', '\\1driver = ""\n', text)
    assert count == 1
    config = tmp_path / "machine.toml"
    config.write_text(text)
    lines = run(runs, "unbound", config=("--config", config))
    assert lines == (CLIENTS / "unbound_7.3.txt").read_text().splitlines()
