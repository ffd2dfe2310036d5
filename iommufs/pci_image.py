"""Reading an image of PCI config space: what its header and capabilities say of a function.

An image is 256 or 4096 bytes. All checks of foreign data are done by ConfigImage(): the lookups
after it cannot fail, they find something or not.

Not here: the config space that clients see (iommufs/vfio/).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

CAP_PM = 0x01
CAP_MSI = 0x05
CAP_EXPRESS = 0x10
CAP_MSIX = 0x11
EXT_CAP_SERIAL = 0x0003
EXT_CAP_ARI = 0x000E
EXT_CAP_SRIOV = 0x0010

_STATUS_CAPABILITIES = 0x10
_HEADER_BRIDGE = 1
_LAST_CAPABILITY = 0xFC
_ROW = re.compile(r"([0-9a-f]{2,8}):((?: [0-9a-f]{2}){16})\s*", re.ASCII)


@dataclass(frozen=True)
class BarAddress:
    """What a base address register holds. A register that takes part in no BAR has none."""

    address: int
    io: bool
    bits64: bool
    prefetchable: bool


class ConfigImage:
    """One image; ValueError if it is not one."""

    def __init__(self, data: bytes) -> None:
        if len(data) not in (256, 4096):
            raise ValueError(f"config space must have 256 or 4096 bytes, not {len(data)}")
        self.data = data
        self.capabilities = self._walk()
        self.extended_capabilities = self._walk_extended() if len(data) == 4096 else {}

    def u8(self, offset: int) -> int:
        return self.data[offset]

    def u16(self, offset: int) -> int:
        return int.from_bytes(self.data[offset : offset + 2], "little")

    def u32(self, offset: int) -> int:
        return int.from_bytes(self.data[offset : offset + 4], "little")

    def _walk(self) -> dict[int, int]:
        """Capability id → offset, the first of each id."""
        found: dict[int, int] = {}
        if not self.u16(0x06) & _STATUS_CAPABILITIES:
            return found
        seen = set()
        offset = self.u8(0x34) & _LAST_CAPABILITY
        while offset:
            if offset < 0x40 or offset in seen:
                raise ValueError(f"the list of capabilities does not end: {offset:#x} again")
            seen.add(offset)
            found.setdefault(self.u8(offset), offset)
            offset = self.u8(offset + 1) & _LAST_CAPABILITY
        return found

    def _walk_extended(self) -> dict[int, int]:
        found: dict[int, int] = {}
        offset = 0x100
        while offset:
            header = self.u32(offset)
            if header in (0, 0xFFFFFFFF):
                break
            if offset in found.values():
                raise ValueError(f"the extended capabilities do not end: {offset:#x} again")
            found.setdefault(header & 0xFFFF, offset)
            offset = header >> 20 & _LAST_CAPABILITY | header >> 20 & 0xF00
            if offset and offset < 0x100:
                raise ValueError(f"an extended capability cannot be at {offset:#x}")
        return found

    # -- header -----------------------------------------------------------------------------------

    @property
    def vendor(self) -> int:
        return self.u16(0x00)

    @property
    def device(self) -> int:
        return self.u16(0x02)

    @property
    def revision(self) -> int:
        return self.u8(0x08)

    @property
    def class_code(self) -> int:
        return self.u32(0x08) >> 8

    @property
    def is_bridge(self) -> bool:
        return self.u8(0x0E) & 0x7F == _HEADER_BRIDGE

    @property
    def secondary_bus(self) -> int:
        return self.u8(0x19)

    @property
    def subordinate_bus(self) -> int:
        return self.u8(0x1A)

    @property
    def interrupt_line(self) -> int:
        return self.u8(0x3C)

    @property
    def interrupt_pin(self) -> int:
        return self.u8(0x3D)

    @property
    def subsystem(self) -> tuple[int, int]:
        """Vendor and device; of a bridge those of its subsystem capability, if it has one."""
        if not self.is_bridge:
            return self.u16(0x2C), self.u16(0x2E)
        offset = self.capabilities.get(0x0D)
        return (self.u16(offset + 4), self.u16(offset + 6)) if offset else (0, 0)

    @property
    def rom_address(self) -> int:
        return self.u32(0x38 if self.is_bridge else 0x30) & ~0x7FF

    def bars(self, start: int = 0x10, count: int | None = None) -> dict[int, BarAddress]:
        """The base address registers by number; one that was never assigned has address 0."""
        if count is None:
            count = 2 if self.is_bridge else 6
        found = {}
        number = 0
        while number < count:
            value = self.u32(start + 4 * number)
            io = bool(value & 1)
            bits64 = not io and value & 6 == 4 and number + 1 < count
            address = value & ~(3 if io else 15)
            if bits64:
                address |= self.u32(start + 4 * number + 4) << 32
            found[number] = BarAddress(address, io, bits64, not io and bool(value & 8))
            number += 2 if bits64 else 1
        return found

    # -- interrupts -------------------------------------------------------------------------------

    @property
    def msi_vectors(self) -> int:
        offset = self.capabilities.get(CAP_MSI)
        return 1 << (self.u16(offset + 2) >> 1 & 7) if offset else 0

    @property
    def msix(self) -> tuple[int, tuple[int, int], tuple[int, int]] | None:
        """Number of vectors, then BAR and offset of the table and of the pending bits."""
        offset = self.capabilities.get(CAP_MSIX)
        if not offset:
            return None
        table, pending = self.u32(offset + 4), self.u32(offset + 8)
        count = (self.u16(offset + 2) & 0x7FF) + 1
        return count, (table & 7, table & ~7), (pending & 7, pending & ~7)


def parse_rows(lines: Iterable[str], size: int) -> dict[int, bytes]:
    """Offset → 16 bytes, from rows such as lspci prints; lines of another form are skipped.

    ValueError if there is a row that does not belong into so many bytes.
    """
    rows = {}
    for line in lines:
        match = _ROW.fullmatch(line)
        if match:
            offset = int(match[1], 16)
            if offset % 16 or offset in rows or offset >= size:
                raise ValueError(f"row {match[1]} is out of place")
            rows[offset] = bytes.fromhex(match[2])
    return rows


def parse_image(lines: Iterable[str]) -> bytes:
    """Config space from the rows of `lspci -x`, -xxx or -xxxx; lines of another form are skipped.

    ValueError if there is no row or one that does not belong there.
    """
    rows = parse_rows(lines, 4096)
    if 0 not in rows:
        raise ValueError("expected rows of config space such as '000: 34 12 e8 11 …'")
    data = bytearray(4096 if max(rows) >= 256 else 256)
    for offset, row in rows.items():
        data[offset : offset + 16] = row
    return bytes(data)
