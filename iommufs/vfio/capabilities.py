"""Where the capabilities lie in a config space, and how long each one is.

Two lengths matter. `length` is what vfio-pci takes a capability to be: its permissions cover that
much, and 0 means that clients do not get to see it (vfio_cap_init(), vfio_ecap_init()). `extent`
is what the function itself keeps for it: bytes past it are plain memory (seen with every function
of the oracle's guest).

Numbers are those of the PCI specifications.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

HEADER_LENGTH = 64
STANDARD_LENGTH = 256

PM, AGP, VPD, MSI, PCIX, HT, VENDOR = 0x01, 0x02, 0x03, 0x05, 0x07, 0x08, 0x09
EXPRESS, MSIX, SATA, AF = 0x10, 0x11, 0x12, 0x13

X_ERR, X_VC, X_DSN, X_POWER, X_MFVC, X_VC9, X_VENDOR = 0x01, 0x02, 0x03, 0x04, 0x08, 0x09, 0x0B
X_ACS, X_ARI, X_ATS, X_SRIOV, X_MCAST, X_PRI = 0x0D, 0x0E, 0x0F, 0x10, 0x12, 0x13
X_REBAR, X_DPA, X_TPH, X_LTR, X_DVSEC = 0x15, 0x16, 0x17, 0x18, 0x23

EXPRESS_TYPE_RC_END = 9


@dataclass(frozen=True)
class Capability:
    """One capability; `extended` ones lie from offset 256 on and have ids of their own."""

    id: int
    offset: int
    length: int
    extent: int
    extended: bool = False


def u16(image: bytes, offset: int) -> int:
    return int.from_bytes(image[offset : offset + 2], "little")


def u32(image: bytes, offset: int) -> int:
    return int.from_bytes(image[offset : offset + 4], "little")


def _msi(image: bytes, at: int) -> int:
    flags = u16(image, at + 2)
    return 10 + (4 if flags & 0x80 else 0) + (10 if flags & 0x100 else 0)


def _express(image: bytes, at: int) -> int:
    flags = u16(image, at + 2)
    without_link = flags >> 4 & 0xF == EXPRESS_TYPE_RC_END
    if flags & 0xF == 1:
        return 0x0C if without_link else 0x14
    return 0x2C if without_link else 0x34


def _virtual_channels(image: bytes, at: int) -> int:
    length = 0x10 + (1 + (image[at + 4] & 7)) * 0x0C
    arbitration = image[at + 8]
    for bit, phases in ((8, 128), (4, 64), (2, 32)):
        if arbitration & bit:
            return -(-length // 16) * 16 + phases // 2
    return length


def _acs(image: bytes, at: int) -> int:
    if not image[at + 4] & 0x20:
        return 8
    bits = image[at + 5]
    return 8 + (-(-bits // 32) * 4 if bits else 32)


def _tph(image: bytes, at: int) -> int:
    word = u32(image, at + 4)
    return 0x0C + ((word >> 16 & 0x7FF) * 2 + 2 if word & 0x600 == 0x200 else 0)


_STANDARD: Mapping[int, int | Callable[[bytes, int], int]] = {
    PM: 8,
    AGP: 12,
    VPD: 8,
    MSI: _msi,
    PCIX: lambda image, at: 24 if u16(image, at + 2) & 0x3000 else 8,
    HT: lambda image, at: 24 if image[at + 3] & 0xE0 else 28,
    VENDOR: lambda image, at: image[at + 2],
    EXPRESS: _express,
    MSIX: 12,
    SATA: lambda image, at: 16 if image[at + 4] & 0xF == 0xF else 8,
    AF: 6,
}

_EXTENDED: Mapping[int, int | Callable[[bytes, int], int]] = {
    X_ERR: 0x2C,
    X_VC: _virtual_channels,
    X_DSN: 12,
    X_POWER: 16,
    X_MFVC: _virtual_channels,
    X_VC9: _virtual_channels,
    X_VENDOR: lambda image, at: u32(image, at + 4) >> 20,
    X_ACS: _acs,
    X_ARI: 8,
    X_ATS: 8,
    X_SRIOV: 0x40,
    X_MCAST: 40,
    X_PRI: 16,
    X_REBAR: lambda image, at: 4 + (image[at + 8] >> 5 & 7) * 8,
    X_DPA: lambda image, at: 16 + (image[at + 4] & 0x1F) + 1,
    X_TPH: _tph,
    X_LTR: 8,
    X_DVSEC: lambda image, at: u32(image, at + 4) >> 20,
}


def _length(table: Mapping, image: bytes, id: int, at: int) -> int:
    rule = table.get(id, 0)
    return rule(image, at) if callable(rule) else rule


def standard(image: bytes) -> Iterator[Capability]:
    """The capabilities of the first 256 bytes, in the order of their list."""
    if not u16(image, 6) & 0x10:
        return
    at, seen = image[0x34] & ~3, set()
    while at >= HEADER_LENGTH and at not in seen:
        seen.add(at)
        id = image[at]
        length = min(_length(_STANDARD, image, id, at), STANDARD_LENGTH - at)
        extent = 0x3C if id == EXPRESS and length == 0x34 else length
        yield Capability(id, at, length, max(extent, 2))
        at = image[at + 1] & ~3


def extended(image: bytes) -> Iterator[Capability]:
    """The capabilities from offset 256 on; none if the first dword there is 0."""
    at, seen = STANDARD_LENGTH, set()
    while STANDARD_LENGTH <= at < len(image) and at not in seen and u32(image, at):
        seen.add(at)
        header = u32(image, at)
        id = header & 0xFFFF
        length = min(_length(_EXTENDED, image, id, at), len(image) - at)
        yield Capability(id, at, length, max(0x40 if id == X_ERR else length, 4), True)
        at = header >> 20 & 0xFFC


def find(image: bytes, id: int) -> Capability | None:
    """The first standard capability of this id."""
    return next((cap for cap in standard(image) if cap.id == id), None)
