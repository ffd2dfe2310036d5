"""Virtual functions as Linux sees them come and go (sriov_numvfs)."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from iommufs.errors import UapiError
from iommufs.pci_bus import HostFunction, PciBus, PciDev
from iommufs.topology import Function
from iommufs.vfio import sriov
from iommufs.vfio.function import PciFunction
from iommufs.vfio.sriov import Sriov

LAST_BUS = 0xFF

# Makes a virtual function: the physical one's slot and inside, its index, address and ids.
MakeVf = Callable[[Function, PciFunction, int, str, tuple[int, int]], PciFunction]


class VirtualFunctions:
    """Those of all physical functions of a bus."""

    def __init__(self, bus: PciBus, make: MakeVf) -> None:
        self._bus = bus
        self._make = make
        self._capabilities: dict[str, Sriov] = {}

    def capability(self, dev: PciDev) -> Sriov | None:
        """None: it cannot have virtual functions."""
        if isinstance(dev.inside, HostFunction) or dev.physfn is not None:
            return None
        at = sriov.find(dev.inside)
        if at is None:
            return None
        if dev.address not in self._capabilities:
            slot, inside = dev.slot, dev.inside

            def make(index: int) -> PciFunction:
                found = self._capabilities[slot.bdf]
                return self._make(slot, inside, index, found.address(index), found.ids)

            self._capabilities[dev.address] = Sriov(inside, at, make)
        return self._capabilities[dev.address]

    async def set_count(self, dev: PciDev, count: int) -> None:
        """What writing sriov_numvfs does.

        Errors: ERANGE  more than there can be     ENOENT  the driver makes none, or there is none
                EBUSY   there are others           else as Driver.sriov_configure()
        Source: sriov_numvfs_store()
        """
        capability = self.capability(dev)
        assert capability is not None, "the function has the attribute"
        if count > capability.total:
            raise UapiError(errno.ERANGE, f"{count} of {capability.total} virtual functions")
        async with self._bus.rescan_lock, dev.lock:
            if count == capability.enabled:
                return
            if dev.driver is None:
                raise UapiError(errno.ENOENT, f"{dev.address} has no driver")
            if count and capability.enabled:
                raise UapiError(errno.EBUSY, f"there are {capability.enabled} virtual functions")
            await dev.driver.sriov_configure(dev, count)

    def enable(self, dev: PciDev, count: int, on_add: Callable[[PciDev], None]) -> None:
        """Make so many; `on_add` is told of each before it gets a driver.

        As Sriov.check(); EIO if the model of one of them fails: then there are none.
        """
        capability = self.capability(dev)
        assert capability is not None, "the function has the attribute"
        capability.check(count, self._last_bus(dev))
        if any(capability.address(i) in self._bus.devs for i in range(count)):
            raise UapiError(errno.EEXIST, "the address of a virtual function is taken")
        insides = [capability.function(index) for index in range(count)]
        capability.enable(count)
        dev.inside.virtual_functions = insides
        for index, inside in enumerate(insides):
            vf = PciDev(_slot(dev.slot, inside), inside, physfn=dev, vf_index=index)
            dev.virtfns.append(vf)
            on_add(vf)
            self._bus.add(vf)
            self._bus.initial_probe(vf)

    async def disable(self, dev: PciDev) -> None:
        """Take all away, as soon as nobody uses them."""
        while dev.virtfns:
            await self._bus.remove_locked(dev.virtfns[0])
        if capability := self.capability(dev):
            capability.enable(0)
            dev.inside.virtual_functions = []

    def _last_bus(self, dev: PciDev) -> int:
        if dev.slot.parent is None:
            return LAST_BUS
        image: Any = self._bus.slots[dev.slot.parent].image
        return image.subordinate_bus


def _slot(pf: Function, inside: PciFunction) -> Function:
    """The virtual function as if the topology had it."""
    config = bytes(inside.raw.data)
    return replace(
        pf,
        bdf=inside.address,
        driver="",
        image=None,
        bars={number: bar.size for number, bar in inside.description.bars.items()},
        writable={},
        vf_bars={},
        vf_image=None,
        rom=0,
        reset_methods=("flr",) if sriov.can_reset(config) else (),
        cdev=None,
        irq=0,
    )
