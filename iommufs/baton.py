"""The baton: which thread runs the Python that serves clients, trio's or a reader's.

That Python is made for one thread at a time. Trio's thread has the baton but while it sleeps; then
readers of the transport take it, for a step of a handler each (serve.h, "visits"). What only
trio's thread may do, which is whatever needs trio, and calls to models, goes through `in_loop`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import trio

from iommufs._native import ffi, lib

# What was returned, or raised.
Outcome = tuple[Any, BaseException | None]


def _nothing() -> None:
    pass


def _outcome(function: Callable[..., Any], args: tuple[Any, ...]) -> Outcome:
    try:
        return function(*args), None
    except BaseException as error:
        return None, error


class _Loop(trio.abc.Instrument):
    """Trio's thread: it gives the baton away before it sleeps, and takes it when it wakes."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self._token = trio.lowlevel.current_trio_token()
        self._asked: tuple[Callable[..., Any], tuple[Any, ...]] = _nothing, ()
        self._outcome: Outcome = None, None

    def before_io_wait(self, timeout: float) -> None:
        if timeout > 0:
            lib.iofs_baton_give()

    def after_io_wait(self, timeout: float) -> None:
        self.take()

    def take(self) -> None:
        """Wait for the baton, and meanwhile do what a reader has lent it for."""
        while (found := lib.iofs_baton_take()) != lib.IOFS_BATON_TAKEN:
            if found == lib.IOFS_BATON_LENT:
                self._outcome = _outcome(*self._asked)
                lib.iofs_baton_return()

    def lend(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """On a reader's thread, with the baton: have something called."""
        self._asked = function, args
        self._token.run_sync_soon(_nothing, idempotent=True)  # wakes it
        lib.iofs_baton_lend()
        result, error = self._outcome
        self._asked, self._outcome = (_nothing, ()), (None, None)
        if error is not None:
            raise error
        return result


_loop: _Loop | None = None


@contextmanager
def visits(begin: Callable[[Any], Any], go_on: Callable[[int], Any]) -> Iterator[None]:
    """Meanwhile readers carry ioctls out in Python, by these two steps (serve.h)."""
    global _loop
    assert _loop is None, "the baton is one for a process"
    _loop = _Loop()
    ffi.def_extern("iofs_begin_visit", ffi.NULL)(begin)
    ffi.def_extern("iofs_go_on_with_visit", ffi.NULL)(go_on)
    lib.iofs_visits_open(lib.iofs_begin_visit, lib.iofs_go_on_with_visit)
    trio.lowlevel.add_instrument(_loop)
    try:
        yield
    finally:
        trio.lowlevel.remove_instrument(_loop)
        lib.iofs_visits_close()
        _loop = None


def in_loop(function: Callable[..., Any], *args: Any) -> Any:
    """Call what only trio's thread may call; from a handler, whichever thread runs it."""
    if _loop is None or threading.get_ident() == _loop.thread:
        return function(*args)
    return _loop.lend(function, args)
