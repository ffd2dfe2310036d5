"""Under `iommufs run`, a device that is closed stays open as long as a BAR of it is mapped."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.mount

ROOT = Path(__file__).parents[2]
LONG = 60  # seconds after which something hangs

CLIENT = """
import errno, fcntl, mmap, os, signal, struct
DESTROY, BIND = 0x3b80, 0x3b76
iommufd = os.open("/dev/iommu", os.O_RDWR)

def call(fd, number, *words):
    data = bytearray(struct.pack(f"{len(words)}I", *words))
    try:
        fcntl.ioctl(fd, number, data)
    except OSError as error:
        return errno.errorcode[error.errno]
    return list(struct.unpack(f"{len(words)}I", data))

def bind(fd):
    return call(fd, BIND, 16, 0, iommufd, 0)[-1]

def destroy(number):
    return call(iommufd, DESTROY, 8, number)

device = os.open("/dev/vfio/devices/vfio1", os.O_RDWR)
"""


def run(program):
    result = subprocess.run(
        [sys.executable, "-m", "iommufs.cli", "run", "--", sys.executable, "-c", CLIENT + program],
        cwd=ROOT, capture_output=True, text=True, timeout=LONG, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout.splitlines()


def test_the_mapping_of_a_child_counts():
    assert run("""
number = bind(device)
mapping = mmap.mmap(device, 4096)
ready, go = os.pipe(), os.pipe()
if (pid := os.fork()) == 0:
    os.close(device)
    os.write(ready[1], b"1")
    os.read(go[0], 1)
    os._exit(0)
os.read(ready[0], 1)
mapping.close()
os.close(device)
print(destroy(number))
os.write(go[1], b"1")
os.waitpid(pid, 0)
print(destroy(number))
""") == ["EBUSY", "ENOENT"]


def test_who_did_not_map_it_closes_it():
    assert run("""
number = bind(device)
mmap.mmap(device, 4096).close()
os.close(device)
print(destroy(number), bind(os.open("/dev/vfio/devices/vfio1", os.O_RDWR)) == number)
""") == ["ENOENT True"]


def test_a_killed_client_leaves_nothing_open():
    assert run("""
for _ in range(20):
    ready = os.pipe()
    if (pid := os.fork()) == 0:
        iommufd = os.open("/dev/iommu", os.O_RDWR)
        device = os.open("/dev/vfio/devices/vfio1", os.O_RDWR)
        bind(device)
        mapping = mmap.mmap(device, 4096)
        if os.getpid() % 2:
            os.close(device)
        os.write(ready[1], b"1")
        signal.pause()
    os.read(ready[0], 1)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
number = bind(device)
print(number)
""") == ["1"]
