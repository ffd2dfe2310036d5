"""libvfn, a library of NVMe drivers: its examples and its tests of devices, on our NVMe controller.

Debian does not have it: `make test-clients LIBVFN=DIR` names its sources, or a directory in which
they are built already. What is built here goes to build/clients/libvfn.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.mount

BDF = "0000:00:01.0"
NVME = 'nvme,size=64M,reset_methods=["flr"]'
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def built(pytestconfig, debian):
    """The directory that has examples/ and tests/."""
    if not pytestconfig.getoption("--libvfn"):
        pytest.skip("no sources of libvfn: make test-clients LIBVFN=DIR")
    directory = Path(pytestconfig.getoption("--libvfn")).resolve()
    for place in (directory, directory / "build"):
        if (place / "examples" / "regs").exists():
            return place
    if not (directory / "meson.build").exists():
        pytest.fail(f"{directory}: neither sources of libvfn nor built")
    if not shutil.which("ninja"):
        pytest.skip("ninja is missing: apt-get install ninja-build")
    out = ROOT / "build" / "clients" / "libvfn"
    headers = debian.root / "usr" / "include"  # of a Linux that has all of iommufd
    meson = [sys.executable, "-m", "mesonbuild.mesonmain"]
    _build(*meson, "setup", "-Ddocs=disabled", f"-Dlinux-headers={headers}", out, directory)
    _build("ninja", "-C", out)
    return out


def _build(*command):
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert result.returncode == 0, result.stdout[-2000:]


def _program(built, name):
    if not (built / name).exists():
        pytest.skip(f"libvfn was built without {name}: it needs libnvme-dev and libjson-c-dev")
    return built / name


@pytest.fixture
def libvfn(built, run):
    """Runs one of its programs on the controller, by its cdev.

    By its group libvfn does not get far, here as on a Linux whose container is iommufd: before a
    device is attached all of 64 bits are free, and it cannot keep the last range for itself.
    """

    def libvfn(program):
        return run(_program(built, program), "-d", BDF, options=["--device", NVME])

    return libvfn


@pytest.mark.parametrize("program", ["identify", "regs", "eventfd"])
def test_example(libvfn, program):
    result = libvfn(f"examples/{program}")
    assert result.returncode == 0, result.stderr
    assert "iommufs" not in result.stderr
    expected = {"identify": "vid 0x1b36", "regs": "VS ", "eventfd": ""}[program]
    assert expected in result.stdout


def test_page_faults(built, run, tmp_path):
    """Its device is one that asks for pages; such requests need the IOMMU that has them."""
    machine = tmp_path / "machine.toml"
    machine.write_text(f'[iommu]\nkind = "amd"\n[[function]]\nbdf = "{BDF}"\nmodel = "pri"\n')
    result = run(_program(built, "examples/iopf"), "-d", BDF, options=["--config", machine])
    assert result.returncode == 0, result.stderr
    assert result.stdout == "handling page fault on addr 0xfef00000\n"


@pytest.mark.parametrize("program", ["open", "identify", "io", "flush", "aer", "timeout"])
def test_its_own_test(libvfn, program):
    result = libvfn(f"tests/device/{program}")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "iommufs" not in result.stderr
    assert "not ok" not in result.stdout
