"""From a topology to living objects: IOMMU, groups, functions, VFIO devices, and the tree of files.

One machine for each mount. Its background work (tasks of models, stores to mapped BARs) runs in
run(), beside the server.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import trio

from iommufs import baton, device_options, fast, logs, models, sysfs
from iommufs.files import OpenFiles
from iommufs.fuse.nodes import DeviceNode, Dir, Link, Unlisted, lookup, place, remove
from iommufs.iommu.amd import Amd
from iommufs.iommu.mock import MockIommu
from iommufs.iommu.vtd import Vtd
from iommufs.iommufd.ctx import Ctx
from iommufs.iommufd.ctx import statistics as iommufd_statistics
from iommufs.iommufd.iommu import Iommu, IommuGroup, RegionType, ReservedRegion
from iommufs.iommufd.mmap import Arena
from iommufs.pci_bus import HostDriver, HostFunction, PciBus, PciDev, PciId
from iommufs.pci_sriov import VirtualFunctions
from iommufs.topology import Function, Mediated, Topology, TopologyError
from iommufs.vfio import native, refused, reset, sriov, watch
from iommufs.vfio.device import DevSet, VfioDevice
from iommufs.vfio.function import PciFunction
from iommufs.vfio.group import VfioGroup
from iommufs.vfio.mediated import MediatedDevice, MediatedFunction
from iommufs.vfio.model import Host, Model
from iommufs.vfio_pci import VfioPci

log = logs.get(__name__)

IOMMUS: dict[str, type[Iommu]] = {"vtd": Vtd, "amd": Amd}

# As Linux numbers them: fixed for misc devices, the first free majors for the cdevs and the groups.
IOMMU = sysfs.Misc("iommu", (10, 258), "iommu", 0o660)
CONTAINER = sysfs.Misc("vfio", (10, 196), "vfio/vfio", 0o666)
CDEV_MAJOR = 251
GROUP_MAJOR = 252


def load(path: str | None, devices: Sequence[str] = ()) -> Machine:
    """The machine of device_options.topology(); TopologyError."""
    return Machine(device_options.topology(path, devices))


class Machine:
    """All objects of one mount.

    root       what to serve
    files      what is open of it
    bus        the functions that Linux has found, and their drivers
    vfio_pci   the driver that gives them to clients
    mediated   devices that are no functions
    """

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self.files = OpenFiles()
        self.mediated: list[VfioDevice] = []
        self._nursery: trio.Nursery | None = None
        self.iommu = self._make_iommu()
        self._mock = MockIommu() if topology.test else None
        self._arena = Arena() if topology.test else None  # only the mock has what can be mapped
        insides = {function.bdf: self._make_inside(function) for function in topology.functions}
        self.bus = PciBus({function.bdf: function for function in topology.functions}, insides)
        self.virtual_functions = VirtualFunctions(self.bus, self._make_vf)
        self.vfio_pci = VfioPci(self.bus, self.files, self.virtual_functions)
        self._add_drivers()
        self.root = Dir()
        self.sysfs = sysfs.Sysfs(self, (IOMMU, CONTAINER), CDEV_MAJOR, GROUP_MAJOR)
        self.root.entries["sys"] = self.sysfs.sys
        self._add_nodes()
        self.bus.view = self.sysfs
        self.vfio_pci.nodes = self
        self._boot()

    @property
    def functions(self) -> dict[str, PciFunction | HostFunction]:
        """What is inside of the functions that Linux has found, by address."""
        return {dev.address: dev.inside for dev in self.bus.devs.values()}

    @property
    def devices(self) -> list[VfioDevice]:
        """Those with a cdev, in the order of their numbers."""
        return sorted(self.vfio_pci.devices + self.mediated, key=lambda device: device.index)

    @property
    def groups(self) -> dict[int, IommuGroup]:
        """All IOMMU groups, by number."""
        return self.bus.groups

    @property
    def vfio_groups(self) -> dict[int, VfioGroup]:
        """Those with VFIO devices, in the order of their minor numbers."""
        places = sorted(self.vfio_pci.groups.items(), key=lambda item: item[1].minor)
        return {number: place.group for number, place in places}

    def _add_drivers(self) -> None:
        """vfio-pci, and those that the topology names, each for the functions that it has there."""
        owned: dict[str, set[PciId]] = {}
        for function in self.topology.functions:
            if function.driver not in ("", self.vfio_pci.name):
                image = PciDev(function, self.bus.insides[function.bdf]).image
                ids = owned.setdefault(function.driver, set())
                ids.add(PciId(image.vendor, image.device))
        for name, ids in owned.items():
            by_number = sorted(ids, key=lambda id: (id.vendor, id.device))
            self.bus.drivers[name] = HostDriver(name, by_number)
        self.bus.drivers[self.vfio_pci.name] = self.vfio_pci

    def _boot(self) -> None:
        """Linux finds the functions; then each gets the driver that the topology says."""
        devs = {f.bdf: PciDev(f, self.bus.insides[f.bdf]) for f in self.topology.functions}
        for _, dev in sorted(devs.items()):
            self.bus.add(dev, dev.slot.group)
        for dev in devs.values():
            if dev.slot.driver == self.vfio_pci.name:
                dev.driver_override = self.vfio_pci.name
            if dev.slot.driver:
                self.bus.attach(self.bus.drivers[dev.slot.driver], dev)
        for slot in self.topology.mediated:
            self._make_mediated(slot)

    def _fail(self, key: str, expected: str) -> TopologyError:
        return TopologyError(f"{self.topology.source}: {key}: {expected}")

    def _make_iommu(self) -> Iommu:
        kind = self.topology.iommu_kind
        if kind not in IOMMUS:
            raise self._fail("iommu.kind", f"expected one of {', '.join(IOMMUS)}, got {kind!r}")
        if self.topology.iommu_options:
            raise self._fail("iommu.options", f"expected none for {kind}")
        return IOMMUS[kind](
            ReservedRegion(r.start, r.last, RegionType[r.type.upper().replace("-", "_")])
            for r in self.topology.reserved
        )

    def _make_inside(self, function: Function) -> PciFunction | HostFunction:
        """Groups come when Linux finds the function."""
        if function.image is not None and function.image.is_bridge:
            return HostFunction(function.bdf, self.iommu, IommuGroup(function.group))
        return self._make_function(function)

    def _make_vf(
        self, slot: Function, pf: PciFunction, index: int, address: str, ids: tuple[int, int]
    ) -> PciFunction:
        """Virtual function `index` as the model of the physical one makes it, or an inert one."""
        config = slot.vf_image.data if slot.vf_image is not None else b""

        def make_model(host: Host) -> Model:
            made = pf.model.make_vf(host, index)
            if made is None:
                description = sriov.describe(pf, slot.vf_bars, config)
                made = models.find("inert")(host, {"description": description})
            return made

        return PciFunction(
            *(address, make_model),
            spawn=self.spawn,
            config=config,
            can_reset=True,
            iommu=self.iommu,
            vf_ids=ids,
        )

    @staticmethod
    def _find_model(slot: Function | Mediated) -> type[Model]:
        """The model of a device, which knows the options that are given."""
        try:
            model = models.find(slot.model)
        except models.ModelError as error:
            raise TopologyError(f"{slot.label}: model: {error}") from error
        for name in slot.options:
            if name not in model.options:
                there = ", ".join(model.options) or "none"
                raise TopologyError(
                    f"{slot.label}: options.{name}: no option of {slot.model}; there is: {there}"
                )
        return model

    def _make_function(self, function: Function) -> PciFunction:
        model = self._find_model(function)
        options = dict(function.options)
        if function.model == "inert":
            options["description"] = function.description()
            options["contents"] = function.contents

        def make_model(host: Host) -> Model:
            inside = model(host, options)
            if getattr(inside.describe(), "mediated", None):
                raise ValueError("it is no PCI function: it goes under [[mediated]]")
            return inside

        with _refusals(function):
            return PciFunction(
                function.bdf,
                make_model,
                spawn=self.spawn,
                can_reset=reset.works_alone(function.reset_methods, function.hot_reset),
                iommu=self.iommu,
                group=IommuGroup(function.group),
                config=function.image.data if function.image is not None else b"",
                has_vga=function.vga,
            )

    def _make_mediated(self, slot: Mediated) -> None:
        """A device without an IOMMU; a driver of its own has made its group for it alone."""
        model = self._find_model(slot)
        with _refusals(slot):
            made = MediatedFunction(
                slot.uuid, lambda host: model(host, dict(slot.options)), spawn=self.spawn
            )
            if not made.description.mediated:
                raise ValueError("it is a PCI function: it goes under [[function]]")
        iommu_group = self.bus.groups[slot.group] = IommuGroup(slot.group)
        group = self.vfio_pci.add_group(iommu_group)
        device = MediatedDevice(self.vfio_pci.take_index(), made, DevSet(), group, self.files)
        self.mediated.append(device)
        self._add_cdev(device)
        self.sysfs.add_mediated(device)

    # -- /dev -------------------------------------------------------------------------------------

    def _add_nodes(self) -> None:
        mapped = self._arena.fd if self._arena is not None else None
        for misc, open_file in (IOMMU, self._open_iommufd), (CONTAINER, self._open_container):
            node = DeviceNode(misc.mode, misc.rdev, open_file, mapped)
            self._add_node(misc.node, node)
        place(self.root, "dev/vfio/devices", Dir())
        # A second place, for who cannot have a lookup of ours in /dev itself (namespace.py).
        directory, iommu = lookup(self.root, "dev/vfio"), lookup(self.root, f"dev/{IOMMU.node}")
        assert isinstance(directory, Dir), "dev/vfio is a directory"
        assert isinstance(iommu, DeviceNode), "it was just placed"
        directory.more = Unlisted({IOMMU.node: iommu})

    def _add_node(self, path: str, node: DeviceNode) -> None:
        """A node, and in char/ the link by its number that udev makes for each."""
        major, minor = node.rdev
        place(self.root, f"dev/{path}", node)
        place(self.root, f"dev/char/{major}:{minor}", Link(f"../{path}", len(path) + 3))

    def _remove_node(self, path: str) -> None:
        node = lookup(self.root, f"dev/{path}")
        assert isinstance(node, DeviceNode), f"{path} is a node"
        major, minor = node.rdev
        remove(self.root, f"dev/char/{major}:{minor}")
        remove(self.root, f"dev/{path}")

    def add_device(self, dev: PciDev, device: VfioDevice) -> None:
        """A function has got a cdev."""
        self._add_cdev(device)
        self.sysfs.add_device(dev, device)

    def _add_cdev(self, device: VfioDevice) -> None:
        rdev = (CDEV_MAJOR, device.index)
        node = DeviceNode(0o600, rdev, device.open, device.backing_fd, mappings=device.mappings)
        self._add_node(f"vfio/devices/vfio{device.index}", node)

    def remove_device(self, dev: PciDev, device: VfioDevice) -> None:
        self._remove_node(f"vfio/devices/vfio{device.index}")
        self.sysfs.remove_device(dev, device)

    def add_group(self, group: VfioGroup, minor: int) -> None:
        """A group has got its first device."""
        self._add_node(f"vfio/{group.number}", DeviceNode(0o600, (GROUP_MAJOR, minor), group.open))
        self.sysfs.add_group(group, minor)

    def remove_group(self, group: VfioGroup, minor: int) -> None:
        self._remove_node(f"vfio/{group.number}")
        self.sysfs.remove_group(group, minor)

    def _open_iommufd(self, flags: int) -> Ctx:
        return Ctx(test_ops=self._mock, files=self.files, arena=self._arena)

    def _open_container(self, flags: int) -> Ctx:
        """As with CONFIG_IOMMUFD_VFIO_CONTAINER: an iommufd whose pages count as type1's did."""
        return Ctx(test_ops=self._mock, files=self.files, arena=self._arena, mm_mode=True)

    # -- background work --------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled; the models' tasks end with it."""
        async with trio.open_nursery() as self._nursery:
            self._nursery.start_soon(refused.pump)
            self._nursery.start_soon(native.pump)
            await watch.pump()

    def spawn(self, task: Callable[[], Awaitable[None]]) -> Callable[[], None]:
        """Run an async function in the background; what is returned cancels it."""
        assert self._nursery is not None, "the machine runs while clients are served"
        scope = trio.CancelScope()
        baton.in_loop(self._nursery.start_soon, _run_in, scope, task)
        return functools.partial(baton.in_loop, scope.cancel)

    # -- what lives -------------------------------------------------------------------------------

    def statistics(self) -> dict[str, Any]:
        """Everything that clients make and that must go with them, and counters of each device."""
        refused.drain()
        return {
            "iommufd": iommufd_statistics(),
            "requests": fast.counts(),
            "files": len(self.files),
            "bound": [f"vfio{device.index}" for device in self.devices if device.bound],
            "open_groups": [number for number, group in self.vfio_groups.items() if group.opened],
            "owned_groups": [n for n, group in self.groups.items() if group.owned_by_client],
            "functions": {
                device.function.address: device.function.statistics() for device in self.devices
            },
        }


@contextmanager
def _refusals(slot: Function | Mediated) -> Iterator[None]:
    """What a model refuses, or fails with, is a fault of the topology."""
    try:
        yield
    except ValueError as error:  # which is how a model refuses an option
        raise TopologyError(f"{slot.label}: {slot.model}: {error}") from error
    except (Exception, SystemExit) as error:
        log.debug("a device model failed", device=slot.label, call="making", exc_info=error)
        raise TopologyError(f"{slot.label}: {slot.model}: {models.why(error)}") from error


async def _run_in(scope: trio.CancelScope, task: Callable[[], Awaitable[None]]) -> None:
    """A task that fails ends alone: the machine goes on serving."""
    with scope:
        try:
            await task()
        except Exception:
            log.exception("a background task failed")
