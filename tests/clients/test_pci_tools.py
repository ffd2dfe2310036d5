"""What people look at their devices and bind them with: lspci, setpci, dpdk-devbind.py."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.clients.conftest import ROOT

pytestmark = pytest.mark.mount

NIC = "0000:05:00.0"
NO_MODULES = "lspci: Unable to load libkmod resources: error -2\n"  # nor has the machine


@pytest.fixture
def tools(debian, tmp_path):
    """A directory for PATH, in which lspci and setpci are Debian's."""
    directory = tmp_path / "bin"
    directory.mkdir()
    for name in ("lspci", "setpci"):
        command = " ".join(debian.command(f"usr/bin/{name}"))
        script = directory / name
        script.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        script.chmod(0o755)
    return directory


@pytest.fixture
def shell(run, tools):
    """The output of a script, which prints nothing else."""

    def shell(script):
        path = f"PATH={tools}:{os.environ['PATH']}"
        result = run("env", path, "sh", "-ec", script)
        assert result.stderr.replace(NO_MODULES, "") == ""
        assert result.returncode == 0
        return result.stdout

    return shell


def test_lspci_shows_the_functions_that_there_are(shell):
    devices = subprocess.run(
        [sys.executable, "-m", "iommufs.cli", "devices"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    ours = re.findall(r"^(\S+:\S+) +\S+ +(\w{4}:\w{4})", devices.stdout, re.MULTILINE)
    shown = re.findall(r"^(\S+) \w{4}: (\w{4}:\w{4})", shell("lspci -Dn"), re.MULTILINE)
    assert len(ours) > 10
    assert shown == ours


def test_lspci_decodes_capabilities_drivers_and_groups(shell):
    text = shell(f"lspci -vvv -s {NIC}")
    for line in (
        "Region 0: Memory at", "[size=128K]", "MSI-X: Enable- Count=10 Masked-", "FLReset+",
        "Single Root I/O Virtualization", "IOMMU group: 12", "Kernel driver in use: vfio-pci",
    ):  # fmt: skip
        assert line in text


def test_setpci_reads_and_writes_config_space(shell):
    script = f"""
        setpci -s {NIC} COMMAND=7 LATENCY_TIMER=ff
        setpci -s {NIC} COMMAND COMMAND=0:4 COMMAND VENDOR_ID ECAP_AER+0.l
    """
    assert shell(script).split() == ["0007", "0003", "8086", "15010001"]


def test_devbind_unbinds_and_binds(shell, debian, tmp_path):
    devbind = shutil.copy(debian.root / "usr/bin/dpdk-devbind.py", tmp_path)
    drivers = re.findall(
        r"NIC (?:drv=(\S+) )?unused=(\S*)",
        re.sub(
            rf"{NIC} '.*?'", "NIC",
            shell(f"""
                status() {{ {sys.executable} {devbind} --status-dev net; }}
                status
                {sys.executable} {devbind} --unbind {NIC}
                status
                {sys.executable} {devbind} --bind vfio-pci {NIC}
                status
            """),
        ),
    )  # fmt: skip
    assert drivers == [("vfio-pci", ""), ("", "vfio-pci"), ("vfio-pci", "")]
