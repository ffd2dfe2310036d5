"""Jobs of the native pool as awaitables: work that may have to wait for a client's memory.

Nearly all finish within a moment, and then `finish` does not go through the event loop. A job that
does not is parked; whoever is parked first pumps the notices for all.
"""

from typing import Any

import trio

from iommufs._native import ffi, lib

# Long enough for a page to be faulted in, short enough for the other clients to wait.
MOMENT_US = 2000

_parked: dict[Any, trio.Event] = {}
_pump = trio.Lock()


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
