"""The tree under /sys that shows a machine: buses, devices, IOMMU groups, classes, modules.

What Linux 7.3 shows there of vfio-pci, iommufd and the PCI functions, apart from what only tells
how that Linux was built or found its devices. Functions, devices and groups appear and vanish as
the bus and vfio-pci tell it.

Not here: the directories of the PCI functions themselves (sysfs_pci.py).
"""

from __future__ import annotations

import errno
import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from iommufs import sysfs_mdev
from iommufs.errors import UapiError
from iommufs.fuse.nodes import Dir, Link, Node, TextFile, lookup, place, remove
from iommufs.iommufd.iommu import IommuGroup, ReservedRegion
from iommufs.pci_bus import Driver, PciDev
from iommufs.pci_ids import new_id, remove_id
from iommufs.pci_image import CAP_EXPRESS
from iommufs.sysfs_attrs import (
    Power,
    boolean,
    button,
    check_uevent,
    if_true,
    string,
    text,
    uevent,
)
from iommufs.sysfs_pci import FunctionDir
from iommufs.vfio.device import VfioDevice
from iommufs.vfio.group import VfioGroup
from iommufs.vfio.model import Mediated

VFIO_VERSION = "0.3"
GROUP_TYPES = ("DMA", "DMA-FQ", "identity", "auto")
_DEVICE_CONTROL_2, _ARI_FORWARDING = 0x28, 0x20


@dataclass(frozen=True)
class Misc:
    """A misc device: its name, its numbers, and its node in /dev."""

    name: str
    rdev: tuple[int, int]
    node: str
    mode: int


class Sysfs:
    """The tree of a machine.Machine; `sys` is its top."""

    def __init__(
        self, machine: Any, miscs: Sequence[Misc], cdev_major: int, group_major: int
    ) -> None:
        self._machine = machine
        self._topology = machine.topology
        self._bus = machine.bus
        self._cdev_major = cdev_major
        self._group_major = group_major
        self._groups: set[int] = set()
        self._mediated: list[Mediated] = []
        self.sys = Dir()
        for directory in ("class/vfio-dev", "devices/virtual/vfio", "class/vfio"):
            self._place(directory, Dir())
        self._place("bus/pci/devices", Dir())
        self._place("kernel/iommu_groups", Dir())
        self._add_bus()
        for driver in sorted(self._bus.drivers.values(), key=lambda driver: driver.name):
            self._add_driver(driver)
        self._add_iommu()
        for misc in miscs:
            self._add_misc(misc)
        self._add_modules()

    def _entries(self, path: str) -> dict[str, Node]:
        node = lookup(self.sys, path)
        assert isinstance(node, Dir), f"{path} is a directory"
        return node.entries

    def _place(self, path: str, node: Node) -> None:
        place(self.sys, path, node)

    def _remove(self, path: str) -> None:
        remove(self.sys, path)

    # -- functions --------------------------------------------------------------------------------

    def _path(self, dev: PciDev) -> str:
        return f"devices/{self._topology.path(dev.slot)}"

    def _has_ari(self, dev: PciDev) -> bool:
        """Whether the bridge above forwards to functions beyond 7 (its Device Control 2)."""
        if dev.slot.parent is None:
            return False
        image = self._bus.devs[dev.slot.parent].image
        at = image.capabilities.get(CAP_EXPRESS)
        return at is not None and bool(image.u16(at + _DEVICE_CONTROL_2) & _ARI_FORWARDING)

    def add_function(self, dev: PciDev) -> None:
        """Linux has found a function."""
        path = self._path(dev)
        directory = FunctionDir(
            dev,
            self._bus,
            self._machine.virtual_functions,
            up="../" * (path.count("/") + 1),
            has_ari=self._has_ari(dev),
            iommu=self._machine.iommu.instance,
        )
        self._place(path, Dir(directory.entries()))
        self._place(f"bus/pci/devices/{dev.address}", Link(f"../../../{path}"))
        if dev.physfn is not None:
            virtfn = f"{self._path(dev.physfn)}/virtfn{dev.vf_index}"
            self._place(virtfn, Link(f"../{dev.address}"))
        if dev.group.number not in self._groups:
            self._add_group(dev.group)
        member = Link(f"../../../../{path}")
        self._place(f"kernel/iommu_groups/{dev.group.number}/devices/{dev.address}", member)
        iommu = f"devices/virtual/iommu/{self._machine.iommu.instance}/devices/{dev.address}"
        self._place(iommu, Link(f"../../../../{path.removeprefix('devices/')}"))

    def remove_function(self, dev: PciDev) -> None:
        """Linux has forgotten it."""
        number = dev.group.number
        self._remove(f"devices/virtual/iommu/{self._machine.iommu.instance}/devices/{dev.address}")
        self._remove(f"kernel/iommu_groups/{number}/devices/{dev.address}")
        if all(other.group is not dev.group for other in self._bus.devs.values()):
            self._remove(f"kernel/iommu_groups/{number}")
            self._groups.remove(number)
        if dev.physfn is not None:
            self._remove(f"{self._path(dev.physfn)}/virtfn{dev.vf_index}")
        self._remove(f"bus/pci/devices/{dev.address}")
        self._remove(self._path(dev))

    # -- drivers and modules ----------------------------------------------------------------------

    def _add_bus(self) -> None:
        bus = self._bus

        def set_autoprobe(data: bytes) -> None:
            bus.autoprobe = not data.startswith(b"0")

        def probe(data: bytes) -> Any:
            return bus.drivers_probe(string(data))

        autoprobe = text(lambda: str(int(bus.autoprobe)), 0o644, set_autoprobe)
        self._place("bus/pci/drivers_autoprobe", autoprobe)
        self._place("bus/pci/drivers_probe", button(probe))
        self._place("bus/pci/rescan", button(if_true(bus.rescan)))
        self._place("bus/pci/uevent", button(check_uevent))

    def _add_driver(self, driver: Driver) -> None:
        bus, path = self._bus, f"bus/pci/drivers/{driver.name}"
        buttons = {
            "bind": lambda data: bus.bind(driver, string(data)),
            "new_id": lambda data: new_id(bus, driver, string(data)),
            "remove_id": lambda data: remove_id(driver, string(data)),
            "uevent": check_uevent,
            "unbind": lambda data: bus.unbind(driver, string(data)),
        }
        for name, write in buttons.items():
            self._place(f"{path}/{name}", button(write))

    def bind(self, dev: PciDev) -> None:
        """A driver has got a function."""
        path, name = self._path(dev), dev.driver.name
        up = "../" * (path.count("/") + 1)
        self._place(f"{path}/driver", Link(f"{up}bus/pci/drivers/{name}"))
        self._place(f"bus/pci/drivers/{name}/{dev.address}", Link(f"../../../../{path}"))
        if "waiting_for_supplier" in self._entries(path):
            self._remove(f"{path}/waiting_for_supplier")

    def unbind(self, dev: PciDev) -> None:
        """A driver is about to lose it."""
        self._remove(f"{self._path(dev)}/driver")
        self._remove(f"bus/pci/drivers/{dev.driver.name}/{dev.address}")

    def _add_modules(self) -> None:
        parameters = {
            "iommufd": ({"allow_unsafe_interrupts": False}, ()),
            "vfio_pci": (self._machine.vfio_pci.parameters, ("disable_denylist",)),
        }
        for module, (values, fixed) in parameters.items():
            self._place(f"module/{module}/uevent", button(check_uevent))
            for name in values:
                path = f"module/{module}/parameters/{name}"
                self._place(path, _parameter(values, name, name in fixed))
        self._place("module/vfio/uevent", button(check_uevent))
        self._place("module/vfio/version", text(VFIO_VERSION))
        driver = self._machine.vfio_pci.name
        link = Link(f"../../../bus/pci/drivers/{driver}")
        self._place(f"module/vfio_pci/drivers/pci:{driver}", link)
        self._place(f"bus/pci/drivers/{driver}/module", Link("../../../../module/vfio_pci"))

    # -- VFIO -------------------------------------------------------------------------------------

    def add_device(self, dev: PciDev, device: VfioDevice) -> None:
        """A function has got a cdev."""
        self._add_vfio_dev(self._path(dev), device)

    def add_mediated(self, device: VfioDevice) -> None:
        """There is a device without an IOMMU, with its cdev."""
        if not self._mediated:
            self._place("bus/mdev", sysfs_mdev.bus_entries())
        kind = device.function.description.mediated
        sysfs_mdev.add(
            self._place,
            device,
            is_first=kind.parent not in {other.parent for other in self._mediated},
            is_first_of_type=kind not in self._mediated,
        )
        self._mediated.append(kind)
        self._add_vfio_dev(sysfs_mdev.path_of(device), device)

    def _add_vfio_dev(self, place: str, device: VfioDevice) -> None:
        name = f"vfio{device.index}"
        path = f"{place}/vfio-dev/{name}"
        number = f"{self._cdev_major}:{device.index}"
        up = "../" * (path.count("/") + 1)
        lines = f"MAJOR={self._cdev_major}\nMINOR={device.index}\nDEVNAME=vfio/devices/{name}"
        self._place(f"{path}/dev", text(number))
        self._place(f"{path}/device", Link(f"../../../{device.function.address}"))
        self._place(f"{path}/power", Power().directory())
        self._place(f"{path}/subsystem", Link(f"{up}class/vfio-dev"))
        self._place(f"{path}/uevent", uevent(lines))
        self._place(f"class/vfio-dev/{name}", Link(f"../../{path}"))
        self._place(f"dev/char/{number}", Link(f"../../{path}"))

    def remove_device(self, dev: PciDev, device: VfioDevice) -> None:
        self._remove(f"dev/char/{self._cdev_major}:{device.index}")
        self._remove(f"class/vfio-dev/vfio{device.index}")
        self._remove(f"{self._path(dev)}/vfio-dev")

    def add_group(self, group: VfioGroup, minor: int) -> None:
        """A group has got its first device."""
        number = f"{self._group_major}:{minor}"
        self._add_virtual("vfio", str(group.number), number, f"DEVNAME=vfio/{group.number}")

    def remove_group(self, group: VfioGroup, minor: int) -> None:
        self._remove(f"dev/char/{self._group_major}:{minor}")
        self._remove(f"class/vfio/{group.number}")
        self._remove(f"devices/virtual/vfio/{group.number}")

    # -- IOMMU ------------------------------------------------------------------------------------

    def _add_group(self, group: IommuGroup) -> None:
        path = f"kernel/iommu_groups/{group.number}"
        self._groups.add(group.number)

        def read_regions() -> bytes:
            return "".join(_region_line(region) for region in self._reserved(group)).encode()

        kept = ["DMA"]

        def set_type(data: bytes) -> None:
            """Source: iommu_group_store_type()"""
            wanted = string(data)
            if wanted not in GROUP_TYPES:
                raise UapiError(errno.EINVAL, f"{wanted!r}: expected one of {GROUP_TYPES}")
            if group.owned:
                raise UapiError(errno.EPERM, f"group {group.number} is in use")
            kept[0] = "DMA" if wanted == "auto" else wanted

        self._place(f"{path}/devices", Dir())
        self._place(f"{path}/reserved_regions", TextFile(read_regions))
        self._place(f"{path}/type", text(lambda: kept[0], 0o644, set_type))

    def _reserved(self, group: IommuGroup) -> Iterator[ReservedRegion]:
        members = [dev for dev in self._bus.devs.values() if dev.group is group]
        regions = itertools.chain.from_iterable(
            self._machine.iommu.reserved_regions(dev.inside) for dev in members
        )
        yield from sorted(dict.fromkeys(regions), key=lambda region: region.start)

    def _add_iommu(self) -> None:
        instance = self._machine.iommu.instance
        path = f"devices/virtual/iommu/{instance}"
        self._place(f"{path}/devices", Dir())
        self._place(f"{path}/power", Power().directory())
        self._place(f"{path}/subsystem", Link("../../../../class/iommu"))
        self._place(f"{path}/uevent", uevent(None))
        iommu = self._machine.iommu
        for name in iommu.shown(0):
            show = functools.partial(self._show_iommu, name)
            self._place(f"{path}/{iommu.shown_in}/{name}", text(show))
        self._place(f"class/iommu/{instance}", Link(f"../../{path}"))

    def _show_iommu(self, name: str) -> str:
        """Groups of the machine's have a page table each, those of clients what is attached."""
        groups = {dev.group for dev in self._bus.devs.values()}
        own = sum(not group.owned_by_client for group in groups)
        attached = {group.domain for group in groups} - {None}
        return self._machine.iommu.shown(own + len(attached))[name]

    # -- misc devices: iommufd, the VFIO container ------------------------------------------------

    def _add_misc(self, misc: Misc) -> None:
        major, minor = misc.rdev
        lines = f"DEVNAME={misc.node}\nDEVMODE={misc.mode:04o}"
        self._add_virtual("misc", misc.name, f"{major}:{minor}", lines)

    def _add_virtual(self, kind: str, name: str, number: str, lines: str) -> None:
        """A character device without hardware. `lines`: what uevent says besides its numbers."""
        major, minor = number.split(":")
        path = f"devices/virtual/{kind}/{name}"
        self._place(f"{path}/dev", text(number))
        self._place(f"{path}/power", Power().directory())
        self._place(f"{path}/subsystem", Link(f"../../../../class/{kind}"))
        self._place(f"{path}/uevent", uevent(f"MAJOR={major}\nMINOR={minor}\n{lines}"))
        self._place(f"class/{kind}/{name}", Link(f"../../{path}"))
        self._place(f"dev/char/{number}", Link(f"../../{path}"))


def _parameter(values: dict[str, bool], name: str, fixed: bool) -> TextFile:
    def show() -> str:
        return "Y" if values[name] else "N"

    def store(data: bytes) -> None:
        values[name] = boolean(data)

    return text(show) if fixed else text(show, 0o644, store)


def _region_line(region: ReservedRegion) -> str:
    kind = region.type.name.lower().replace("_", "-").replace("sw-msi", "msi")
    return f"0x{region.start:016x} 0x{region.last:016x} {kind}\n"
