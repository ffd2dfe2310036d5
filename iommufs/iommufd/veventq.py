"""Queues of a vIOMMU's events, each with the file that a client reads it through.

Of events that found the queue full only a header is left, at its end, which says so; the sequence
numbers count them all.
"""

import errno
import select
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from iommufs import uapi
from iommufs._native import ffi
from iommufs.errors import UapiError
from iommufs.iommufd.objects import Object
from iommufs.iommufd.queue_file import QueueFile
from iommufs.iommufd.viommu import Viommu
from iommufs.limits import MAX_VEVENTQ_DEPTH
from iommufs.ucmd import Ucmd

INT_MAX = 2**31 - 1

_HEADER = uapi.sizeof("iommufd_vevent_header")
_LOST = uapi.IOMMU_VEVENTQ_FLAG_LOST_EVENTS


@dataclass
class Vevent:
    """An event, or without data: that some were lost."""

    sequence: int
    data: bytes | None

    def record(self) -> bytes:
        flags = _LOST if self.data is None else 0
        header = uapi.new("iommufd_vevent_header", flags=flags, sequence=self.sequence)
        return bytes(ffi.buffer(header)) + (self.data or b"")


class Veventq(Object):
    """A queue of one type of events; holds the vIOMMU, whose driver fills it."""

    def __init__(self, viommu: Viommu, kind: int, depth: int) -> None:
        super().__init__()
        self._viommu = viommu
        self._kind = kind
        self._depth = depth
        self._n_events = 0
        self._sequence = 0
        self.events: deque[Vevent] = deque()
        self.on_report: Callable[[], None] | None = None
        viommu.veventqs[kind] = self
        viommu.get()

    def destroy(self) -> None:
        del self._viommu.veventqs[self._kind]
        self._viommu.put()

    def report(self, data: bytes) -> None:
        """Source: iommufd_viommu_report_event(), iommufd_vevent_handler()"""
        is_full = self._n_events == self._depth
        if self.events and self.events[-1].data is None:
            self.events.pop()
        self.events.append(Vevent(self._sequence, None if is_full else data))
        self._n_events += not is_full
        self._sequence = (self._sequence + 1) & INT_MAX
        if self.on_report is not None:
            self.on_report()

    def read(self, size: int) -> bytes:
        """Whole events, as many as fit: EINVAL if not even the first does, or no header."""
        if size < _HEADER:
            raise UapiError(errno.EINVAL, f"{size} bytes are less than a header")
        data = b""
        while self.events:
            record = self.events[0].record()
            if len(data) + len(record) > size:
                if not data:
                    raise UapiError(errno.EINVAL, f"an event of {len(record)}, {size} bytes")
                break
            self._n_events -= self.events.popleft().data is not None
            data += record
        return data


class VeventFile(QueueFile):
    """The open file of a queue."""

    async def read(self, offset: int, size: int) -> bytes:
        return self._queue.read(size)

    async def write(self, offset: int, data: bytes) -> int:
        raise UapiError(errno.EINVAL, "events are only read")

    def poll(self) -> int:
        return select.POLLIN | select.POLLRDNORM if self._queue.events else 0


async def veventq_alloc(ucmd: Ucmd) -> None:
    """Make a queue of a vIOMMU's events and open its file (IOMMU_VEVENTQ_ALLOC).

    Errors: EOPNOTSUPP  a flag; reserved field; type 0; no fd can be given to the caller
            EINVAL      depth 0 or over 524288      EEXIST  the vIOMMU has a queue of this type
            ENOENT      no such vIOMMU              EMFILE  the caller has no more fds
    Source: iommufd_veventq_alloc()
    """
    cmd, ctx = ucmd.cmd, ucmd.file
    if cmd.flags or cmd.__reserved or not cmd.type:
        raise UapiError(errno.EOPNOTSUPP, f"flags {cmd.flags:#x}, type {cmd.type}, reserved field")
    if not 0 < cmd.veventq_depth <= MAX_VEVENTQ_DEPTH:
        raise UapiError(errno.EINVAL, f"depth {cmd.veventq_depth}")
    viommu = ctx.objects.find(cmd.viommu_id, Viommu)
    if cmd.type in viommu.veventqs:
        raise UapiError(errno.EEXIST, f"{viommu} has a queue of type {cmd.type:#x}")
    with ctx.objects.new(Veventq(viommu, cmd.type, cmd.veventq_depth)) as queue:
        file = VeventFile(ctx, queue)
        cmd.out_veventq_id = queue.id
        try:
            await ucmd.respond_with_fd(file, "out_veventq_fd")
        except BaseException:
            file.release()
            raise
