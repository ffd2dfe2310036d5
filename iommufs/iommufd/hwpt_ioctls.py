"""The ioctls that make page tables and invalidate caches of them. Dirty tracking: dirty.py."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from iommufs import uapi
from iommufs.errors import UapiError
from iommufs.iommufd.device import Device
from iommufs.iommufd.fault import FaultQueue
from iommufs.iommufd.hwpt import Hwpt, HwptNested, HwptPaging
from iommufs.iommufd.ioas import Ioas
from iommufs.iommufd.iommu import UserArray, UserData
from iommufs.iommufd.objects import Object
from iommufs.iommufd.viommu import Viommu
from iommufs.limits import MAX_INVALIDATE_ENTRIES, MAX_INVALIDATE_LENGTH
from iommufs.ucmd import Ucmd

_NEST_PARENT = uapi.IOMMU_HWPT_ALLOC_NEST_PARENT
_DIRTY_TRACKING = uapi.IOMMU_HWPT_ALLOC_DIRTY_TRACKING
_FAULT_ID_VALID = uapi.IOMMU_HWPT_FAULT_ID_VALID
_PASID = uapi.IOMMU_HWPT_ALLOC_PASID


async def hwpt_alloc(ucmd: Ucmd) -> None:
    """Make a page table that suits a bound device (IOMMU_HWPT_ALLOC). It is not attached.

    In:     pt_id    an IOAS, whose contents the page table gets; or one made with NEST_PARENT, or a
                     vIOMMU: then the client keeps the table, and its addresses are the parent's
    Errors: EOPNOTSUPP  reserved field; unknown flag; what the IOMMU does not have
            EINVAL      data without a type or the other way round; bad data; pt_id is none of these
            ENOENT      no such device; FAULT_ID_VALID and no such fault queue
            EADDRINUSE, EFAULT, ENOMEM  what the IOAS has does not fit or cannot be pinned
    Source: iommufd_hwpt_alloc()
    """
    cmd, objects = ucmd.cmd, ucmd.file.objects
    if cmd.__reserved:
        raise UapiError(errno.EOPNOTSUPP, "reserved field")
    if (cmd.data_type == uapi.IOMMU_HWPT_DATA_NONE) != (cmd.data_len == 0):
        raise UapiError(errno.EINVAL, f"data of type {cmd.data_type}, {cmd.data_len} bytes")
    with (
        objects.use(cmd.dev_id, Device) as device,
        _use_pt(objects, cmd.pt_id) as pt,
        objects.new(await _make(ucmd, device, pt)) as hwpt,
    ):
        hwpt.suits_pasids = bool(cmd.flags & _PASID)
        if isinstance(hwpt, HwptPaging):
            hwpt.nest_parent = bool(cmd.flags & _NEST_PARENT)
            hwpt.fill()
        if cmd.flags & _FAULT_ID_VALID:
            hwpt.set_fault(objects.find(cmd.fault_id, FaultQueue))
        cmd.out_hwpt_id = hwpt.id
        await ucmd.respond()


@contextmanager
def _use_pt(objects: Any, pt_id: int) -> Iterator[Object]:
    """Unlike elsewhere, EINVAL if there is no such object."""
    try:
        pt = objects.find(pt_id, Object)
    except UapiError as error:
        raise UapiError(errno.EINVAL, error.why) from error
    with objects.use(pt.id, Object):
        yield pt


async def _make(ucmd: Ucmd, device: Device, pt: Object) -> Hwpt:
    if isinstance(pt, Ioas):
        return await _make_paging(ucmd, device, pt)
    if isinstance(pt, HwptPaging):
        return await _make_nested(ucmd, device, pt)
    if isinstance(pt, Viommu):
        return await _make_in_viommu(ucmd, device, pt)
    raise UapiError(errno.EINVAL, f"{pt} has nothing for a page table")


def _data(ucmd: Ucmd) -> UserData:
    return UserData(ucmd.caller, ucmd.cmd.data_type, ucmd.cmd.data_uptr, ucmd.cmd.data_len)


async def _make_paging(ucmd: Ucmd, device: Device, ioas: Ioas) -> HwptPaging:
    """Source: iommufd_hwpt_paging_alloc()"""
    cmd, iommu = ucmd.cmd, device.iommu
    if cmd.flags & ~(_NEST_PARENT | _DIRTY_TRACKING | _FAULT_ID_VALID | _PASID):
        raise UapiError(errno.EOPNOTSUPP, f"flags {cmd.flags:#x}")
    if cmd.flags & _DIRTY_TRACKING and not iommu.dirty_tracking(device.function):
        raise UapiError(errno.EOPNOTSUPP, f"{iommu.name}: no dirty tracking")
    if cmd.flags & _FAULT_ID_VALID and cmd.flags & _NEST_PARENT:
        raise UapiError(errno.EOPNOTSUPP, "no faults from a nesting parent")
    flags = cmd.flags & ~_FAULT_ID_VALID
    if cmd.data_len:
        config = await iommu.domain_alloc_user(device.function, flags, _data(ucmd))
    else:
        config = iommu.domain_alloc_paging(device.function, flags)
    return HwptPaging(ioas, iommu, config)


async def _make_nested(ucmd: Ucmd, device: Device, parent: HwptPaging) -> HwptNested:
    """Source: iommufd_hwpt_nested_alloc()"""
    cmd, iommu = ucmd.cmd, device.iommu
    if cmd.flags & ~(_FAULT_ID_VALID | _PASID) or not cmd.data_len or not iommu.has_nesting:
        raise UapiError(errno.EOPNOTSUPP, f"{iommu.name}: flags {cmd.flags:#x} or no data")
    if parent.auto or not parent.nest_parent or type(parent.iommu) is not type(iommu):
        raise UapiError(errno.EINVAL, f"{parent} is no parent")
    flags = cmd.flags & ~_FAULT_ID_VALID
    nested = await iommu.domain_alloc_nested(device.function, flags, _data(ucmd))
    return HwptNested(parent, parent, iommu, nested)


async def _make_in_viommu(ucmd: Ucmd, device: Device, viommu: Viommu) -> HwptNested:
    """Source: iommufd_viommu_alloc_hwpt_nested()"""
    cmd = ucmd.cmd
    if device.iommu is not viommu.iommu:
        raise UapiError(errno.EINVAL, f"{viommu} is another IOMMU's")
    if cmd.flags & ~(_FAULT_ID_VALID | _PASID) or not cmd.data_len:
        raise UapiError(errno.EOPNOTSUPP, f"flags {cmd.flags:#x} or no data")
    flags = cmd.flags & ~_FAULT_ID_VALID
    nested = await viommu.driver.domain_alloc_nested(flags, _data(ucmd))
    return HwptNested(viommu.parent, viommu, device.iommu, nested)


async def hwpt_invalidate(ucmd: Ucmd) -> None:
    """Invalidate caches of a nested page table or a vIOMMU (IOMMU_HWPT_INVALIDATE).

    Out:    entry_num   how many entries were done: written always, after an error too
    Errors: EOPNOTSUPP  reserved field; the driver has no cache     ENOENT  no such object
            EINVAL      bad entries; not a nested page table or vIOMMU; others are the driver's
    Source: iommufd_hwpt_invalidate()
    """
    cmd = ucmd.cmd
    array = UserArray(ucmd.caller, cmd.data_type, cmd.data_uptr, cmd.entry_len, cmd.entry_num)
    try:
        await _invalidate(ucmd, array)
    finally:
        cmd.entry_num = array.done
        await ucmd.respond()


async def _invalidate(ucmd: Ucmd, array: UserArray) -> None:
    if ucmd.cmd.__reserved:
        raise UapiError(errno.EOPNOTSUPP, "reserved field")
    if array.n and not (
        array.address
        and 0 < array.length <= MAX_INVALIDATE_LENGTH
        and array.n <= MAX_INVALIDATE_ENTRIES
    ):
        raise UapiError(errno.EINVAL, f"{array.n} entries of {array.length} bytes")
    with ucmd.file.objects.use(ucmd.cmd.hwpt_id, Object) as pt:
        if isinstance(pt, HwptNested):
            await pt.driver_domain.cache_invalidate(array)
        elif isinstance(pt, Viommu):
            await pt.driver.cache_invalidate(array)
        else:
            raise UapiError(errno.EINVAL, f"{pt} is not nested")
