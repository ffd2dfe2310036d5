"""The PCI bus as Linux keeps it: which functions it has found, and which driver has which of them.

A function of the machine (a slot) is there whether Linux knows it or not; a PciDev is what Linux
keeps of one that it has found, from the scan to the removal. What all this looks like in /sys is
told to a view (sysfs.py), driver by driver and function by function.

Not here: what a driver does with a function (vfio_pci.py), virtual functions (pci_sriov.py).
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import trio

from iommufs.errors import UapiError
from iommufs.iommufd.iommu import IommuGroup
from iommufs.pci_image import ConfigImage
from iommufs.topology import Function
from iommufs.vfio import reset

ANY = 0xFFFFFFFF
VFIO_DRIVER = "vfio-pci"
# Drivers of Linux that do no DMA by the group's own page table (driver_managed_dma).
_WITHOUT_DMA = ("pcieport", "pci-stub")
# Reset methods that hit whatever else is on the bus.
_OF_THE_BUS = ("bus", "cxl_bus")


@dataclass(frozen=True)
class PciId:
    """Which functions a driver takes, or what a function is: then nothing is ANY."""

    vendor: int
    device: int
    subvendor: int = ANY
    subdevice: int = ANY
    class_code: int = 0
    class_mask: int = 0

    def matches(self, other: PciId) -> bool:
        """Source: pci_match_one_id()"""
        pairs = (
            (self.vendor, other.vendor),
            (self.device, other.device),
            (self.subvendor, other.subvendor),
            (self.subdevice, other.subdevice),
        )
        same = all(wanted in (ANY, found) for wanted, found in pairs)
        return same and not (self.class_code ^ other.class_code) & self.class_mask


@dataclass
class HostFunction:
    """A function that can only be the machine's own, such as a bridge: clients never reach it."""

    address: str
    iommu: Any
    group: IommuGroup


class PciDev:
    """A function that Linux has found.

    slot      what it is
    inside    the function itself (vfio.function.PciFunction), or a HostFunction
    physfn    whose virtual function it is, and `vf_index` its number; `virtfns`: its own
    waiting   no driver has had it yet
    vfio      the VFIO device that vfio-pci has made of it
    """

    def __init__(
        self, slot: Function, inside: Any, physfn: PciDev | None = None, vf_index: int = 0
    ) -> None:
        self.slot = slot
        self.inside = inside
        self.physfn = physfn
        self.vf_index = vf_index
        self.virtfns: list[PciDev] = []
        self.vfs_probe = True
        self.driver: Driver | None = None
        self.driver_override: str | None = None
        self.waiting = True
        self.vfio: Any = None
        self.enabled = 0
        self.reset_methods: tuple[str, ...] = slot.reset_methods
        self.power_control = "on"
        self.lock = trio.Lock()  # as the device's own, held while drivers change
        # What Linux reads once, at the scan.
        self.image = ConfigImage(self.config)
        vendor, device = getattr(inside, "vf_ids", None) or (self.image.vendor, self.image.device)
        self.id = PciId(vendor, device, *self.image.subsystem, self.image.class_code)

    @property
    def address(self) -> str:
        return self.slot.bdf

    @property
    def group(self) -> IommuGroup:
        return self.inside.group

    @property
    def bar_sizes(self) -> dict[int, int]:
        if isinstance(self.inside, HostFunction):
            return self.slot.bars
        return {number: bar.size for number, bar in self.inside.description.bars.items()}

    @property
    def config(self) -> bytes:
        """Its config space now, as the function itself has it."""
        if isinstance(self.inside, HostFunction):
            assert self.slot.image is not None, "a bridge has an image"
            return self.slot.image.data
        return bytes(self.inside.raw.data)


class Driver:
    """A driver of functions: `ids` are those it knows by itself, `dynamic` those of new_id."""

    def __init__(self, name: str, ids: Sequence[PciId] = ()) -> None:
        self.name = name
        self.ids = tuple(ids)
        self.dynamic: list[PciId] = []

    def matches(self, dev: PciDev) -> bool:
        """Whether it would take a function. Source: pci_match_device()"""
        if dev.driver_override is not None:
            return dev.driver_override == self.name
        return any(known.matches(dev.id) for known in (*self.dynamic, *self.ids))

    def probe(self, dev: PciDev) -> None:
        """Take a function; UapiError if it cannot be."""
        raise NotImplementedError

    async def remove(self, dev: PciDev) -> None:
        """Let go of a function, whoever uses it."""

    async def sriov_configure(self, dev: PciDev, count: int) -> None:
        """Make so many virtual functions, or none; ENOENT: the driver cannot."""
        raise UapiError(errno.ENOENT, f"{self.name} makes no virtual functions")


class HostDriver(Driver):
    """A driver of the machine's own: it has its functions and does nothing with them."""

    def probe(self, dev: PciDev) -> None:
        if self.name not in _WITHOUT_DMA:
            dev.group.claim_by_host()
        dev.enabled += 1

    async def remove(self, dev: PciDev) -> None:
        dev.enabled -= 1
        if self.name not in _WITHOUT_DMA:
            dev.group.release()


class View(Protocol):
    """Who shows the bus."""

    def add_function(self, dev: PciDev) -> None: ...
    def remove_function(self, dev: PciDev) -> None: ...
    def bind(self, dev: PciDev) -> None: ...
    def unbind(self, dev: PciDev) -> None: ...


class PciBus:
    """All functions and drivers.

    slots     the functions of the machine by address, in the order of the topology
    insides   what is inside of them, likewise
    devs      what Linux has found of them, and virtual functions
    groups    the IOMMU groups that have members, by number
    view      shows it all
    """

    def __init__(self, slots: Mapping[str, Function], insides: Mapping[str, Any]) -> None:
        self.slots = slots
        self.insides = insides
        self.devs: dict[str, PciDev] = {}
        self.groups: dict[int, IommuGroup] = {}
        self.drivers: dict[str, Driver] = {}
        self.autoprobe = True
        self.view: View
        self.on_change: list[Callable[[], None]] = []
        self.rescan_lock = trio.Lock()  # functions come and go one after the other

    # ---- functions come and go

    def add(self, dev: PciDev, group: int | None = None) -> None:
        """Linux has found a function; `group`: its IOMMU group's number if that is free."""
        mates = [d for d in self.devs.values() if d.slot.group == group and not d.physfn]
        if mates and group is not None:
            dev.inside.group = mates[0].group
        else:
            dev.inside.group = IommuGroup(self._free_group(group))
            self.groups[dev.group.number] = dev.group
        self.devs[dev.address] = dev
        self.view.add_function(dev)
        for told in self.on_change:
            told()

    def _free_group(self, wanted: int | None) -> int:
        if wanted is not None and wanted not in self.groups:
            return wanted
        return next(n for n in range(len(self.groups) + 1) if n not in self.groups)

    def _drop(self, dev: PciDev) -> None:
        del self.devs[dev.address]
        self.view.remove_function(dev)
        if dev.physfn is not None:
            dev.physfn.virtfns.remove(dev)
        if all(other.group is not dev.group for other in self.devs.values()):
            del self.groups[dev.group.number]
        for told in self.on_change:
            told()

    async def remove(self, dev: PciDev) -> None:
        """Forget a function and all that is below it, as soon as nobody uses them."""
        async with self.rescan_lock:
            if self.devs.get(dev.address) is dev:
                await self.remove_locked(dev)

    async def remove_locked(self, dev: PciDev) -> None:
        for below in reversed(list(self.devs.values())):
            if below.slot.parent == dev.address and below.address in self.devs:
                await self.remove_locked(below)
        async with dev.lock:
            await self._release(dev)
            self._drop(dev)

    async def rescan(self, beside: PciDev | None = None) -> None:
        """Find the functions that Linux has forgotten: on the bus of one of them, or on all."""
        async with self.rescan_lock:
            for slot in sorted(self.slots.values(), key=lambda slot: slot.bdf):
                if slot.bdf not in self.devs and self._is_seen(slot, beside):
                    inside = self.insides[slot.bdf]
                    if not isinstance(inside, HostFunction):
                        inside.power_cycle()
                    dev = PciDev(slot, inside)
                    self.add(dev, slot.group)
                    dev.reset_methods = self.default_reset_methods(dev)
                    self.initial_probe(dev)

    def _is_seen(self, slot: Function, beside: PciDev | None) -> bool:
        """Whether a scan of the bus of `beside` comes to this function."""
        if beside is not None and slot.parent == beside.slot.parent:
            return True
        if slot.parent is None:
            return beside is None
        return slot.parent in self.devs and self._is_seen(self.slots[slot.parent], beside)

    def below(self, bridge: PciDev) -> Iterator[PciDev]:
        """All that is behind a bridge."""
        for dev in list(self.devs.values()):
            if dev.slot.parent == bridge.address:
                yield dev
                yield from self.below(dev)

    def on_bus_with(self, dev: PciDev) -> Iterator[PciDev]:
        """What a reset of its bus or slot hits, the function among it; nothing if there is none."""
        scope = dev.slot.hot_reset
        found = [self.devs[bdf] for bdf in scope if bdf in self.devs]
        yield from found
        for pf in found:
            yield from pf.virtfns

    def default_reset_methods(self, dev: PciDev) -> tuple[str, ...]:
        """Those that work now: the bus can be reset only for the sake of all on it."""
        alone = len(list(self.on_bus_with(dev))) <= 1
        return tuple(m for m in dev.slot.reset_methods if alone or m not in _OF_THE_BUS)

    def set_reset_methods(self, dev: PciDev, methods: Sequence[str]) -> None:
        dev.reset_methods = tuple(methods)
        if not isinstance(dev.inside, HostFunction):
            scope = [other.address for other in self.on_bus_with(dev)]
            dev.inside.can_reset = reset.works_alone(dev.reset_methods, scope)

    # ---- functions and drivers

    def find(self, name: str) -> PciDev:
        """The function of a name as it is written to /sys; ENODEV."""
        dev = self.devs.get(name)
        if dev is None:
            raise UapiError(errno.ENODEV, f"no function {name!r}")
        return dev

    def attach(self, driver: Driver, dev: PciDev) -> None:
        """Give a function that has no driver to one; UapiError if it does not take it."""
        driver.probe(dev)
        dev.driver = driver
        dev.waiting = False
        self.view.bind(dev)

    def initial_probe(self, dev: PciDev) -> None:
        """Give a new function to a driver, unless that is switched off."""
        if self.autoprobe:
            self.probe(dev)

    def probe(self, dev: PciDev) -> None:
        """Give the function to the first driver that takes it; nothing happens if none does.

        Source: __deviceattach()
        """
        if dev.driver is not None or not self._can_probe(dev):
            return
        for driver in self.drivers.values():
            if driver.matches(dev):
                try:
                    self.attach(driver, dev)
                except UapiError:
                    continue
                return

    @staticmethod
    def _can_probe(dev: PciDev) -> bool:
        """Source: pci_device_can_probe()"""
        pf = dev.physfn
        return pf is None or pf.vfs_probe or dev.driver_override is not None

    async def _release(self, dev: PciDev) -> None:
        """Take the function from its driver."""
        driver = dev.driver
        if driver is not None:
            self.view.unbind(dev)
            await driver.remove(dev)
            dev.driver = None

    async def bind(self, driver: Driver, name: str) -> None:
        """ENODEV: no such function, or the driver does not know it; EBUSY: another has it."""
        dev = self.find(name)
        if not driver.matches(dev):
            raise UapiError(errno.ENODEV, f"{driver.name} is not for {name}")
        async with dev.lock:
            self._check_present(dev)
            if dev.driver is not None:
                raise UapiError(errno.EBUSY, f"{dev.driver.name} has {name}")
            if not self._can_probe(dev):
                raise UapiError(errno.ENODEV, f"{name} is not probed")
            self.attach(driver, dev)

    async def unbind(self, driver: Driver, name: str) -> None:
        """Waits until nobody uses the function. ENODEV: it is not the driver's."""
        dev = self.find(name)
        if dev.driver is not driver:
            raise UapiError(errno.ENODEV, f"{driver.name} does not have {name}")
        async with dev.lock:
            if dev.driver is driver:
                await self._release(dev)

    def _check_present(self, dev: PciDev) -> None:
        if self.devs.get(dev.address) is not dev:
            raise UapiError(errno.ENODEV, f"{dev.address} is gone")

    async def drivers_probe(self, name: str) -> None:
        dev = self.find(name)
        async with dev.lock:
            self._check_present(dev)
            self.probe(dev)

    def probe_all(self, driver: Driver) -> None:
        """Offer the driver whatever has none. Source: driverattach()"""
        for dev in list(self.devs.values()):
            free = dev.driver is None and not dev.lock.locked()
            if free and self._can_probe(dev) and driver.matches(dev):
                try:
                    self.attach(driver, dev)
                except UapiError:
                    continue
