"""Models in C (native/device.h): connecting one to its function, and hearing from it.

The C side has threads of its own; what it wants done here comes as events, which the pump takes in.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Sequence
from typing import Any

import trio

from iommufs import uapi
from iommufs._native import ffi, lib
from iommufs.errors import check
from iommufs.vfio import irqs

_ERROR_SIZE = 256

# Page requests of a function that can be told apart (PCIe, PRG index).
N_PAGE_REQUESTS = 512

_cookies = itertools.count(1)
_devices: weakref.WeakValueDictionary[int, NativeDevice] = weakref.WeakValueDictionary()


class NativeDevice:
    """One function's model in C, as vfio.model.Native."""

    def __init__(
        self, function: Any, library: str | None, name: str, options: Sequence[str]
    ) -> None:
        """ValueError says why it cannot be had."""
        self._function = function
        self._running = False
        cookie = next(_cookies)
        out, error = ffi.new("struct iofs_device **"), ffi.new("char[]", _ERROR_SIZE)
        texts = [ffi.new("char[]", option.encode()) for option in options]
        array = ffi.new("char *[]", [*texts, ffi.NULL])
        path = ffi.NULL if library is None else ffi.new("char[]", library.encode())
        result = lib.iofs_device_new(
            path, name.encode(), array, cookie, function.refused.native, error, _ERROR_SIZE, out
        )
        if result < 0:
            raise ValueError(ffi.string(error).decode(errors="replace"))
        self._refused = function.refused  # which must outlive the device
        self._device = ffi.gc(out[0], lib.iofs_device_free)
        _devices[cookie] = self

    # ---- life

    def connect(self) -> None:
        """The function is complete: its BARs are there."""
        function = self._function
        for index in function.bars.mapped():
            memory = function.bars.memory(index)
            lib.iofs_device_set_bar(self._device, index, memory, len(memory))
        lib.iofs_device_set_page_requests(self._device, function.requests_pages)
        self.registers_changed()

    def open(self) -> None:
        """Power on; OSError, MemoryError."""
        self._running = True
        if (group := self._function.group) is not None:  # which may be another one than before
            lib.iofs_device_set_route(self._device, group.route)
        check(lib.iofs_device_start(self._device), "a thread for a device")

    def close(self) -> None:
        """Power off: from here on it does nothing."""
        self._running = False
        lib.iofs_device_stop(self._device)

    def reset(self) -> None:
        """Off and, if it was on, on again."""
        if self._running:
            self.open()

    # ---- registers

    def read(self, region: int, offset: int, size: int) -> int:
        return lib.iofs_device_read(self._device, region, offset, size)

    def write(self, region: int, offset: int, size: int, value: int) -> None:
        lib.iofs_device_write(self._device, region, offset, size, value)

    # ---- what it must know of its function

    def registers_changed(self) -> None:
        """Config space may say something else about bus mastering and interrupts."""
        function = self._function
        lib.iofs_device_set_bus_master(self._device, function.bus_master)
        mode = lib.IOFS_MESSAGES_DIRECT
        if not function.msi_enabled:
            mode = lib.IOFS_MESSAGES_OFF
        elif function.irqs is not None and function.irqs.kind == irqs.MSI and function.masks_msi:
            mode = lib.IOFS_MESSAGES_BY_EVENT  # a masked one has to wait in config space
        lib.iofs_device_set_messages(self._device, mode)

    def set_vector(self, vector: int, fd: int | None) -> None:
        """Where messages of a vector go from now on; ENOMEM."""
        result = lib.iofs_device_set_vector(self._device, vector, -1 if fd is None else fd)
        check(result, f"vector {vector}")

    def take_event(self, event: Any) -> None:
        """Do what the model wants."""
        if event.kind == lib.IOFS_DEVICE_LINE:
            self._function.set_intx(bool(lib.iofs_device_line(self._device)))
        elif event.kind == lib.IOFS_DEVICE_MESSAGE:
            self._function.send_msi(event.vector)
        elif event.kind == lib.IOFS_DEVICE_PAGE:
            self._ask(event.request, event.iova, bool(event.write))
        else:
            text = ffi.string(event.text).decode(errors="replace")
            details = {"lost": event.n_lost} if event.n_lost else {}
            self._function.host.report(text, **details)

    def _ask(self, request: int, iova: int, write: bool) -> None:
        """Have a page asked for; nobody to ask is an answer too."""
        device = self._function.iommu_device

        def respond(code: int) -> None:
            comes = code == uapi.IOMMUFD_PAGE_RESP_SUCCESS
            lib.iofs_device_answer_page(self._device, request, comes)

        number = request % N_PAGE_REQUESTS
        if device is None or not device.request_page(iova, write, number, respond):
            lib.iofs_device_answer_page(self._device, request, False)


def drain() -> None:
    """Take in what the models want."""
    event = ffi.new("struct iofs_device_event *")
    while lib.iofs_device_next_event(event):
        device = _devices.get(event.cookie)
        if device is not None:
            device.take_event(event)


async def pump() -> None:
    """Do so for ever."""
    fd = lib.iofs_device_event_fd()
    while True:
        await trio.lowlevel.wait_readable(fd)
        drain()
