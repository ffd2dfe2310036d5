"""What the IOMMU refused a function: counted, and said in the log, though not each time.

A model in Python is refused in host.py. One that does DMA by itself in C reports to a ledger of the
native core (iofs_refused_…), which the pump empties.
"""

from __future__ import annotations

import itertools
import weakref
from collections import Counter
from typing import Any

import trio

from iommufs import logs
from iommufs._native import ffi, lib
from iommufs.errors import check

log = logs.get(__name__)

# A device in trouble repeats itself: the first few are logged, then whenever the number passes a
# power of two, and the sum when its client closes it.
REPORTS_IN_FULL = 8

REASONS = {
    lib.IOFS_DMA_UNMAPPED: "unmapped",
    lib.IOFS_DMA_PERMISSION: "permission",
    lib.IOFS_DMA_GONE: "memory gone",
    lib.IOFS_DMA_NO_MASTER: "bus master off",
    lib.IOFS_DMA_DETACHED: "not attached",
}

_cookies = itertools.count(1)
_ledgers: weakref.WeakValueDictionary[int, RefusedDma] = weakref.WeakValueDictionary()


def is_said(before: int, now: int) -> bool:
    """Whether something that has now happened so many times is worth a line in the log."""
    return now <= REPORTS_IN_FULL or now.bit_length() > before.bit_length()


class RefusedDma:
    """The refused DMAs of one function.

    counts  by access ("read", "write") and reason
    last    IOVA, access and reason of one that came lately; None: there was none
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.counts: Counter[tuple[str, str]] = Counter()
        self.last: tuple[int, str, str] | None = None
        self._said = 0
        self._native: Any = None

    @property
    def total(self) -> int:
        return self.counts.total()

    @property
    def native(self) -> Any:
        """The struct iofs_refused * of this function; it lives as long as this object."""
        if self._native is None:
            cookie = next(_cookies)
            out = ffi.new("struct iofs_refused **")
            check(lib.iofs_refused_new(cookie, out), "a ledger of refused DMAs")
            self._native = ffi.gc(out[0], lib.iofs_refused_free)
            _ledgers[cookie] = self
        return self._native

    def add(self, iova: int, length: int, access: str, reason: str, n: int = 1) -> None:
        """n of one kind, of which this is the first."""
        before = self.total
        self.counts[access, reason] += n
        self.last = iova, access, reason
        if is_said(before, self.total):
            self._said = self.total
            log.warning(
                "DMA refused", device=self.address, count=self.total, iova=hex(iova),
                length=length, access=access, reason=reason,
            )  # fmt: skip

    def sum_up(self) -> None:
        """The client is gone: say how many there were, if the log does not say so already."""
        drain()
        if self.total > self._said:
            self._said = self.total
            log.warning("DMA refused, in all", device=self.address, **self._by_kind())

    def statistics(self) -> dict[str, Any]:
        """`{"read, unmapped": 3, …}`, and the last one."""
        found: dict[str, Any] = dict(self._by_kind())
        if self.last is not None:
            iova, access, reason = self.last
            found["last"] = {"iova": iova, "access": access, "reason": reason}
        return found

    def _by_kind(self) -> dict[str, int]:
        return {", ".join(kind): count for kind, count in sorted(self.counts.items())}


def drain() -> None:
    """Take in what native models have reported."""
    refusals = ffi.new("struct iofs_refusals *")
    while lib.iofs_refused_next(refusals):
        refused = _ledgers.get(refusals.cookie)
        if refused is not None:
            access = "write" if refusals.write else "read"
            reason = REASONS[refusals.reason]
            refused.add(refusals.iova, refusals.length, access, reason, refusals.n)


async def pump() -> None:
    """Do so for ever."""
    fd = lib.iofs_refused_fd()
    while True:
        await trio.lowlevel.wait_readable(fd)
        drain()
