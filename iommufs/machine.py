"""From a topology to living objects: IOMMU, groups, functions, VFIO devices, and the tree of files.

One machine for each mount. Its background work (tasks of models, stores to mapped BARs) runs in
run(), beside the server.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
import trio

from iommufs import device_options, fast, sysfs
from iommufs.devices import MODELS
from iommufs.files import OpenFiles
from iommufs.fuse.nodes import DeviceNode, Dir, Link, place, walk
from iommufs.iommu.amd import Amd
from iommufs.iommu.mock import MockIommu
from iommufs.iommu.vtd import Vtd
from iommufs.iommufd.ctx import Ctx
from iommufs.iommufd.ctx import statistics as iommufd_statistics
from iommufs.iommufd.iommu import Iommu, IommuGroup, RegionType, ReservedRegion
from iommufs.iommufd.mmap import Arena
from iommufs.topology import Function, Topology, TopologyError
from iommufs.vfio import refused, reset, watch
from iommufs.vfio.device import DevSet, VfioDevice
from iommufs.vfio.function import PciFunction
from iommufs.vfio.group import VfioGroup
from iommufs.vfio.model import Host, Model

log = structlog.get_logger(__name__)

IOMMUS: dict[str, type[Iommu]] = {"vtd": Vtd, "amd": Amd}

# As Linux numbers them: fixed for misc devices, the first free majors for the cdevs and the groups.
IOMMU = sysfs.Misc("iommu", (10, 258), "iommu", 0o660)
CONTAINER = sysfs.Misc("vfio", (10, 196), "vfio/vfio", 0o666)
CDEV_MAJOR = 251
GROUP_MAJOR = 252


@dataclass(frozen=True)
class HostFunction:
    """A function that belongs to the machine's own drivers: no client ever reaches it."""

    address: str
    iommu: Iommu
    group: IommuGroup


def load(path: str | None, devices: Sequence[str] = ()) -> Machine:
    """The machine of device_options.topology(); TopologyError."""
    return Machine(device_options.topology(path, devices))


class Machine:
    """All objects of one mount.

    root       what to serve
    files      what is open of it
    functions  by address
    devices    those with a cdev, in the order of their numbers
    groups     all IOMMU groups by number; `vfio_groups`: those with devices, in the order of their
               minor numbers
    """

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self.files = OpenFiles()
        self._nursery: trio.Nursery | None = None
        self.iommu = self._make_iommu()
        self._mock = MockIommu() if topology.test else None
        self._arena = Arena() if topology.test else None  # only the mock has what can be mapped
        self.groups = {number: IommuGroup(number) for number in topology.groups}
        self.functions: dict[str, PciFunction | HostFunction] = {}
        self.devices: list[VfioDevice] = []
        self.vfio_groups: dict[int, VfioGroup] = {}
        dev_sets: dict[tuple[str, ...], DevSet] = {}
        for function in topology.functions:
            if function.cdev is None:
                group = self.groups[function.group]
                self.functions[function.bdf] = HostFunction(function.bdf, self.iommu, group)
                continue
            made = self._make_function(function)
            self.functions[function.bdf] = made
            dev_set = DevSet({bdf: topology.function(bdf).group for bdf in function.hot_reset})
            if function.hot_reset:
                dev_set = dev_sets.setdefault(function.hot_reset, dev_set)
            vfio_group = VfioGroup(self.groups[function.group], self.files)
            vfio_group = self.vfio_groups.setdefault(function.group, vfio_group)
            self.devices.append(VfioDevice(function.cdev, made, dev_set, vfio_group, self.files))
        self.root = self._make_root()

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

    def _make_function(self, function: Function) -> PciFunction:
        try:
            model = MODELS[function.model]
        except KeyError:
            there = ", ".join(sorted(MODELS))
            raise TopologyError(
                f"{function.label}: model: expected one of {there}, got {function.model!r}"
            ) from None
        for name in function.options:
            if name not in model.options:
                there = ", ".join(model.options) or "none"
                raise TopologyError(
                    f"{function.label}: options.{name}: no option of {function.model}; "
                    f"there is: {there}"
                )
        options = dict(function.options)
        if function.model == "inert":
            options["description"] = function.description()

        def make_model(host: Host) -> Model:
            return model(host, options)

        try:
            return PciFunction(
                function.bdf,
                make_model,
                spawn=self.spawn,
                can_reset=reset.works_alone(function.reset_methods, function.hot_reset),
                iommu=self.iommu,
                group=self.groups[function.group],
                config=function.image.data if function.image is not None else b"",
            )
        except ValueError as error:
            raise TopologyError(f"{function.label}: {function.model}: {error}") from None

    def _make_root(self) -> Dir:
        root = Dir()
        mapped = self._arena.fd if self._arena is not None else None
        for misc, open_file in (IOMMU, self._open_iommufd), (CONTAINER, self._open_container):
            node = DeviceNode(misc.mode, misc.rdev, open_file, mapped)
            place(root, f"dev/{misc.node}", node)
        place(root, "dev/vfio/devices", Dir())
        for device in self.devices:
            place(
                root,
                f"dev/vfio/devices/vfio{device.index}",
                DeviceNode(0o600, (CDEV_MAJOR, device.index), device.open, device.backing_fd),
            )
        for minor, group in enumerate(self.vfio_groups.values()):
            node = DeviceNode(0o600, (GROUP_MAJOR, minor), group.open)
            place(root, f"dev/vfio/{group.number}", node)
        _place_numbers(root)
        root.entries["sys"] = sysfs.build(self, (IOMMU, CONTAINER), CDEV_MAJOR, GROUP_MAJOR)
        return root

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
            await watch.pump()

    def spawn(self, task: Callable[[], Awaitable[None]]) -> Callable[[], None]:
        """Run an async function in the background; what is returned cancels it."""
        assert self._nursery is not None, "the machine runs while clients are served"
        scope = trio.CancelScope()
        self._nursery.start_soon(_run_in, scope, task)
        return scope.cancel

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
            "owned_groups": [number for number, group in self.groups.items() if group.owned],
            "functions": {
                device.function.address: device.function.statistics() for device in self.devices
            },
        }


def _place_numbers(root: Dir) -> None:
    """dev/char, where udev links every device node by its number."""
    for path, node in list(walk(root)):
        if isinstance(node, DeviceNode):
            major, minor = node.rdev
            place(root, f"dev/char/{major}:{minor}", Link(f"../{path.removeprefix('dev/')}"))


async def _run_in(scope: trio.CancelScope, task: Callable[[], Awaitable[None]]) -> None:
    """A task that fails ends alone: the machine goes on serving."""
    with scope:
        try:
            await task()
        except Exception:
            log.exception("a background task failed")
