"""A receive queue of an 82576: from frames to descriptors in client memory (datasheet 7.1)."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from iommufs.devices.igb import registers as reg
from iommufs.vfio.model import DmaError, Host

BATCH = 256  # descriptors used in one go
_DESCRIPTOR = 16

_DROP_EN = 1 << 31  # of SRRCTL
_LEGACY = 0  # a type of descriptor, in SRRCTL

_DD, _EOP = 0x1, 0x2
_BUFFER_SIZES = (2048, 1024, 512, 256)  # by RCTL.BSIZE


class Arrival(NamedTuple):
    """A frame that passed the filters, with what its descriptor says of it.

    data    as it goes to memory
    kind    packet type and RSS type
    rss     the hash
    status  bits of the descriptor's status and error word, without DD and EOP
    vlan    the tag that was taken out
    """

    data: bytes
    kind: int = 0
    rss: int = 0
    status: int = 0
    vlan: int = 0


class ReceiveQueue:
    def __init__(self, registers: reg.Registers, index: int) -> None:
        self._registers = registers
        self.index = index
        self.stop()

    def stop(self) -> None:
        """Forget what has not been written: the queue was disabled, or the device reset."""
        self._generation = object()
        self._arrivals: deque[Arrival] = deque()
        self.backlog = 0  # bytes

    def _get(self, register: int) -> int:
        return self._registers.get(reg.rx(self.index, register))

    @property
    def is_enabled(self) -> bool:
        return bool(self._get(reg.DCTL) & reg.QUEUE_ENABLE)

    def push(self, arrival: Arrival) -> None:
        self._arrivals.append(arrival)
        self.backlog += len(arrival.data)

    def _pop(self, count: int) -> None:
        for _ in range(count):
            self.backlog -= len(self._arrivals.popleft().data)

    def _buffer_size(self) -> int:
        kilobytes = self._get(reg.SRRCTL) & 0x7F
        return kilobytes << 10 or _BUFFER_SIZES[self._registers.get(reg.RCTL) >> 16 & 3]

    def _free(self) -> tuple[int, int, int]:
        """(head, how many descriptors the client has put there, ring size)."""
        size = (self._get(reg.LEN) & 0xFFF80) // _DESCRIPTOR
        head, tail = self._get(reg.HEAD), self._get(reg.TAIL)
        if not self.is_enabled or max(head, tail) >= size:
            return 0, 0, 0
        return head, (tail - head) % size, size

    @property
    def promised(self) -> int:
        """Bytes that the client has given descriptors for."""
        return self._free()[1] * self._buffer_size()

    async def put(self, host: Host, before: Callable[[], None]) -> bool:
        """Write the next frames to memory. False: there is nothing to write, or nowhere.

        before  is called when the client does not see them yet
        """
        generation = self._generation
        head, free, size = self._free()
        if not self._arrivals:
            return False
        self._drop_what_never_fits(size)
        if free == 0 and self._get(reg.SRRCTL) & _DROP_EN:
            self._registers.count(reg.rx(self.index, reg.DROPPED), len(self._arrivals))
            self._pop(len(self._arrivals))
        count = min(free, BATCH)
        if not count or not self._arrivals:
            return False
        raw = await host.dma_read_spans(self._ring(head, count, size))
        if self._generation is not generation or any(isinstance(part, DmaError) for part in raw):
            return False
        n_frames, written, data = self._fill(b"".join(raw))  # type: ignore[arg-type]
        if not n_frames:
            self._registers.count(reg.RNBC)
            return False
        used = len(written) // _DESCRIPTOR
        done = 0
        for iova, length in self._ring(head, used, size):
            data.append((iova, written[done : done + length]))
            done += length
        before()
        await host.dma_write_spans(data)
        if self._generation is not generation:
            return False
        self._pop(n_frames)
        self._registers.put(reg.rx(self.index, reg.HEAD), (head + used) % size)
        return True

    def _ring(self, first: int, count: int, size: int) -> list[tuple[int, int]]:
        """(iova, length) of descriptors, which may go round the end of the ring."""
        until_end = min(count, size - first)
        descriptor, low = self._registers.descriptor, reg.rx(self.index, reg.BAL)
        spans = [(descriptor(low, first), _DESCRIPTOR * until_end)]
        if count > until_end:
            spans.append((descriptor(low, 0), _DESCRIPTOR * (count - until_end)))
        return spans

    def _drop_what_never_fits(self, size: int) -> None:
        room = self._buffer_size() * (size - 1)
        while self._arrivals and size and len(self._arrivals[0].data) > room:
            self._pop(1)
            self._registers.count(reg.ROC)

    def _fill(self, raw: bytes) -> tuple[int, bytes, list[tuple[int, bytes]]]:
        """How many frames fit, the descriptors that say so, and the data with their IOVAs."""
        room = self._buffer_size()
        legacy = self._get(reg.SRRCTL) >> 25 & 7 == _LEGACY
        written = bytearray()
        data: list[tuple[int, bytes]] = []
        n_frames = 0
        for arrival in self._arrivals:
            pieces = -(-len(arrival.data) // room)
            if len(written) + _DESCRIPTOR * pieces > len(raw):
                break
            for at in range(0, len(arrival.data), room):
                piece = arrival.data[at : at + room]
                address = raw[len(written) : len(written) + 8]
                data.append((int.from_bytes(address, "little"), piece))
                is_last = at + room >= len(arrival.data)
                status = arrival.status | _DD | (_EOP if is_last else 0)
                if legacy:
                    written += address + _legacy(arrival, len(piece), status)
                else:
                    written += _ADVANCED(
                        arrival.kind, arrival.rss, status, len(piece), arrival.vlan
                    )
            n_frames += 1
        return n_frames, bytes(written), data


_ADVANCED = struct.Struct("<IIIHH").pack


def _legacy(arrival: Arrival, length: int, status: int) -> bytes:
    """The second half of a legacy descriptor: the errors are where bits 24 … 31 are else."""
    return struct.pack("<HHBBH", length, 0, status & 0xFF, status >> 24, arrival.vlan)
