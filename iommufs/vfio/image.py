"""The power-on config space of a function, made from its description.

Where a description brings bytes of its own, they stay and only the fields that it names are set
into them: ids, class, BARs, interrupt pin. Without them the fields alone make a conventional
function: header, then MSI, then MSI-X, one after the other from 0x40 on.
"""

from iommufs.limits import PAGE_SIZE
from iommufs.vfio import capabilities as caps
from iommufs.vfio import rom
from iommufs.vfio.hardware import (
    COMMAND,
    COMMAND_IO,
    COMMAND_MEMORY,
    INTERRUPT_LINE,
    INTERRUPT_PIN,
    STATUS_CAPABILITIES,
)
from iommufs.vfio.model import Bar, Description

BAR0 = 0x10
ROM_BAR = 0x30
N_BARS = 6

_MSI_64BIT = 0x80
# SERR# is on after boot on every function of the oracle's guest.
_COMMAND_SERR = 0x100


_IDS = {
    "vendor": 16,
    "device": 16,
    "class_code": 24,
    "revision": 8,
    "subsystem_vendor": 16,
    "subsystem_device": 16,
}


class BadDescription(ValueError):
    """A model describes something that no PCI function can be."""


def bar_flags(bar: Bar) -> int:
    """The low bits of a base address register, which say what it is."""
    if bar.io:
        return 1
    return (4 if bar.bits64 else 0) | (8 if bar.prefetchable else 0)


def check(description: Description) -> None:
    """BadDescription if BARs overlap or have impossible sizes, or vectors are out of range."""
    if not isinstance(description, Description):
        raise BadDescription(f"describe() gave {description!r}, not a Description")
    for name, bits in _IDS.items():
        value = getattr(description, name)
        if not isinstance(value, int) or not 0 <= value < 1 << bits:
            raise BadDescription(f"{name} is {value!r}, not {bits} bits")
    for name in ("rom", "config"):
        if not isinstance(getattr(description, name), bytes):
            raise BadDescription(f"{name} is not of type bytes")
    taken = set()
    for index, bar in description.bars.items():
        if not isinstance(bar, Bar) or not isinstance(bar.size, int):
            raise BadDescription(f"BAR {index}: {bar!r}")
        smallest = 4 if bar.io else 16
        if bar.size & (bar.size - 1) or not smallest <= bar.size <= 1 << 40:
            raise BadDescription(f"BAR {index}: size {bar.size:#x}")
        _check_mapped(index, bar)
        slots = {index, index + 1} if bar.bits64 else {index}
        if slots & taken or not slots <= set(range(N_BARS)):
            raise BadDescription(f"BAR {index} has no room")
        taken |= slots
    if description.msi_vectors not in (0, 1, 2, 4, 8, 16, 32):
        raise BadDescription(f"{description.msi_vectors} MSI vectors")
    if not 0 <= description.msix_vectors <= 2048:
        raise BadDescription(f"{description.msix_vectors} MSI-X vectors")
    if description.msix_vectors:
        for what, (index, offset), length in (
            ("table", description.msix_table, 16 * description.msix_vectors),
            ("PBA", description.msix_pba, -(-description.msix_vectors // 64) * 8),
        ):
            bar = description.bars.get(index)
            if not bar or bar.io or offset % 8 or offset + length > bar.size:
                raise BadDescription(f"MSI-X {what} at {offset:#x} of BAR {index}")
    if len(description.config) not in (0, 256, 4096):
        raise BadDescription(f"{len(description.config)} bytes of config space")


def _check_mapped(index: int, bar: Bar) -> None:
    if bar.plain and (bar.io or not bar.mappable):
        raise BadDescription(f"BAR {index} is not plain memory: it cannot be mapped")
    if bar.mapped and (bar.io or not bar.mappable):
        raise BadDescription(f"BAR {index} cannot be mapped, nor parts of it")
    end = 0
    for offset, length in bar.mapped:
        if (
            offset < end
            or not length
            or (offset | length) % PAGE_SIZE
            or offset + length > bar.size
        ):
            raise BadDescription(f"BAR {index}: mapped part {offset:#x}, {length:#x} bytes")
        end = offset + length


def power_on(description: Description) -> bytes:
    """The bytes; COMMAND as the firmware leaves it, bus mastering off. BadDescription."""
    check(description)
    image = bytearray(description.config or 256)

    def put(offset: int, size: int, value: int) -> None:
        image[offset : offset + size] = value.to_bytes(size, "little")

    put(0x00, 2, description.vendor)
    put(0x02, 2, description.device)
    put(0x08, 1, description.revision)
    put(0x09, 3, description.class_code)
    if description.subsystem_vendor or not description.config:
        put(0x2C, 2, description.subsystem_vendor)
        put(0x2E, 2, description.subsystem_device)
    if not description.config:
        put(COMMAND, 2, COMMAND_IO | COMMAND_MEMORY | _COMMAND_SERR)
        _put_capabilities(image, description)
        put(INTERRUPT_PIN, 1, 1 if description.intx else 0)
    elif not description.intx:
        put(INTERRUPT_PIN, 1, 0)
    _put_bars(image, description)
    return bytes(image)


def of_vf(image: bytes) -> bytes:
    """The same without what a virtual function has not: ids, decoders, BARs, a ROM, INTx."""
    registers = bytearray(image)
    registers[0x00:0x04] = b"\xff" * 4
    registers[COMMAND : COMMAND + 2] = bytes(2)
    registers[BAR0 : BAR0 + 4 * N_BARS] = bytes(4 * N_BARS)
    registers[ROM_BAR : ROM_BAR + 4] = bytes(4)
    registers[INTERRUPT_LINE : INTERRUPT_PIN + 1] = bytes(2)
    return bytes(registers)


def writable_of_vf(image: bytes) -> dict[int, int]:
    """Device Control is the physical function's but for the reset (PCI Express 6.0, 9.3.5.4)."""
    express = caps.find(image, caps.EXPRESS)
    return {express.offset + 8: 0} if express else {}


def _put_capabilities(image: bytearray, description: Description) -> None:
    at, link = caps.HEADER_LENGTH, 0x34
    if count := description.msi_vectors:
        image[link], link = at, at + 1
        flags = _MSI_64BIT | (count.bit_length() - 1) << 1
        image[at : at + 4] = bytes((caps.MSI, 0)) + flags.to_bytes(2, "little")
        at += 16
    if count := description.msix_vectors:
        image[link], link = at, at + 1
        table, pba = (offset | index for index, offset in _msix_places(description))
        image[at : at + 12] = (
            bytes((caps.MSIX, 0))
            + (count - 1).to_bytes(2, "little")
            + table.to_bytes(4, "little")
            + pba.to_bytes(4, "little")
        )
    if image[0x34]:
        image[6] |= STATUS_CAPABILITIES


def _msix_places(description: Description) -> tuple[tuple[int, int], tuple[int, int]]:
    return description.msix_table, description.msix_pba


def _put_bars(image: bytearray, description: Description) -> None:
    """BARs without an address in the image get one: a free, aligned one in a made-up window."""
    ports, memory = 0xC000, 0xE0000000
    for index in range(N_BARS):
        bar = description.bars.get(index)
        if bar is None:
            continue
        at = BAR0 + 4 * index
        width = 8 if bar.bits64 else 4
        given = int.from_bytes(image[at : at + width], "little") & ~(3 if bar.io else 15)
        if given == 0:
            base = ports if bar.io else memory
            given = -(-base // bar.size) * bar.size
            if bar.bits64 or given < 1 << 32:
                if bar.io:
                    ports = given + bar.size
                else:
                    memory = given + bar.size
        value = (given | bar_flags(bar)) & ((1 << 8 * width) - 1)
        image[at : at + width] = value.to_bytes(width, "little")
    size = rom.window(description.rom)
    if size and not caps.u32(image, ROM_BAR):
        base = -(-memory // size) * size
        image[ROM_BAR : ROM_BAR + 4] = (base & 0xFFFFFFFF).to_bytes(4, "little")
