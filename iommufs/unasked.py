"""What Linux asks a driver and FUSE nobody: mmap(), lseek(), read() and write() of nothing.

The kernel maps a backing file, moves a position, and answers 0 to a transfer of no bytes. Under
`iommufs run` the filter (seccomp.py) lets us have our say before: an errno that the driver would
give is the call's result; otherwise the kernel carries on, as it does where it refuses the call
before it comes to the driver. What the order of the checks is, oracle probes have told
(tests/e2e/unasked).
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from dataclasses import dataclass, replace
from typing import Any

from iommufs._native import lib
from iommufs.caller import Caller
from iommufs.errors import UapiError
from iommufs.fuse.nodes import DeviceNode, has_positions
from iommufs.limits import PAGE_SIZE

END = 1 << 64

SEEK_MAX = 4
LLONG_MAX = (1 << 63) - 1

# Reads and writes: whether it writes, and whether it says where.
_TRANSFERS = {
    lib.IOFS_NOTICE_READ: (False, False),
    lib.IOFS_NOTICE_PREAD: (False, True),
    lib.IOFS_NOTICE_WRITE: (True, False),
    lib.IOFS_NOTICE_PWRITE: (True, True),
}

MAP_TYPE, MAP_SHARED_VALIDATE = 0xF, 0x3
MAP_TYPES = {mmap.MAP_SHARED, mmap.MAP_PRIVATE, MAP_SHARED_VALIDATE}
MAP_FIXED, MAP_HUGETLB, MAP_FIXED_NOREPLACE = 0x10, 0x40000, 0x100000
# Flags that MAP_SHARED_VALIDATE takes; for files of ours not MAP_SYNC.
VALIDATED = 0x7C07F9F3
# A mapping ends below here, unless its caller hints at more (five-level page tables).
USER_END = 1 << 47


@dataclass(frozen=True)
class _Descriptor:
    """What /proc tells of a client's descriptor: where it is, and how it was opened."""

    position: int
    mode: int

    @property
    def can_read(self) -> bool:
        return self.mode != os.O_WRONLY

    @property
    def can_write(self) -> bool:
        return self.mode != os.O_RDONLY


def _look_at(tid: int, fd: int) -> _Descriptor:
    """OSError: the caller or its descriptor is gone."""
    with open(f"/proc/{tid}/fdinfo/{fd}", encoding="ascii", errors="replace") as file:
        fields = dict(line.split(":", 1) for line in file.read().splitlines() if ":" in line)
    return _Descriptor(int(fields["pos"]), int(fields["flags"], 8) & os.O_ACCMODE)


async def result_of(file: Any, caller: Caller, notice: Any, node: DeviceNode | None) -> int | None:
    """What a noticed call about a file of ours comes to, -errno too; None: ask the kernel.

    node  the device that was opened, without a number if an ioctl made it; None: an attribute
    """
    try:
        if notice.call == lib.IOFS_NOTICE_MMAP:
            _check_mmap(file, caller, notice, has_path=node is None or any(node.rdev))
        elif notice.call in _TRANSFERS:
            if node is not None:  # sysfs asks no attribute
                await _transfer_nothing(file, notice, node)
        else:
            return _lseek(file, notice)
    except UapiError as error:
        return -error.errno
    except OSError:
        return None  # the caller or its descriptor is gone
    return None


async def _transfer_nothing(file: Any, notice: Any, node: DeviceNode) -> None:
    writes, is_placed = _TRANSFERS[notice.call]
    if is_placed and not any(node.rdev) and not has_positions(node, file):
        return  # the kernel refuses it: a stream
    descriptor = _look_at(notice.tid, notice.fd)
    position = notice.args[3] if is_placed else descriptor.position
    if position > LLONG_MAX or not (descriptor.can_write if writes else descriptor.can_read):
        return  # the kernel refuses it
    if writes:
        await file.write(position, b"")
    else:
        await file.read(position, 0)


def _lseek(file: Any, notice: Any) -> int | None:
    whence = notice.args[2 if notice.call == lib.IOFS_NOTICE_LSEEK else 4] & 0xFFFFFFFF
    if whence > SEEK_MAX or getattr(file, "can_seek", False):
        return None
    if not hasattr(file, "llseek"):
        raise UapiError(errno.ESPIPE, "no file has a position that has no llseek operation")
    if notice.call != lib.IOFS_NOTICE_LSEEK:
        return None  # where its result goes is the kernel's business
    return file.llseek(ctypes.c_int64(notice.args[1]).value, whence)


@dataclass(frozen=True)
class _Mmap:
    """The arguments of an mmap(); `length` in whole pages."""

    address: int
    length: int
    prot: int
    flags: int
    fd: int
    offset: int

    @property
    def is_private(self) -> bool:
        return self.flags & MAP_TYPE == mmap.MAP_PRIVATE


def _check_mmap(file: Any, caller: Caller, notice: Any, has_path: bool) -> None:
    call = _Mmap(*notice.args)
    call = replace(call, length=call.length + -call.length % PAGE_SIZE)
    descriptor = _look_at(notice.tid, notice.fd)
    check = getattr(file, "check_mmap", None)
    if _kernel_refuses(descriptor, caller.tid, call):
        return
    if call.prot & mmap.PROT_EXEC and not has_path:
        raise UapiError(errno.EPERM, "no anonymous inode's memory is executed")
    if check is None:
        # FUSE would map what nobody looks at.
        if call.is_private or lib.iofs_transport_has_page_cache():
            raise UapiError(errno.ENODEV, "nothing to map")
        return
    if call.is_private or not descriptor.can_write:
        # Linux takes a shared mapping of what is opened for reading only for a private one.
        raise UapiError(errno.EINVAL, "no driver of ours has private mappings")
    check(caller, notice.fd, call.length, call.prot, call.offset)


def _kernel_refuses(descriptor: _Descriptor, tid: int, call: _Mmap) -> bool:
    """Whether mmap() fails before it comes to the driver (ksys_mmap_pgoff(), do_mmap()).

    Not here: the limits of the client's address space.
    """
    address, flags, end = call.address, call.flags, call.address + call.length
    is_placed = flags & (MAP_FIXED | MAP_FIXED_NOREPLACE)
    needs_writer = call.prot & mmap.PROT_WRITE and not call.is_private
    return bool(
        call.offset % PAGE_SIZE
        or flags & MAP_HUGETLB
        or not 0 < call.length <= USER_END - PAGE_SIZE
        or call.offset + call.length >= END
        or (is_placed and (address % PAGE_SIZE or end >= END))
        or flags & MAP_TYPE not in MAP_TYPES
        or (flags & MAP_TYPE == MAP_SHARED_VALIDATE and flags & ~VALIDATED)
        or not descriptor.can_read
        or (needs_writer and not descriptor.can_write)
        or (flags & MAP_FIXED_NOREPLACE and _is_taken(tid, address, end))
    )


def _is_taken(tid: int, start: int, end: int) -> bool:
    """Whether the client has mapped any of it."""
    with open(f"/proc/{tid}/maps", encoding="ascii", errors="replace") as file:
        for line in file:
            first, _, rest = line.partition("-")
            if int(first, 16) < end and int(rest.split()[0], 16) > start:
                return True
    return False
