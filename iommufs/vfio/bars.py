"""The memory behind the BARs of one function.

One sparse memfd, every region at the offset that VFIO gives it (index << 40): mapping the device
file maps the memfd at the same offset, without translation. Regions that cannot be mapped have no
pages here.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import weakref
from collections.abc import Collection
from typing import Any

from iommufs._native import ffi, lib
from iommufs.limits import PAGE_SIZE
from iommufs.vfio.model import Bar

OFFSET_SHIFT = 40
N_REGIONS = 9

# How long the poller of stores sleeps at most when a device is idle.
WATCH_SLEEP_US = 1000

_FIXED_SIZE = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def _forget(watches: dict[int, Any]) -> None:
    while watches:
        lib.iofs_watch_free(watches.popitem()[1])


def _let_go(watches: dict[int, Any], maps: dict[int, mmap.mmap], fd: int) -> None:
    _forget(watches)
    maps.clear()
    os.close(fd)


class BarMemory:
    """The memfd and our mappings of it. `fd` is what clients map."""

    def __init__(self, bars: dict[int, Bar]) -> None:
        self.fd = os.memfd_create("iommufs-bars", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, N_REGIONS << OFFSET_SHIFT)
        # A privileged client can open what it has mapped; it must not shrink it under our feet.
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, _FIXED_SIZE)
        self._maps: dict[int, mmap.mmap] = {}
        self._sizes: dict[int, int] = {}
        self._watches: dict[int, Any] = {}
        # The poller reads what we have mapped: that stays until it does not, at exit too.
        weakref.finalize(self, _let_go, self._watches, self._maps, self.fd)
        for index, bar in bars.items():
            if bar.mappable and not bar.io:
                length = max(bar.size, PAGE_SIZE)
                offset = index << OFFSET_SHIFT
                self._maps[index] = mmap.mmap(self.fd, length, offset=offset)
                self._sizes[index] = bar.size

    @property
    def mappings(self) -> list[tuple[int, int, int]]:
        """(offset, length, address) of every region that we have mapped."""
        return [
            (
                index << OFFSET_SHIFT,
                len(region),
                int(ffi.cast("uintptr_t", ffi.from_buffer(region))),
            )
            for index, region in self._maps.items()
        ]

    def view(self, region: int) -> memoryview:
        """The bytes of a mappable region, as clients see them."""
        return memoryview(self._maps[region])[: self._sizes[region]]

    def mapped(self) -> Collection[int]:
        """The regions that have memory."""
        return self._maps.keys()

    def memory(self, region: int) -> Any:
        """The same as a C buffer."""
        return ffi.from_buffer(self._maps[region])

    def store(self, region: int, offset: int, size: int, value: int) -> int:
        """Leave a value for clients; a watch on it does not take it for a client's store.

        Returns what was there.
        """
        if watch := self._watches.get(region):
            memory = ffi.from_buffer(self._maps[region])
            return lib.iofs_watch_store(watch, memory, offset, size, value)
        before = int.from_bytes(self._maps[region][offset : offset + size], "little")
        self._maps[region][offset : offset + size] = value.to_bytes(size, "little")
        return before

    def watch(self, region: int, offset: int, size: int, cookie: int, clears: bool) -> None:
        """Watch a word for stores of clients; events carry the cookie."""
        watch = self._watches.get(region)
        if watch is None:
            out = ffi.new("struct iofs_watch **")
            memory = ffi.from_buffer(self._maps[region])
            if lib.iofs_watch_new(memory, cookie, WATCH_SLEEP_US, out) < 0:
                raise MemoryError("no memory for a watch")
            watch = self._watches[region] = out[0]
        add = lib.iofs_watch_add_clearing if clears else lib.iofs_watch_add
        if add(watch, offset, size) < 0:
            raise MemoryError("no memory for a watched word")

    def forget_watches(self) -> None:
        _forget(self._watches)
