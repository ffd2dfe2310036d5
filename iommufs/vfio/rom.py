"""What an expansion ROM has inside: images one after the other, each with a header of its own.

Source: PCI Firmware Specification 3.3, section 5.1; what Linux takes for valid: pci_get_rom_size().
"""

SIGNATURE, STRUCTURE_SIGNATURE = b"\x55\xaa", b"PCIR"

_SECTOR = 512
_HEADER_SIZE, _STRUCTURE_SIZE = 0x1A, 0x18
_POINTER = 0x18  # in the header: where the data structure lies, from the header on
_STRUCTURE_LENGTH, _IMAGE_LENGTH, _INDICATOR = 0xA, 0x10, 0x15  # in the data structure
_IS_LAST = 0x80


def window(rom: bytes) -> int:
    """Bytes of the BAR, a power of two; 0: there is no ROM."""
    return max(1 << (len(rom) - 1).bit_length(), 2048) if rom else 0


def images(rom: bytes) -> bytes:
    """All that valid images say they have; empty: none is valid. Past `rom` there are ones."""
    rom = rom.ljust(window(rom), b"\xff")
    at, is_last = 0, False
    while not is_last and (found := _image(rom, at)):
        length, is_last = found
        at += length
    return rom[:at]


def _image(rom: bytes, at: int) -> tuple[int, bool] | None:
    """The length of the image at a place, and whether it is the last; None: there is none."""
    if at + _HEADER_SIZE > len(rom) or not rom.startswith(SIGNATURE, at):
        return None
    structure = at + _u16(rom, at + _POINTER)
    if structure % 4 or structure + _STRUCTURE_SIZE > len(rom):
        return None
    if not rom.startswith(STRUCTURE_SIGNATURE, structure):
        return None
    size = _u16(rom, structure + _STRUCTURE_LENGTH)
    if not _STRUCTURE_SIZE <= size < 0xFFFF or structure + size > len(rom):
        return None
    length = _SECTOR * _u16(rom, structure + _IMAGE_LENGTH)
    return length, not length or bool(rom[structure + _INDICATOR] & _IS_LAST)


def _u16(rom: bytes, at: int) -> int:
    return int.from_bytes(rom[at : at + 2], "little")
