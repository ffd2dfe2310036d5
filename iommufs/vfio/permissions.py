"""What a client may do to each bit of config space, as vfio-pci decides it.

Two masks for each capability. `virtual` bits are kept for this client alone and never reach the
function; `writable` bits can be written at all. A bit that is neither shows the function's own
value and drops writes. Read from the init_pci_cap_*_perm() functions and checked against the
oracle, byte by byte (tests/unit/test_config_space.py).
"""

from iommufs.vfio import capabilities as caps
from iommufs.vfio.capabilities import Capability, u16
from iommufs.vfio.hardware import (
    CACHE_LINE_SIZE,
    COMMAND,
    COMMAND_INTX_DISABLE,
    INTERRUPT_LINE,
    INTERRUPT_PIN,
    STATUS,
    STATUS_CAPABILITIES,
)
from iommufs.vfio.image import BAR0, N_BARS, ROM_BAR

LATENCY_TIMER, BIST = 0x0D, 0x0F
CAPABILITY_LIST = 0x34

PM_CONTROL = 4
PM_STATE = 0x0003
PM_SUPPORTED = 0xF800  # PME# from which states, in the capabilities word
PM_PME = 0x8100  # PME# enable and status, in the control word

EXPRESS_CONTROL = 8
EXPRESS_CONTROL_2 = 0x28
EXPRESS_RESET = 0x8000
EXPRESS_PAYLOAD = 0x00E0
EXPRESS_READ_REQUEST = 0x7000
EXPRESS_PHANTOM = 0x0200
EXPRESS_ARI = 0x0020

AF_CONTROL = 4
VPD_ADDRESS, VPD_DATA = 2, 4
MSI_FLAGS = 2

_AER_UNCORRECTABLE = 0x03FFF031
_AER_CORRECTABLE = 0xF1C1
_AER_CHECKING = 0x0140


class Masks:
    """The two masks of one stretch of config space."""

    def __init__(self, length: int) -> None:
        length = -(-length // 4) * 4
        self.virtual = bytearray(length)
        self.writable = bytearray(length)

    def put(self, offset: int, size: int, virtual: int, writable: int) -> None:
        every = (1 << 8 * size) - 1
        for masks, value in ((self.virtual, virtual), (self.writable, writable)):
            if offset + size <= len(masks):
                masks[offset : offset + size] = (value & every).to_bytes(size, "little")


def header() -> Masks:
    masks = Masks(caps.HEADER_LENGTH)
    masks.put(0x00, 4, ~0, 0)
    masks.put(COMMAND, 2, COMMAND_INTX_DISABLE, ~0)
    masks.put(STATUS, 2, STATUS_CAPABILITIES, 0)
    for register in (CACHE_LINE_SIZE, LATENCY_TIMER, BIST):
        masks.put(register, 1, 0, ~0)
    for index in range(N_BARS):
        masks.put(BAR0 + 4 * index, 4, ~0, ~0)
    masks.put(ROM_BAR, 4, ~0, ~0)
    masks.put(CAPABILITY_LIST, 1, ~0, 0)
    masks.put(INTERRUPT_LINE, 1, ~0, ~0)
    masks.put(INTERRUPT_PIN, 1, ~0, 0)
    return masks


def of(cap: Capability, image: bytes) -> Masks:
    """The masks of a capability; `image` for those whose layout depends on their flags."""
    masks = Masks(cap.length)
    if cap.extended:
        masks.put(0, 4, ~0, 0)
    else:
        masks.put(1, 1, ~0, 0)
    if rule := (_EXTENDED if cap.extended else _STANDARD).get(cap.id):
        rule(masks, image, cap.offset)
    return masks


def _pm(masks: Masks, image: bytes, at: int) -> None:
    masks.put(2, 2, PM_SUPPORTED, 0)
    masks.put(PM_CONTROL, 4, PM_PME, ~(PM_PME | PM_STATE))


def _vpd(masks: Masks, image: bytes, at: int) -> None:
    masks.put(VPD_ADDRESS, 2, ~0, ~0)
    masks.put(VPD_DATA, 4, ~0, ~0)


def _msi(masks: Masks, image: bytes, at: int) -> None:
    flags = u16(image, at + MSI_FLAGS)
    masks.put(MSI_FLAGS, 1, ~0, ~0)
    masks.put(4, 4, ~0, ~0)
    data = 8
    if flags & 0x80:
        masks.put(8, 4, ~0, ~0)
        data = 12
    masks.put(data, 2, ~0, ~0)
    if flags & 0x100:
        masks.put(data + 4, 4, 0, ~0)
        masks.put(data + 8, 4, 0, ~0)


def _pcix(masks: Masks, image: bytes, at: int) -> None:
    masks.put(2, 2, 0, ~0)
    masks.put(8, 4, 0, ~0)


def _express(masks: Masks, image: bytes, at: int) -> None:
    virtual = EXPRESS_RESET | EXPRESS_PAYLOAD | EXPRESS_READ_REQUEST
    masks.put(EXPRESS_CONTROL, 2, virtual, ~EXPRESS_PHANTOM)
    masks.put(EXPRESS_CONTROL_2, 2, 0, ~EXPRESS_ARI)


def _af(masks: Masks, image: bytes, at: int) -> None:
    masks.put(AF_CONTROL, 1, 1, 1)


def _all_but_the_head(head: int):
    def rule(masks: Masks, image: bytes, at: int) -> None:
        masks.writable[head:] = b"\xff" * (len(masks.writable) - head)

    return rule


def _aer(masks: Masks, image: bytes, at: int) -> None:
    for offset in (4, 8, 12):
        masks.put(offset, 4, 0, _AER_UNCORRECTABLE)
    masks.put(16, 4, 0, _AER_CORRECTABLE)
    masks.put(20, 4, 0, _AER_CORRECTABLE)
    masks.put(24, 4, 0, _AER_CHECKING)


def _power(masks: Masks, image: bytes, at: int) -> None:
    masks.put(8, 1, 0, ~0)


_STANDARD = {
    caps.PM: _pm,
    caps.VPD: _vpd,
    caps.MSI: _msi,
    caps.PCIX: _pcix,
    caps.VENDOR: _all_but_the_head(2),
    caps.EXPRESS: _express,
    caps.AF: _af,
}
_EXTENDED = {
    caps.X_ERR: _aer,
    caps.X_POWER: _power,
    caps.X_VENDOR: _all_but_the_head(4),
    caps.X_DVSEC: _all_but_the_head(4),
}
