"""From a number and a pointer to a handler: the rules by which ioctls read their argument.

The order of the checks is part of the uAPI (iommufd_fops_ioctl(), copy_struct_from_user(),
vfio_device_fops_unl_ioctl()). What the numbers mean is in tables.py.
"""

import errno
import inspect
from typing import Any

from iommufs import jobs, tables, uapi
from iommufs._native import ffi
from iommufs.caller import Caller
from iommufs.errors import UapiError
from iommufs.limits import USER_LAST
from iommufs.tables import Payload, Row
from iommufs.ucmd import Ucmd

ZEROS = bytes(1 << 16)


async def ioctl(file: Any, caller: Caller, cmd: int, arg: int, prefetched: bytes = b"") -> int:
    """Carry out one ioctl on one of our files; returns its result or raises UapiError.

    file        an open file of ours; its `table` says whose numbers it knows
    prefetched  bytes at `arg` that are read already, any number of them
    """
    reader = Reader(caller, arg, prefetched)
    try:
        if file.table == "iommufd":
            return await _iommufd_ioctl(file, reader, cmd)
        if file.table == "vfio":
            file.check_ioctl(cmd)
            with file.awake():
                return await _vfio_ioctl(tables.VFIO_DEVICE, file, reader, cmd)
        if file.table == "mediated":
            file.check_ioctl(cmd)
            return await _vfio_ioctl(tables.VFIO_MEDIATED, file, reader, cmd)
        if file.table == "group":
            return await _vfio_ioctl(tables.VFIO_GROUP, file, reader, cmd)
        if file.table == "migration":
            return await _vfio_ioctl(tables.VFIO_MIGRATION, file, reader, cmd)
    except MemoryError as error:
        raise UapiError(errno.ENOMEM, str(error)) from error
    raise UapiError(errno.ENOTTY, f"{cmd:#x}: the file has no ioctls")


class Reader:
    """The client's memory at the argument, of which the beginning may be here already."""

    def __init__(self, caller: Caller, arg: int, prefetched: bytes) -> None:
        self.caller = caller
        self.arg = arg
        self._head = prefetched

    async def first(self, length: int) -> bytes:
        """The first bytes; EFAULT."""
        if len(self._head) < length:
            self._head = await self.caller.read(self.arg, length)
        return self._head[:length]

    async def check_zeros(self, start: int, end: int) -> None:
        """E2BIG if a byte in [start, end) is not 0, EFAULT if one before it cannot be read."""
        if self.arg + end - 1 > USER_LAST:
            raise UapiError(errno.EFAULT, "the structure passes the end of user addresses")
        known = self._head[start:end]
        if known.strip(b"\0"):
            raise UapiError(errno.E2BIG, "unknown trailing bytes are not 0")
        at = start + len(known)
        while at < end:
            length = min(end - at, len(ZEROS))
            data = await self.caller.read_some(self.arg + at, length)
            if data != ZEROS[: len(data)]:
                raise UapiError(errno.E2BIG, "unknown trailing bytes are not 0")
            if len(data) < length:
                raise UapiError(errno.EFAULT, f"client memory at {self.arg + at + len(data):#x}")
            at += length
            await jobs.let_others()  # up to 4 GiB: others get their turn


async def _iommufd_ioctl(file: Any, reader: Reader, cmd: int) -> int:
    nr = cmd & 0xFF
    last = tables.IOMMUFD_TEST_LAST_NR if file.test_ops else tables.IOMMUFD_LAST_NR
    if tables.IOMMUFD_FIRST_NR <= nr <= last:
        await reader.first(4)  # before the number is looked up: EFAULT wins over ENOTTY
        row = tables.IOMMUFD.get(cmd)
        if row is None and file.test_ops:
            row = tables.IOMMUFD_TEST.get(cmd)
    else:
        row = tables.IOMMUFD_VFIO.get(cmd)
    if row is None:
        raise UapiError(errno.ENOTTY, f"{cmd:#x} is not in the table")
    return await _call(row, await _read(row, file, reader))


async def _vfio_ioctl(table: dict[int, Row], file: Any, reader: Reader, cmd: int) -> int:
    row = table.get(cmd)
    if row is None:
        raise UapiError(errno.ENOTTY, f"{cmd:#x} is not in the table")
    return await _call(row, await _read(row, file, reader))


async def _read(row: Row, file: Any, reader: Reader) -> Ucmd:
    """Read the argument as the row says: EFAULT, EINVAL, E2BIG."""
    if row.payload is Payload.VALUE:
        return Ucmd(reader.caller, file, reader.arg)
    if row.payload is Payload.SIZED:
        user_size = int.from_bytes(await reader.first(4), "little")
        _check_min_size(row, user_size)
        if user_size > row.size:
            await reader.check_zeros(row.size, user_size)
        data = await reader.first(min(user_size, row.size))
    else:
        data = await reader.first(row.min_size)
        user_size = int.from_bytes(data[:4], "little")
        _check_min_size(row, user_size)
    cmd = uapi.new(row.struct)
    ffi.buffer(cmd)[: len(data)] = data
    return Ucmd(reader.caller, file, reader.arg, cmd, user_size)


def _check_min_size(row: Row, user_size: int) -> None:
    if user_size < row.min_size:
        raise UapiError(errno.EINVAL, f"{row.struct} of {user_size} < {row.min_size} bytes")


async def _call(row: Row, ucmd: Ucmd) -> int:
    result = row.handler(ucmd)
    if inspect.isawaitable(result):
        result = await result
    return result or 0
