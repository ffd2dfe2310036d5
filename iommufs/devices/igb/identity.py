"""What an 82576 is on the bus: ids, BARs, capabilities (seen in the oracle guest, 05:00.0)."""

from __future__ import annotations

from iommufs.vfio.model import Bar, Description

BAR_SIZE = 0x20000
MMIO, FLASH, PORTS, MSIX = 0, 1, 2, 3  # BARs
N_VECTORS = 10

_ROWS = {
    0x000: "8680c910 03011000 01000002 00000000",
    0x020: "00000000 00000000 00000000 f41a0011",
    0x030: "00000000 40000000 00000000 0a010000",
    0x040: "01502200 00000000 00000000 00000000",  # power management
    0x050: "05708001 00000000 00000000 00000000",  # MSI with a mask
    0x070: "11a00900 03000000 03200000 00000000",  # MSI-X
    0x0A0: "10000200 20800010 00000000 11040000",  # PCI Express, with FLR
    0x0B0: "00001100 00000000 00000000 00000000",
    0x0C0: "00000000 00003000 00000000 00000000",
    0x100: "01000115 00000000 00004002 30204600",  # AER
    0x110: "00000000 00e00000 a0000000 00000000",
    0x150: "0e000116 00000000 00000000 00000000",  # ARI
    0x160: "10000100 00000000 10000000 08000800",  # SR-IOV: 8 functions, 8086:10ca
    0x170: "00000000 80000200 0000ca10 53050000",
    0x180: "01000000 0c000000 c0000000 00000000",
    0x190: "0c000200 c0000000 00000000 00000000",
}


def _config() -> bytes:
    image = bytearray(4096)
    for at, row in _ROWS.items():
        image[at : at + 16] = bytes.fromhex(row)
    return bytes(image)


# Without the pages of what drivers set bit by bit, or clear by reading: general registers and ICR,
# EICR and its masks, statistics. Rings and their tails stay.
_MAPPED = ((0x2000, 0x2000), (0x5000, BAR_SIZE - 0x5000))


def describe(*, traps: bool) -> Description:
    """traps: some registers of BAR 0 cannot be mapped."""
    return Description(
        vendor=0x8086,
        device=0x10C9,
        class_code=0x020000,
        revision=1,
        subsystem_vendor=0x1AF4,
        subsystem_device=0x1100,
        bars={
            MMIO: Bar(size=BAR_SIZE, mappable=True, mapped=_MAPPED if traps else ()),
            FLASH: Bar(size=0x20000, mappable=True),
            PORTS: Bar(size=0x20, io=True),
            MSIX: Bar(size=0x4000, mappable=True, bits64=True),
        },
        msix_vectors=N_VECTORS,
        msix_table=(MSIX, 0),
        msix_pba=(MSIX, 0x2000),
        msi_vectors=1,
        config=_config(),
        writable={0x44: 0x1E03, 0xA8: 0},
    )
