"""How our nodes look under `iommufs run`: like the character devices that they stand for.

To the kernel a file of a FUSE mount that can be opened is a regular one. What asks for attributes
by a descriptor is noticed by the filter (seccomp.py), and we fill the caller's structure; what asks
by a path finds another inode (Operations.lookup).
"""

from __future__ import annotations

import os
import stat
from typing import Any

from iommufs._native import ffi, lib
from iommufs.caller import Caller
from iommufs.errors import UapiError
from iommufs.fuse.nodes import DeviceNode

CALLS = {lib.IOFS_NOTICE_FSTAT, lib.IOFS_NOTICE_FSTATAT, lib.IOFS_NOTICE_STATX}

AT_SYMLINK_NOFOLLOW, AT_NO_AUTOMOUNT, AT_EMPTY_PATH = 0x100, 0x800, 0x1000
AT_STATX_SYNC_TYPE = 0x6000
KNOWN_FLAGS = AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | AT_EMPTY_PATH | AT_STATX_SYNC_TYPE
STATX_RESERVED = 0x80000000
OVERFLOW_ID = 65534


async def result_of(node: DeviceNode | None, caller: Caller, notice: Any) -> int | None:
    """What a call of the stat family about a descriptor of ours comes to; None: ask the kernel."""
    if node is None:
        return None
    address = await _where_to_write(caller, notice)
    if address is None:
        return None
    try:
        ours = {"uid": os.geteuid(), "gid": os.getegid()}
        owners = [_as_seen_by(caller.tid, kind, number) for kind, number in ours.items()]
    except OSError:
        return None  # gone
    # A file without a node in /dev is an anonymous inode, which has no type.
    kind = stat.S_IFCHR if any(node.rdev) else 0
    look = ffi.new("struct iofs_look *", (kind, *node.rdev, *owners, node.size))
    data = ffi.new("uint8_t[256]")
    length = lib.iofs_notice_stat(notice, look, data)
    if length < 0 or not caller.is_valid:
        return None
    try:
        await caller.write(address, bytes(ffi.buffer(data, length)))
    except UapiError as error:
        return -error.errno
    return 0


async def _where_to_write(caller: Caller, notice: Any) -> int | None:
    """The structure's address; None if the call is not about the descriptor, or wrong."""
    args = list(notice.args)
    if notice.call == lib.IOFS_NOTICE_FSTAT:
        return args[1]
    if notice.call == lib.IOFS_NOTICE_FSTATAT:  # of a descriptor, no flag is wrong (vfs_fstatat())
        path, address = args[1], args[2]
    else:
        path, flags, mask, address = args[1:5]
        is_wrong = flags & 0xFFFFFFFF & ~KNOWN_FLAGS or mask & STATX_RESERVED
        if is_wrong or flags & AT_STATX_SYNC_TYPE == AT_STATX_SYNC_TYPE:
            return None
    if path and await caller.read_some(path, 1) != b"\0":
        return None
    return address


def _as_seen_by(tid: int, kind: str, number: int) -> int:
    """A user's or group's id in the user namespace of a thread; OSError: it is gone."""
    mine, theirs = (os.stat(f"/proc/{who}/ns/user") for who in ("self", tid))
    if (mine.st_dev, mine.st_ino) == (theirs.st_dev, theirs.st_ino):
        return number
    with open(f"/proc/{tid}/{kind}_map", encoding="ascii") as file:
        for line in file:
            inside, outside, count = map(int, line.split())
            if 0 <= number - outside < count:
                return inside + number - outside
    return OVERFLOW_ID
