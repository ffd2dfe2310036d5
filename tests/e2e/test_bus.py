"""A program that changes the machine through /sys gets the answers of the reference guest.

data/ask_*.py are the programs, data/ask_*.txt what they printed there.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from iommufs import topology_file

pytestmark = pytest.mark.mount

ROOT = Path(__file__).parents[2]
DATA = Path(__file__).parent / "data"
VF = "0000:05:10.0"
LONG = 60  # seconds after which something hangs


def run(*command):
    return subprocess.run(
        [sys.executable, "-m", "iommufs.cli", "run", "--", *command],
        cwd=ROOT, capture_output=True, text=True, timeout=LONG, stdin=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.mark.parametrize("topic", ["bus", "sriov"])
def test_the_machine_changes_as_in_the_reference_guest(topic):
    result = run(sys.executable, DATA / f"ask_{topic}.py")
    expected = (DATA / f"ask_{topic}.txt").read_text().splitlines()
    # Linux was built without NUMA there.
    assert [line for line in result.stdout.splitlines() if " numa_node " not in line] == expected
    assert (result.returncode, result.stderr) == (0, "")


def test_device_numbers_lead_to_our_devices_and_the_machines():
    links = "/sys/dev/char/251:0/device/vendor", "/sys/dev/char/1:3/uevent"
    result = run("cat", *links)
    assert result.stdout.startswith("0x1234\nMAJOR=1\nMINOR=3\n")
    assert (result.returncode, result.stderr) == (0, "")


def test_lspci_prints_every_function_and_no_error():
    """A virtual one among them."""
    script = """
        echo Y >/sys/module/vfio_pci/parameters/enable_sriov
        echo 1 >/sys/bus/pci/devices/0000:05:00.0/sriov_numvfs
        lspci -D -n -vv
    """
    result = run("sh", "-c", script)
    blocks = result.stdout.rstrip("\n").split("\n\n")
    bdfs = [block.split()[0] for block in blocks]
    functions = topology_file.default().functions
    assert bdfs == [*sorted(f.bdf for f in functions), VF]
    assert all("IOMMU group: " in block for block in blocks)
    ours = {block.split()[0] for block in blocks if "driver in use: vfio-pci" in block}
    assert ours == {f.bdf for f in functions if f.cdev is not None} | {VF}
    assert "8086:10ca" in blocks[-1]
    assert (
        "Region 3: Memory at c000020000 (64-bit, prefetchable) [virtual] [size=16K]" in blocks[-1]
    )
    # It looks for the machine's modules, which may have none.
    errors = [line for line in result.stderr.splitlines() if "libkmod" not in line]
    assert (result.returncode, errors) == (0, [])


def test_who_waits_for_a_device_keeps_nobody_else_and_can_be_killed():
    result = run(sys.executable, DATA / "wait_unbind.py")
    assert result.stdout.splitlines() == [
        "signal that it survives: None None",
        "another device: 0",
        "killed: -9",
        "bound again: ['vfio0']",
        "who waits for itself can be killed: -9",
    ]
    assert (result.returncode, result.stderr) == (0, "")
