"""System calls that work on any file, on ours: what fileops/ask.py asked a real Linux.

fileops/linux_7.3.txt is what it printed in the reference guest.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.mount

ROOT = Path(__file__).parents[2]
ASK = Path(__file__).parent / "fileops" / "ask.py"
EXPECTED = (ASK.parent / "linux_7.3.txt").read_text().splitlines()
NAMES = list(dict.fromkeys(line.partition(":")[0] for line in EXPECTED))
LONG = 60  # seconds after which something hangs

# What the kernel answers by itself of a regular file, or of a file of FUSE: (Linux, ours).
OF_EVERY_FILE = {
    "epoll": ("EPERM", "['0x145']"),
    "sync_file_range": ("ESPIPE", "0"),
    "readahead": ("EINVAL", "0"),
    "fgetxattr": ("ENODATA", "ENOTSUP"),
    "fsetxattr": ("EPERM", "ENOTSUP"),
    "F_SETFL O_DIRECT": ("EINVAL", "0x4000"),
    "F_SETLEASE": ("EINVAL", "EAGAIN"),
    "FIONREAD": ("ENOTTY", "0 00000000"),
    "FIOQSIZE": ("ENOTTY", "0 00000000"),
    "FIBMAP": ("ENOTTY", "0 00000000"),
    "copy_file_range from": ("EINVAL", "EXDEV"),
    "copy_file_range to": ("EINVAL", "EXDEV"),
    "splice from": ("EINVAL", "0"),
    "sendfile from": ("EINVAL", "0"),
    "preadv2, flag": ("EINVAL", "0"),
    "preadv2, nowait": ("EINVAL", "ENOTSUP"),
}
# None: as on Linux.
OF_ONE = {
    "faults: epoll": None,  # it has a poll operation
    "unbound: splice from": None,
    "unbound: sendfile from": None,
    "unbound: FIONREAD": ("EINVAL", "0 00000000"),
    "unbound: FIBMAP": ("EINVAL", "0 00000000"),
    "unbound: FS_IOC_GETFLAGS": ("EINVAL", "ENOTTY"),
    "unbound: FS_IOC_FSGETXATTR": ("EINVAL", "ENOTTY"),
    "bound: splice from": ("EINVAL", "16"),
    "bound: splice to": ("EINVAL", "16"),
    "bound: sendfile from": ("EINVAL", "16"),
    "bound: sendfile to": ("EINVAL", "16"),
    # FUSE hands several pieces over as one.
    "vectors: preadv config, over its end": ("2 000000000000", "EFAULT"),
    "vectors: pwritev config, over its end": ("2", "EFAULT"),
    "vectors: splice from config": ("EINVAL", "8 8680d31003011000"),
    "vectors: sendfile from config": ("EINVAL", "8 8680d31003011000"),
}


def ours_of(line):
    """What we say where Linux says a line."""
    name, what, linux = line.split(": ", 2)
    known = OF_ONE.get(f"{name}: {what}", OF_EVERY_FILE.get(what))
    return f"{name}: {what}: {known[1]}" if known and known[0] == linux else line


@pytest.fixture(scope="module")
def answers():
    result = subprocess.run(
        [sys.executable, "-m", "iommufs.cli", "run", "--", sys.executable, ASK],
        cwd=ROOT, capture_output=True, text=True, timeout=LONG, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout.splitlines()


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_those_of_linux(answers, name):
    expected = [ours_of(line) for line in EXPECTED if line.startswith(f"{name}:")]
    assert [line for line in answers if line.startswith(f"{name}:")] == expected


def test_there_are_no_other_answers(answers):
    assert list(dict.fromkeys(line.partition(":")[0] for line in answers)) == NAMES


def test_every_difference_is_needed(answers):
    """Somewhere: a few of these files have an answer of their own."""
    different = set(EXPECTED) - set(answers)
    whats = {line.split(": ", 2)[1] for line in different}
    assert OF_EVERY_FILE.keys() <= whats
    names = {line.rpartition(": ")[0] for line in different}
    assert {name for name, known in OF_ONE.items() if known} <= names


REOPEN = """
import errno, fcntl, os, struct
iommufd = os.open("/dev/iommu", os.O_RDWR)
queue = bytearray(struct.pack("IIIi", 16, 0, 0, 0))
fcntl.ioctl(iommufd, 0x3B8E, queue)
fd = struct.unpack("IIIi", queue)[3]
try:
    os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
except OSError as error:
    print(errno.errorcode[error.errno])
"""


def test_a_file_without_a_name_cannot_be_opened_anew():
    """As an anonymous inode of Linux (no_open())."""
    result = subprocess.run(
        [sys.executable, "-m", "iommufs.cli", "run", "--", sys.executable, "-c", REOPEN],
        cwd=ROOT, capture_output=True, text=True, timeout=LONG, env=os.environ,
    )  # fmt: skip
    assert (result.stdout, result.stderr, result.returncode) == ("ENXIO\n", "", 0)
