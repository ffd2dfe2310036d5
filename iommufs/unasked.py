"""What Linux asks a driver and a FUSE server is never asked: mmap(), and read() of nothing.

The kernel maps a backing file, and answers 0 to a read of no bytes, by itself. Under `iommufs run`
the filter (seccomp.py) lets us have our say before: an errno that the driver would give is the
call's result; otherwise the kernel carries on, as it does where it refuses the call before it comes
to the driver. What the order of the checks is, oracle probes have told (tests/e2e/unasked).
"""

from __future__ import annotations

import errno
import mmap
import os
from dataclasses import dataclass
from typing import Any

import structlog

from iommufs._native import lib
from iommufs.caller import Caller
from iommufs.errors import UapiError
from iommufs.limits import PAGE_SIZE

log = structlog.get_logger(__name__)

END = 1 << 64

MAP_TYPE, MAP_SHARED_VALIDATE = 0xF, 0x3
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


async def result_of(file: Any, caller: Caller, notice: Any) -> int | None:
    """What a noticed mmap or read of a file of ours comes to: -errno; None: ask the kernel."""
    try:
        descriptor = _look_at(notice.tid, notice.fd)
    except OSError:
        return None
    try:
        if notice.call == lib.IOFS_NOTICE_MMAP:
            _check_mmap(file, descriptor, caller, notice)
        elif descriptor.can_read:
            await file.read(descriptor.position, 0)
    except UapiError as error:
        return -error.errno
    except Exception:
        log.exception("a notice cannot be answered", call=notice.call, tid=notice.tid)
        return -errno.EIO
    return None


def _check_mmap(file: Any, descriptor: _Descriptor, caller: Caller, notice: Any) -> None:
    check = getattr(file, "check_mmap", None)
    if check is None or _kernel_refuses(descriptor, notice):
        return
    if not descriptor.can_write:
        # Linux takes such a mapping for a private one, which no driver of ours has.
        raise UapiError(errno.EINVAL, "opened for reading only")
    check(caller, notice.fd, _whole_pages(notice.length), notice.prot, notice.offset)


def _whole_pages(length: int) -> int:
    return length + -length % PAGE_SIZE


def _kernel_refuses(descriptor: _Descriptor, notice: Any) -> bool:
    """Whether mmap() fails before it comes to the driver (ksys_mmap_pgoff(), do_mmap()).

    Not here: the limits of the client's address space.
    """
    address, flags, offset = notice.address, notice.flags, notice.offset
    length = _whole_pages(notice.length)
    is_placed = flags & (MAP_FIXED | MAP_FIXED_NOREPLACE)
    return bool(
        offset % PAGE_SIZE
        or flags & MAP_HUGETLB
        or not 0 < length <= USER_END - PAGE_SIZE
        or offset + length >= END
        or (is_placed and (address % PAGE_SIZE or address + length >= END))
        or (flags & MAP_TYPE == MAP_SHARED_VALIDATE and flags & ~VALIDATED)
        or not descriptor.can_read
        or (notice.prot & mmap.PROT_WRITE and not descriptor.can_write)
        or (flags & MAP_FIXED_NOREPLACE and _is_taken(notice.tid, address, address + length))
    )


def _is_taken(tid: int, start: int, end: int) -> bool:
    """Whether the client has mapped any of it."""
    with open(f"/proc/{tid}/maps", encoding="ascii", errors="replace") as file:
        for line in file:
            first, _, rest = line.partition("-")
            if int(first, 16) < end and int(rest.split()[0], 16) > start:
                return True
    return False
