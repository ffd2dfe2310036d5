"""Jobs of the native pool as awaitables: work that may have to wait for a client's memory.

Nearly all finish within a moment, and then `finish` does not go through the event loop. A job that
does not is parked; whoever is parked first pumps the notices for all.

So nearly every ioctl is over without a wait, and needs no task. `begin` runs a coroutine up to
where it would wait, without one. Whatever such a coroutine may wait for stands behind `in_task`.
"""

import types
from collections.abc import Awaitable, Coroutine, Generator
from typing import Any

import trio

from iommufs._native import ffi, lib

# Long enough for a page to be faulted in, short enough for the other clients to wait.
MOMENT_US = 2000

_parked: dict[Any, trio.Event] = {}
_pump = trio.Lock()


_NEEDS_TASK = object()
_without_task = False


@types.coroutine
def _ask_for_task() -> Generator[object, None, None]:
    yield _NEEDS_TASK


async def in_task() -> None:
    """From here on there is a task, which trio's own waits need."""
    if _without_task:
        await _ask_for_task()


async def let_others() -> None:
    """Let others get their turn."""
    await in_task()
    await trio.lowlevel.checkpoint()


class Rest:
    """What is left of a coroutine that needs a task: awaited in one, it goes on."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._coroutine = coroutine

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._coroutine.__await__()


def begin(coroutine: Coroutine[Any, Any, Any]) -> tuple[Any, Awaitable[Any] | None]:
    """Run a coroutine up to where it needs a task: its result, or what is to be awaited there."""
    global _without_task
    _without_task = True
    try:
        if coroutine.send(None) is not _NEEDS_TASK:
            coroutine.throw(RuntimeError("it waits, and has not called in_task()"))
    except StopIteration as stop:
        return stop.value, None
    finally:
        _without_task = False
    return None, Rest(coroutine)


async def finish(job: Any) -> Any:
    """Wait for a job from iofs_job_…(); returns it, to be freed by the caller.

    Cancelled: the job is freed here; its thread may still be at it.
    """
    if job == ffi.NULL:
        raise MemoryError("no memory for a job")
    if lib.iofs_job_wait(job, MOMENT_US):
        return job
    event = _parked[job] = trio.Event()
    try:
        await in_task()
        while not event.is_set():
            async with _pump:
                if not event.is_set():
                    await trio.lowlevel.wait_readable(lib.iofs_job_done_fd())
                    _drain()
    except BaseException:
        lib.iofs_job_free(job)
        raise
    finally:
        _parked.pop(job, None)
    return job


def _drain() -> None:
    while (job := lib.iofs_job_next_done()) != ffi.NULL:
        event = _parked.get(job)
        if event is not None:
            event.set()
