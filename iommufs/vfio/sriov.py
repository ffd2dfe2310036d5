"""SR-IOV: the capability of a physical function, and the virtual functions that it can have.

The circuits of a virtual function are there whether it is enabled or not: what is made of one when
it is enabled for the first time stays, and is as after a reset whenever it is enabled.

Not here: who may enable them, and what Linux makes of them (pci_sriov.py).
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from iommufs.errors import UapiError
from iommufs.vfio import capabilities as caps
from iommufs.vfio.function import PciFunction
from iommufs.vfio.image import N_BARS
from iommufs.vfio.model import Bar, Description

# In the capability.
CAPABLE, CONTROL, INITIAL_VFS, TOTAL_VFS, NUM_VFS = 0x04, 0x08, 0x0C, 0x0E, 0x10
OFFSET, STRIDE, VF_DEVICE, VF_BARS = 0x14, 0x16, 0x1A, 0x24
CONTROL_ENABLE, CONTROL_MEMORY = 0x01, 0x08
CAPABLE_MIGRATION = 0x01

_EXPRESS_FLR = 1 << 28
_MEMORY_64, _PREFETCHABLE = 0x04, 0x08


class Sriov:
    """The capability at an offset of a physical function's config space.

    make_vf  makes what is inside of virtual function N
    """

    def __init__(self, pf: PciFunction, at: int, make_vf: Callable[[int], PciFunction]) -> None:
        self._pf = pf
        self._at = at
        self._make_vf = make_vf
        self._vfs: dict[int, PciFunction] = {}

    def u16(self, offset: int) -> int:
        """A register of the capability."""
        return self._pf.raw.read(self._at + offset, 2)

    @property
    def total(self) -> int:
        return self.u16(TOTAL_VFS)

    @property
    def enabled(self) -> int:
        """How many virtual functions there are now."""
        on = self.u16(CONTROL) & CONTROL_ENABLE
        return self.u16(NUM_VFS) if on else 0

    @property
    def ids(self) -> tuple[int, int]:
        """Vendor and device of the virtual functions."""
        return self._pf.description.vendor, self.u16(VF_DEVICE)

    def check(self, count: int, last_bus: int) -> None:
        """Whether so many can be enabled: EIO, EINVAL, ENOMEM. Source: sriov_enable()

        last_bus  the highest number below the bridge above
        """
        initial = self.u16(INITIAL_VFS)
        migrates = self.u16(CAPABLE) & CAPABLE_MIGRATION
        if initial > self.total or not (migrates or initial == self.total):
            raise UapiError(errno.EIO, f"{initial} of {self.total} virtual functions at first")
        if self.enabled or count > self.total or not (migrates or count <= initial):
            raise UapiError(errno.EINVAL, f"{count} of {self.total} virtual functions")
        if int(self.address(count - 1)[5:7], 16) > last_bus:
            raise UapiError(errno.ENOMEM, f"{count} virtual functions need more buses")

    def enable(self, count: int) -> None:
        """Show in the registers that there are so many, or none."""
        bits = CONTROL_ENABLE | CONTROL_MEMORY
        self._pf.raw.set_lasting(self._at + NUM_VFS, 2, 0xFFFF, count)
        self._pf.raw.set_lasting(self._at + CONTROL, 2, bits, bits if count else 0)

    def address(self, index: int) -> str:
        """Of virtual function `index`, counted from the physical one's routing id."""
        segment, bus, rest = self._pf.address.split(":")
        device, function = rest.split(".")
        rid = int(bus, 16) << 8 | int(device, 16) << 3 | int(function)
        rid += self.u16(OFFSET) + self.u16(STRIDE) * index
        return f"{segment}:{rid >> 8:02x}:{rid >> 3 & 0x1F:02x}.{rid & 7}"

    def function(self, index: int) -> PciFunction:
        """Virtual function `index`, as after power-on, or after a reset if it was there before.

        What is no register of its config space stays then (seen in the reference guest).
        """
        if index in self._vfs:
            self._vfs[index].reset()
        else:
            self._vfs[index] = self._pf.guard("make_vf", self._make_vf, index)
        return self._vfs[index]


def find(pf: PciFunction) -> int | None:
    """Where the capability of a function is that can have virtual functions."""
    for cap in pf.raw.owned:
        if cap.extended and cap.id == caps.X_SRIOV and pf.raw.read(cap.offset + TOTAL_VFS, 2):
            return cap.offset
    return None


def describe(pf: PciFunction, sizes: dict[int, int], config: bytes = b"") -> Description:
    """A virtual function of which no model tells: BARs as the capability says, of these sizes.

    config  its config space; without, it has what is needed to be found and reset
    """
    at = find(pf)
    assert at is not None, "the function has the capability"
    data = config or _minimal_config(pf)
    registers = [pf.raw.read(at + VF_BARS + 4 * number, 4) for number in range(N_BARS)]
    msix = caps.find(data, caps.MSIX)
    count, table, pending = 0, 0, 0
    if msix:
        count = (caps.u16(data, msix.offset + 2) & 0x7FF) + 1
        table, pending = caps.u32(data, msix.offset + 4), caps.u32(data, msix.offset + 8)
    return Description(
        vendor=pf.description.vendor,
        device=pf.raw.read(at + VF_DEVICE, 2),
        class_code=pf.description.class_code,
        revision=pf.description.revision,
        bars={
            number: Bar(
                size=size,
                mappable=True,
                bits64=bool(registers[number] & _MEMORY_64),
                prefetchable=bool(registers[number] & _PREFETCHABLE),
            )
            for number, size in sizes.items()
        },
        intx=False,
        msix_vectors=count,
        msix_table=(table & 7, table & ~7),
        msix_pba=(pending & 7, pending & ~7),
        config=data,
    )


def _minimal_config(pf: PciFunction) -> bytes:
    """The physical function's identity and its PCI Express capability, able to be reset."""
    own = pf.raw.power_on
    data = bytearray(4096)
    data[0x08:0x0C], data[0x2C:0x30] = own[0x08:0x0C], own[0x2C:0x30]
    express = caps.find(own, caps.EXPRESS)
    assert express is not None, "extended capabilities come with that of PCI Express"
    at = caps.HEADER_LENGTH
    data[0x06], data[0x34] = 0x10, at
    data[at : at + express.extent] = own[express.offset : express.offset + express.extent]
    data[at + 1] = 0
    capable = caps.u32(data, at + 4) | _EXPRESS_FLR
    data[at + 4 : at + 8] = capable.to_bytes(4, "little")
    return bytes(data)


def can_reset(config: bytes) -> bool:
    """Whether a function can be reset alone by its PCI Express capability (FLR)."""
    express = caps.find(config, caps.EXPRESS)
    return express is not None and bool(caps.u32(config, express.offset + 4) & _EXPRESS_FLR)
