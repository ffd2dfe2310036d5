"""The driver vfio-pci: what there is of a function for clients while the driver has it.

A function gets a cdev and a place in its VFIO group, which comes with the first device in it and
goes with the last. Whoever takes the function away waits until no client has it open.
"""

from __future__ import annotations

import errno
from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from iommufs.errors import UapiError
from iommufs.files import OpenFiles
from iommufs.iommufd.iommu import IommuGroup
from iommufs.pci_bus import VFIO_DRIVER, Driver, HostFunction, PciBus, PciDev
from iommufs.pci_sriov import VirtualFunctions
from iommufs.vfio import reset
from iommufs.vfio.device import DevSet, VfioDevice
from iommufs.vfio.group import VfioGroup

# The module's parameters, as they are at first.
PARAMETERS = {
    "disable_denylist": False,
    "disable_idle_d3": False,
    "enable_sriov": False,
    "nointxmask": False,
}


@dataclass
class Place:
    """A group, the number of its node, and how many of its functions the driver has."""

    group: VfioGroup
    minor: int
    n_devices: int = 0


class Nodes(Protocol):
    """Who shows the devices and the groups."""

    def add_device(self, dev: PciDev, device: VfioDevice) -> None: ...
    def remove_device(self, dev: PciDev, device: VfioDevice) -> None: ...
    def add_group(self, group: VfioGroup, minor: int) -> None: ...
    def remove_group(self, group: VfioGroup, minor: int) -> None: ...


class VfioPci(Driver):
    """The driver; `groups` are those that have devices, by number."""

    def __init__(self, bus: PciBus, files: OpenFiles, virtual_functions: VirtualFunctions) -> None:
        super().__init__(VFIO_DRIVER)
        self.parameters = dict(PARAMETERS)
        self.groups: dict[int, Place] = {}
        self._taken: set[int] = set()
        self.nodes: Nodes
        self._bus = bus
        self._files = files
        self._virtual_functions = virtual_functions
        bus.on_change.append(self._refresh)

    @property
    def devices(self) -> list[VfioDevice]:
        """Those that clients can open, in the order of their numbers."""
        found = [dev.vfio for dev in self._bus.devs.values() if dev.vfio is not None]
        return sorted(found, key=lambda device: device.index)

    def probe(self, dev: PciDev) -> None:
        """EINVAL: a bridge; EBUSY: it has virtual functions already.

        Source: vfio_pci_core_register_device()
        """
        if isinstance(dev.inside, HostFunction):
            raise UapiError(errno.EINVAL, f"{dev.address} is a bridge")
        if dev.virtfns:
            raise UapiError(errno.EBUSY, f"{dev.address} has virtual functions")
        group = self._group(dev)
        index = self.take_index()
        device = VfioDevice(index, dev.inside, self._dev_set(dev), group, self._files)
        if dev.physfn is not None:
            device.pf = dev.physfn.vfio
        dev.vfio = device
        dev.power_control = "auto"
        self._refresh()
        self.nodes.add_device(dev, device)

    def take_index(self) -> int:
        """The lowest number that no cdev has."""
        index = _lowest_free(self._taken)
        self._taken.add(index)
        return index

    def add_group(self, iommu_group: IommuGroup) -> VfioGroup:
        """A group gets its first device."""
        minor = _lowest_free({place.minor for place in self.groups.values()})
        place = self.groups[iommu_group.number] = Place(VfioGroup(iommu_group, self._files), minor)
        self.nodes.add_group(place.group, minor)
        return place.group

    async def remove(self, dev: PciDev) -> None:
        device = dev.vfio
        await self._virtual_functions.disable(dev)
        device.withdraw()
        self.nodes.remove_device(dev, device)
        dev.vfio = None
        await device.wait_unused()
        self._taken.remove(device.index)
        dev.power_control = "on"
        place = self.groups[device.group.number]
        place.n_devices -= 1
        if not place.n_devices:
            del self.groups[device.group.number]
            place.group.withdraw()
            self.nodes.remove_group(place.group, place.minor)

    async def sriov_configure(self, dev: PciDev, count: int) -> None:
        """ENOENT: a parameter of the module does not allow it; else as enable().

        Source: vfio_pci_sriov_configure()
        """
        if not self.parameters["enable_sriov"]:
            raise UapiError(errno.ENOENT, "vfio_pci.enable_sriov is not set")
        if not count:
            await self._virtual_functions.disable(dev)
            dev.inside.stay_awake(False)
            return
        dev.inside.stay_awake(True)
        try:
            self._virtual_functions.enable(dev, count, on_add=_capture)
        except UapiError:
            dev.inside.stay_awake(False)
            raise

    def _group(self, dev: PciDev) -> VfioGroup:
        number = dev.group.number
        if number not in self.groups:
            self.add_group(dev.group)
        self.groups[number].n_devices += 1
        return self.groups[number].group

    def _dev_set(self, dev: PciDev) -> DevSet:
        """The one of a neighbour that is reset together with it, or a new one."""
        if dev.physfn is None:
            for other in self._bus.on_bus_with(dev):
                together = other.slot.hot_reset == dev.slot.hot_reset and other.physfn is None
                if other is not dev and other.vfio and together:
                    return other.vfio.dev_set
        return DevSet()

    def _refresh(self) -> None:
        """Functions have come or gone: resets hit others than before."""
        for dev in self._bus.devs.values():
            if dev.vfio is not None:
                scope = list(self._bus.on_bus_with(dev))
                dev.vfio.dev_set.scope = {other.address: other.group.number for other in scope}
                dev.inside.can_reset = reset.works_alone(dev.reset_methods, scope)


def _capture(vf: PciDev) -> None:
    """What vfio-pci makes, it keeps. Source: vfio_pci_bus_notifier()"""
    vf.driver_override = VFIO_DRIVER


def _lowest_free(taken: Collection[int]) -> int:
    return next(n for n in range(len(taken) + 1) if n not in taken)
