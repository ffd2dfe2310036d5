"""From the transport to the dispatcher and back: every ioctl gets exactly one answer."""

from __future__ import annotations

import errno
from collections.abc import Coroutine
from typing import Any

import trio

from iommufs import baton, dispatch, jobs, logs
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
    """Carries out ioctls and answers each: those that readers bring, and those they hand over.

    A reader's is advanced on the reader's thread; `_away` are those whose reader is in the client's
    memory. Whatever else has to wait becomes a task; `_waiting` are their scopes. A caller that is
    killed meanwhile is let go; other signals do not end the wait.
    """

    def __init__(self, files: OpenFiles) -> None:
        self._files = files
        self._nursery: trio.Nursery
        self._away: dict[int, Coroutine[Any, Any, int]] = {}
        self._waiting: dict[int, trio.CancelScope] = {}

    async def run(self) -> None:
        async with trio.open_nursery() as self._nursery:
            try:
                with baton.visits(self._begin_visit, self._go_on_with_visit):
                    await self._pump()
            finally:
                while self._away:
                    self._make_task(*self._away.popitem())

    async def _pump(self) -> None:
        fd = lib.iofs_transport_ioctl_fd()
        taken = ffi.new("struct iofs_ioctl *")
        n_signalled = ffi.new("size_t *")
        while True:
            if n_signalled[0]:
                with trio.move_on_after(LOOK_AGAIN):
                    await trio.lowlevel.wait_readable(fd)
            else:
                await trio.lowlevel.wait_readable(fd)
            for _ in range(AT_ONCE):
                if not lib.iofs_transport_next_ioctl(taken):
                    break
                self._begin(taken)
            while unique := lib.iofs_transport_next_dying(n_signalled):
                self._cancel(unique)

    def _cancel(self, unique: int) -> None:
        if unique in self._away:
            self._make_task(unique, self._away.pop(unique))
        if unique in self._waiting:
            self._waiting[unique].cancel()

    # ---- on a reader's thread, with the baton

    def _begin_visit(self, taken: Any) -> Any:
        return self._advance(taken.unique, self._carry_out(taken))

    def _go_on_with_visit(self, unique: int) -> Any:
        coroutine = self._away.pop(unique, None)
        return ffi.NULL if coroutine is None else self._advance(unique, coroutine)

    def _advance(self, unique: int, coroutine: Coroutine[Any, Any, int]) -> Any:
        """The job that the reader is to do next, or NULL."""
        try:
            wanted = jobs.advance(coroutine)
        except StopIteration as stop:
            lib.iofs_transport_answer_ioctl(unique, stop.value)
            return ffi.NULL
        if wanted is jobs.TASK:
            baton.in_loop(self._make_task, unique, coroutine)
            return ffi.NULL
        self._away[unique] = coroutine
        return wanted

    # ---- on trio's thread

    def _begin(self, taken: Any) -> None:
        coroutine = self._carry_out(taken)
        result, rest = jobs.begin(coroutine)
        if rest is None:
            lib.iofs_transport_answer_ioctl(taken.unique, result)
        else:
            self._make_task(taken.unique, coroutine)

    def _make_task(self, unique: int, coroutine: Coroutine[Any, Any, int]) -> None:
        # Known before it goes on: it may be interrupted before that.
        scope = self._waiting[unique] = trio.CancelScope()
        self._nursery.start_soon(self._finish, scope, unique, jobs.Rest(coroutine))

    def _carry_out(self, taken: Any) -> Coroutine[Any, Any, int]:
        return result_of(
            self._files,
            self._files.find(taken.fh),
            Caller(taken.tid, taken.uid, taken.gid),
            taken.cmd,
            taken.arg,
            ffi.buffer(taken.payload)[: taken.prefetched],
            bool(taken.compat),
        )

    async def _finish(self, scope: trio.CancelScope, unique: int, rest: jobs.Rest) -> None:
        result = -errno.EINTR
        with scope:
            result = await rest
        del self._waiting[unique]
        lib.iofs_transport_answer_ioctl(unique, result)


async def result_of(
    files: OpenFiles,
    file: Any,
    caller: Caller,
    cmd: int,
    arg: int,
    prefetched: bytes = b"",
    compat: bool = False,
) -> int:
    """Carry out an ioctl on one of our open files; its result or -errno, never an exception.

    file  None: it is not open any more
    """
    try:
        if file is None:
            raise UapiError(errno.EBADF, "the file is closed")
        await files.settle()
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
