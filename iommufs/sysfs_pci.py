"""The directory of one PCI function in /sys/devices, as Linux 7.3 fills it.

Attributes are read from the objects of the machine at the time of reading. What only tells where
Linux found the function (firmware_node, msi_irqs, the port services below a bridge) is not there.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import NoReturn

from iommufs.errors import UapiError
from iommufs.fuse.nodes import BinaryFile, Dir, Link, Node, TextFile
from iommufs.pci_image import (
    CAP_EXPRESS,
    CAP_PM,
    EXT_CAP_SERIAL,
    EXT_CAP_SRIOV,
    BarAddress,
    ConfigImage,
)
from iommufs.topology import Function

SPEEDS = {1: "2.5", 2: "5.0", 3: "8.0", 4: "16.0", 5: "32.0", 6: "64.0"}
STATES = ("D0", "D1", "D2", "D3hot")

# ioport.h of Linux: what a line of `resource` says.
RESOURCE_IO = 0x100
RESOURCE_MEM = 0x200
RESOURCE_PREFETCH = 0x2000
RESOURCE_READONLY = 0x4000
RESOURCE_SIZEALIGN = 0x40000
RESOURCE_MEM_64 = 0x100000
# Lines of `resource`: BARs, ROM, BARs of virtual functions; a bridge's windows after them.
ROM_LINE = 6
VF_LINE = 7
WINDOW_LINE = 13
LINES = 13
BRIDGE_LINES = 17

Resource = tuple[int, int, int]
NO_RESOURCE: Resource = (0, 0, 0)


def text(read: Callable[[], str] | str, mode: int = 0o444) -> TextFile:
    """An attribute that shows a line, and cannot be written whatever its mode says."""
    show = read if callable(read) else lambda: read
    return TextFile(lambda: f"{show()}\n".encode(), refuse if mode & 0o200 else None, mode)


def button(mode: int = 0o200) -> TextFile:
    """A write-only attribute."""
    return TextFile(None, refuse, mode)


def refuse(data: bytes) -> NoReturn:
    # Nothing of the machine can be changed through /sys yet. This is what a Linux that is locked
    # down says to a root without the right.
    raise UapiError(errno.EPERM, "the machine cannot be changed through /sys")


def local_cpus() -> tuple[str, str]:
    """The CPUs next to the function, which are all: as list and as mask."""
    n = os.cpu_count() or 1
    mask = f"{(1 << n) - 1:x}"
    groups = [mask[max(0, end - 8) : end] for end in range(len(mask), 0, -8)]
    return f"0-{n - 1}" if n > 1 else "0", ",".join(reversed(groups))


def power(control: str, status: Callable[[], str]) -> Dir:
    def no_delay() -> bytes:
        raise UapiError(errno.EIO, "autosuspend is not in use")

    return Dir(
        {
            "autosuspend_delay_ms": TextFile(no_delay, refuse, 0o644),
            "control": text(control, 0o644),
            "runtime_status": text(status),
        }
    )


class FunctionDir:
    """Fills the directory of one function.

    config    its config space now
    bound     whether a client has it; None: it has no VFIO device
    sizes     of its BARs
    iommu     in /sys/class/iommu
    """

    def __init__(
        self,
        function: Function,
        config: Callable[[], bytes],
        sizes: dict[int, int],
        bound: Callable[[], bool] | None,
        power_state: Callable[[], int],
        depth: int,
        has_ari: bool,
        iommu: str,
    ) -> None:
        self._function = function
        self._config = config
        self._sizes = sizes
        self._bound = bound
        self._power_state = power_state
        self._up = "../" * depth  # from the directory of the function to /sys
        self._has_ari = has_ari
        self._iommu = iommu
        # Capabilities and identity do not change; what changes is read when it is asked for.
        self._image = ConfigImage(config())

    def entries(self) -> dict[str, Node]:
        nodes: dict[str, Node] = {}
        nodes |= self._identity()
        nodes |= self._state()
        nodes |= self._resources()
        nodes |= self._links()
        if CAP_EXPRESS in self._image.capabilities:
            nodes |= self._express()
        if self._image.is_bridge:
            nodes |= self._bridge()
        if EXT_CAP_SERIAL in self._image.extended_capabilities:
            nodes["serial_number"] = text(self._serial_number(), 0o400)
        if EXT_CAP_SRIOV in self._image.extended_capabilities:
            nodes |= self._sriov()
        if self._function.reset_methods:
            nodes["reset"] = button()
            nodes["reset_method"] = text(" ".join(self._function.reset_methods), 0o644)
        return nodes

    def _identity(self) -> dict[str, Node]:
        image = self._image
        vendor, device = image.subsystem
        return {
            "class": text(f"0x{image.class_code:06x}"),
            "vendor": text(f"0x{image.vendor:04x}"),
            "device": text(f"0x{image.device:04x}"),
            "revision": text(f"0x{image.revision:02x}"),
            "subsystem_vendor": text(f"0x{vendor:04x}"),
            "subsystem_device": text(f"0x{device:04x}"),
            "modalias": text(self._modalias()),
            "uevent": text(self._uevent(), 0o644),
        }

    def _modalias(self) -> str:
        image = self._image
        vendor, device = image.subsystem
        base, sub, interface = image.class_code.to_bytes(3, "big")
        return (
            f"pci:v{image.vendor:08X}d{image.device:08X}sv{vendor:08X}sd{device:08X}"
            f"bc{base:02X}sc{sub:02X}i{interface:02X}"
        )

    def _uevent(self) -> str:
        image = self._image
        vendor, device = image.subsystem
        lines = [f"DRIVER={self._function.driver}"] if self._function.driver else []
        lines += [
            f"PCI_CLASS={image.class_code:04X}",
            f"PCI_ID={image.vendor:04X}:{image.device:04X}",
            f"PCI_SUBSYS_ID={vendor:04X}:{device:04X}",
            f"PCI_SLOT_NAME={self._function.bdf}",
            f"MODALIAS={self._modalias()}",
        ]
        return "\n".join(lines)

    def _state(self) -> dict[str, Node]:
        function = self._function
        cpu_list, cpu_mask = local_cpus()
        nodes: dict[str, Node] = {
            "ari_enabled": text(str(int(self._has_ari))),
            "broken_parity_status": text("0", 0o644),
            "consistent_dma_mask_bits": text(str(function.dma_mask_bits)),
            "d3cold_allowed": text(str(int(CAP_PM in self._image.capabilities)), 0o644),
            "dma_mask_bits": text(str(function.dma_mask_bits)),
            "driver_override": text("vfio-pci" if self._bound else "(null)", 0o644),
            "enable": text(self._enable, 0o644),
            "irq": text(str(function.irq)),
            "link": Dir(),
            "local_cpulist": text(cpu_list),
            "local_cpus": text(cpu_mask),
            "msi_bus": text("1", 0o644),
            "power": power("auto" if self._bound else "on", self._runtime_status),
            "power_state": text(self._show_power_state),
            "remove": button(0o220),
            "rescan": button(),
        }
        if not function.driver:
            nodes["waiting_for_supplier"] = text("0")
        return nodes

    def _enable(self) -> str:
        """How many drivers have switched the function on."""
        on = self._bound() if self._bound else bool(self._function.driver)
        return str(int(on))

    def _runtime_status(self) -> str:
        # vfio-pci lets a function sleep while no client has it.
        return "active" if self._bound is None or self._bound() else "suspended"

    def _show_power_state(self) -> str:
        asleep = self._runtime_status() == "suspended" and CAP_PM in self._image.capabilities
        return STATES[3 if asleep else self._power_state()]

    def _links(self) -> dict[str, Node]:
        nodes: dict[str, Node] = {
            "iommu": Link(f"{self._up[3:]}virtual/iommu/{self._iommu}"),
            "iommu_group": Link(f"{self._up}kernel/iommu_groups/{self._function.group}"),
            "subsystem": Link(f"{self._up}bus/pci"),
        }
        if self._function.driver:
            nodes["driver"] = Link(f"{self._up}bus/pci/drivers/{self._function.driver}")
        return nodes

    # -- resources --------------------------------------------------------------------------------

    def _resources(self) -> dict[str, Node]:
        size = len(self._image.data)
        nodes: dict[str, Node] = {
            "config": BinaryFile(self._read_config, lambda at, data: refuse(data), 0o644, size),
            "resource": text(self._resource),
        }
        # Linux maps these, or lets ports be read; here the way to them is VFIO's.
        for number, length in self._sizes.items():
            nodes[f"resource{number}"] = BinaryFile(None, None, 0o600, length)
            if self._image.bars()[number].prefetchable:
                nodes[f"resource{number}_wc"] = BinaryFile(None, None, 0o600, length)
        if self._function.rom:
            nodes["rom"] = BinaryFile(
                _read_rom, lambda at, data: refuse(data), 0o600, self._function.rom
            )
        return nodes

    def _read_config(self, offset: int, length: int) -> bytes:
        return self._config()[offset : offset + length]

    def _resource(self) -> str:
        image = self._image
        lines = [NO_RESOURCE] * (BRIDGE_LINES if image.is_bridge else LINES)
        addresses = image.bars()
        for number, size in self._sizes.items():
            lines[number] = _bar_resource(addresses[number], size)
        if self._function.rom:
            flags = RESOURCE_MEM | RESOURCE_PREFETCH | RESOURCE_READONLY | RESOURCE_SIZEALIGN
            start = image.rom_address
            lines[ROM_LINE] = (start, start + self._function.rom - 1, flags)
        if EXT_CAP_SRIOV in image.extended_capabilities:
            at = image.extended_capabilities[EXT_CAP_SRIOV]
            addresses = image.bars(at + 0x24, 6)
            for number, size in self._function.vf_bars.items():
                total = size * image.u16(at + 0x0E)
                lines[VF_LINE + number] = _bar_resource(addresses[number], total)
        if image.is_bridge:
            lines[WINDOW_LINE : WINDOW_LINE + 3] = _windows(image)
        return "\n".join(
            f"0x{start:016x} 0x{end:016x} 0x{flags:016x}" for start, end, flags in lines
        )

    # -- what only some have ----------------------------------------------------------------------

    def _express(self) -> dict[str, Node]:
        at = self._image.capabilities[CAP_EXPRESS]
        capable, status = self._image.u32(at + 0x0C), self._image.u16(at + 0x12)
        link = {} if self._function.parent is None else {"l0s_aspm": text("0", 0o644)}
        return {
            "link": Dir(link),
            "max_link_speed": text(_speed(capable & 15)),
            "max_link_width": text(str(capable >> 4 & 63)),
            "current_link_speed": text(_speed(status & 15)),
            "current_link_width": text(str(status >> 4 & 63)),
        }

    def _bridge(self) -> dict[str, Node]:
        return {
            "secondary_bus_number": text(str(self._image.secondary_bus)),
            "subordinate_bus_number": text(str(self._image.subordinate_bus)),
            "reset_subordinate": button(),
        }

    def _serial_number(self) -> str:
        at = self._image.extended_capabilities[EXT_CAP_SERIAL]
        return self._image.data[at + 4 : at + 12][::-1].hex("-")

    def _sriov(self) -> dict[str, Node]:
        image, at = self._image, self._image.extended_capabilities[EXT_CAP_SRIOV]
        return {
            "sriov_drivers_autoprobe": text("1", 0o644),
            "sriov_numvfs": text("0", 0o644),
            "sriov_offset": text(str(image.u16(at + 0x14))),
            "sriov_stride": text(str(image.u16(at + 0x16))),
            "sriov_totalvfs": text(str(image.u16(at + 0x0E))),
            "sriov_vf_device": text(f"{image.u16(at + 0x1A):x}"),
            "sriov_vf_total_msix": text("0"),
        }


def _speed(number: int) -> str:
    return f"{SPEEDS[number]} GT/s PCIe" if number in SPEEDS else "Unknown"


def _read_rom(offset: int, length: int) -> bytes:
    # Reading is for those who switched the ROM on by writing 1, which nobody can.
    raise UapiError(errno.EINVAL, "the ROM is not enabled")


def _bar_resource(bar: BarAddress, size: int) -> Resource:
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
