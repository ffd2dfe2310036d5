"""A transmit queue of an 82576: from descriptors in client memory to frames (datasheet 7.2)."""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

from iommufs.devices.igb import registers as reg
from iommufs.devices.igb.offload import (
    Context,
    context,
    insert_checksums,
    insert_sum,
    insert_vlan,
    segments,
)
from iommufs.vfio.model import DmaError, Host

BATCH = 256  # descriptors taken in one go
_DESCRIPTOR = 16
_LONGEST = 9728  # bytes of a frame
_LONGEST_TSO = (1 << 18) + 512  # bytes to be segmented, with their headers
_SHORTEST = 60

# The command byte of a descriptor; the first four are the same in all formats.
_EOP, _IFCS, _IC, _RS, _DEXT, _VLE, _TSE = 0x01, 0x02, 0x04, 0x08, 0x20, 0x40, 0x80
_CONTEXT, _DATA = 2, 3  # types of advanced descriptors
_IXSM, _TXSM = 0x1, 0x2
_DD = 1

_parse = struct.Struct("<QII").iter_unpack


class Packet(NamedTuple):
    """What the descriptors up to one with EOP ask for.

    spans     (iova, length) of the pieces
    command   of the last descriptor; of an advanced one, what the first says is there too
    options   which checksums an advanced descriptor wants
    checksum  (start, offset) of a legacy one
    """

    spans: list[tuple[int, int]]
    command: int
    options: int
    context: Context
    vlan: int
    checksum: tuple[int, int] | None

    @property
    def is_plain(self) -> bool:
        wanted = self.command & (_VLE | _TSE) or self.options or self.checksum
        return bool(self.command & _IFCS and not wanted)


_NO_CONTEXT = Context()

# Type and command of an advanced data descriptor that is a packet by itself and wants nothing.
_SIMPLE_MASK = (_EOP | _IFCS | _DEXT | _VLE | _TSE) << 24 | 0xF << 20
_SIMPLE = (_EOP | _IFCS | _DEXT) << 24 | _DATA << 20


def _is_simple(low: int, high: int) -> bool:
    """Most are."""
    wants = high >> 8 & (_IXSM | _TXSM)
    return low & _SIMPLE_MASK == _SIMPLE and not wants and 0 < low & 0xFFFF <= _LONGEST


class TransmitQueue:
    def __init__(self, registers: reg.Registers, index: int) -> None:
        self._registers = registers
        self.index = index
        self.stop()

    def stop(self) -> None:
        """Forget what is under way: the queue was disabled, or the device reset."""
        self._generation = object()
        self._contexts = [Context(), Context()]
        self._next_packet()

    def _next_packet(self) -> None:
        self._spans: list[tuple[int, int]] = []
        self._length = 0
        self._command = self._options = 0
        self._context = Context()

    def _get(self, register: int) -> int:
        return self._registers.get(reg.tx(self.index, register))

    @property
    def is_enabled(self) -> bool:
        return bool(self._get(reg.DCTL) & reg.QUEUE_ENABLE)

    def _waiting(self) -> tuple[int, int, int]:
        """(head, how many descriptors wait, ring size); none while the queue is disabled."""
        enabled = self._registers.get(reg.TCTL) & reg.TCTL_EN and self.is_enabled
        size = (self._get(reg.LEN) & 0xFFF80) // _DESCRIPTOR
        head, tail = self._get(reg.HEAD), self._get(reg.TAIL)
        if not enabled or max(head, tail) >= size:
            return 0, 0, 0
        return head, (tail - head) % size, size

    async def take(self, host: Host) -> tuple[list[bytes], bool] | None:
        """The frames of the next descriptors, and whether any was to be reported.

        None: there is nothing to do, the descriptors cannot be read, or the queue was stopped.
        """
        generation = self._generation
        head, waiting, size = self._waiting()
        count = min(waiting, size - head, BATCH)
        if not count:
            return None
        first = self._registers.descriptor(reg.tx(self.index, reg.BAL), head)
        (raw,) = await host.dma_read_spans([(first, _DESCRIPTOR * count)])
        if isinstance(raw, DmaError) or self._generation is not generation:
            return None
        packets, reports = self._packets(raw, first)
        frames = await self._fetch(host, packets)
        if self._generation is not generation:
            return None
        head = (head + count) % size
        write_back = self._registers.get64(reg.tx(self.index, reg.WBAL))
        if reports and write_back & 1:
            await host.dma_write_spans([(write_back & ~3, head.to_bytes(4, "little"))])
        elif reports:
            await host.dma_write_spans(reports)
        if self._generation is not generation:
            return None
        self._registers.put(reg.tx(self.index, reg.HEAD), head)
        return frames, bool(reports)

    def _packets(self, raw: bytes, iova: int) -> tuple[list[Packet], list[tuple[int, bytes]]]:
        """What the descriptors ask for, and what is to be written back."""
        packets: list[Packet] = []
        reports: list[tuple[int, bytes]] = []
        for at, (address, low, high) in enumerate(_parse(raw)):
            command = low >> 24
            if not self._length and _is_simple(low, high):
                packet = Packet([(address, low & 0xFFFF)], command, 0, _NO_CONTEXT, 0, None)
            elif not command & _DEXT:
                packet = self._legacy(address, low, high)
            elif low >> 20 & 0xF == _CONTEXT:
                self._contexts[high >> 4 & 1] = context(address & 0xFFFFFFFF, low, high)
                packet = None
            else:
                packet = self._advanced(address, low, high)
            if packet is not None:
                packets.append(packet)
            if command & _RS:
                status = (high | _DD) if not command & _DEXT else _DD
                reports.append((iova + _DESCRIPTOR * at + 12, status.to_bytes(4, "little")))
        return packets, reports

    def _add(self, address: int, length: int) -> None:
        """A piece of a packet; one that is too long is not sent."""
        self._length += length
        if self._length > _LONGEST_TSO:
            self._spans.clear()
        elif length:
            self._spans.append((address, length))

    def _advanced(self, address: int, low: int, high: int) -> Packet | None:
        command = low >> 24
        if not self._length:
            self._command = command & (_VLE | _TSE)
            self._options = high >> 8 & (_IXSM | _TXSM)
            self._context = self._contexts[high >> 4 & 1]
        self._add(address, low & 0xFFFF)
        if not command & _EOP:
            return None
        ctx = self._context
        return self._end(command | self._command, self._options, ctx, ctx.vlan, None)

    def _legacy(self, address: int, low: int, high: int) -> Packet | None:
        command = low >> 24
        self._add(address, low & 0xFFFF)
        if not command & _EOP:
            return None
        checksum = (high >> 8 & 0xFF, low >> 16 & 0xFF) if command & _IC else None
        return self._end(command & ~_TSE, 0, Context(), high >> 16, checksum)

    def _end(
        self,
        command: int,
        options: int,
        ctx: Context,
        vlan: int,
        checksum: tuple[int, int] | None,
    ) -> Packet | None:
        spans, length = self._spans, self._length
        self._next_packet()
        if length > (_LONGEST_TSO if command & _TSE else _LONGEST) or not spans:
            return None
        return Packet(spans, command, options, ctx, vlan, checksum)

    async def _fetch(self, host: Host, packets: list[Packet]) -> list[bytes]:
        """The frames of packets; a packet of which a piece is refused is not sent."""
        spans = [span for packet in packets for span in packet.spans]
        if not spans:
            return []
        found = iter(await host.dma_read_spans(spans))
        frames: list[bytes] = []
        for packet in packets:
            pieces = [next(found) for _ in packet.spans]
            if any(isinstance(piece, DmaError) for piece in pieces):
                continue
            data = pieces[0] if len(pieces) == 1 else b"".join(pieces)  # type: ignore[arg-type]
            if packet.is_plain:
                frames.append(data)  # type: ignore[arg-type]
            else:
                frames += self._finish(packet, data)  # type: ignore[arg-type]
        if self._registers.get(reg.TCTL) & reg.TCTL_PSP:
            return [f if len(f) >= _SHORTEST else f.ljust(_SHORTEST, b"\0") for f in frames]
        return frames

    def _finish(self, packet: Packet, data: bytes) -> list[bytes]:
        if not packet.command & _IFCS and not packet.command & _TSE:
            # The FCS is the client's; a frame whose FCS is wrong reaches nobody.
            data, fcs = data[:-4], data[-4:]
            if zlib.crc32(data).to_bytes(4, "little") != fcs:
                return []
        ip, l4 = bool(packet.options & _IXSM), bool(packet.options & _TXSM)
        if packet.command & _TSE:
            frames = list(segments(data, packet.context, ip, l4))
            self._registers.count(reg.TSCTC)
        elif packet.options:
            frames = [insert_checksums(data, packet.context, ip, l4)]
        elif packet.checksum:
            out = bytearray(data)
            insert_sum(out, *packet.checksum)
            frames = [bytes(out)]
        else:
            frames = [data]
        if packet.command & _VLE:
            ethertype = self._registers.get(reg.VET) & 0xFFFF
            frames = [insert_vlan(frame, ethertype, packet.vlan) for frame in frames]
        return frames
