"""Fault queues: page requests of devices that a client answers, and the file they go through.

A group of records stays queued until it is read, then waits under a cookie for its response. A
queue holds nothing; its file holds the queue and the context, as does each HWPT made with it.
"""

import errno
import select
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from iommufs import uapi
from iommufs._native import ffi
from iommufs.errors import UapiError
from iommufs.iommufd.objects import Object
from iommufs.iommufd.queue_file import QueueFile
from iommufs.ucmd import Ucmd

_RECORD = uapi.sizeof("iommu_hwpt_pgfault")
_RESPONSE = uapi.sizeof("iommu_hwpt_page_response")
_CODES = (uapi.IOMMUFD_PAGE_RESP_SUCCESS, uapi.IOMMUFD_PAGE_RESP_INVALID)


@dataclass(eq=False)
class FaultGroup:
    """Page requests that are answered together.

    records  struct iommu_hwpt_pgfault *, their cookie is set when they are read
    respond  called once with the client's code, or INVALID if nobody will answer
    owner    see FaultQueue.discard()
    """

    records: Sequence[Any]
    respond: Callable[[int], None]
    owner: Any = None


class FaultQueue(Object):
    """Faults to deliver, and those that wait for a response, by cookie."""

    def __init__(self) -> None:
        super().__init__()
        self.queued: deque[FaultGroup] = deque()
        self.waiting: dict[int, FaultGroup] = {}
        self.on_report: Callable[[], None] | None = None

    def report(self, group: FaultGroup) -> None:
        self.queued.append(group)
        if self.on_report is not None:
            self.on_report()

    def read(self, size: int) -> bytes:
        """Whole groups, as many as fit: EINVAL if not even the first does."""
        data = b""
        while self.queued:
            group = self.queued[0]
            if len(data) + len(group.records) * _RECORD > size:
                if not data:
                    raise UapiError(errno.EINVAL, f"{len(group.records)} records, {size} bytes")
                break
            self.queued.popleft()
            cookie = next(i for i in range(1, len(self.waiting) + 2) if i not in self.waiting)
            self.waiting[cookie] = group
            for record in group.records:
                record.cookie = cookie
                data += bytes(ffi.buffer(record))
        return data

    def respond(self, cookie: int, code: int) -> None:
        if code not in _CODES:
            raise UapiError(errno.EINVAL, f"response code {code}")
        group = self.waiting.pop(cookie, None)
        if group is None:
            raise UapiError(errno.EINVAL, f"no fault with cookie {cookie}")
        group.respond(code)

    def discard(self, owner: Any) -> None:
        """The owner takes no more answers."""
        self._refuse(lambda group: group.owner == owner)

    def destroy(self) -> None:
        self._refuse(lambda group: True)

    def _refuse(self, which: Callable[[FaultGroup], bool]) -> None:
        """Answer groups instead of the client (iommufd_auto_response_faults())."""
        groups = [group for group in (*self.queued, *self.waiting.values()) if which(group)]
        self.queued = deque(group for group in self.queued if not which(group))
        self.waiting = {i: group for i, group in self.waiting.items() if not which(group)}
        for group in groups:
            group.respond(uapi.IOMMUFD_PAGE_RESP_INVALID)


class FaultFile(QueueFile):
    """The open file of a fault queue."""

    async def read(self, offset: int, size: int) -> bytes:
        if size % _RECORD:
            raise UapiError(errno.ESPIPE, f"{size} bytes are not whole records")
        return self._queue.read(size)

    async def write(self, offset: int, data: bytes) -> int:
        """Responses, in order; stops at the first that is wrong and says how many bytes it took."""
        if len(data) % _RESPONSE:
            raise UapiError(errno.ESPIPE, f"{len(data)} bytes are not whole responses")
        response = uapi.new("iommu_hwpt_page_response")
        for done in range(0, len(data), _RESPONSE):
            ffi.buffer(response)[:] = data[done : done + _RESPONSE]
            try:
                self._queue.respond(response.cookie, response.code)
            except UapiError:
                if done:
                    return done
                raise
        return len(data)

    def poll(self) -> int:
        queued = select.POLLIN | select.POLLRDNORM if self._queue.queued else 0
        return select.POLLOUT | queued


async def fault_queue_alloc(ucmd: Ucmd) -> None:
    """Make a fault queue and open its file (IOMMU_FAULT_QUEUE_ALLOC).

    Out:    out_fault_id, out_fault_fd
    Errors: EOPNOTSUPP  a flag; no fd can be given to the caller    EMFILE  it has no more
    Source: iommufd_fault_alloc()
    """
    cmd, ctx = ucmd.cmd, ucmd.file
    if cmd.flags:
        raise UapiError(errno.EOPNOTSUPP, f"flags {cmd.flags:#x}")
    with ctx.objects.new(FaultQueue()) as queue:
        file = FaultFile(ctx, queue)
        cmd.out_fault_id = queue.id
        try:
            await ucmd.respond_with_fd(file, "out_fault_fd")
        except BaseException:
            file.release()
            raise
