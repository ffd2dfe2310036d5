"""What DMA of a device passes when it begins and when it ends, so that it can be held up."""

from __future__ import annotations

from types import TracebackType

import trio

from iommufs import baton


class DmaGate:
    """`async with gate:` around each DMA. paused: none is under way, and none begins."""

    def __init__(self) -> None:
        self.paused = False
        self._under_way = 0
        self._quiet: trio.Event | None = None  # set when none is
        self._opens: trio.Event | None = None  # None: it is open

    async def __aenter__(self) -> None:
        while self._opens is not None:
            await self._opens.wait()
        self._under_way += 1

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._under_way -= 1
        if not self._under_way and self._quiet is not None:
            self._quiet.set()

    async def close(self) -> None:
        """Let none begin, and wait for those under way. Cancelled, it is open."""
        self._opens = trio.Event()
        try:
            while self._under_way:
                self._quiet = trio.Event()
                await self._quiet.wait()
        except BaseException:
            self.open()
            raise
        self.paused = True

    def open(self) -> None:
        """Whether it is closed or not."""
        self.paused = False
        if self._opens is not None:
            baton.in_loop(self._opens.set)
            self._opens = None
