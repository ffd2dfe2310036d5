"""Resets: of one function, and of all that hang on one bus or slot."""

import errno
import struct
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from iommufs import uapi
from iommufs.errors import UapiError
from iommufs.ucmd import Ucmd
from iommufs.vfio.group import GroupFile, VfioGroup


def works_alone(methods: Sequence[str], scope: Collection[str]) -> bool:
    """Whether a function with these reset methods can be reset alone.

    methods  as in /sys/bus/pci/devices/…/reset_method
    scope    the functions that a reset of its bus or slot hits: that way works for one of them only
    """
    return any(method not in ("bus", "cxl_bus") for method in methods) or (
        "bus" in methods and len(scope) == 1
    )


async def device_reset(ucmd: Ucmd) -> None:
    """Reset the function (VFIO_DEVICE_RESET).

    Errors: EINVAL  it cannot be reset alone      EIO  its model failed
    After:  registers of the function are as after power-on; what is in config space stays, and so
            does what SET_IRQS set up.
    Source: vfio_pci_ioctl_reset()
    """
    function = ucmd.file.function
    if not function.can_reset:
        raise UapiError(errno.EINVAL, f"{function.address} cannot be reset alone")
    function.reset_function()


def _place(address: str) -> tuple[int, int, int]:
    """Segment, bus and devfn of "0000:01:00.0"."""
    segment, bus, rest = address.split(":")
    device, function = rest.split(".")
    return int(segment, 16), int(bus, 16), int(device, 16) << 3 | int(function, 16)


def _devid(df: Any, address: str) -> int:
    """What GET_PCI_HOT_RESET_INFO calls a function, seen by one client: its id, OWNED, NOT_OWNED.

    Source: vfio_iommufd_get_dev_id()
    """
    device = df.device.dev_set.devices.get(address)
    if device is None:
        return uapi.VFIO_PCI_DEVID_NOT_OWNED
    ctx = df.iommu_device.ctx
    if device.bound and device.bound.iommu_device.ctx is ctx:
        return device.bound.iommu_device.id
    if device.function.group in ctx.groups:
        return uapi.VFIO_PCI_DEVID_OWNED
    return uapi.VFIO_PCI_DEVID_NOT_OWNED


def _scope(df: Any) -> Mapping[str, int]:
    scope = df.device.dev_set.scope
    if not scope:
        raise UapiError(errno.ENODEV, "neither its slot nor its bus can be reset")
    return scope


async def device_get_pci_hot_reset_info(ucmd: Ucmd) -> None:
    """Which functions a hot reset would hit (VFIO_DEVICE_GET_PCI_HOT_RESET_INFO).

    Out:    flags, count, devices: their ids, or their groups' numbers if the file came from a group
    Errors: ENODEV  there is no such reset      ENOSPC  no room in argsz; count is written
    Source: vfio_pci_ioctl_get_pci_hot_reset_info()
    """
    df, cmd = ucmd.file, ucmd.cmd
    scope = _scope(df)
    header = uapi.sizeof("vfio_pci_hot_reset_info")
    room = (ucmd.user_size - header) // uapi.sizeof("vfio_pci_dependent_device")
    cmd.flags, cmd.count = 0, len(scope)
    if room < len(scope):
        await ucmd.respond()
        raise UapiError(errno.ENOSPC, f"{len(scope)} functions")
    if df.by_group:
        ids = list(scope.values())
    else:
        ids = [_devid(df, address) for address in scope]
        cmd.flags = uapi.VFIO_PCI_HOT_RESET_FLAG_DEV_ID
        if uapi.VFIO_PCI_DEVID_NOT_OWNED not in ids:
            cmd.flags |= uapi.VFIO_PCI_HOT_RESET_FLAG_DEV_ID_OWNED
    entries = b"".join(
        struct.pack("<IHBB", id & 0xFFFFFFFF, *_place(address))
        for id, address in zip(ids, scope, strict=True)
    )
    await ucmd.caller.write(ucmd.arg + header, entries)
    await ucmd.respond()


async def _read_groups(ucmd: Ucmd) -> list[VfioGroup]:
    """The groups that the client has open and names behind the structure; EFAULT, EBADF, EINVAL."""
    cmd, groups = ucmd.cmd, []
    data = await ucmd.caller.read(ucmd.arg + uapi.sizeof("vfio_pci_hot_reset"), 4 * cmd.count)
    for (fd,) in struct.iter_unpack("<i", data):
        found = ucmd.file.device.files.resolve(ucmd.caller, fd)
        if not isinstance(found, GroupFile):
            raise UapiError(errno.EINVAL, f"fd {fd} is not a group's")
        groups.append(found.group)
    return groups


async def device_pci_hot_reset(ucmd: Ucmd) -> None:
    """Reset the bus or slot that the function is on (VFIO_DEVICE_PCI_HOT_RESET).

    In:     count, group_fds  the groups of all that is hit, if the file came from a group, else
                              none: what is the iommufd's is owned
    Errors: EINVAL  flags; fds or none; more fds than functions; not a group's; a function that is
                    hit is not a VFIO device, or not owned
            ENODEV  there is no such reset      EFAULT      EBADF
    Source: vfio_pci_ioctl_pci_hot_reset(), vfio_pci_dev_set_hot_reset()
    """
    df, cmd = ucmd.file, ucmd.cmd
    if cmd.flags or bool(cmd.count) is not df.by_group:
        raise UapiError(errno.EINVAL, f"flags {cmd.flags:#x}, {cmd.count} groups")
    scope = _scope(df)
    if cmd.count > len(scope):
        raise UapiError(errno.EINVAL, f"{cmd.count} groups for {len(scope)} functions")
    groups = await _read_groups(ucmd)
    dev_set = df.device.dev_set
    if not dev_set.covers_scope():
        raise UapiError(errno.EINVAL, "a function that the reset hits is not a VFIO device")
    for address, device in dev_set.devices.items():
        if df.by_group:
            owned = device.group in groups
        else:
            owned = _devid(df, address) != uapi.VFIO_PCI_DEVID_NOT_OWNED
        if not owned:
            raise UapiError(errno.EINVAL, f"{address} is not owned")
    dev_set.reset()
