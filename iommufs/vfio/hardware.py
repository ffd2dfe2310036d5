"""Config space as the function itself keeps it: bytes, and which bits of them a write changes.

The masks are those of the PCI specifications for a plain endpoint; bytes that belong to nothing
are memory (seen with the oracle's functions; real devices differ). What a client sees of all this
is another room: config.py.
"""

from collections.abc import Callable, Mapping

from iommufs.vfio import capabilities as caps
from iommufs.vfio.capabilities import u16, u32

COMMAND, STATUS, CACHE_LINE_SIZE = 0x04, 0x06, 0x0C
INTERRUPT_LINE, INTERRUPT_PIN = 0x3C, 0x3D

COMMAND_IO, COMMAND_MEMORY, COMMAND_MASTER = 0x1, 0x2, 0x4
COMMAND_INTX_DISABLE = 0x400
STATUS_INTERRUPT, STATUS_CAPABILITIES = 0x08, 0x10

# I/O, memory, master, SERR#, INTx disable: what the oracle's functions implement.
_COMMAND_WRITABLE = 0x0507
_STATUS_CLEARABLE = 0xF900

_AER_UNCORRECTABLE = 0x03FFF030
_AER_CORRECTABLE = 0xF1C1


class RawConfig:
    """The config space of a function.

    data      the bytes; what the hardware changes by itself is set here directly. Readers of the
              transport look at them at any time (fast.py), so a register is changed at once
    writable  bits that keep what is written
    clearable bits that a write of 1 clears
    changed   called after registers have changed
    """

    changed: Callable[[], None] | None = None

    def __init__(self, image: bytes, writable: Mapping[int, int] | None = None) -> None:
        """`writable`: dwords (by offset) whose mask is not what their capability says."""
        assert len(image) in (256, 4096), "a config space has 256 or 4096 bytes"
        self.data = bytearray(image)
        self.power_on = bytearray(image)
        self.writable = bytearray(b"\xff" * len(image))
        self.clearable = bytearray(len(image))
        self._mask_header()
        self.owned = list(caps.standard(image)) + list(caps.extended(image))
        for cap in self.owned:
            self._set(self.writable, cap.offset, cap.extent, 0)
            if rule := (_EXTENDED if cap.extended else _STANDARD).get(cap.id):
                rule(self, cap.offset)
        if len(image) > caps.STANDARD_LENGTH:
            # The head of the list is there even when the list is empty.
            self._set(self.writable, caps.STANDARD_LENGTH, 4, 0)
        for offset, mask in (writable or {}).items():
            self._set(self.writable, offset, 4, mask)

    @staticmethod
    def _set(masks: bytearray, offset: int, size: int, mask: int) -> None:
        masks[offset : offset + size] = mask.to_bytes(size, "little")

    def allow(self, offset: int, size: int, mask: int) -> None:
        self._set(self.writable, offset, size, mask)

    def allow_clearing(self, offset: int, size: int, mask: int) -> None:
        self._set(self.clearable, offset, size, mask)

    def _mask_header(self) -> None:
        self._set(self.writable, 0, caps.HEADER_LENGTH, 0)
        self.allow(COMMAND, 2, _COMMAND_WRITABLE)
        self.allow_clearing(STATUS, 2, _STATUS_CLEARABLE)
        self.allow(CACHE_LINE_SIZE, 1, 0xFF)
        self.allow(INTERRUPT_LINE, 1, 0xFF)

    def read(self, offset: int, size: int) -> int:
        return int.from_bytes(self.data[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        span = slice(offset, offset + size)
        mask = int.from_bytes(self.writable[span], "little")
        kept = self.read(offset, size) & ~mask | value & mask
        cleared = value & int.from_bytes(self.clearable[span], "little")
        self._set(self.data, offset, size, kept & ~cleared)
        self._tell()

    def set_bits(self, offset: int, size: int, mask: int, on: bool) -> None:
        """A change that the hardware makes by itself, whatever may be written."""
        self.set_field(offset, size, mask, mask if on else 0)

    def set_field(self, offset: int, size: int, mask: int, value: int) -> None:
        """The same for bits that change together."""
        self._set(self.data, offset, size, self.read(offset, size) & ~mask | value)
        self._tell()

    def _tell(self) -> None:
        if self.changed:
            self.changed()

    def _kept_registers(self) -> list[slice]:
        """The header and the capabilities, but for error reporting, whose bits are sticky."""
        sticky = [cap for cap in self.owned if cap.extended and cap.id == caps.X_ERR]
        owned = [cap for cap in self.owned if cap not in sticky]
        return [slice(0, caps.HEADER_LENGTH)] + [
            slice(cap.offset, cap.offset + cap.extent) for cap in owned
        ]

    def save(self) -> bytes:
        """What restore() takes."""
        return bytes(self.data)

    def restore(self, saved: bytes | bytearray) -> None:
        """Registers as they were then; plain memory and sticky bits stay as they are."""
        for span in self._kept_registers():
            self.data[span] = saved[span]
        self._tell()

    def power_on_again(self) -> None:
        """Everything as it was at first."""
        self.data[:] = self.power_on

    def set_lasting(self, offset: int, size: int, mask: int, value: int) -> None:
        """Set bits that a reset leaves alone, because Linux restores them."""
        for at, (here, bits) in enumerate(
            zip(mask.to_bytes(size, "little"), value.to_bytes(size, "little"), strict=True), offset
        ):
            for registers in (self.data, self.power_on):
                registers[at] = registers[at] & ~here | bits & here

    def reset(self) -> None:
        """Registers back to power-on; plain memory and sticky bits stay."""
        self.restore(self.power_on)


def _pm(raw: RawConfig, at: int) -> None:
    raw.allow(at + 4, 2, 0x0003)


def _msi(raw: RawConfig, at: int) -> None:
    flags = u16(raw.data, at + 2)
    raw.allow(at + 2, 2, 0x0071)
    raw.allow(at + 4, 4, 0xFFFFFFFC)
    end = at + 8
    if flags & 0x80:
        raw.allow(at + 8, 4, 0xFFFFFFFF)
        end = at + 12
    raw.allow(end, 2, 0xFFFF)
    if flags & 0x100:
        raw.allow(end + 4, 4, (1 << (1 << (flags >> 1 & 7))) - 1)


def _msix(raw: RawConfig, at: int) -> None:
    raw.allow(at + 2, 2, 0xC000)


def _express(raw: RawConfig, at: int) -> None:
    flags = u16(raw.data, at + 2)
    raw.allow(at + 8, 2, 0x000F)
    raw.allow_clearing(at + 10, 2, 0x000F)
    if flags & 0xF > 1 and u32(raw.data, at + 0x24) & 0x00200000:
        raw.allow(at + 0x28, 2, 0x8000)


def _aer(raw: RawConfig, at: int) -> None:
    raw.allow_clearing(at + 4, 4, _AER_UNCORRECTABLE)
    raw.allow(at + 8, 4, _AER_UNCORRECTABLE)
    raw.allow(at + 12, 4, _AER_UNCORRECTABLE)
    raw.allow_clearing(at + 16, 4, _AER_CORRECTABLE)
    raw.allow(at + 20, 4, _AER_CORRECTABLE)
    capable = u32(raw.data, at + 24)
    raw.allow(at + 24, 4, (capable & 0x20) << 1 | (capable & 0x80) << 1)


_STANDARD = {caps.PM: _pm, caps.MSI: _msi, caps.MSIX: _msix, caps.EXPRESS: _express}
_EXTENDED = {caps.X_ERR: _aer}
