"""A run where / is not a mount point: one line says so."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.mount
ROOT = Path(__file__).parents[2]

SCRIPT = """
mkdir {root}
for entry in /*; do
  name=${{entry#/}}
  case $entry in
    {root}) ;;
    *) if [ -L "$entry" ]; then cp -P "$entry" {root}/"$name"
       elif [ -d "$entry" ]; then mkdir -p {root}/"$name"; mount --rbind "$entry" {root}/"$name"
       fi ;;
  esac
done
exec chroot {root} {python} -m iommufs.cli run -- true
"""


def test_in_a_plain_chroot_one_line_says_what_to_do(tmp_path):
    script = SCRIPT.format(root=tmp_path / "root", python=sys.executable)
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-ec", script],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 125, done.stderr
    (line,) = done.stderr.splitlines()
    assert "/ is no mount point" in line
