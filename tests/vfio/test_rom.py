"""Images of expansion ROMs: what Linux takes for valid (pci_get_rom_size())."""

import struct

import pytest

from iommufs.vfio import rom

WINDOW = 4096


def image(sectors=1, last=True, pointer=0x1C, structure=0x18, signature=b"\x55\xaa", pcir=b"PCIR"):
    data = bytearray(512 * max(sectors, 1))
    data[:2] = signature
    struct.pack_into("<H", data, 0x18, pointer)
    if pointer + 0x18 <= len(data):
        data[pointer : pointer + 4] = pcir
        struct.pack_into("<H", data, pointer + 0xA, structure)
        struct.pack_into("<H", data, pointer + 0x10, sectors)
        data[pointer + 0x15] = 0x80 * last
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "length"),
    [
        (b"", 0),
        (b"\xff" * WINDOW, 0),
        (image(), 512),
        (image(3), 1536),
        (image(last=False) + image(2), 1536),
        (image(last=False) + image(signature=b"AA"), 512),
        (image() + image(), 512),
        (image(sectors=0, last=False), 0),
        (image(pcir=b"PCIX"), 0),
        (image(pointer=0x1E), 0),
        (image(pointer=0xFFFC), 0),
        (image(structure=0x17), 0),
        (image(structure=0xFFFF), 0),
        (image(structure=0x1000), 0),
        (image()[:300], 512),  # its window is larger
    ],
)
def test_length_of_the_images(data, length):
    assert rom.images(data) == data[:length].ljust(length, b"\xff")


def test_images_end_with_the_window():
    data = bytearray(image())
    struct.pack_into("<H", data, 0x1C + 0x10, 100)
    assert len(rom.images(bytes(data))) == rom.window(bytes(data)) == 2048


@pytest.mark.parametrize(("size", "window"), [(0, 0), (1, 2048), (2048, 2048), (2049, 4096)])
def test_windows_are_powers_of_two(size, window):
    assert rom.window(bytes(size)) == window
