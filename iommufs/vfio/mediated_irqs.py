"""Interrupts of mediated devices: INTx or MSI, one eventfd, as the kernel's sample mtty has it.

INTx is masked when it has been signalled; nothing is signalled again when it is unmasked.
"""

from __future__ import annotations

import errno

from iommufs import uapi
from iommufs.errors import UapiError
from iommufs.ucmd import Ucmd
from iommufs.vfio.eventfd import EventFd
from iommufs.vfio.irqs import INTX, MSI, N_INDEXES
from iommufs.vfio.set_irqs import BOOL, EVENTFD, MASK, NONE, TRIGGER, UNMASK, Request, read_request

_ACTIONS = (MASK, UNMASK, TRIGGER)


class MediatedIrqs:
    """What SET_IRQS has made of one open device. kind: INTX, MSI or None."""

    def __init__(self) -> None:
        self.kind: int | None = None
        self.masked = False
        self._trigger: EventFd | None = None

    def single(self, index: int) -> EventFd | None:
        """There are no ERR and REQ."""
        return None

    def enable(self, kind: int, trigger: EventFd) -> None:
        self.kind, self._trigger = kind, trigger

    def disable(self) -> None:
        if self._trigger is not None:
            self._trigger.close()
        self.kind, self.masked, self._trigger = None, False, None

    release = disable

    def signal_intx(self) -> None:
        if self.kind == INTX and not self.masked:
            self.signal()
            self.masked = True

    def signal_msi(self) -> None:
        if self.kind == MSI:
            self.signal()

    def signal(self) -> None:
        assert self._trigger is not None, "what is on has an eventfd"
        self._trigger.signal()


async def mediated_set_irqs(ucmd: Ucmd) -> None:
    """Set up, mask or signal interrupts (VFIO_DEVICE_SET_IRQS).

    Errors: EINVAL  unknown flags; data shorter than count; not in this state; GET_INFO was not
                    called yet
            ENOTTY  an index but INTx and MSI; masking MSI; masking by eventfd
            EFAULT  data      EBADF  no such fd
    Source: mtty_set_irqs()
    """
    function = ucmd.file.function
    request, action = await read_request(ucmd, N_INDEXES if function.info_asked else 0)
    if not function.n_irqs(request.index):
        raise UapiError(errno.ENOTTY, f"index {request.index}")
    if action == TRIGGER:
        _trigger(request)
    elif action in _ACTIONS:
        _mask(request, action == MASK)


def _is_for_one(request: Request) -> bool:
    return request.start == 0 and request.count == 1


def _mask(request: Request, masked: bool) -> None:
    if request.index == MSI:
        raise UapiError(errno.ENOTTY, "MSI is not masked")
    if request.irqs.kind != INTX or not _is_for_one(request):
        raise UapiError(errno.EINVAL, "INTx is not on")
    if request.data == EVENTFD:
        raise UapiError(errno.ENOTTY, "no eventfd masks")
    if request.data == NONE or request.values[0]:
        request.irqs.masked = masked


def _trigger(request: Request) -> None:
    irqs = request.irqs
    if irqs.kind == request.index and not request.count and request.data == NONE:
        irqs.disable()
        return
    if irqs.kind not in (None, request.index) or not _is_for_one(request):
        raise UapiError(errno.EINVAL, "another kind is on, or not one interrupt")
    if request.data == EVENTFD:
        irqs.disable()
        if request.values[0] >= 0:
            irqs.enable(request.index, request.take(request.values[0]))
        return
    if irqs.kind != request.index:
        raise UapiError(errno.EINVAL, f"index {request.index} is not on")
    if request.data == BOOL and not request.values[0]:
        return
    if request.index == INTX:
        irqs.signal_intx()
    else:
        irqs.signal_msi()


async def mediated_get_irq_info(ucmd: Ucmd) -> None:
    """INTx and MSI, one each (VFIO_DEVICE_GET_IRQ_INFO).

    Errors: EINVAL  any other index; GET_INFO was not called yet
    Source: mtty_get_irq_info()
    """
    cmd, function = ucmd.cmd, ucmd.file.function
    if not function.info_asked or cmd.index >= N_INDEXES or not function.n_irqs(cmd.index):
        raise UapiError(errno.EINVAL, f"interrupt index {cmd.index}")
    cmd.count = 1
    cmd.flags = uapi.VFIO_IRQ_INFO_EVENTFD
    if cmd.index == INTX:
        cmd.flags |= uapi.VFIO_IRQ_INFO_MASKABLE | uapi.VFIO_IRQ_INFO_AUTOMASKED
    else:
        cmd.flags |= uapi.VFIO_IRQ_INFO_NORESIZE
    await ucmd.respond()
