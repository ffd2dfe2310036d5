"""The regions of an open device: which there are, and reading and writing them as a file.

A region's position in the device file is its index << 40. BARs are reached in naturally aligned
pieces of 8, 4, 2 or 1 bytes; the MSI-X table is left out of its BAR (vfio_pci_core_do_io_rw()).
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Any

from iommufs.errors import UapiError
from iommufs.fast import Fast
from iommufs.limits import PAGE_SIZE
from iommufs.vfio import rom
from iommufs.vfio.bars import OFFSET_SHIFT
from iommufs.vfio.config import D3HOT, ConfigSpace
from iommufs.vfio.image import BAR0, N_BARS

ROM, CONFIG, VGA = 6, 7, 8
N_REGIONS = 9

# Where legacy VGA lies in its region, which begins at address 0: memory, two stretches of ports.
VGA_SIZE = 0xC0000
VGA_WINDOWS = ((0xA0000, 0xC0000), (0x3B0, 0x3BC), (0x3C0, 0x3E0))

READ, WRITE, MMAP = 1, 2, 4
OFFSET_MASK = (1 << OFFSET_SHIFT) - 1


@dataclass(frozen=True)
class Region:
    """What GET_REGION_INFO says of one index.

    msix    the MSI-X table lies in it
    mapped  (offset, length) of what can be mapped of it; empty: all, if MMAP is among the flags
    """

    size: int
    flags: int
    msix: bool = False
    mapped: tuple[tuple[int, int], ...] = ()


class Regions:
    """The regions of one function, through the config space of the client that has it open."""

    def __init__(self, function: Any, config: ConfigSpace) -> None:
        self._function = function
        self._config = config
        self.table = [self._bar(index) for index in range(N_BARS)]
        self._rom = rom.images(function.description.rom)
        size = rom.window(function.description.rom) if self._rom else 0
        self.table.append(Region(size, READ if size else 0))
        self.table.append(Region(config.size, READ | WRITE))
        bars = function.description.bars.items()
        self._plain = {index for index, bar in bars if bar.plain}
        if function.has_vga:
            self.table.append(Region(VGA_SIZE, READ | WRITE))

    def _bar(self, index: int) -> Region:
        bar = self._function.description.bars.get(index)
        if bar is None:
            return Region(0, 0)
        at = BAR0 + 4 * index
        whole_pages = bar.size >= PAGE_SIZE or self._function.raw.read(at, 4) & 0xFF0 == 0
        mappable = bar.mappable and not bar.io and whole_pages
        table = self._function.msix_table
        return Region(
            bar.size,
            READ | WRITE | (MMAP if mappable else 0),
            msix=bool(table and table[0] == index),
            mapped=bar.mapped if mappable else (),
        )

    def shown(self, index: int) -> Region:
        """What clients are told of a region now: no image is found in the ROM of a D3hot function.

        Source: vfio_pci_ioctl_get_region_info()
        """
        if index == ROM and self._function.power == D3HOT:
            return Region(0, 0)
        return self.table[index]

    def check_mmap(self, position: int, length: int) -> None:
        """Whether a client may map that much of the device file, whole pages: EINVAL.

        Source: vfio_pci_core_mmap(); drivers with sparse regions refuse what lies in the gaps
        """
        index, offset = position >> OFFSET_SHIFT, position & OFFSET_MASK
        if index >= len(self.table) or not self.table[index].flags & MMAP:
            raise UapiError(errno.EINVAL, f"region {index} is not mapped")
        if offset + length > -(-self.table[index].size // PAGE_SIZE) * PAGE_SIZE:
            raise UapiError(errno.EINVAL, f"{offset:#x} + {length:#x} is past region {index}")
        parts = self.table[index].mapped
        if parts and not any(at <= offset and offset + length <= at + size for at, size in parts):
            raise UapiError(errno.EINVAL, f"{offset:#x} + {length:#x} traps in region {index}")

    def publish(self, fast: Fast) -> None:
        """Let readers of the transport answer what has no effect on anything (native/fast_read.c).

        Config space, the ROM, and BARs that are plain memory, but for their MSI-X table.
        """
        self._config.publish(fast, CONFIG << OFFSET_SHIFT)
        if size := self.table[ROM].size:
            shown = self._rom.ljust(size, b"\xff")
            fast.add_window(ROM << OFFSET_SHIFT, size, shown, ends=True)
        for index in self._plain:
            self._publish_bar(fast, index)
        fast.set_memory(self._config.memory_enabled)

    def _publish_bar(self, fast: Fast, index: int) -> None:
        memory = self._function.bars.view(index)
        size = len(memory)
        start, end = self._hidden(index)
        for first, last in ((0, start), (end, size)):
            if first < last:
                position = index << OFFSET_SHIFT | first
                fast.add_window(position, last - first, memory[first:last], ends=last == size)

    def read(self, position: int, size: int) -> bytes:
        """Bytes of the device file; EINVAL, EFAULT (config space), EIO, ENOMEM (ROM)."""
        index, offset = position >> OFFSET_SHIFT, position & OFFSET_MASK
        if index == CONFIG:
            return self._config.read(offset, size)
        length = self._clamp(index, offset, size)
        if index == ROM:
            return self._read_rom(offset, length)
        data = bytearray()
        for at, width, hidden in self._pieces(index, offset, length):
            if hidden or not self._decoded(index):
                data += b"\xff" * width
            elif index in self._plain:
                data += self._function.bars.view(index)[at : at + width]
            else:
                data += self._function.read_bar(index, at, width).to_bytes(width, "little")
        return bytes(data)

    def write(self, position: int, data: bytes) -> int:
        """How many bytes were written; EINVAL, EFAULT (config space), EIO."""
        index, offset = position >> OFFSET_SHIFT, position & OFFSET_MASK
        if index == CONFIG:
            self._config.write(offset, data)
            return len(data)
        if index == ROM:
            raise UapiError(errno.EINVAL, "the ROM cannot be written")
        length = self._clamp(index, offset, len(data))
        for at, width, hidden in self._pieces(index, offset, length):
            if not hidden and self._decoded(index):
                value = int.from_bytes(data[at - offset : at - offset + width], "little")
                self._function.write_bar(index, at, width, value)
        return length

    def end(self, index: int, offset: int) -> int:
        """Where an access that begins at `offset` of a region ends at the latest; 0: nowhere."""
        if index == VGA and len(self.table) > VGA:
            return next((end for start, end in VGA_WINDOWS if start <= offset < end), 0)
        return self.table[index].size if index < len(self.table) else 0

    def _clamp(self, index: int, offset: int, size: int) -> int:
        end = self.end(index, offset)
        if offset >= end:
            raise UapiError(errno.EINVAL, f"offset {offset:#x} of region {index}")
        return min(size, end - offset)

    def _decoded(self, index: int) -> bool:
        """Whether the function hears an access at all; EIO where the kernel refuses it."""
        if index == VGA:  # the kernel does not ask (vfio_pci_vga_rw())
            return True
        if self._function.description.bars[index].io:
            return self._function.io_enabled
        if not self._config.memory_enabled:
            raise UapiError(errno.EIO, "memory decoding is off")
        return True

    def _hidden(self, index: int) -> tuple[int, int]:
        """Start and end of the MSI-X table in a region; twice the same: it is not there."""
        table = self._function.msix_table
        return table[1:] if table and table[0] == index else (0, 0)

    def _pieces(self, index: int, offset: int, length: int):
        """(offset, width, hidden) of each access that [offset, offset + length) is made of."""
        start, end = self._hidden(index)
        # Ports are four bytes wide at most, and so is VGA.
        widest = 4 if index == VGA or self._function.description.bars[index].io else 8
        at, last = offset, offset + length
        while at < last:
            if start <= at < end:
                width = min(last, end) - at
                yield at, width, True
            else:
                room = min(last, start) - at if at < start else last - at
                width = widest
                while width > room or at % width:
                    width //= 2
                yield at, width, False
            at += width

    def _read_rom(self, offset: int, length: int) -> bytes:
        """Past its images the kernel makes up ones, and looks for them at each access.

        The function itself may decode memory where the client has not asked for it: after a reset.
        """
        if not self._function.decodes_memory:
            raise UapiError(errno.ENOMEM, "memory decoding is off: no image is found")
        if not self._config.memory_enabled:
            raise UapiError(errno.EIO, "memory decoding is off")
        return self._rom[offset : offset + length].ljust(length, b"\xff")
