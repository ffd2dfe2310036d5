"""Open files of attributes, as kernfs has them: whole contents, and what their mode allows."""

from __future__ import annotations

import errno
import os

from iommufs.errors import UapiError
from iommufs.fuse.nodes import ATTRIBUTE_SIZE, BinaryFile, TextFile
from iommufs.limits import DEFAULT_POLLMASK


def check_access(node: TextFile | BinaryFile, flags: int) -> None:
    """EACCES, even for root, for what the mode of an attribute gives nobody (kernfs_fop_open())."""
    access = flags & os.O_ACCMODE
    if access != os.O_RDONLY and not node.mode & 0o222:
        raise UapiError(errno.EACCES, "nobody can write it")
    if access != os.O_WRONLY and not node.mode & 0o444:
        raise UapiError(errno.EACCES, "nobody can read it")


def _check_there(node: TextFile | BinaryFile) -> None:
    if node.gone:
        raise UapiError(errno.ENODEV, "what it was an attribute of is gone")


class OpenAttribute:
    """One open of a TextFile: the content as it was when reading began."""

    def __init__(self, node: TextFile) -> None:
        self._node = node
        self._content: bytes | None = None

    async def read(self, offset: int, size: int) -> bytes:
        _check_there(self._node)
        if self._node.read is None:
            raise UapiError(errno.EIO, "a write-only attribute")
        if offset == 0 or self._content is None:
            self._content = self._node.read()
        return self._content[offset : offset + size]

    async def write(self, offset: int, data: bytes) -> int:
        _check_there(self._node)
        if self._node.write is None:
            raise UapiError(errno.EIO, "a read-only attribute")
        data = data[:ATTRIBUTE_SIZE]
        result = self._node.write(data)
        if result is not None:
            await result
        return len(data)


class OpenBinary:
    """One open of a BinaryFile."""

    def __init__(self, node: BinaryFile) -> None:
        self._node = node

    async def read(self, offset: int, size: int) -> bytes:
        _check_there(self._node)
        if self._node.read is None:
            raise UapiError(errno.EIO, "a write-only file")
        return self._node.read(offset, size)

    async def write(self, offset: int, data: bytes) -> int:
        _check_there(self._node)
        if self._node.write is None:
            raise UapiError(errno.EIO, "a read-only file")
        return self._node.write(offset, data)


class PlainFile:
    """What the open files of attributes lack to be open files: no ioctls, always ready."""

    table = None
    can_seek = True

    def __init__(self, inner: OpenAttribute | OpenBinary) -> None:
        self.read, self.write = inner.read, inner.write

    def poll(self) -> int:
        return DEFAULT_POLLMASK

    def release(self) -> None:
        pass
