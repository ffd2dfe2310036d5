"""What /sys shows of mediated devices: their driver's one device with its types, and the bus mdev.

As Linux 7.3 shows those of its sample driver mtty, but that none can be made or removed there.
"""

from __future__ import annotations

from collections.abc import Callable

from iommufs.fuse.nodes import Dir, Link, Node, TextFile
from iommufs.sysfs_attrs import Power, button, check_uevent, text, uevent
from iommufs.vfio.device import VfioDevice
from iommufs.vfio.model import Mediated

Place = Callable[[str, Node], None]


def path_of(device: VfioDevice) -> str:
    """Its directory."""
    kind: Mediated = device.function.description.mediated
    return f"devices/virtual/{kind.parent}/{kind.parent}/{device.function.address}"


def add(place: Place, device: VfioDevice, *, is_first: bool, is_first_of_type: bool) -> None:
    """All but its vfio-dev/ and its group."""
    kind: Mediated = device.function.description.mediated
    uuid = device.function.address
    parent = f"devices/virtual/{kind.parent}/{kind.parent}"
    type_name = f"{kind.parent}-{kind.type}"
    if is_first:
        _add_parent(place, kind.parent)
    if is_first_of_type:
        _add_type(place, f"{parent}/mdev_supported_types/{type_name}", kind)
    path = f"{parent}/{uuid}"
    place(f"{path}/driver", Link(f"../../../../../bus/mdev/drivers/{kind.parent}"))
    place(f"{path}/iommu_group", Link(f"../../../../../kernel/iommu_groups/{device.group.number}"))
    place(f"{path}/mdev_type", Link(f"../mdev_supported_types/{type_name}"))
    place(f"{path}/power", Power().directory())
    place(f"{path}/subsystem", Link("../../../../../bus/mdev"))
    place(f"{path}/uevent", uevent(f"DRIVER={kind.parent}"))
    place(f"{path}/vendor/sample_mdev_dev", text(f"This is MDEV {uuid}"))
    place(f"{parent}/mdev_supported_types/{type_name}/devices/{uuid}", Link(f"../../../{uuid}"))
    place(f"bus/mdev/devices/{uuid}", Link(f"../../../{path}"))
    place(f"bus/mdev/drivers/{kind.parent}/{uuid}", Link(f"../../../../{path}"))
    _add_group(place, device, path)


def _add_parent(place: Place, name: str) -> None:
    path = f"devices/virtual/{name}/{name}"
    place(f"{path}/power", Power().directory())
    place(f"{path}/subsystem", Link(f"../../../../class/{name}"))
    place(f"{path}/uevent", uevent(None))
    place(f"class/{name}/{name}", Link(f"../../{path}"))
    place(f"bus/mdev/drivers/{name}/uevent", button(check_uevent))


def _add_type(place: Place, path: str, kind: Mediated) -> None:
    place(f"{path}/available_instances", text("0"))
    place(f"{path}/device_api", text("vfio-pci"))
    place(f"{path}/name", text(kind.name))


def _add_group(place: Place, device: VfioDevice, path: str) -> None:
    """The group that its driver has made: without an IOMMU there is nothing more to say."""
    group = f"kernel/iommu_groups/{device.group.number}"
    place(f"{group}/devices/{device.function.address}", Link(f"../../../../{path}"))
    place(f"{group}/name", text("vfio-noiommu"))
    place(f"{group}/reserved_regions", TextFile(bytes))
    place(f"{group}/type", text("unknown"))


def bus_entries() -> Dir:
    """An empty bus mdev."""
    return Dir({"devices": Dir(), "drivers": Dir(), "uevent": button(check_uevent)})
