"""A machine: PCI functions, their groups and resets, the IOMMU before them.

Plain facts without behaviour, made by topology_file.py and turned into live objects by machine.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from iommufs.pci_image import ConfigImage
from iommufs.vfio.model import Bar, Description


class TopologyError(Exception):
    """A topology is not one; the message is one line for its author."""


@dataclass(frozen=True)
class Reserved:
    """IOVAs that firmware keeps from the devices, besides what the IOMMU itself does not map.

    type  as in /sys/kernel/iommu_groups/N/reserved_regions
    """

    start: int
    last: int
    type: str


@dataclass(frozen=True)
class Function:
    """One PCI function.

    label       what errors call it
    bdf         "0000:00:06.0"
    image       its config space as firmware left it; None: the model's fields make it
    writable    config dwords by offset and their writable bits, as in vfio.model.Description
    bars        BAR number → bytes, what `vf_bars` is for the BARs of its virtual functions
    vf_image    config space of one of its virtual functions; None: the model's fields make it, or
                there is only what is needed
    contents    BAR number → what is in it after a reset: offset → 16 bytes, else zeros;
                `rom_contents`: the same of its expansion ROM
    cdev        number of its vfioN; None: no VFIO device
    hot_reset   bdfs of all functions that one bus or slot reset hits, itself among them; empty:
                there is no such reset
    irq         Linux's number of its INTx line; 0: none
    vga         clients reach legacy VGA through it
    """

    label: str
    bdf: str
    model: str
    options: dict[str, Any]
    group: int
    driver: str
    image: ConfigImage | None
    bars: dict[int, int]
    writable: dict[int, int]
    vf_bars: dict[int, int]
    vf_image: ConfigImage | None
    rom: int
    contents: dict[int, dict[int, bytes]]
    rom_contents: dict[int, bytes]
    reset_methods: tuple[str, ...]
    hot_reset: tuple[str, ...]
    cdev: int | None
    parent: str | None
    irq: int
    dma_mask_bits: int
    vga: bool = False

    @property
    def bus(self) -> int:
        return int(self.bdf[5:7], 16)

    def _rom(self) -> bytes:
        rom = bytearray(b"\xff" * self.rom)  # as long as nobody has programmed it
        for offset, row in self.rom_contents.items():
            rom[offset : offset + len(row)] = row
        return bytes(rom)

    def description(self) -> Description:
        """What the image and the sizes say; for functions that have an image."""
        image = self.image
        assert image is not None, f"{self.bdf} has no image"
        msix, table, pending = image.msix or (0, (0, 0), (0, 0))
        subsystem_vendor, subsystem_device = image.subsystem
        addresses = image.bars()
        return Description(
            vendor=image.vendor,
            device=image.device,
            class_code=image.class_code,
            revision=image.revision,
            subsystem_vendor=subsystem_vendor,
            subsystem_device=subsystem_device,
            bars={
                number: Bar(
                    size=size,
                    mappable=not addresses[number].io,
                    io=addresses[number].io,
                    bits64=addresses[number].bits64,
                    prefetchable=addresses[number].prefetchable,
                )
                for number, size in self.bars.items()
            },
            rom=self._rom(),
            intx=image.interrupt_pin != 0,
            msi_vectors=image.msi_vectors,
            msix_vectors=msix,
            msix_table=table,
            msix_pba=pending,
            config=image.data,
            writable=self.writable,
        )


@dataclass(frozen=True)
class Mediated:
    """A device without an IOMMU. label: what errors call it."""

    label: str
    uuid: str
    model: str
    options: dict[str, Any]
    group: int


@dataclass(frozen=True)
class Topology:
    """A machine that is consistent: every group, parent and scope it names is there.

    source  what errors call it
    test    there is the ioctl of CONFIG_IOMMUFD_TEST
    """

    source: str
    functions: tuple[Function, ...]
    groups: dict[int, tuple[Function, ...]]
    iommu_kind: str
    iommu_options: dict[str, Any]
    reserved: tuple[Reserved, ...]
    test: bool
    mediated: tuple[Mediated, ...] = ()

    def function(self, bdf: str) -> Function:
        """KeyError if there is none."""
        for function in self.functions:
            if function.bdf == bdf:
                return function
        raise KeyError(bdf)

    def path(self, function: Function) -> str:
        """Its place below /sys/devices: the bridges on the way, then itself."""
        if function.parent is None:
            return f"pci0000:{function.bus:02x}/{function.bdf}"
        return f"{self.path(self.function(function.parent))}/{function.bdf}"
