"""The directory of one PCI function in /sys/devices, as Linux 7.3 fills it.

Attributes are read from the objects of the machine at the time of reading, and what is written to
them is done there. What only tells where Linux found the function (firmware_node, msi_irqs, the
port services below a bridge) is not there.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from iommufs.errors import UapiError
from iommufs.fuse.nodes import BinaryFile, Dir, Link, Node, TextFile
from iommufs.limits import PAGE_SIZE
from iommufs.pci_bus import HostFunction, PciBus, PciDev
from iommufs.pci_image import CAP_EXPRESS, CAP_PM, EXT_CAP_SERIAL
from iommufs.pci_sriov import VirtualFunctions
from iommufs.sysfs_attrs import (
    boolean,
    button,
    flag,
    if_true,
    number,
    string,
    text,
    uevent,
)
from iommufs.sysfs_place import whereabouts
from iommufs.sysfs_registers import BarFile, Config, FunctionPower, Rom
from iommufs.sysfs_resource import bar_addresses, resources
from iommufs.vfio.sriov import OFFSET, STRIDE, VF_DEVICE, Sriov

SPEEDS = {1: "2.5", 2: "5.0", 3: "8.0", 4: "16.0", 5: "32.0", 6: "64.0"}
U16_MAX = 0xFFFF


class FunctionDir:
    """Fills the directory of one function.

    up        from it to /sys
    has_ari   the bridge above forwards to functions beyond 7
    iommu     in /sys/class/iommu
    """

    def __init__(
        self,
        dev: PciDev,
        bus: PciBus,
        virtual_functions: VirtualFunctions,
        up: str,
        has_ari: bool,
        iommu: str,
    ) -> None:
        self._dev = dev
        self._bus = bus
        self._virtual_functions = virtual_functions
        self._up = up
        self._has_ari = has_ari
        self._iommu = iommu
        self._image = dev.image
        self._power = FunctionPower(dev)

    def entries(self) -> dict[str, Node]:
        nodes: dict[str, Node] = {}
        nodes |= self._identity()
        nodes |= self._state()
        nodes |= whereabouts()
        nodes |= self._switches()
        nodes |= self._resources()
        nodes |= self._links()
        if CAP_EXPRESS in self._image.capabilities:
            nodes |= self._express()
        if self._image.is_bridge:
            nodes |= self._bridge()
        if EXT_CAP_SERIAL in self._image.extended_capabilities:
            nodes["serial_number"] = text(self._serial_number(), 0o400)
        if capability := self._virtual_functions.capability(self._dev):
            nodes |= self._sriov(capability)
        if self._dev.physfn is not None:
            nodes["sriov_vf_msix_count"] = button(_no_msix_count)
        else:
            nodes["remove"] = button(if_true(self._remove), 0o220)
            nodes["rescan"] = button(if_true(self._rescan))
        if self._dev.reset_methods:
            nodes["reset"] = button(self._reset)
            nodes["reset_method"] = TextFile(self._show_methods, self._set_methods, 0o644)
        return nodes

    def _identity(self) -> dict[str, Node]:
        id = self._dev.id
        return {
            "class": text(f"0x{id.class_code:06x}"),
            "vendor": text(f"0x{id.vendor:04x}"),
            "device": text(f"0x{id.device:04x}"),
            "revision": text(f"0x{self._image.revision:02x}"),
            "subsystem_vendor": text(f"0x{id.subvendor:04x}"),
            "subsystem_device": text(f"0x{id.subdevice:04x}"),
            "modalias": text(self._modalias()),
            "uevent": uevent(self._uevent),
        }

    def _modalias(self) -> str:
        id = self._dev.id
        base, sub, interface = id.class_code.to_bytes(3, "big")
        return (
            f"pci:v{id.vendor:08X}d{id.device:08X}sv{id.subvendor:08X}sd{id.subdevice:08X}"
            f"bc{base:02X}sc{sub:02X}i{interface:02X}"
        )

    def _uevent(self) -> str:
        id, driver = self._dev.id, self._dev.driver
        lines = [f"DRIVER={driver.name}"] if driver else []
        lines += [
            f"PCI_CLASS={id.class_code:04X}",
            f"PCI_ID={id.vendor:04X}:{id.device:04X}",
            f"PCI_SUBSYS_ID={id.subvendor:04X}:{id.subdevice:04X}",
            f"PCI_SLOT_NAME={self._dev.address}",
            f"MODALIAS={self._modalias()}",
        ]
        return "\n".join(lines)

    def _state(self) -> dict[str, Node]:
        slot = self._dev.slot
        return {
            "ari_enabled": text(str(int(self._has_ari))),
            "consistent_dma_mask_bits": text(str(slot.dma_mask_bits)),
            "dma_mask_bits": text(str(slot.dma_mask_bits)),
            "irq": text(str(slot.irq)),
            "link": Dir(),
            "power": self._power.directory(),
            "power_state": text(self._power.state),
        }

    def _links(self) -> dict[str, Node]:
        nodes: dict[str, Node] = {
            "iommu": Link(f"{self._up[3:]}virtual/iommu/{self._iommu}"),
            "iommu_group": Link(f"{self._up}kernel/iommu_groups/{self._dev.group.number}"),
            "subsystem": Link(f"{self._up}bus/pci"),
        }
        if self._dev.physfn is not None:
            nodes["physfn"] = Link(f"../{self._dev.physfn.address}")
        if self._dev.waiting:
            nodes["waiting_for_supplier"] = text("0")
        return nodes

    # -- what can be written ----------------------------------------------------------------------

    def _switches(self) -> dict[str, Node]:
        d3cold = self._dev.physfn is None and CAP_PM in self._image.capabilities
        return {
            "broken_parity_status": _keeper(False),
            "d3cold_allowed": _keeper(d3cold),
            "driver_override": text(self._show_override, 0o644, self._set_override),
            "enable": text(self._show_enable, 0o644, self._set_enable),
            "msi_bus": _keeper(True),
        }

    def _show_override(self) -> str:
        return self._dev.driver_override or "(null)"

    def _set_override(self, data: bytes) -> None:
        """Source: __device_set_driver_override()"""
        if len(data) >= PAGE_SIZE - 1:
            raise UapiError(errno.EINVAL, f"{len(data)} bytes")
        line = data.split(b"\0")[0].split(b"\n")[0]
        self._dev.driver_override = line.decode(errors="surrogateescape") or None

    def _show_enable(self) -> str:
        """How many have switched the function on."""
        dev = self._dev
        return str(int(dev.vfio.bound is not None) if dev.vfio else dev.enabled)

    async def _set_enable(self, data: bytes) -> None:
        """EBUSY: it has a driver; EIO: it is off already. Source: enable_store()"""
        wanted = number(data)
        async with self._dev.lock:
            if self._dev.driver is not None:
                raise UapiError(errno.EBUSY, f"{self._dev.address} has a driver")
            if not wanted and not self._dev.enabled:
                raise UapiError(errno.EIO, f"{self._dev.address} is off")
            self._dev.enabled += 1 if wanted else -1

    async def _remove(self) -> None:
        await self._bus.remove(self._dev)

    async def _rescan(self) -> None:
        await self._bus.rescan(self._dev)

    async def _reset(self, data: bytes) -> None:
        """EINVAL: not a 1; ENOTTY: all ways were switched off. Source: reset_store()"""
        if number(data) != 1:
            raise UapiError(errno.EINVAL, f"{data!r}: expected 1")
        if not self._dev.reset_methods:
            raise UapiError(errno.ENOTTY, f"{self._dev.address} cannot be reset")
        async with self._dev.lock:
            if not isinstance(self._dev.inside, HostFunction):
                self._dev.inside.reset_function()

    def _show_methods(self) -> bytes:
        methods = self._dev.reset_methods
        return f"{' '.join(methods)}\n".encode() if methods else b""

    def _set_methods(self, data: bytes) -> None:
        """EINVAL: one that is not for this function. Source: reset_method_store()"""
        there = self._bus.default_reset_methods(self._dev)
        wanted = string(data)
        if not wanted:
            methods: tuple[str, ...] = ()
        elif wanted == "default":
            methods = there
        else:
            methods = tuple(name.strip() for name in wanted.split(" ") if name.strip())
        if not set(methods) <= set(there):
            raise UapiError(errno.EINVAL, f"{wanted!r}: there is {there}")
        self._bus.set_reset_methods(self._dev, methods)

    # -- resources --------------------------------------------------------------------------------

    def _resources(self) -> dict[str, Node]:
        config = Config(self._dev, self._power)
        nodes: dict[str, Node] = {
            "config": BinaryFile(config.read, config.write, 0o644, len(self._image.data)),
            "resource": text(lambda: resources(self._dev)),
        }
        addresses = bar_addresses(self._dev)
        for index, length in self._dev.bar_sizes.items():
            bar = BarFile(self._dev, index, addresses[index].io)
            nodes[f"resource{index}"] = BinaryFile(bar.read, bar.write, 0o600, length)
            if addresses[index].prefetchable:
                nodes[f"resource{index}_wc"] = BinaryFile(bar.read, bar.write, 0o600, length)
        if self._dev.slot.rom:
            rom = Rom(self._dev)
            nodes["rom"] = BinaryFile(rom.read, rom.write, 0o600, self._dev.slot.rom)
        return nodes

    # -- what only some have ----------------------------------------------------------------------

    def _express(self) -> dict[str, Node]:
        at = self._image.capabilities[CAP_EXPRESS]
        capable, status = self._image.u32(at + 0x0C), self._image.u16(at + 0x12)
        link = Dir()
        if self._dev.slot.parent is not None:
            link.entries["l0s_aspm"] = text("0", 0o644, _check_boolean)
        return {
            "link": link,
            "max_link_speed": text(_speed(capable & 15)),
            "max_link_width": text(str(capable >> 4 & 63)),
            "current_link_speed": text(_speed(status & 15)),
            "current_link_width": text(str(status >> 4 & 63)),
        }

    def _bridge(self) -> dict[str, Node]:
        return {
            "secondary_bus_number": text(str(self._image.secondary_bus)),
            "subordinate_bus_number": text(str(self._image.subordinate_bus)),
            "reset_subordinate": button(if_true(self._reset_subordinate)),
        }

    def _reset_subordinate(self) -> None:
        for dev in self._bus.below(self._dev):
            if not isinstance(dev.inside, HostFunction):
                dev.inside.reset_function()

    def _serial_number(self) -> str:
        at = self._image.extended_capabilities[EXT_CAP_SERIAL]
        return self._image.data[at + 4 : at + 12][::-1].hex("-")

    def _sriov(self, capability: Sriov) -> dict[str, Node]:
        dev = self._dev

        async def set_count(data: bytes) -> None:
            await self._virtual_functions.set_count(dev, number(data, U16_MAX))

        def set_probe(data: bytes) -> None:
            dev.vfs_probe = boolean(data)

        def read(offset: int) -> Callable[[], Any]:
            return lambda: capability.u16(offset)

        offset, stride, device = read(OFFSET), read(STRIDE), read(VF_DEVICE)
        return {
            "sriov_drivers_autoprobe": text(lambda: str(int(dev.vfs_probe)), 0o644, set_probe),
            "sriov_numvfs": text(lambda: str(capability.enabled), 0o644, set_count),
            "sriov_offset": text(lambda: str(offset())),
            "sriov_stride": text(lambda: str(stride())),
            "sriov_totalvfs": text(lambda: str(capability.total)),
            "sriov_vf_device": text(lambda: f"{device():x}"),
            "sriov_vf_total_msix": text("0"),
        }


def _keeper(value: bool) -> TextFile:
    """A switch of Linux that has no effect here but to be kept."""
    kept = [value]

    def switch(on: bool) -> None:
        kept[0] = on

    return flag(lambda: kept[0], switch)


def _check_boolean(data: bytes) -> None:
    boolean(data)


def _speed(number: int) -> str:
    return f"{SPEEDS[number]} GT/s PCIe" if number in SPEEDS else "Unknown"


def _no_msix_count(data: bytes) -> None:
    """Source: sriov_vf_msix_count_store()"""
    number(data)
    raise UapiError(errno.EOPNOTSUPP, "no driver shares out MSI-X vectors")
