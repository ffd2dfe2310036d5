"""The ioctls about page tables: making them, dirty tracking, invalidation."""

import errno
from typing import Any

from iommufs import uapi
from iommufs._native import lib
from iommufs.errors import UapiError
from iommufs.iommufd.device import Device
from iommufs.iommufd.fault import FaultQueue
from iommufs.iommufd.hwpt import HwptPaging
from iommufs.iommufd.ioas import U64_MAX, Ioas
from iommufs.iommufd.iommu import DomainConfig, UserData
from iommufs.iommufd.objects import Object
from iommufs.ucmd import Ucmd

_NEST_PARENT = uapi.IOMMU_HWPT_ALLOC_NEST_PARENT
_DIRTY_TRACKING = uapi.IOMMU_HWPT_ALLOC_DIRTY_TRACKING
_FAULT_ID_VALID = uapi.IOMMU_HWPT_FAULT_ID_VALID
_PASID = uapi.IOMMU_HWPT_ALLOC_PASID

MAX_INVALIDATE_ENTRIES = 524288
MAX_INVALIDATE_LENGTH = 4096


async def hwpt_alloc(ucmd: Ucmd) -> None:
    """Make a page table that suits a bound device (IOMMU_HWPT_ALLOC). It is not attached.

    In:     pt_id    an IOAS, whose contents the page table gets
    Errors: EOPNOTSUPP  reserved field; unknown flag; what the IOMMU does not have
            EINVAL      data without a type or the other way round; pt_id is no IOAS
            ENOENT      no such device; FAULT_ID_VALID and no such fault queue
            EADDRINUSE, EFAULT, ENOMEM  what the IOAS has does not fit or cannot be pinned
    Source: iommufd_hwpt_alloc(), iommufd_hwpt_paging_alloc()
    """
    cmd, objects = ucmd.cmd, ucmd.file.objects
    if cmd.__reserved:
        raise UapiError(errno.EOPNOTSUPP, "reserved field")
    if (cmd.data_type == uapi.IOMMU_HWPT_DATA_NONE) != (cmd.data_len == 0):
        raise UapiError(errno.EINVAL, f"data of type {cmd.data_type}, {cmd.data_len} bytes")
    with objects.use(cmd.dev_id, Device) as device:
        ioas = _ioas_of(objects, cmd.pt_id, device)
        config = await _domain_config(ucmd, device)
        with objects.new(HwptPaging(ioas, device.iommu, config)) as hwpt:
            hwpt.fill()
            if cmd.flags & _FAULT_ID_VALID:
                hwpt.fault = objects.find(cmd.fault_id, FaultQueue)
                hwpt.fault.get()
            cmd.out_hwpt_id = hwpt.id
            await ucmd.respond()


def _ioas_of(objects: Any, pt_id: int, device: Device) -> Ioas:
    try:
        pt = objects.find(pt_id, Object)
    except UapiError as error:
        raise UapiError(errno.EINVAL, error.why) from error
    if isinstance(pt, HwptPaging):
        # Whatever the parent and the data are like: that the driver cannot nest is seen first.
        raise UapiError(errno.EOPNOTSUPP, f"{device.iommu.name}: no nested page tables")
    if not isinstance(pt, Ioas):
        raise UapiError(errno.EINVAL, f"{pt} has nothing for a page table")
    return pt


async def _domain_config(ucmd: Ucmd, device: Device) -> DomainConfig:
    cmd, iommu = ucmd.cmd, device.iommu
    if cmd.flags & ~(_NEST_PARENT | _DIRTY_TRACKING | _FAULT_ID_VALID | _PASID):
        raise UapiError(errno.EOPNOTSUPP, f"flags {cmd.flags:#x}")
    if cmd.flags & _DIRTY_TRACKING and not iommu.dirty_tracking:
        raise UapiError(errno.EOPNOTSUPP, f"{iommu.name}: no dirty tracking")
    if cmd.flags & _FAULT_ID_VALID and cmd.flags & _NEST_PARENT:
        raise UapiError(errno.EOPNOTSUPP, "no faults from a nesting parent")
    flags = cmd.flags & ~_FAULT_ID_VALID
    if cmd.data_len:
        data = UserData(ucmd.caller, cmd.data_type, cmd.data_uptr, cmd.data_len)
        return await iommu.domain_alloc_user(device.function, flags, None, data)
    return iommu.domain_alloc_paging(device.function, flags)


def hwpt_set_dirty_tracking(ucmd: Ucmd) -> None:
    """Switch dirty tracking (IOMMU_HWPT_SET_DIRTY_TRACKING): no IOMMU of ours has it yet.

    Errors: EOPNOTSUPP  unknown flag; the page table was not made for it
            ENOENT      no such HWPT
    Source: iommufd_hwpt_set_dirty_tracking()
    """
    if ucmd.cmd.flags & ~uapi.IOMMU_HWPT_DIRTY_TRACKING_ENABLE:
        raise UapiError(errno.EOPNOTSUPP, f"flags {ucmd.cmd.flags:#x}")
    hwpt = ucmd.file.objects.find(ucmd.cmd.hwpt_id, HwptPaging)
    raise UapiError(errno.EOPNOTSUPP, f"{hwpt} was made without dirty tracking")


def hwpt_get_dirty_bitmap(ucmd: Ucmd) -> None:
    """Which pages a device wrote (IOMMU_HWPT_GET_DIRTY_BITMAP): no IOMMU of ours tracks it yet.

    Errors: EOPNOTSUPP  unknown flag, reserved field; the page table was not made for it
            ENOENT      no such HWPT                EOVERFLOW  the range passes 2**64 - 1
            EINVAL      length or page_size 0; range not in multiples of the alignment, of pages
    Source: iommufd_hwpt_get_dirty_bitmap(), iommufd_check_iova_range()
    """
    cmd = ucmd.cmd
    if cmd.flags & ~uapi.IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR or cmd.__reserved:
        raise UapiError(errno.EOPNOTSUPP, f"flags {cmd.flags:#x} or reserved field")
    hwpt = ucmd.file.objects.find(cmd.hwpt_id, HwptPaging)
    end = cmd.iova + cmd.length
    if not cmd.length:
        raise UapiError(errno.EINVAL, "length 0")
    if end - 1 > U64_MAX:
        raise UapiError(errno.EOVERFLOW, "the range passes 2**64 - 1")
    if (cmd.iova | end) & (lib.iofs_iopt_alignment(hwpt.ioas.iopt) - 1):
        raise UapiError(errno.EINVAL, "the range is not aligned")
    if not cmd.page_size or (cmd.iova | end) & (cmd.page_size - 1):
        raise UapiError(errno.EINVAL, f"pages of {cmd.page_size:#x} bytes")
    raise UapiError(errno.EOPNOTSUPP, f"{hwpt} was made without dirty tracking")


async def hwpt_invalidate(ucmd: Ucmd) -> None:
    """Invalidate caches of a nested page table (IOMMU_HWPT_INVALIDATE): we have none to nest in.

    Out:    entry_num   how many entries were done: written always, so 0 here
    Errors: EOPNOTSUPP  reserved field      ENOENT  no such object
            EINVAL      bad entries; not a nested page table or vIOMMU
    Source: iommufd_hwpt_invalidate()
    """
    try:
        _check_invalidate(ucmd)
    finally:
        ucmd.cmd.entry_num = 0
        await ucmd.respond()


def _check_invalidate(ucmd: Ucmd) -> None:
    cmd = ucmd.cmd
    if cmd.__reserved:
        raise UapiError(errno.EOPNOTSUPP, "reserved field")
    if cmd.entry_num and not (
        cmd.data_uptr
        and 0 < cmd.entry_len <= MAX_INVALIDATE_LENGTH
        and cmd.entry_num <= MAX_INVALIDATE_ENTRIES
    ):
        raise UapiError(errno.EINVAL, f"{cmd.entry_num} entries of {cmd.entry_len} bytes")
    pt = ucmd.file.objects.find(cmd.hwpt_id, Object)
    raise UapiError(errno.EINVAL, f"{pt} is not nested")
