"""`resource` of a PCI function: the addresses that it decodes, line by line as in Linux 7.3."""

from __future__ import annotations

from dataclasses import replace

from iommufs.pci_bus import PciDev
from iommufs.pci_image import EXT_CAP_SRIOV, BarAddress, ConfigImage

# ioport.h of Linux: what a line says.
RESOURCE_IO = 0x100
RESOURCE_MEM = 0x200
RESOURCE_PREFETCH = 0x2000
RESOURCE_READONLY = 0x4000
RESOURCE_SIZEALIGN = 0x40000
RESOURCE_MEM_64 = 0x100000
# BARs, ROM, BARs of virtual functions; a bridge's windows after them.
ROM_LINE = 6
VF_LINE = 7
WINDOW_LINE = 13
LINES = 13
BRIDGE_LINES = 17
# In the capability SR-IOV.
_TOTAL_VFS, _VF_BARS = 0x0E, 0x24

Resource = tuple[int, int, int]
NO_RESOURCE: Resource = (0, 0, 0)


def bar_addresses(dev: PciDev) -> dict[int, BarAddress]:
    """Where each BAR is; a virtual function's is its share of what the physical one has."""
    if dev.physfn is None:
        return dev.image.bars()
    there = _vf_bars(dev.physfn.image)
    nowhere = BarAddress(0, False, False, False)
    found = {}
    for number, size in dev.bar_sizes.items():
        first = there.get(number, nowhere)
        found[number] = replace(first, address=first.address + dev.vf_index * size)
    return found


def _vf_bars(image: ConfigImage) -> dict[int, BarAddress]:
    at = image.extended_capabilities[EXT_CAP_SRIOV]
    return image.bars(at + _VF_BARS, 6)


def resources(dev: PciDev) -> str:
    """The file's lines but for the newline at the end."""
    image, slot = dev.image, dev.slot
    lines = [NO_RESOURCE] * (BRIDGE_LINES if image.is_bridge else LINES)
    addresses = bar_addresses(dev)
    for number, size in dev.bar_sizes.items():
        lines[number] = _bar(addresses[number], size)
    if slot.rom:
        flags = RESOURCE_MEM | RESOURCE_PREFETCH | RESOURCE_READONLY | RESOURCE_SIZEALIGN
        start = image.rom_address
        lines[ROM_LINE] = (start, start + slot.rom - 1, flags)
    if EXT_CAP_SRIOV in image.extended_capabilities:
        total = image.u16(image.extended_capabilities[EXT_CAP_SRIOV] + _TOTAL_VFS)
        for number, bar in _vf_bars(image).items():
            if size := slot.vf_bars.get(number):
                lines[VF_LINE + number] = _bar(bar, size * total)
    if image.is_bridge:
        lines[WINDOW_LINE : WINDOW_LINE + 3] = _windows(image)
    return "\n".join(f"0x{start:016x} 0x{end:016x} 0x{flags:016x}" for start, end, flags in lines)


def _bar(bar: BarAddress, size: int) -> Resource:
    if bar.io:
        flags = RESOURCE_IO | 1
    else:
        flags = RESOURCE_MEM
        if bar.bits64:
            flags |= RESOURCE_MEM_64 | 4
        if bar.prefetchable:
            flags |= RESOURCE_PREFETCH | 8
    return bar.address, bar.address + size - 1, flags | RESOURCE_SIZEALIGN


def _windows(image: ConfigImage) -> list[Resource]:
    """What a bridge passes on: ports, memory, prefetchable memory. One that ends before it starts
    is closed."""
    ports = image.u8(0x1C), image.u8(0x1D)
    memory = image.u16(0x20), image.u16(0x22)
    prefetchable = image.u16(0x24), image.u16(0x26)
    windows = [
        _window(ports, 0xF0, 8, 12, RESOURCE_IO),
        _window(memory, 0xFFF0, 16, 20, RESOURCE_MEM),
    ]
    start, end, flags = _window(prefetchable, 0xFFF0, 16, 20, RESOURCE_MEM | RESOURCE_PREFETCH)
    if flags and prefetchable[0] & 15 == 1:
        start |= image.u32(0x28) << 32
        end |= image.u32(0x2C) << 32
        flags |= RESOURCE_MEM_64
    return [*windows, (start, end, flags)]


def _window(registers: tuple[int, int], mask: int, shift: int, bits: int, flags: int) -> Resource:
    """Base and limit registers keep the upper bits of the first and the last block of 1 << bits."""
    base, limit = ((register & mask) << shift for register in registers)
    if limit < base:
        return NO_RESOURCE
    return base, limit | (1 << bits) - 1, flags | registers[0] & 15
