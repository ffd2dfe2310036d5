"""Open files that a mapping keeps: when they are let go."""

import mmap
import os
import subprocess
import sys

import pytest
import trio
import trio.testing

from iommufs import mapped
from iommufs.files import OpenFiles

CHILD = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
memory = mmap.mmap(fd, 4096)
if sys.argv[2] == "grandchild" and os.fork():
    os.wait()
    sys.exit()
os.close(fd)
print(flush=True)
sys.stdin.readline()
"""


class File:
    def __init__(self):
        self.released = trio.Event()

    def release(self):
        self.released.set()


@pytest.fixture
def inodes(monkeypatch):
    """What is mapped, as far as anybody can see."""
    found = {7}
    monkeypatch.setattr(mapped, "mapped_inodes", lambda device, ancestors: set(found))
    return found


@pytest.fixture
def files():
    return OpenFiles()


@pytest.fixture
def keeper(files):
    return mapped.MappedFiles(files, "0:43", ())


@pytest.mark.parametrize("who", ["child", "grandchild"])
def test_mappings_of_descendants_are_found(tmp_path, who):
    path = tmp_path / "file"
    path.write_bytes(bytes(4096))
    status = path.stat()
    device = b"%02x:%02x" % (os.major(status.st_dev), os.minor(status.st_dev))
    command = [sys.executable, "-c", CHILD, path, who]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        assert status.st_ino in mapped.mapped_inodes(device, {os.getpid()})
        assert status.st_ino not in mapped.mapped_inodes(b"ff:ff", {os.getpid()})
    assert status.st_ino not in mapped.mapped_inodes(device, {os.getpid()})


def test_mappings_of_our_own_do_not_count(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(4096))
    with open(path, "rb+") as file:
        memory = mmap.mmap(file.fileno(), 4096)
    status = path.stat()
    device = b"%02x:%02x" % (os.major(status.st_dev), os.minor(status.st_dev))
    assert status.st_ino not in mapped.mapped_inodes(device, {os.getpid()})
    memory.close()


async def test_what_is_not_kept_is_released_by_its_close(files, keeper):
    file = File()
    files.close(files.add(file))
    assert file.released.is_set()


async def test_a_closed_file_waits_for_its_last_mapping(files, keeper, inodes):
    file = File()
    fhs = [files.add(file), files.add(file)]
    keeper.keep(file, 7)
    keeper.keep(file, 7)
    files.close(fhs[0])
    inodes.clear()
    await keeper.settle()
    assert not file.released.is_set()  # there is another descriptor
    inodes.add(7)
    files.close(fhs[1])
    await keeper.settle()
    assert not file.released.is_set()
    inodes.clear()
    await keeper.settle()
    assert file.released.is_set()


async def test_it_is_released_though_nobody_asks(files, keeper, inodes, monkeypatch):
    monkeypatch.setattr(mapped, "INTERVAL", 0.001)
    file = File()
    fh = files.add(file)
    keeper.keep(file, 7)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keeper.run)
        await trio.testing.wait_all_tasks_blocked()
        files.close(fh)
        await files.settle()
        assert not file.released.is_set()
        inodes.clear()
        with trio.fail_after(10):
            await file.released.wait()
        nursery.cancel_scope.cancel()


async def test_at_the_end_all_is_let_go(files, keeper, inodes):
    closed, opened = File(), File()
    for file in (closed, opened):
        fh = files.add(file)
        keeper.keep(file, 7)
    files.close(fh - 1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keeper.run)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert closed.released.is_set()
    assert not opened.released.is_set()
    assert files.remove_all() == [opened]
