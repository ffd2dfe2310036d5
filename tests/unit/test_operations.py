"""What pyfuse3's operations do with the files that an ioctl makes."""

import errno
import os
import tempfile
from types import SimpleNamespace

import pyfuse3
import pytest

from iommufs.files import OpenFiles
from iommufs.fuse.nodes import Dir
from iommufs.fuse.operations import Operations

OURS = SimpleNamespace(pid=os.getpid())
THEIRS = SimpleNamespace(pid=1)


class File:
    released = 0

    def release(self):
        self.released += 1


@pytest.fixture
def files():
    return OpenFiles()


@pytest.fixture
def operations(files):
    return Operations(Dir(), files)


async def look_up(operations, path, ctx=OURS):
    number = pyfuse3.ROOT_INODE
    for name in path.split("/"):
        number = (await operations.lookup(number, name.encode(), ctx)).st_ino
    return number


async def test_a_published_file_is_opened_once_and_leaves_no_inode(operations, files):
    file = File()
    await look_up(operations, operations.publish("first", file))
    assert operations.withdraw("first", file)
    numbers = set()
    for token in ("a", "b"):
        file = File()
        number = await look_up(operations, operations.publish(token, file))
        fh = (await operations.open(number, os.O_RDWR, OURS)).fh
        assert files[fh] is file
        assert (await operations.getattr(number, OURS)).st_ino == number
        assert not operations.withdraw(token, file)
        await operations.release(fh)
        assert file.released == 1
        with pytest.raises(pyfuse3.FUSEError) as refused:
            await operations.getattr(number, OURS)
        assert refused.value.errno == errno.ESTALE
        numbers.add(number)
    assert len(numbers) == 2


async def test_files_with_one_backing_are_one_inode_and_any_of_them_will_do(operations, files):
    file = File()
    with tempfile.TemporaryFile() as backing:
        file.backing_fd = backing.fileno()
        paths = {operations.publish(token, file) for token in ("a", "b", "c")}
        assert len(paths) == 1
        number = await look_up(operations, paths.pop())
        assert operations.withdraw("c", file)
        operations._backings._told.add(number)  # there is no mount to tell of it
        handles = [(await operations.open(number, os.O_RDWR, OURS)).fh for _ in range(2)]
        assert [files[fh] for fh in handles] == [file, file]
        assert not operations.withdraw("a", file)
        with pytest.raises(pyfuse3.FUSEError) as refused:
            await operations.open(number, os.O_RDWR, OURS)
        assert refused.value.errno == errno.ENXIO
        for fh in handles:
            await operations.release(fh)
        assert file.released == 2
        operations.publish("again", file)
        assert (await operations.getattr(number, OURS)).st_ino == number


async def test_no_other_process_sees_or_opens_a_published_file(operations, files):
    path = operations.publish("token", File())
    with pytest.raises(pyfuse3.FUSEError) as refused:
        await look_up(operations, path, THEIRS)
    assert refused.value.errno == errno.ENOENT
    number = await look_up(operations, path)
    with pytest.raises(pyfuse3.FUSEError) as refused:
        await operations.open(number, os.O_RDWR, THEIRS)
    assert refused.value.errno == errno.ENXIO
    assert len(files) == 0


async def test_a_file_is_released_when_the_last_call_with_it_ends(files):
    file = File()
    fh = files.add(file)
    with files.hold(file):
        with files.hold(file):
            files.close(fh)
        assert file.released == 0
    assert file.released == 1
    with files.hold(other := File()):
        pass
    assert other.released == 0


async def test_a_file_with_two_numbers_is_released_for_both(files):
    file = File()
    handles = [files.add(file) for _ in range(3)]
    files.close(handles[0])
    assert file.released == 1
    with files.hold(file):
        files.close(handles[1])
        files.close(handles[2])
        assert file.released == 1
    assert file.released == 3
