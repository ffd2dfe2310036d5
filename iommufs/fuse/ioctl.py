"""From the transport to the dispatcher and back: every ioctl gets exactly one answer."""

from __future__ import annotations

import errno
import math
from typing import Any

import structlog
import trio

from iommufs import dispatch
from iommufs._native import ffi, lib
from iommufs.caller import Caller
from iommufs.errors import UapiError
from iommufs.files import OpenFiles

log = structlog.get_logger(__name__)

# What this process lacks, the client cannot help: it has no memory to spare, as far as that goes.
_SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)

# FUSE tells of the first signal of a caller that waits, and not whether it dies of it or of a later
# one: as long as such a caller waits, it is looked at this often, in seconds.
LOOK_AGAIN = 0.05


class IoctlPump:
    """Takes ioctls from the transport, runs each as a task, answers it.

    A caller that is killed while its ioctl waits is let go; other signals do not end the wait.
    """

    def __init__(self, files: OpenFiles) -> None:
        self._files = files
        self._running: dict[int, trio.CancelScope] = {}

    async def run(self) -> None:
        fd = lib.iofs_transport_ioctl_fd()
        taken = ffi.new("struct iofs_ioctl *")
        n_signalled = ffi.new("size_t *")
        async with trio.open_nursery() as nursery:
            while True:
                with trio.move_on_after(LOOK_AGAIN if n_signalled[0] else math.inf):
                    await trio.lowlevel.wait_readable(fd)
                while lib.iofs_transport_next_ioctl(taken):
                    # Known before it runs: it may be interrupted before that.
                    scope = self._running[taken.unique] = trio.CancelScope()
                    caller = Caller(taken.tid, taken.uid, taken.gid)
                    prefetched = bytes(ffi.buffer(taken.payload, taken.prefetched))
                    request = (caller, taken.cmd, taken.arg, prefetched, bool(taken.compat))
                    nursery.start_soon(self._answer, scope, taken.unique, taken.fh, request)
                while unique := lib.iofs_transport_next_dying(n_signalled):
                    if unique in self._running:
                        self._running[unique].cancel()

    async def _answer(
        self,
        scope: trio.CancelScope,
        unique: int,
        fh: int,
        request: tuple[Caller, int, int, bytes, bool],
    ) -> None:
        result = -errno.EINTR
        with scope:
            result = await self._result(fh, *request)
        del self._running[unique]
        lib.iofs_transport_answer_ioctl(unique, result)

    async def _result(self, fh: int, *request: Any) -> int:
        try:
            file = self._files[fh]
        except UapiError as error:
            return -error.errno
        await self._files.settle()
        return await result_of(file, *request)


async def result_of(
    file: Any, caller: Caller, cmd: int, arg: int, prefetched: bytes = b"", compat: bool = False
) -> int:
    """Carry out an ioctl on one of our open files; its result or -errno, never an exception."""
    try:
        if compat and file.table == "iommufd":
            raise UapiError(errno.ENOTTY, "iommufd has no ioctls for 32-bit callers")
        return await dispatch.ioctl(file, caller, cmd, arg, prefetched)
    except UapiError as error:
        log.debug("ioctl refused", cmd=hex(cmd), tid=caller.tid, error=str(error))
        return -error.errno
    except OSError as error:
        if error.errno in _SHORTAGES:
            log.warning("an ioctl failed", cmd=hex(cmd), tid=caller.tid, error=str(error))
            return -errno.ENOMEM
        log.exception("an ioctl failed", cmd=hex(cmd), tid=caller.tid)
        return -errno.EIO
    except Exception:
        log.exception("an ioctl failed", cmd=hex(cmd), tid=caller.tid)
        return -errno.EIO
