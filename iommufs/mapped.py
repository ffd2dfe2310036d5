"""Devices that are closed but still mapped: as on Linux, such a one stays open until its munmap.

To Linux a mapping is a use of the open file. FUSE tells us of neither a mapping nor its end. Under
`iommufs run` we hear of every mmap() before it is made (unasked.py), and keep the file from its
release from then on. When it has been closed, its clients' mappings are looked at: then, before
every ioctl and open, so that nobody finds a device open that is not mapped any more, and now and
then.

A mapping tells of its inode, not of its open file: of several descriptors of one device, each stays
as long as any is mapped.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager
from typing import Any

import trio

from iommufs import jobs
from iommufs.files import OpenFiles

# How long an answer may take: a client can keep its mappings locked.
PATIENCE = 0.5
# The longest that nobody looks.
INTERVAL = 0.25


class MappedFiles:
    """Keeps what is mapped from being released; `device` is our mount, "major:minor".

    The clients are the descendants of this process and of `others`.
    """

    def __init__(self, files: OpenFiles, device: str, others: Collection[int]) -> None:
        self._files = files
        self._others = others
        major, minor = map(int, device.split(":"))
        self._device = f"{major:02x}:{minor:02x}".encode()  # as /proc/PID/maps has it
        self._kept: dict[Any, tuple[int, AbstractContextManager]] = {}
        self._looking = trio.Lock()
        self._wake = trio.Event()

    def keep(self, file: Any, inode: int) -> None:
        """A mapping of this open file may be made from now on."""
        if file not in self._kept:
            hold = self._files.hold(file)
            hold.__enter__()
            self._kept[file] = inode, hold

    def _closed(self) -> list[Any]:
        return [file for file in self._kept if self._files.is_closed(file)]

    async def settle(self) -> None:
        """Release what has been closed and is not mapped any more."""
        if not self._closed():
            return
        await jobs.in_task()
        async with self._looking:
            inodes = None
            with trio.move_on_after(PATIENCE):
                inodes = await trio.to_thread.run_sync(
                    mapped_inodes,
                    self._device,
                    {os.getpid(), *self._others},
                    abandon_on_cancel=True,
                )
            for file in self._closed() if inodes is not None else ():
                if self._kept[file][0] not in inodes:
                    self._let_go(file)
        self._wake.set()

    def _let_go(self, file: Any) -> None:
        _, hold = self._kept.pop(file)
        hold.__exit__(None, None, None)

    async def run(self) -> None:
        """Look now and then, until cancelled; then everything is let go."""
        self._files.settle = self.settle
        try:
            while True:
                with trio.move_on_after(INTERVAL if self._closed() else math.inf):
                    await self._wake.wait()
                    self._wake = trio.Event()
                    continue
                await self.settle()
        finally:
            for file in list(self._kept):
                self._let_go(file)


def mapped_inodes(device: bytes, ancestors: Collection[int]) -> set[int]:
    """Which inodes of a file system are mapped by descendants of some processes."""
    found = set()
    for pid in _descendants(ancestors):
        try:
            with open(f"/proc/{pid}/maps", "rb") as maps:
                fields = (line.split(None, 5) for line in maps)
                found.update(int(words[4]) for words in fields if words[3] == device)
        except OSError:
            continue  # it is gone, and so are its mappings
    return found


def _descendants(ancestors: Collection[int]) -> Iterator[int]:
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                with open(f"/proc/{name}/stat", "rb") as stat:
                    parent = int(stat.read().rpartition(b")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(name))
    left = [child for pid in ancestors for child in children.get(pid, [])]
    while left:
        child = left.pop()
        yield child
        left += children.get(child, [])
