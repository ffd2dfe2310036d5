"""Jobs of the native pool as awaitables: work that may have to wait for a client's memory.

Nearly all finish within a moment, and then `finish` does not go through the event loop. A job that
does not is parked; whoever is parked first pumps the notices for all.

So nearly every ioctl is over without a wait of trio's, and needs no task. `advance` runs a
coroutine up to where it needs something: a job, which whoever calls that carries out, or a task.
Whatever else such a coroutine may wait for stands behind `in_task`.
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


TASK = object()  # what a coroutine asks for that needs one
_without_task = False


@types.coroutine
def _ask_for(wanted: Any) -> Generator[Any, None, None]:
    yield wanted


async def in_task() -> None:
    """From here on there is a task, which trio's own waits need."""
    if _without_task:
        await _ask_for(TASK)


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


def advance(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine without a task up to where it needs something: TASK, or a job.

    A job is to be carried out before the next call; or else what is left becomes a task, as a Rest.
    StopIteration has its result.
    """
    global _without_task
    _without_task = True
    try:
        wanted = coroutine.send(None)
        if wanted is not TASK and not isinstance(wanted, ffi.CData):
            coroutine.throw(RuntimeError("it waits, and has not called in_task()"))
        return wanted
    finally:
        _without_task = False


def begin(coroutine: Coroutine[Any, Any, Any]) -> tuple[Any, Awaitable[Any] | None]:
    """Run a coroutine up to where it needs a task: its result, or what is to be awaited there."""
    try:
        while (job := advance(coroutine)) is not TASK and lib.iofs_job_wait(job, MOMENT_US):
            pass
    except StopIteration as stop:
        return stop.value, None
    return None, Rest(coroutine)


async def finish(job: Any) -> Any:
    """Wait for a job from iofs_job_…(); returns it, to be freed by the caller.

    Cancelled: the job is freed here; its thread may still be at it.
    """
    if job == ffi.NULL:
        raise MemoryError("no memory for a job")
    moment = MOMENT_US
    try:
        if _without_task:
            await _ask_for(job)
            if _without_task:
                return job
            moment = 0
        if lib.iofs_job_wait(job, moment):
            return job
        event = _parked[job] = trio.Event()
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
