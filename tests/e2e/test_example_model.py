"""The example of a model that a package ships: its own test, and a driver under `iommufs run`."""

import os
import subprocess
import sys
import tomllib
import zlib
from pathlib import Path

import pytest

from tests.packages import install

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "models" / "crc"
DRIVER = Path(__file__).with_name("crc_driver.py")
MEMORY = bytes(i * 7 & 255 for i in range(16384))
LONG = 60  # seconds after which something hangs


@pytest.fixture
def environment(tmp_path):
    """As if the package were installed: what its pyproject.toml says, without pip."""
    facts = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())
    entries = facts["project"]["entry-points"]["iommufs.models"]
    (module,) = facts["tool"]["setuptools"]["py-modules"]
    text = (EXAMPLE / f"{module}.py").read_text()
    install(tmp_path / "site", facts["project"]["name"], entries, {module: text})
    return {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path / 'site'}"}


def iommufs(environment, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "iommufs.cli", *arguments],
        env=environment, capture_output=True, text=True, timeout=LONG, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def test_its_own_test_passes(environment):
    test = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "-p", "no:cacheprovider"]
    result = subprocess.run(
        [*test, f"--rootdir={EXAMPLE}", EXAMPLE],
        env=environment, capture_output=True, text=True, timeout=LONG,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout
    assert " passed" in result.stdout


def test_it_is_as_short_as_we_say():
    assert len((EXAMPLE / "crc_device.py").read_text().splitlines()) < 60


def test_it_is_in_the_list_of_models(environment):
    result = iommufs(environment, "models")
    assert result.returncode == 0, result.stderr
    assert "crc (iommufs-crc 1.0): A CRC-32 engine.\n    chunk: how many bytes" in result.stdout


def test_a_fault_of_an_option_is_one_line(environment):
    result = iommufs(environment, "devices", "--device", "crc,chunk=0")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == (
        "iommufs: --device crc,chunk=0: crc: chunk must be a number of bytes, not 0\n"
    )


@pytest.mark.mount
def test_a_driver_of_it(environment):
    device = ("--device", "crc,chunk=1000")
    result = iommufs(environment, "run", *device, sys.executable, str(DRIVER), "10000", "5")
    assert result.returncode == 0, result.stderr
    assert result.stdout == hex(zlib.crc32(MEMORY[5:10005])) + "\n"


@pytest.mark.mount
def test_what_the_iommu_refuses_it(environment):
    command = ("run", "--device", "crc", "--", sys.executable, str(DRIVER))
    result = iommufs(environment, *command, "100", "16300")
    assert result.stdout == "status 2\n"
    assert result.stderr == (
        "iommufs: warning: DMA refused (device=0000:00:01.0, count=1, iova=0x104000, length=100, "
        "access=read, reason=unmapped)\n"
    )
