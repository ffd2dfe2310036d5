"""From the poller of mapped BARs to the models: stores of clients become Model.stores."""

from __future__ import annotations

import contextlib
from typing import Any

import trio

from iommufs._native import ffi, lib
from iommufs.errors import UapiError

# A client that stores faster than its model takes it in keeps nobody else waiting for longer.
AT_ONCE = 64

_regions: list[tuple[Any, int]] = []
_cookies: dict[tuple[Any, int], int] = {}


def cookie(function: Any, index: int) -> int:
    """The number by which the poller names a region of a function."""
    key = (function, index)
    if key not in _cookies:
        _cookies[key] = len(_regions)
        _regions.append(key)
    return _cookies[key]


def drain(limit: int) -> None:
    """Pass on what the poller has seen; nothing to a device that is closed or does not decode."""
    event = ffi.new("struct iofs_watch_event *")
    together: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
    for _ in range(limit):
        if not lib.iofs_watch_next(event):
            break
        stores = together.setdefault((event.cookie, event.scan), [])
        stores.append((event.offset, event.size, event.value))
    for (number, _), stores in together.items():
        function, index = _regions[number]
        if function.config is not None and function.config.memory_enabled:
            with contextlib.suppress(UapiError):  # the model failed, which is reported
                function.store_bar(index, stores)


async def pump() -> None:
    """Do so for ever."""
    fd = lib.iofs_watch_fd()
    while True:
        await trio.lowlevel.wait_readable(fd)
        drain(AT_ONCE)
