"""From the transport to the dispatcher and back: every ioctl gets exactly one answer."""

from __future__ import annotations

import errno
from collections.abc import Awaitable
from typing import Any

import trio

from iommufs import dispatch, jobs, logs
from iommufs._native import ffi, lib
from iommufs.caller import Caller
from iommufs.errors import UapiError
from iommufs.files import OpenFiles

log = logs.get(__name__)

# What this process lacks, the client cannot help: it has no memory to spare, as far as that goes.
_SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)

# FUSE tells of the first signal of a caller that waits, and not whether it dies of it or of a later
# one: as long as such a caller waits, it is looked at this often, in seconds.
LOOK_AGAIN = 0.05


# So many, then whatever else there is gets its turn.
AT_ONCE = 16


class IoctlPump:
    """Takes ioctls from the transport, carries each out, answers it.

    One that has to wait becomes a task. A caller that is killed meanwhile is let go; other signals
    do not end the wait.
    """

    def __init__(self, files: OpenFiles) -> None:
        self._files = files
        self._waiting: dict[int, trio.CancelScope] = {}

    async def run(self) -> None:
        fd = lib.iofs_transport_ioctl_fd()
        taken = ffi.new("struct iofs_ioctl *")
        n_signalled = ffi.new("size_t *")
        async with trio.open_nursery() as nursery:
            while True:
                if n_signalled[0]:
                    with trio.move_on_after(LOOK_AGAIN):
                        await trio.lowlevel.wait_readable(fd)
                else:
                    await trio.lowlevel.wait_readable(fd)
                for _ in range(AT_ONCE):
                    if not lib.iofs_transport_next_ioctl(taken):
                        break
                    self._begin(nursery, taken)
                while unique := lib.iofs_transport_next_dying(n_signalled):
                    if unique in self._waiting:
                        self._waiting[unique].cancel()

    def _begin(self, nursery: trio.Nursery, taken: Any) -> None:
        try:
            file = self._files[taken.fh]
        except UapiError as error:
            lib.iofs_transport_answer_ioctl(taken.unique, -error.errno)
            return
        caller = Caller(taken.tid, taken.uid, taken.gid)
        prefetched = ffi.buffer(taken.payload, taken.prefetched)[:]
        request = (file, caller, taken.cmd, taken.arg, prefetched, bool(taken.compat))
        result, rest = jobs.begin(self._result(request))
        if rest is None:
            lib.iofs_transport_answer_ioctl(taken.unique, result)
        else:
            # Known before it goes on: it may be interrupted before that.
            scope = self._waiting[taken.unique] = trio.CancelScope()
            nursery.start_soon(self._finish, scope, taken.unique, rest)

    async def _result(self, request: tuple[Any, Caller, int, int, bytes, bool]) -> int:
        await self._files.settle()
        return await result_of(*request)

    async def _finish(self, scope: trio.CancelScope, unique: int, rest: Awaitable[int]) -> None:
        result = -errno.EINTR
        with scope:
            result = await rest
        del self._waiting[unique]
        lib.iofs_transport_answer_ioctl(unique, result)


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
