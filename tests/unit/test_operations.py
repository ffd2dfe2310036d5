"""What pyfuse3's operations do with the files that an ioctl makes."""

import errno
import os
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
    await look_up(operations, operations.publish("first", File()))
    operations.withdraw("first")
    numbers = set()
    for token in ("a", "b"):
        file = File()
        number = await look_up(operations, operations.publish(token, file))
        fh = (await operations.open(number, os.O_RDWR, OURS)).fh
        assert files[fh] is file
        assert (await operations.getattr(number, OURS)).st_ino == number
        assert not operations.withdraw(token)
        await operations.release(fh)
        assert file.released == 1
        with pytest.raises(pyfuse3.FUSEError) as refused:
            await operations.getattr(number, OURS)
        assert refused.value.errno == errno.ESTALE
        numbers.add(number)
    assert len(numbers) == 2


async def test_no_other_process_sees_or_opens_a_published_file(operations, files):
    path = operations.publish("token", File())
    with pytest.raises(pyfuse3.FUSEError) as refused:
        await look_up(operations, path, THEIRS)
    assert refused.value.errno == errno.ENOENT
    number = await look_up(operations, path)
    with pytest.raises(pyfuse3.FUSEError) as refused:
        await operations.open(number, os.O_RDWR, THEIRS)
    assert refused.value.errno == errno.EACCES
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
