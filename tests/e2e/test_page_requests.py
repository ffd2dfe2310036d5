"""DMA that misses a page asks the client for it (docs/pri.md)."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.mount

DATA = Path(__file__).parent / "data"
MACHINE = """
[iommu]
kind = "{kind}"

[[function]]
bdf = "00:01.0"
model = "{model}"
"""


def run(tmp_path, kind, model="pri", more="", client="page_request.py"):
    config = tmp_path / "machine.toml"
    config.write_text(MACHINE.format(kind=kind, model=model) + more)
    command = [sys.executable, "-m", "iommufs.cli", "run", "--config", config, "--"]
    return subprocess.run(
        [*command, sys.executable, DATA / client],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_a_page_is_moved_when_the_client_has_mapped_it(tmp_path):
    result = run(tmp_path, "amd")
    assert (result.returncode, result.stdout) == (0, "moved on request\n"), result.stderr
    refused = [line for line in result.stderr.splitlines() if "DMA refused" in line]
    assert len(refused) == 2, result.stderr


def test_a_model_in_c_completes_a_command_when_its_page_is_mapped(tmp_path):
    more = 'reset_methods = ["flr"]\noptions = { pri = true }\n'
    result = run(tmp_path, "amd", "nvme", more, "nvme_page_request.py")
    assert (result.returncode, result.stdout) == (0, "completed on request\n"), result.stderr
    refused = [line for line in result.stderr.splitlines() if "DMA refused" in line]
    assert len(refused) == 1, result.stderr


def test_an_iommu_without_page_requests_takes_no_fault_queue(tmp_path):
    result = run(tmp_path, "vtd")
    assert "No such device" in result.stderr, result.stderr
