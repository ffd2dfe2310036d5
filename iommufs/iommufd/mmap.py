"""Memory of a driver that clients map through their iommufd.

All contexts of a machine have it in one file, which the kernel maps; a client is told offsets.
Which of them it may map is checked where calls can be noticed at all (see fdreturn.py).
"""

import errno
import os
from typing import Any, NamedTuple

from iommufs.caller import Caller
from iommufs.errors import UapiError
from iommufs.limits import PAGE_SIZE

PROT_EXEC = 4


class Arena:
    """The file. Offset 0 stays free, as in Linux."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("iommufd", os.MFD_CLOEXEC)
        self._used: dict[int, int] = {}  # length by offset

    def __del__(self) -> None:
        os.close(self.fd)

    def allocate(self, length: int) -> int:
        """The lowest offset with room for `length` bytes, whole pages; they are 0."""
        offset = PAGE_SIZE
        for start, size in sorted(self._used.items()):
            if offset + length <= start:
                break
            offset = start + size
        self._used[offset] = length
        if os.fstat(self.fd).st_size < offset + length:
            os.ftruncate(self.fd, offset + length)
        return offset

    def free(self, offset: int) -> None:
        length = self._used.pop(offset)
        os.pwrite(self.fd, bytes(length), offset)


class Mapper(NamedTuple):
    """A process that mapped a region: where its list of mappings names the file."""

    tgid: int
    device: str
    inode: str


class Region:
    """Some pages of the arena that belong to an object of a context, mapped whole or not at all."""

    def __init__(self, ctx: Any, length: int) -> None:
        self.length = length
        self._ctx = ctx
        self._arena = ctx.arena
        self.offset = self._arena.allocate(length)
        self._mappers: set[Mapper] = set()
        ctx.regions[self.offset] = self

    def write(self, data: bytes) -> None:
        os.pwrite(self._arena.fd, data, self.offset)

    def free(self) -> None:
        """What a client still maps is never used again."""
        del self._ctx.regions[self.offset]
        if not self.is_mapped:
            self._arena.free(self.offset)

    def check_mmap(self, caller: Caller, fd: int, length: int) -> None:
        """The caller maps it now: ENXIO, not as a whole."""
        if length != self.length:
            raise UapiError(errno.ENXIO, f"{length} bytes of {self.length}")
        self._mappers.add(Mapper(caller.tgid, *caller.file_identity(fd)))

    @property
    def is_mapped(self) -> bool:
        """By a process that mapped it itself, not by one that it forked."""
        self._mappers = {mapper for mapper in self._mappers if self._is_mapped_by(mapper)}
        return bool(self._mappers)

    def _is_mapped_by(self, mapper: Mapper) -> bool:
        try:
            with open(f"/proc/{mapper.tgid}/maps", encoding="utf-8", errors="replace") as file:
                return any(self._is_in(line.split(), mapper) for line in file)
        except (FileNotFoundError, ProcessLookupError):
            return False

    def _is_in(self, fields: list[str], mapper: Mapper) -> bool:
        _, flags, offset, device, inode = fields[:5]
        start = int(offset, 16)
        inside = self.offset <= start < self.offset + self.length
        return inside and flags[3] == "s" and (device, inode) == (mapper.device, mapper.inode)


def check_mmap(ctx: Any, caller: Caller, fd: int, length: int, prot: int, offset: int) -> None:
    """Whether a client may map this part of its iommufd, shared.

    Errors: EPERM  PROT_EXEC        ENXIO  not exactly a region
    Source: iommufd_fops_mmap()
    """
    if prot & PROT_EXEC:
        raise UapiError(errno.EPERM, "nothing here is executed")
    region = ctx.regions.get(offset)
    if region is None:
        raise UapiError(errno.ENXIO, f"nothing at {offset:#x}")
    region.check_mmap(caller, fd, -(-length // PAGE_SIZE) * PAGE_SIZE)
