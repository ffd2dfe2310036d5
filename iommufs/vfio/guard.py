"""Calls into a model: what goes wrong in there is its device's trouble, and nobody else's.

An exception, a coroutine where an answer is expected, and a call that does not come to an end are
all reported against the device; whoever waits for the call gets EIO.
"""

from __future__ import annotations

import atexit
import errno
import inspect
import itertools
import signal
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Generator
from typing import Any

from iommufs import baton, logs
from iommufs.errors import UapiError
from iommufs.vfio.model import ModelStuck
from iommufs.vfio.refused import is_said

log = logs.get(__name__)

# What leaves a model and is not from us, nor from the user who presses Ctrl-C.
FAILURES = (Exception, SystemExit, ModelStuck)

# A call that is still there when the clock has struck twice meanwhile does not come to an end.
STRIKE_SECONDS = 5


def report(device: str, counters: Counter[str], what: str) -> None:
    """Count and log the exception that is being handled."""
    counters["model_errors"] += 1
    count = counters["model_errors"]
    if is_said(count - 1, count):
        log.exception("a device model failed", device=device, call=what, count=count)


def guarded(
    device: str,
    counters: Counter[str],
    what: str,
    call: Callable[..., Any],
    *args: Any,
    check: Callable[[Any], Any] = lambda answer: answer,
) -> Any:
    """The answer of a model, as `check` passes it on; EIO if it fails.

    Models are called from one thread, the loop's.
    """
    return baton.in_loop(_call, device, counters, what, call, args, check)


def _call(
    device: str,
    counters: Counter[str],
    what: str,
    call: Callable[..., Any],
    args: tuple[Any, ...],
    check: Callable[[Any], Any],
) -> Any:
    outer = _clock.begin()
    try:
        answer = call(*args)
        if inspect.iscoroutine(answer):
            answer.close()
            raise TypeError(f"{what}() is async: what waits is a task for Host.start()")
        return check(answer)
    except FAILURES as error:
        report(device, counters, what)
        raise UapiError(errno.EIO, f"the model of {device}: {error!r}") from error
    finally:
        _clock.end(outer)


def check_value(value: Any, *, size: int) -> int:
    """What a read of `size` bytes may give."""
    if not isinstance(value, int):
        raise TypeError(f"read() gave {value!r}, not an integer")
    if not 0 <= value < 1 << 8 * size:
        raise ValueError(f"read() gave {value:#x}, which is no {size} bytes")
    return value


class Steps:
    """A task of a model, which must not keep the machine for itself between two awaits."""

    def __init__(self, task: Awaitable[None]) -> None:
        self._task = task

    def __await__(self) -> Generator[Any, Any, None]:
        steps = self._task.__await__()
        resume: Callable[[Any], Any] = steps.send  # type: ignore[attr-defined]
        value = None
        while True:
            outer = _clock.begin()
            try:
                waits_for = resume(value)
            except StopIteration:
                return
            finally:
                _clock.end(outer)
            try:
                value = yield waits_for
                resume = steps.send  # type: ignore[attr-defined]
            except BaseException as error:  # cancelled, for instance: the task has to know
                value, resume = error, steps.throw  # type: ignore[attr-defined]


class _Clock:
    """Strikes while models are being called, and rests when they are not.

    A model is called from the main thread; a signal is what reaches it there.
    """

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._call = 0  # the number of the one that is under way
        self._seen = 0
        self._runs = False

    def begin(self) -> int:
        """A call begins, perhaps inside of another: what end() wants to know."""
        outer, self._call = self._call, next(self._numbers)
        if not self._runs:
            self._start()
        return outer

    def end(self, outer: int) -> None:
        self._call = outer

    def _start(self) -> None:
        """Only where signals are handled, and if nobody else has a use for this one."""
        if threading.current_thread() is not threading.main_thread():
            return
        if signal.getsignal(signal.SIGALRM) not in (signal.SIG_DFL, self._strike):
            return
        if signal.signal(signal.SIGALRM, self._strike) is signal.SIG_DFL:
            atexit.register(self._rest)  # Python forgets its handlers before it ends
        signal.setitimer(signal.ITIMER_REAL, STRIKE_SECONDS, STRIKE_SECONDS)
        self._runs = True

    def _strike(self, number: int, frame: Any) -> None:
        if not self._call:
            self._rest()
        elif self._seen == self._call:
            self._call = 0  # however it leaves the call, nobody else is to be struck
            raise ModelStuck(f"more than {STRIKE_SECONDS} seconds without an end")
        else:
            self._seen = self._call

    def _rest(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        self._runs = False


_clock = _Clock()
