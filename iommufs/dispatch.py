"""From a number and a pointer to a handler: the rules by which ioctls read their argument.

The order of the checks is part of the uAPI (iommufd_fops_ioctl(), copy_struct_from_user(),
vfio_device_fops_unl_ioctl()). What the numbers mean is in tables.py.
"""

import errno
from types import CoroutineType
from typing import Any

from iommufs import jobs, tables
from iommufs._native import ffi
from iommufs.caller import Caller
from iommufs.errors import UapiError
from iommufs.limits import USER_LAST
from iommufs.tables import Payload, Row
from iommufs.ucmd import Ucmd

ZEROS = bytes(1 << 16)

# A member of an Enum takes a while to find.
VALUE, SIZED = Payload.VALUE, Payload.SIZED


async def ioctl(file: Any, caller: Caller, cmd: int, arg: int, prefetched: bytes = b"") -> int:
    """Carry out one ioctl on one of our files; returns its result or raises UapiError.

    file        an open file of ours; its `table` says whose numbers it knows
    prefetched  bytes at `arg` that are read already, any number of them
    """
    reader = Reader(caller, arg, prefetched)
    try:
        if file.table == "iommufd":
            if _is_in_range(file, cmd) and len(prefetched) < 4:
                await reader.read(4)  # before the number is looked up: EFAULT wins over ENOTTY
            return await _carry_out(_iommufd_row(file, cmd), file, reader)
        if file.table == "vfio":
            file.check_ioctl(cmd)
            with file.awake():
                return await _carry_out(tables.VFIO_DEVICE.get(cmd), file, reader)
        if file.table == "mediated":
            file.check_ioctl(cmd)
            return await _carry_out(tables.VFIO_MEDIATED.get(cmd), file, reader)
        if file.table == "group":
            return await _carry_out(tables.VFIO_GROUP.get(cmd), file, reader)
        if file.table == "migration":
            return await _carry_out(tables.VFIO_MIGRATION.get(cmd), file, reader)
    except MemoryError as error:
        raise UapiError(errno.ENOMEM, str(error)) from error
    raise UapiError(errno.ENOTTY, f"{cmd:#x}: the file has no ioctls")


class Reader:
    """The client's memory at the argument; `head` is what is here already of its beginning."""

    def __init__(self, caller: Caller, arg: int, prefetched: bytes) -> None:
        self.caller = caller
        self.arg = arg
        self.head = prefetched

    async def read(self, length: int) -> None:
        """Make `head` the first bytes, more than are here; EFAULT."""
        self.head = await self.caller.read(self.arg, length)

    async def check_zeros(self, start: int, end: int) -> None:
        """E2BIG if a byte in [start, end) is not 0, EFAULT if one before it cannot be read."""
        if self.arg + end - 1 > USER_LAST:
            raise UapiError(errno.EFAULT, "the structure passes the end of user addresses")
        known = self.head[start:end]
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


def _is_in_range(file: Any, cmd: int) -> bool:
    last = tables.IOMMUFD_TEST_LAST_NR if file.test_ops else tables.IOMMUFD_LAST_NR
    return tables.IOMMUFD_FIRST_NR <= cmd & 0xFF <= last


def _iommufd_row(file: Any, cmd: int) -> Row | None:
    if not _is_in_range(file, cmd):
        return tables.IOMMUFD_VFIO.get(cmd)
    row = tables.IOMMUFD.get(cmd)
    return tables.IOMMUFD_TEST.get(cmd) if row is None and file.test_ops else row


async def _carry_out(row: Row | None, file: Any, reader: Reader) -> int:
    if row is None:
        raise UapiError(errno.ENOTTY, "the number is not in the table")
    if row.payload is VALUE:
        ucmd = Ucmd(reader.caller, file, reader.arg)
    else:
        ucmd = await _read(row, file, reader)
    result = row.handler(ucmd)
    if isinstance(result, CoroutineType):
        result = await result
    return result or 0


async def _read(row: Row, file: Any, reader: Reader) -> Ucmd:
    """Read the argument as the row says: EFAULT, EINVAL, E2BIG."""
    is_sized = row.payload is SIZED
    least = 4 if is_sized else row.min_size
    if len(reader.head) < least:
        await reader.read(least)
    user_size = int.from_bytes(reader.head[:4], "little")
    if user_size < row.min_size:
        raise UapiError(errno.EINVAL, f"{row.struct} of {user_size} < {row.min_size} bytes")
    length = least
    if is_sized:
        length = row.size
        if user_size > length:
            await reader.check_zeros(length, user_size)
        elif user_size < length:
            length = user_size
        if len(reader.head) < length:
            await reader.read(length)
    cmd = ffi.new(row.pointer)
    ffi.memmove(cmd, reader.head, length)
    return Ucmd(reader.caller, file, reader.arg, cmd, user_size)
