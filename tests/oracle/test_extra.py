"""The questions of probe/extra.c: every record as Linux answered it."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.mount
HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def test_a_live_mapping_keeps_a_closed_device_open(compare, tmp_path):
    program = tmp_path / "extra"
    source = HERE / "probe" / "extra.c"
    subprocess.run(["cc", "-std=gnu11", "-O1", "-o", program, source], check=True)
    command = [sys.executable, "-m", "iommufs.cli", "run", "--", program]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    reference = compare.load_file(HERE / "linux-7.3-extra.jsonl")
    found = compare.divergences(reference, compare.load(done.stdout.splitlines()))
    assert [(key.name, parts) for key, parts in found] == []
    assert len(reference) == 18
