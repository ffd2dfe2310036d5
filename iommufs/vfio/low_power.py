"""Low power of one open device: it sleeps while nobody uses it, and wakes for every call.

A client that entered without an eventfd leaves by asking for it: between calls the device sleeps
again. With an eventfd the first use wakes it for good, and the eventfd tells. A function with power
management is in D3hot while it sleeps: no DMA, no message.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from iommufs import uapi
from iommufs.errors import UapiError
from iommufs.ucmd import Ucmd
from iommufs.vfio import payload
from iommufs.vfio.eventfd import EventFd, take


class LowPower:
    """Whether a device sleeps. entered: the client wants it to.

    function  sleep(), wake_up(), lose_memory(), regain_memory(), stays_awake
    publish   told whether calls may be answered that this here does not hear of
    """

    def __init__(self, function: Any, publish: Callable[[bool], None]) -> None:
        self._function = function
        self._publish = publish
        self.entered = False
        self._wakeup: EventFd | None = None
        self._uses = 0
        self._asleep = False

    @contextmanager
    def awake(self) -> Iterator[None]:
        """For the time of a call the device is awake."""
        self._uses += 1
        self.wake()
        try:
            yield
        finally:
            self._uses -= 1
            self.rest()

    def rest(self) -> None:
        """Sleep, if the client wants it to and nothing keeps it awake."""
        busy = self._uses or self._function.stays_awake
        if self.entered and not busy and not self._asleep:
            self._asleep = True
            self._function.sleep()

    def enter(self, wakeup: EventFd | None) -> None:
        """Sleep as soon as no call is under way; EINVAL: it does already. Takes over the eventfd.

        Source: vfio_pci_runtime_pm_entry()
        """
        self._function.lose_memory()
        if self.entered:
            if wakeup is not None:
                wakeup.close()
            raise UapiError(errno.EINVAL, "in low power already")
        self.entered, self._wakeup = True, wakeup
        self._publish(False)

    def wake(self) -> None:
        """The device is used, or wants to be: awake it tells the client, if that waits to be told.

        Source: vfio_pci_core_runtime_resume()
        """
        if not self._asleep:
            return
        self._asleep = False
        self._function.wake_up()
        if self._wakeup is not None:
            self._wakeup.signal()
            self._leave()
        else:
            self.rest()

    def leave(self) -> None:
        """Sleep no more (vfio_pci_runtime_pm_exit())."""
        if self._asleep:
            self._asleep = False
            self._function.wake_up()
        self._leave()
        self._function.regain_memory()

    def _leave(self) -> None:
        if self._wakeup is not None:
            self._wakeup.close()
            self._wakeup = None
        if self.entered:
            self.entered = False
            self._publish(True)


async def enter_low_power(ucmd: Ucmd) -> None:
    """Feature LOW_POWER_ENTRY: EINVAL."""
    ucmd.file.low_power.enter(None)


async def enter_low_power_with_wakeup(ucmd: Ucmd) -> None:
    """Feature LOW_POWER_ENTRY_WITH_WAKEUP: EINVAL, EBADF."""
    entry = await payload.read(ucmd, "vfio_device_low_power_entry_with_wakeup")
    if entry.wakeup_eventfd < 0:
        raise UapiError(errno.EINVAL, f"fd {entry.wakeup_eventfd}")
    ucmd.file.low_power.enter(take(ucmd.caller, entry.wakeup_eventfd))


async def exit_low_power(ucmd: Ucmd) -> None:
    """Feature LOW_POWER_EXIT, also if it is not entered."""
    ucmd.file.low_power.leave()


SIZE_WITH_WAKEUP = uapi.sizeof("vfio_device_low_power_entry_with_wakeup")
