"""What is open of ours: open file objects by the number (fh) that the kernel names them with.

An open file answers `async read(offset, size)`, `async write(offset, data)`, `poll()`, `release()`
and says in `table` which ioctls it knows. Numbers are never reused, so a late request for a file
that is gone finds nothing instead of another file.
"""

from __future__ import annotations

import errno
import itertools
from typing import Any

from iommufs._native import ffi, lib
from iommufs.caller import Caller
from iommufs.errors import UapiError, check


class OpenFiles:
    """All open files of one mount."""

    def __init__(self) -> None:
        self._files: dict[int, Any] = {}
        self._numbers = itertools.count(1)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, fh: int) -> Any:
        try:
            return self._files[fh]
        except KeyError:
            raise UapiError(errno.EBADF, f"no open file {fh}") from None

    def add(self, open_file: Any) -> int:
        """A new number for a file."""
        fh = next(self._numbers)
        self._files[fh] = open_file
        return fh

    def remove(self, fh: int) -> Any:
        """Forget a file and return it, to be released."""
        open_file = self[fh]
        del self._files[fh]
        return open_file

    def remove_all(self) -> list[Any]:
        """Forget all files and return them, the newest first."""
        left = [self._files[fh] for fh in sorted(self._files, reverse=True)]
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
