"""SET_IRQS: one call for everything about interrupts, by index, action and kind of data."""

import errno
import struct
from dataclasses import dataclass
from functools import partial
from typing import Any

from iommufs import uapi
from iommufs.errors import UapiError
from iommufs.ucmd import Ucmd
from iommufs.vfio import irqs
from iommufs.vfio.eventfd import EventFd, take

NONE = uapi.VFIO_IRQ_SET_DATA_NONE
BOOL = uapi.VFIO_IRQ_SET_DATA_BOOL
EVENTFD = uapi.VFIO_IRQ_SET_DATA_EVENTFD
MASK = uapi.VFIO_IRQ_SET_ACTION_MASK
UNMASK = uapi.VFIO_IRQ_SET_ACTION_UNMASK
TRIGGER = uapi.VFIO_IRQ_SET_ACTION_TRIGGER

U32_MAX = 0xFFFFFFFF
_DATA_SIZES = {NONE: 0, BOOL: 1, EVENTFD: 4}


@dataclass(frozen=True)
class Request:
    """One call, read and checked. `values`: a bool or an fd for each of [start, start + count)."""

    irqs: Any  # the file's
    caller: Any
    index: int
    start: int
    count: int
    data: int
    values: list[int]

    def take(self, fd: int) -> EventFd:
        return take(self.caller, fd)

    def is_the_only_one(self) -> bool:
        return self.start == 0 and self.count == 1


def _invalid(why: str) -> UapiError:
    return UapiError(errno.EINVAL, why)


async def device_set_irqs(ucmd: Ucmd) -> None:
    """Set up, mask or signal interrupts (VFIO_DEVICE_SET_IRQS).

    In:     index, start, count     flags  one action and one kind of data
            data  nothing, bools or eventfds, `count` of them
    Errors: EINVAL  unknown flags; no such interrupt; data shorter than count; not in this state
            ENOTTY  no action, two, or one that the index does not have
            EFAULT  data      EBADF  no such fd      EBUSY  an unmask eventfd is set
            ERANGE  no vector to enable
    Source: vfio_pci_ioctl_set_irqs(), vfio_set_irqs_validate_and_prepare()
    """
    df = ucmd.file
    n_irqs = df.function.n_irqs(ucmd.cmd.index) if ucmd.cmd.index < irqs.N_INDEXES else 0
    request, which = await read_request(ucmd, n_irqs)
    action = _ACTIONS.get((request.index, which))
    if action is None:
        raise UapiError(errno.ENOTTY, f"flags {ucmd.cmd.flags:#x} for index {request.index}")
    action(request)


async def read_request(ucmd: Ucmd, n_irqs: int) -> tuple[Request, int]:
    """The request, checked as for an index with so many interrupts, and its action bits.

    EINVAL, EFAULT. Source: vfio_set_irqs_validate_and_prepare()
    """
    cmd, df = ucmd.cmd, ucmd.file
    known = uapi.VFIO_IRQ_SET_DATA_TYPE_MASK | uapi.VFIO_IRQ_SET_ACTION_TYPE_MASK
    if cmd.index >= irqs.N_INDEXES or cmd.count >= U32_MAX - cmd.start or cmd.flags & ~known:
        raise _invalid(f"index {cmd.index}, flags {cmd.flags:#x}")
    if cmd.start >= n_irqs or cmd.start + cmd.count > n_irqs:
        raise _invalid(f"{cmd.count} from {cmd.start} on of {n_irqs}")
    data = cmd.flags & uapi.VFIO_IRQ_SET_DATA_TYPE_MASK
    size = _DATA_SIZES.get(data)
    if size is None:
        raise _invalid(f"flags {cmd.flags:#x}: not one kind of data")
    values = await _values(ucmd, size)
    request = Request(df.irqs, ucmd.caller, cmd.index, cmd.start, cmd.count, data, values)
    return request, cmd.flags & uapi.VFIO_IRQ_SET_ACTION_TYPE_MASK


async def _values(ucmd: Ucmd, size: int) -> list[int]:
    header = uapi.sizeof("vfio_irq_set")
    length = ucmd.cmd.count * size
    if ucmd.user_size - header < length:
        raise _invalid("argsz ends before the data")
    if not length:
        return []
    data = await ucmd.caller.read(ucmd.arg + header, length)
    return list(struct.unpack(f"<{ucmd.cmd.count}{'i' if size == 4 else 'B'}", data))


# ---- INTx


def _intx_mask(request: Request, masking: bool) -> None:
    state = request.irqs
    if state.kind != irqs.INTX or not request.is_the_only_one():
        raise _invalid("INTx is not on")
    if request.data == EVENTFD:
        if masking:
            raise UapiError(errno.ENOTTY, "no eventfd can mask")
        if request.values[0] < 0:
            state.remove_unmask()
        else:
            state.set_unmask(partial(request.take, request.values[0]))
    elif request.data == NONE or request.values[0]:
        (state.mask if masking else state.unmask)()


def _intx_trigger(request: Request) -> None:
    state = request.irqs
    if state.kind == irqs.INTX and request.count == 0 and request.data == NONE:
        state.disable_intx()
        return
    if state.kind not in (None, irqs.INTX) or not request.is_the_only_one():
        raise _invalid("another interrupt type is on, or not the one INTx")
    if request.data == EVENTFD:
        fd = request.values[0]
        state.enable_intx(request.take(fd) if fd >= 0 else None)
    elif state.kind != irqs.INTX:
        raise _invalid("INTx is not on")
    elif request.data == NONE or request.values[0]:
        state.signal_intx()


# ---- MSI and MSI-X


def _msi_trigger(request: Request) -> None:
    state, index = request.irqs, request.index
    if state.kind == index and request.count == 0 and request.data == NONE:
        state.disable_vectors()
        return
    if state.kind not in (None, index):
        raise _invalid("another interrupt type is on")
    if request.data == EVENTFD:
        _set_vectors(request)
    elif state.kind != index:
        raise _invalid("not on")
    else:
        for position in range(request.count):
            if request.data == NONE or request.values[position]:
                state.signal_vector(request.start + position)


def _set_vectors(request: Request) -> None:
    state = request.irqs
    enabling = state.kind is None
    if enabling:
        state.enable_vectors(request.index, request.start + request.count)
    try:
        state.set_vectors(request.start, request.values, request.take)
    except UapiError:
        if enabling:
            state.disable_vectors()
        raise


# ---- ERR and REQ


def _single_trigger(request: Request) -> None:
    state, index = request.irqs, request.index
    if request.start != 0 or request.count > 1:
        raise _invalid("there is one")
    if request.data == NONE:
        eventfd = state.single(index)
        if eventfd is None:
            raise _invalid("no eventfd is set")
        if request.count:
            eventfd.signal()
        else:
            state.set_single(index, None)
        return
    if request.count == 0:
        raise _invalid("no data")
    value = request.values[0]
    if request.data == BOOL:
        eventfd = state.single(index)
        if value and eventfd:
            eventfd.signal()
    elif value < -1:
        raise _invalid(f"fd {value}")
    else:
        state.set_single(index, request.take(value) if value >= 0 else None)


_ACTIONS = {
    (irqs.INTX, MASK): partial(_intx_mask, masking=True),
    (irqs.INTX, UNMASK): partial(_intx_mask, masking=False),
    (irqs.INTX, TRIGGER): _intx_trigger,
    (irqs.MSI, TRIGGER): _msi_trigger,
    (irqs.MSIX, TRIGGER): _msi_trigger,
    (irqs.ERR, TRIGGER): _single_trigger,
    (irqs.REQ, TRIGGER): _single_trigger,
}
