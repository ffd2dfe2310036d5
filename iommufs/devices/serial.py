"""`serial`: a card with one or two 16550 ports that lead back to themselves (docs/serial.md).

The registers, ids and oddities are those of the kernel's sample driver mtty, as the reference guest
answered: what a port sends it receives; with its FIFO full it looks empty until it is cleared.

Not here: the calls of VFIO, interrupts' way to the client (all behind the Host).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from iommufs.vfio.model import Bar, Description, Host, Mediated, Migration, Model

CONFIG = 7
CONFIG_SIZE = 0xFF
BAR_SIZE = 8
FIFO_SIZE = 16

KINDS = {1: "Single", 2: "Dual"}

# Registers of a port, by offset. With DLAB set, the first two are the divisor.
DATA, IER, IIR_FCR, LCR, MCR, LSR, MSR, SCR = range(8)

IER_RECEIVED, IER_EMPTY, IER_LINE, IER_MODEM = 0x01, 0x02, 0x04, 0x08
IIR_NONE, IIR_EMPTY, IIR_RECEIVED, IIR_LINE = 0x01, 0x02, 0x04, 0x06
IIR_MODEM, IIR_FIFO = 0x00, 0xC0
FCR_ENABLE, FCR_CLEAR = 0x01, 0x06
LCR_DLAB = 0x80
MCR_DTR_RTS, MCR_OUT2, MCR_AUTO_FLOW = 0x03, 0x08, 0x20
LSR_READY, LSR_OVERRUN, LSR_EMPTY = 0x01, 0x02, 0x60
MSR_PRESENT, MSR_CLEAR_TO_SEND = 0xA2, 0x11


class Port:
    """One UART. `interrupt` is called whenever it wants attention, without a level to it."""

    def __init__(self, interrupt: Any) -> None:
        self._interrupt = interrupt
        self.kept = {IER: 0, LCR: 0, MCR: 0, SCR: 0}
        self.divisor = 0
        self.fifo = bytearray(FIFO_SIZE)
        self.head = self.tail = self.count = 0
        self.depth = FIFO_SIZE
        self.trigger = 0
        self.overrun = False

    @property
    def _dlab(self) -> bool:
        return bool(self.kept[LCR] & LCR_DLAB)

    @property
    def _is_empty(self) -> bool:
        return self.head == self.tail

    def _enabled(self, bits: int) -> bool:
        return bool(self.kept[IER] & bits)

    # -- reading

    def read(self, register: int) -> int:
        if register == DATA:
            return self.divisor & 0xFF if self._dlab else self._receive()
        if register == IER:
            return self.divisor >> 8 & 0xFF if self._dlab else self.kept[IER] & 0x0F
        if register == IIR_FCR:
            return self._identification()
        if register == LSR:
            line = LSR_EMPTY if self._is_empty else LSR_READY
            return line | (LSR_OVERRUN if self.overrun else 0)
        if register == MSR:
            waits = self.kept[MCR] & MCR_AUTO_FLOW and self.count >= self.depth
            return MSR_PRESENT | (0 if waits else MSR_CLEAR_TO_SEND)
        return self.kept[register]

    def _receive(self) -> int:
        byte = 0
        if not self._is_empty:
            byte = self.fifo[self.tail]
            self.count -= 1
            self.tail = (self.tail + 1) % FIFO_SIZE
        if self._is_empty and self._enabled(IER_EMPTY):
            self._interrupt()
        return byte

    def _identification(self) -> int:
        pending = 0
        if self._enabled(IER_LINE) and self.overrun:
            pending |= IIR_LINE
        if self._enabled(IER_RECEIVED) and self.count >= self.trigger:
            pending |= IIR_RECEIVED
        if self._enabled(IER_EMPTY) and self._is_empty:
            pending |= IIR_EMPTY
        if self._enabled(IER_MODEM) and self.kept[MCR] & MCR_DTR_RTS:
            pending |= IIR_MODEM
        return IIR_FIFO | (pending or IIR_NONE)

    # -- writing

    def write(self, register: int, value: int) -> None:
        if register == DATA:
            self._send(value)
        elif register == IER and self._dlab:
            self.divisor |= value << 8
        elif register == IER:
            self.kept[IER] = value
            if value & IER_EMPTY and self._is_empty:
                self._interrupt()
        elif register == IIR_FCR:
            self._control_fifo(value)
        elif register == LCR:
            self.kept[LCR] = value
            if value & LCR_DLAB:
                self.divisor = 0
        elif register == MCR:
            self.kept[MCR] = value
            for bits in (MCR_OUT2, MCR_DTR_RTS):
                if self._enabled(IER_MODEM) and value & bits:
                    self._interrupt()
        elif register == SCR:
            self.kept[SCR] = value

    def _send(self, value: int) -> None:
        if self._dlab:
            self.divisor |= value
        elif self.count < self.depth:
            self.fifo[self.head] = value
            self.count += 1
            self.head = (self.head + 1) % FIFO_SIZE
            self.overrun = False
            if self._enabled(IER_RECEIVED) and self.count == self.trigger:
                self._interrupt()
        else:
            self.overrun = True
            if self._enabled(IER_LINE):
                self._interrupt()

    def _control_fifo(self, value: int) -> None:
        if value & FCR_CLEAR:
            self.head = self.tail = self.count = 0
        self.trigger = 1  # whatever the bits for it say
        self.depth = FIFO_SIZE if value & FCR_ENABLE else 1

    # -- migration

    def save(self) -> bytes:
        numbers = (*self.kept.values(), self.head, self.tail, self.count, self.depth, self.trigger)
        return bytes((*numbers, self.overrun)) + self.divisor.to_bytes(2, "little") + self.fifo

    def load(self, data: bytes) -> None:
        *kept, self.head, self.tail, self.count, self.depth, self.trigger, overrun = data[:10]
        self.kept = dict(zip(self.kept, kept, strict=True))
        self.overrun = bool(overrun)
        self.divisor = int.from_bytes(data[10:12], "little")
        self.fifo[:] = data[12:]


class Serial(Model):
    """The kernel's sample mtty: serial ports that lead back to themselves, without an IOMMU."""

    options: ClassVar[Mapping[str, str]] = {"ports": "1 or 2 (default)"}

    def __init__(self, host: Host, options: Mapping[str, Any]) -> None:
        super().__init__(host, options)
        count = options.get("ports", 2)
        if type(count) is not int or count not in KINDS:
            raise ValueError(f"ports must be 1 or 2, not {count!r}")
        self._ports = [Port(self._interrupt) for _ in range(count)]
        self._config = bytearray(_config(count))

    def describe(self) -> Description:
        count = len(self._ports)
        return Description(
            vendor=0x4348,
            device=0x3253,
            class_code=0x070002,
            revision=0x10,
            subsystem_vendor=0x4348,
            subsystem_device=0x3253,
            bars={number: Bar(BAR_SIZE, io=True) for number in range(count)},
            msi_vectors=1,
            config=bytes(self._config),
            mediated=Mediated("mtty", str(count), f"{KINDS[count]} port serial"),
            migration=Migration(pre_copy=True, p2p=True),
            dma_logging=True,
        )

    def _interrupt(self) -> None:
        if self.host.msi_enabled():
            self.host.msi(0)
        else:
            self.host.set_intx(True)

    def read(self, region: int, offset: int, size: int) -> int:
        if region == CONFIG:
            return int.from_bytes(self._config[offset : offset + size], "little")
        return self._ports[region].read(offset)

    def write(self, region: int, offset: int, size: int, value: int) -> None:
        if region == CONFIG:
            self._write_config(offset, value)
        else:
            self._ports[region].write(offset, value & 0xFF)

    def _write_config(self, offset: int, value: int) -> None:
        """Only where an access begins counts; it is the interrupt line or a BAR."""
        if offset == 0x3C:
            self._config[offset] = value & 0xFF
        elif offset in (0x10, 0x14):
            bar = offset - 0x10 >> 2
            kept = self._config[offset] & 3
            if value == 0xFFFFFFFF:
                value &= ~(BAR_SIZE - 1)
            value = value | kept if bar < len(self._ports) else 0
            self._config[offset : offset + 4] = value.to_bytes(4, "little")

    # -- migration: there is nothing under way, ever

    def save(self, *, after_early: bool) -> bytes:
        return b"".join(port.save() for port in self._ports)

    def load(self, data: bytes) -> None:
        size = len(self._ports[0].save())
        if len(data) != size * len(self._ports):
            raise ValueError(f"{len(data)} bytes for {len(self._ports)} ports")
        for number, port in enumerate(self._ports):
            port.load(data[number * size : (number + 1) * size])


def _config(ports: int) -> bytes:
    """Config space as it is at first. No capability, although there is an MSI."""
    fields = {
        0x00: "48435332 01000002 10020007",
        0x10: "01000000" * ports,
        0x2C: "48435332",
        0x3D: "01",
        0x40: "23000080 23000000 23000000 23",
        0x60: b"PCI Serial/UART".hex(),
    }
    config = bytearray(CONFIG_SIZE)
    for offset, text in fields.items():
        data = bytes.fromhex(text)
        config[offset : offset + len(data)] = data
    return bytes(config)
