"""A program that is killed while it waits for something that only its own end can bring."""

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.mount

ROOT = Path(__file__).parents[2]
LONG = 30

UNBIND = """
import os
device = os.open("/dev/vfio/devices/vfio0", os.O_RDWR)
unbind = os.open("/sys/bus/pci/devices/0000:00:06.0/driver/unbind", os.O_WRONLY)
print(os.getpid(), flush=True)
os.write(unbind, b"0000:00:06.0")
"""


def waits_in_write(pid):
    """Whether a process is in write(2); so it is, too, for the moment of saying its pid."""
    return Path(f"/proc/{pid}/syscall").read_text().startswith("1 ") and (
        Path(f"/proc/{pid}/wchan").read_text() == "request_wait_answer"
    )


@pytest.mark.parametrize("killed", ["front", "command"])
def test_unbinding_what_it_has_open_itself(killed):
    child = subprocess.Popen(
        [sys.executable, "-m", "iommufs.cli", "run", "--", sys.executable, "-c", UNBIND],
        cwd=ROOT, stdout=-1, stderr=-1, text=True,
    )  # fmt: skip
    command = int(child.stdout.readline())
    while not waits_in_write(command):
        assert child.poll() is None
    ended = os.pidfd_open(command)
    os.kill(child.pid if killed == "front" else command, signal.SIGKILL)
    assert select.select([ended], [], [], LONG)[0], "it hangs"
    _, err = child.communicate(timeout=LONG)
    assert child.returncode == (-signal.SIGKILL if killed == "front" else 128 + signal.SIGKILL)
    assert "Traceback" not in err
