"""The tree under /sys that shows a machine: buses, devices, IOMMU groups, classes, modules.

What Linux 7.3 shows there of vfio-pci, iommufd and the PCI functions, apart from what only tells
how that Linux was built or found its devices.

Not here: the directories of the PCI functions themselves (sysfs_pci.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from iommufs.fuse.nodes import Dir, Link, Node, TextFile, place
from iommufs.iommufd.iommu import ReservedRegion
from iommufs.pci_image import CAP_EXPRESS, ConfigImage
from iommufs.sysfs_pci import FunctionDir, button, power, refuse, text
from iommufs.topology import Function

VFIO_DRIVER = "vfio-pci"
PARAMETERS = {
    "iommufd": {"allow_unsafe_interrupts": 0o644},
    "vfio_pci": {
        "disable_denylist": 0o444,
        "disable_idle_d3": 0o644,
        "enable_sriov": 0o644,
        "nointxmask": 0o644,
    },
}
VFIO_VERSION = "0.3"


@dataclass(frozen=True)
class Misc:
    """A misc device: its name, its numbers, and its node in /dev."""

    name: str
    rdev: tuple[int, int]
    node: str
    mode: int


def build(machine: Any, miscs: Sequence[Misc], cdev_major: int, group_major: int) -> Dir:
    """The tree of a machine.Machine."""
    return _Builder(machine, miscs, cdev_major, group_major).build()


class _Builder:
    def __init__(
        self, machine: Any, miscs: Sequence[Misc], cdev_major: int, group_major: int
    ) -> None:
        self._machine = machine
        self._topology = machine.topology
        self._miscs = miscs
        self._cdev_major = cdev_major
        self._group_major = group_major
        self._cdevs = {device.function.address: device for device in machine.devices}
        self._sys = Dir()

    def build(self) -> Dir:
        for function in self._topology.functions:
            self._add_function(function)
        self._add_drivers()
        for number, members in self._topology.groups.items():
            self._add_group(number, members)
        self._add_iommu()
        for misc in self._miscs:
            self._add_misc(misc)
        for minor, group in enumerate(self._machine.vfio_groups):
            self._add_vfio_group(f"{self._group_major}:{minor}", group)
        self._add_modules()
        return self._sys

    def _place(self, path: str, node: Node) -> None:
        place(self._sys, path, node)

    def _path(self, function: Function) -> str:
        return f"devices/{self._topology.path(function)}"

    # -- functions --------------------------------------------------------------------------------

    def _add_function(self, function: Function) -> None:
        path = self._path(function)
        device = self._cdevs.get(function.bdf)
        if device is not None:
            inside = device.function
            directory = FunctionDir(
                function,
                config=lambda: bytes(inside.raw.data),
                sizes={number: bar.size for number, bar in inside.description.bars.items()},
                bound=lambda: device.bound is not None,
                power_state=lambda: inside.power,
                depth=path.count("/") + 1,
                has_ari=self._has_ari(function),
                iommu=self._machine.iommu.instance,
            )
        else:
            image = function.image
            assert image is not None, "a function without a model has an image"
            directory = FunctionDir(
                function,
                config=lambda: image.data,
                sizes=function.bars,
                bound=None,
                power_state=lambda: 0,
                depth=path.count("/") + 1,
                has_ari=self._has_ari(function),
                iommu=self._machine.iommu.instance,
            )
        for name, node in directory.entries().items():
            self._place(f"{path}/{name}", node)
        self._place(f"bus/pci/devices/{function.bdf}", Link(f"../../../{path}"))
        if device is not None:
            self._add_cdev(path, device)

    def _has_ari(self, function: Function) -> bool:
        """Whether the bridge above forwards to functions beyond 7 (its Device Control 2)."""
        if function.parent is None:
            return False
        image: ConfigImage = self._topology.function(function.parent).image
        at = image.capabilities.get(CAP_EXPRESS)
        return at is not None and bool(image.u16(at + 0x28) & 0x20)

    def _add_cdev(self, function_path: str, device: Any) -> None:
        name = f"vfio{device.index}"
        path = f"{function_path}/vfio-dev/{name}"
        bdf = device.function.address
        number = f"{self._cdev_major}:{device.index}"
        up = "../" * (path.count("/") + 1)
        uevent = f"MAJOR={self._cdev_major}\nMINOR={device.index}\nDEVNAME=vfio/devices/{name}"
        self._place(f"{path}/dev", text(number))
        self._place(f"{path}/device", Link(f"../../../{bdf}"))
        self._place(f"{path}/power", power("auto", lambda: "unsupported"))
        self._place(f"{path}/subsystem", Link(f"{up}class/vfio-dev"))
        self._place(f"{path}/uevent", text(uevent, 0o644))
        self._place(f"class/vfio-dev/{name}", Link(f"../../{path}"))
        self._place(f"dev/char/{number}", Link(f"../../{path}"))

    # -- drivers and modules ----------------------------------------------------------------------

    def _add_drivers(self) -> None:
        for name in ("uevent", "rescan", "drivers_probe"):
            self._place(f"bus/pci/{name}", button())
        self._place("bus/pci/drivers_autoprobe", text("1", 0o644))
        drivers = {function.driver for function in self._topology.functions if function.driver}
        for driver in sorted(drivers | {VFIO_DRIVER}):
            path = f"bus/pci/drivers/{driver}"
            for name in ("bind", "new_id", "remove_id", "uevent", "unbind"):
                self._place(f"{path}/{name}", button())
        for function in self._topology.functions:
            if function.driver:
                path = f"bus/pci/drivers/{function.driver}/{function.bdf}"
                self._place(path, Link(f"../../../../{self._path(function)}"))
        self._place(f"bus/pci/drivers/{VFIO_DRIVER}/module", Link("../../../../module/vfio_pci"))

    def _add_modules(self) -> None:
        for module, parameters in PARAMETERS.items():
            self._place(f"module/{module}/uevent", button())
            for name, mode in parameters.items():
                self._place(f"module/{module}/parameters/{name}", text("N", mode))
        self._place("module/vfio/uevent", button())
        self._place("module/vfio/version", text(VFIO_VERSION))
        self._place(
            f"module/vfio_pci/drivers/pci:{VFIO_DRIVER}",
            Link(f"../../../bus/pci/drivers/{VFIO_DRIVER}"),
        )

    # -- IOMMU ------------------------------------------------------------------------------------

    def _add_group(self, number: int, members: tuple[Function, ...]) -> None:
        path = f"kernel/iommu_groups/{number}"
        for function in members:
            link = Link(f"../../../../{self._path(function)}")
            self._place(f"{path}/devices/{function.bdf}", link)
        lines = "".join(_region_line(region) for region in self._reserved(members))
        self._place(f"{path}/reserved_regions", TextFile(lines.encode))
        self._place(f"{path}/type", text("DMA", 0o644))

    def _reserved(self, members: tuple[Function, ...]) -> Iterator[ReservedRegion]:
        iommu, functions = self._machine.iommu, self._machine.functions
        regions = itertools.chain.from_iterable(
            iommu.reserved_regions(functions[function.bdf]) for function in members
        )
        seen = dict.fromkeys(regions)
        yield from sorted(seen, key=lambda region: region.start)

    def _add_iommu(self) -> None:
        path = f"devices/virtual/iommu/{self._machine.iommu.instance}"
        for function in self._topology.functions:
            link = Link(f"../../../../{self._path(function).removeprefix('devices/')}")
            self._place(f"{path}/devices/{function.bdf}", link)
        self._place(f"{path}/power", power("auto", lambda: "unsupported"))
        self._place(f"{path}/subsystem", Link("../../../../class/iommu"))
        self._place(f"{path}/uevent", TextFile(bytes, refuse, 0o644))
        self._place(f"class/iommu/{self._machine.iommu.instance}", Link(f"../../{path}"))

    # -- misc devices: iommufd, the VFIO container ----------------------------------------------

    def _add_misc(self, misc: Misc) -> None:
        major, minor = misc.rdev
        uevent = f"DEVNAME={misc.node}\nDEVMODE={misc.mode:04o}"
        self._add_virtual("misc", misc.name, f"{major}:{minor}", uevent)

    def _add_vfio_group(self, number: str, group: int) -> None:
        self._add_virtual("vfio", str(group), number, f"DEVNAME=vfio/{group}")

    def _add_virtual(self, kind: str, name: str, number: str, uevent: str) -> None:
        """A character device without hardware. `uevent`: what that says besides its numbers."""
        major, minor = number.split(":")
        path = f"devices/virtual/{kind}/{name}"
        uevent = f"MAJOR={major}\nMINOR={minor}\n{uevent}"
        self._place(f"{path}/dev", text(number))
        self._place(f"{path}/power", power("auto", lambda: "unsupported"))
        self._place(f"{path}/subsystem", Link(f"../../../../class/{kind}"))
        self._place(f"{path}/uevent", text(uevent, 0o644))
        self._place(f"class/{kind}/{name}", Link(f"../../{path}"))
        self._place(f"dev/char/{number}", Link(f"../../{path}"))


def _region_line(region: ReservedRegion) -> str:
    kind = region.type.name.lower().replace("_", "-").replace("sw-msi", "msi")
    return f"0x{region.start:016x} 0x{region.last:016x} {kind}\n"
