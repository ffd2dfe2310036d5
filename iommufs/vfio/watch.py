"""From the poller of mapped BARs to the models: stores of clients become Model.stores."""

from __future__ import annotations

import contextlib
import itertools
import weakref
from typing import Any

import trio

from iommufs._native import ffi, lib
from iommufs.errors import UapiError

# A client that stores faster than its model takes it in keeps nobody else waiting for longer.
AT_ONCE = 64

N_INDEXES = 16  # more than a function has regions

_next_number = itertools.count()
_numbers: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
_functions: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


def cookie(function: Any, index: int) -> int:
    """The number by which the poller names a region of a function."""
    if function not in _numbers:
        _numbers[function] = next(_next_number)
        _functions[_numbers[function]] = function
    return _numbers[function] * N_INDEXES + index


def drain(limit: int) -> None:
    """Pass on what the poller has seen; nothing to a device that is closed or does not decode."""
    event = ffi.new("struct iofs_watch_event *")
    together: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
    for _ in range(limit):
        if not lib.iofs_watch_next(event):
            break
        stores = together.setdefault((event.cookie, event.scan), [])
        stores.append((event.offset, event.size, event.value))
    for (named, _), stores in together.items():
        number, index = divmod(named, N_INDEXES)
        function = _functions.get(number)  # None: it was taken away
        if function is not None and function.config is not None and function.config.memory_enabled:
            with contextlib.suppress(UapiError):  # the model failed, which is reported
                function.store_bar(index, stores)


async def pump() -> None:
    """Do so for ever."""
    fd = lib.iofs_watch_fd()
    while True:
        await trio.lowlevel.wait_readable(fd)
        drain(AT_ONCE)
