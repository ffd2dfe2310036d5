"""What is open of ours: open file objects by the number (fh) that the kernel names them with.

An open file answers `async read(offset, size)`, `async write(offset, data)`, `poll()`, `release()`
and says in `table` which ioctls it knows. It may have `check_mmap(caller, fd, length, prot,
offset)`, whose UapiError refuses a shared mapping under `iommufs run`, `watch_poll(notify)`, to be
told once when poll() may answer differently, `fast`, what readers may answer, `can_seek`, if
lseek() is the kernel's business there, `llseek(offset, whence)`, or else it is ESPIPE, and
`stays_while_mapped`, if a mapping keeps it open. One that an ioctl makes may have `access_mode`
(O_RDWR without) and `stays_on_exec` for the descriptor that the client gets, and a `length`.
Numbers are never reused, so a late request for a file that is gone finds nothing instead of another
file.
"""

from __future__ import annotations

import errno
import itertools
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from iommufs import fast
from iommufs._native import ffi, lib
from iommufs.caller import Caller
from iommufs.errors import UapiError, check


async def _nothing() -> None:
    pass


class OpenFiles:
    """All open files of one mount.

    settle      to be awaited before an ioctl or an open: releases what is closed and is held by
                what has ended unseen (mapped.py)
    calls_over  before an open by a client: waits for the calls of those who are gone (fdreturn.py)
    """

    def __init__(self) -> None:
        self._files: dict[int, Any] = {}
        self._numbers = itertools.count(1)
        self._holds: Counter[Any] = Counter()
        self._closed: Counter[Any] = Counter()  # how often, of those held
        self.settle: Callable[[], Awaitable[None]] = _nothing
        self.calls_over: Callable[[], Awaitable[None]] = _nothing

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, fh: int) -> Any:
        try:
            return self._files[fh]
        except KeyError:
            raise UapiError(errno.EBADF, f"no open file {fh}") from None

    def find(self, fh: int) -> Any | None:
        """The open file with a number; None: it is nobody's any more."""
        return self._files.get(fh)

    def add(self, open_file: Any) -> int:
        """A new number for a file, which may have others: it is released once for each."""
        fh = next(self._numbers)
        self._files[fh] = open_file
        if hasattr(open_file, "fast"):
            open_file.fast.add_file(fh)
        return fh

    def remove(self, fh: int) -> Any:
        """Forget a file and return it; the caller releases it."""
        open_file = self[fh]
        del self._files[fh]
        fast.remove_file(fh)
        return open_file

    @contextmanager
    def hold(self, open_file: Any) -> Iterator[None]:
        """Keep a file from its release while a call works with it that the kernel does not know of.

        The ioctls that come through FUSE need no such thing: the kernel holds their file.
        """
        self._holds[open_file] += 1
        try:
            yield
        finally:
            self._holds[open_file] -= 1
            if not self._holds[open_file]:
                del self._holds[open_file]
                for _ in range(self._closed.pop(open_file, 0)):
                    open_file.release()

    def is_closed(self, open_file: Any) -> bool:
        """Whether it would be released if nobody held it."""
        return open_file in self._closed and open_file not in self._files.values()

    def close(self, fh: int) -> None:
        """Forget a file and release it, as soon as nobody holds it."""
        open_file = self.remove(fh)
        if open_file in self._holds:
            self._closed[open_file] += 1
        else:
            open_file.release()

    def remove_all(self) -> list[Any]:
        """Forget all files and return them, the newest first."""
        left = [self._files[fh] for fh in sorted(self._files, reverse=True)]
        for fh in self._files:
            fast.remove_file(fh)
        self._files.clear()
        return left

    def resolve(self, caller: Caller, fd: int) -> Any | None:
        """Our open file that a client's descriptor names, None if it is of another kind; EBADF."""
        out = ffi.new("uint64_t *")
        result = lib.iofs_transport_resolve(caller.tid, fd, out)
        if result == -errno.ENOTTY:
            return None
        check(result, f"fd {fd} of the client")
        return self._files.get(out[0])
