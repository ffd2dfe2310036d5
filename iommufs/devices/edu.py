"""`edu`: the educational PCI device of QEMU, 1234:11e8 (docs/edu.md is its datasheet).

Where the published datasheet leaves something open, the model does what QEMU 11.1 was seen to do
in the oracle guest; those places say so.

Not here: config space, delivery of interrupts, translation (all behind the Host).
"""

from __future__ import annotations

import contextlib
import math
import struct
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, ClassVar

from iommufs.vfio.model import Bar, Description, DmaError, Host, Migration, Model

IDENTIFICATION = 0x010000ED
U64 = (1 << 64) - 1
ONES = {4: (1 << 32) - 1, 8: U64}  # by the widths that the device knows

BAR_SIZE = 1 << 20
BUFFER_START = 0x40000  # how a DMA names the device's own memory; not readable through BAR 0
BUFFER_SIZE = 4096
DEFAULT_DMA_MASK = (1 << 28) - 1
PAGE = 4096

# Registers of BAR 0.
ID = 0x00
LIVENESS = 0x04
FACTORIAL = 0x08
STATUS = 0x20
IRQ_STATUS = 0x24
IRQ_RAISE = 0x60
IRQ_ACK = 0x64
DMA_SOURCE = 0x80  # from here on 4 or 8 bytes wide, below only 4
DMA_DESTINATION = 0x88
DMA_COUNT = 0x90
DMA_COMMAND = 0x98

STATUS_COMPUTING = 0x01
STATUS_IRQ = 0x80

COMMAND_RUN = 0x1
COMMAND_TO_CLIENT = 0x2
COMMAND_IRQ = 0x4

SAVED = "<?9Q"  # the level of INTx, and every register that can be read

FACTORIAL_IRQ = 0x001
DMA_IRQ = 0x100

Mover = Callable[[int, slice], Awaitable[None]]

# Every register, in the order in which stores of a client's mapping that are seen together are
# taken: what starts something comes after what it uses. The read-only ones are among them so that
# a store there does not stay.
REGISTERS = (
    ID,
    LIVENESS,
    STATUS,
    IRQ_STATUS,
    IRQ_ACK,
    IRQ_RAISE,
    FACTORIAL,
    DMA_SOURCE,
    DMA_DESTINATION,
    DMA_COUNT,
    DMA_COMMAND,
)


def width(register: int) -> int:
    """Bytes of a register."""
    return 4 if register < DMA_SOURCE else 8


class Edu(Model):
    """The educational PCI device of QEMU: factorials, DMA, interrupts.

    Its registers outlive clients and bus resets, as they do in QEMU.
    """

    options: ClassVar[Mapping[str, str]] = {
        "dma_mask": "addresses of client memory are cut to these bits (default 0xfffffff)",
        "migration": "clients can migrate it and log its DMA, unlike QEMU's (default false)",
    }

    def __init__(self, host: Host, options: Mapping[str, Any]) -> None:
        super().__init__(host, options)
        mask = options.get("dma_mask", DEFAULT_DMA_MASK)
        if type(mask) is not int or not 0 <= mask <= U64:
            raise ValueError(f"dma_mask must be an integer of at most 64 bits, not {mask!r}")
        self._dma_mask = mask
        self._migrates = options.get("migration", False)
        if type(self._migrates) is not bool:
            raise ValueError(f"migration must be true or false, not {self._migrates!r}")
        self._saved_buffer = b""  # as it went into a migration last
        # What can be read; the two write-only registers are not here.
        self._registers = {
            ID: IDENTIFICATION,
            LIVENESS: 0,
            FACTORIAL: 0,
            STATUS: 0,
            IRQ_STATUS: 0,
            DMA_SOURCE: 0,
            DMA_DESTINATION: 0,
            DMA_COUNT: 0,
            DMA_COMMAND: 0,
        }
        self._buffer = bytearray(BUFFER_SIZE)
        self._writers: dict[int, Callable[[int], None]] = {
            LIVENESS: lambda value: self._set(LIVENESS, ~value & ONES[4]),
            FACTORIAL: self._write_factorial,
            STATUS: self._write_status,
            IRQ_RAISE: self._raise_irq,
            IRQ_ACK: self._lower_irq,
            DMA_SOURCE: lambda value: self._write_dma(DMA_SOURCE, value),
            DMA_DESTINATION: lambda value: self._write_dma(DMA_DESTINATION, value),
            DMA_COUNT: lambda value: self._write_dma(DMA_COUNT, value),
            DMA_COMMAND: self._write_command,
        }

    def describe(self) -> Description:
        return Description(
            vendor=0x1234,
            device=0x11E8,
            class_code=0x00FF00,
            revision=0x10,
            subsystem_vendor=0x1AF4,
            subsystem_device=0x1100,
            bars={0: Bar(size=BAR_SIZE, mappable=True)},
            intx=True,
            msi_vectors=1,
            migration=Migration(pre_copy=True, p2p=True) if self._migrates else None,
            dma_logging=self._migrates,
        )

    def open(self) -> None:
        # What is no register reads as ones; this is before any watch, so that nobody takes it for
        # a client's store.
        self.host.bar(0)[:] = b"\xff" * BAR_SIZE
        for register in REGISTERS:
            self._publish(register)
            self.host.watch(0, register, width(register))

    def close(self) -> None:
        self._registers[STATUS] &= ~STATUS_COMPUTING
        self._registers[DMA_COMMAND] &= ~COMMAND_RUN

    def reset(self) -> None:
        # The only reset that reaches an edu is that of its bus. It lowers the interrupt line;
        # every register was seen to keep its value (oracle guest, hot reset of 04:01.0).
        self._set(STATUS, self._registers[STATUS] & ~STATUS_COMPUTING)
        self._set(DMA_COMMAND, self._registers[DMA_COMMAND] & ~COMMAND_RUN)
        self.host.set_intx(False)

    # -- migration --------------------------------------------------------------------------------

    def run(self) -> None:
        # What was under way is done again from its beginning.
        if self._registers[STATUS] & STATUS_COMPUTING:
            self.host.start(self._compute)
        if self._registers[DMA_COMMAND] & COMMAND_RUN:
            self.host.start(self._transfer)

    def save_early(self, *, first: bool) -> bytes:
        if not first and self._saved_buffer == self._buffer:
            return b""
        self._saved_buffer = bytes(self._buffer)
        return self._saved_buffer

    def load_early(self, data: bytes) -> None:
        if len(data) != BUFFER_SIZE:
            raise ValueError(f"a buffer of {len(data)} bytes")
        self._buffer[:] = data

    def save(self, *, after_early: bool) -> bytes:
        level = bool(self._registers[IRQ_STATUS]) and not self.host.msi_enabled()
        registers = struct.pack(SAVED, level, *self._registers.values())
        known = after_early and self._saved_buffer == self._buffer
        return registers + (b"" if known else bytes(self._buffer))

    def load(self, data: bytes) -> None:
        size = struct.calcsize(SAVED)
        if len(data) not in (size, size + BUFFER_SIZE):
            raise ValueError(f"{len(data)} bytes")
        level, *values = struct.unpack_from(SAVED, data)
        if len(data) > size:
            self._buffer[:] = data[size:]
        for register, value in zip(self._registers, values, strict=True):
            self._set(register, value & ONES[width(register)])
        self.host.set_intx(level)

    # -- registers --------------------------------------------------------------------------------

    def read(self, region: int, offset: int, size: int) -> int:
        if size not in ONES or offset % size:
            return 0  # such a read does not get as far as the device; QEMU's bus says 0
        if size == 8 and offset < DMA_SOURCE:
            return ONES[8]
        return self._registers.get(offset, ONES[8]) & ONES[size]

    def write(self, region: int, offset: int, size: int, value: int) -> None:
        if size not in ONES or offset % size or (size == 8 and offset < DMA_SOURCE):
            return
        writer = self._writers.get(offset)
        if writer:
            writer(value & ONES[size])
        # If the store came through a mapping, it is what loads see until the register is back.
        if offset in REGISTERS:
            self._publish(offset)

    def _set(self, register: int, value: int) -> None:
        self._registers[register] = value
        self._publish(register)

    def _publish(self, register: int) -> None:
        """Let the loads of clients' mappings see what a read would see."""
        size = width(register)
        self.host.store(0, register, size, self._registers.get(register, ONES[size]))

    # -- factorial --------------------------------------------------------------------------------

    def _write_status(self, value: int) -> None:
        computing = self._registers[STATUS] & STATUS_COMPUTING
        self._set(STATUS, computing | (value & STATUS_IRQ))

    def _write_factorial(self, value: int) -> None:
        if self._registers[STATUS] & STATUS_COMPUTING:
            return
        self._set(FACTORIAL, value)
        self._set(STATUS, self._registers[STATUS] | STATUS_COMPUTING)
        self.host.start(self._compute)

    async def _compute(self) -> None:
        n = self._registers[FACTORIAL]
        # The register keeps 32 bits, and 34! is the first that leaves none of them set.
        self._set(FACTORIAL, math.factorial(n) & ONES[4] if n < 34 else 0)
        self._set(STATUS, self._registers[STATUS] & ~STATUS_COMPUTING)
        if self._registers[STATUS] & STATUS_IRQ:
            self._raise_irq(FACTORIAL_IRQ)

    # -- interrupts -------------------------------------------------------------------------------

    def _raise_irq(self, bits: int) -> None:
        self._set(IRQ_STATUS, self._registers[IRQ_STATUS] | bits)
        if not self._registers[IRQ_STATUS]:
            return
        if self.host.msi_enabled():
            self.host.msi(0)  # one message for each raise, also of a bit that is set already
        else:
            self.host.set_intx(True)

    def _lower_irq(self, bits: int) -> None:
        self._set(IRQ_STATUS, self._registers[IRQ_STATUS] & ~bits)
        if not self._registers[IRQ_STATUS] and not self.host.msi_enabled():
            self.host.set_intx(False)

    # -- DMA --------------------------------------------------------------------------------------

    def _write_dma(self, register: int, value: int) -> None:
        if not self._registers[DMA_COMMAND] & COMMAND_RUN:
            self._set(register, value)

    def _write_command(self, value: int) -> None:
        # Without the run bit nothing is kept, not even the other bits.
        if value & COMMAND_RUN and not self._registers[DMA_COMMAND] & COMMAND_RUN:
            self._set(DMA_COMMAND, value)
            self.host.start(self._transfer)

    async def _transfer(self) -> None:
        command = self._registers[DMA_COMMAND]
        source, destination = self._registers[DMA_SOURCE], self._registers[DMA_DESTINATION]
        if command & COMMAND_TO_CLIENT:
            await self._copy(source, destination, self._to_client)
        else:
            await self._copy(destination, source, self._from_client)
        self._set(DMA_COMMAND, command & ~COMMAND_RUN)
        if command & COMMAND_IRQ:
            self._raise_irq(DMA_IRQ)

    async def _copy(self, inside: int, outside: int, move: Mover) -> None:
        """Move DMA_COUNT bytes between the device's buffer and client memory, page by page."""
        count = self._registers[DMA_COUNT]
        position = inside - BUFFER_START
        if position < 0 or position + count > BUFFER_SIZE:
            # QEMU logs it and then runs over its own memory; here nothing moves.
            self.host.report("DMA outside the buffer", address=hex(inside), length=count)
            return
        iova = outside & self._dma_mask
        if iova != outside:
            self.host.report("DMA address cut", address=hex(outside), iova=hex(iova))
        end = position + count
        while position < end:
            # A request on the bus does not cross a page, so each page is refused on its own.
            length = min(end - position, PAGE - iova % PAGE)
            with contextlib.suppress(DmaError):  # which the host reports
                await move(iova, slice(position, position + length))
            position += length
            iova = iova + length & U64

    async def _to_client(self, iova: int, where: slice) -> None:
        await self.host.dma_write(iova, bytes(self._buffer[where]))

    async def _from_client(self, iova: int, where: slice) -> None:
        length = where.stop - where.start
        self._buffer[where] = bytes(length)  # what a refused read was seen to bring
        self._buffer[where] = await self.host.dma_read(iova, length)
