"""IOEVENTFD: a store of a fixed value to a BAR whenever the client writes to an eventfd."""

from __future__ import annotations

import contextlib
import errno
from typing import Any

from iommufs.errors import UapiError
from iommufs.limits import MAX_IOEVENTFDS
from iommufs.ucmd import Ucmd
from iommufs.vfio.bars import OFFSET_SHIFT
from iommufs.vfio.eventfd import EventFd, take
from iommufs.vfio.image import N_BARS
from iommufs.vfio.regions import OFFSET_MASK

WIDTHS = (1, 2, 4, 8)  # also the flags that ask for them


class IoEventFd:
    """One of them; ended by close()."""

    def __init__(self, df: Any, eventfd: EventFd, position: int, data: int, width: int) -> None:
        self._eventfd = eventfd
        value = (data & (1 << 8 * width) - 1).to_bytes(width, "little")

        def store() -> None:
            with contextlib.suppress(UapiError):  # memory decoding is off: lost, as in Linux
                df.regions.write(position, value)

        try:
            self._stop = df.function.spawn(eventfd.events(store))
        except UapiError:
            eventfd.close()
            raise

    def close(self) -> None:
        self._stop()
        self._eventfd.take_count()  # eventfd_ctx_remove_wait_queue()
        self._eventfd.close()


async def device_ioeventfd(ucmd: Ucmd) -> None:
    """Tie an eventfd to a store, or untie it with fd -1 (VFIO_DEVICE_IOEVENTFD).

    In:     offset  in the device file      data      flags  one width
    Errors: EINVAL  not one width; fd < -1; not in a BAR; in the MSI-X table
            EEXIST  the same store is tied already      ENODEV  nothing to untie
            ENOSPC  too many                            EBADF   no such fd
    Source: vfio_pci_ioeventfd()
    """
    df, cmd = ucmd.file, ucmd.cmd
    if cmd.flags not in WIDTHS or cmd.fd < -1:
        raise UapiError(errno.EINVAL, f"flags {cmd.flags:#x}, fd {cmd.fd}")
    width = cmd.flags
    index, offset = cmd.offset >> OFFSET_SHIFT, cmd.offset & OFFSET_MASK
    if index >= N_BARS or offset + width > df.regions.table[index].size:
        raise UapiError(errno.EINVAL, f"{cmd.offset:#x} is in no BAR")
    table = df.function.msix_table
    if table and table[0] == index and offset + width > table[1] and offset < table[2]:
        raise UapiError(errno.EINVAL, "in the MSI-X table")
    key = (index, offset, cmd.data, width)
    if key in df.ioeventfds:
        if cmd.fd >= 0:
            raise UapiError(errno.EEXIST, "tied already")
        df.ioeventfds.pop(key).close()
        return
    if cmd.fd < 0:
        raise UapiError(errno.ENODEV, "not tied")
    if len(df.ioeventfds) >= MAX_IOEVENTFDS:
        raise UapiError(errno.ENOSPC, f"{MAX_IOEVENTFDS} are tied")
    eventfd = take(ucmd.caller, cmd.fd)
    df.ioeventfds[key] = IoEventFd(df, eventfd, cmd.offset, cmd.data, width)
