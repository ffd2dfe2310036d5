"""Test operations on mock devices: making them, moving them between page tables, their events.

The devices are the mock IOMMU's; a context with test operations has it as `test_ops`.
"""

import errno

from iommufs import uapi
from iommufs.errors import UapiError
from iommufs.iommufd.device import RID, Device, bind
from iommufs.iommufd.fault import FaultGroup
from iommufs.iommufd.hwpt import Hwpt, HwptNested
from iommufs.iommufd.objects import Object
from iommufs.ucmd import Ucmd


class SelftestDevice(Object):
    """What drives a mock device; with it goes the device."""

    device: Device | None = None

    def destroy(self) -> None:
        if self.device is not None:
            self.device.unbind()


def _device_of(ucmd: Ucmd) -> Device:
    device = ucmd.file.objects.find(ucmd.cmd.id, SelftestDevice).device
    assert device is not None, "published without a device"
    return device


async def mock_domain(ucmd: Ucmd) -> None:
    """Make a mock device and attach it (MOCK_DOMAIN, MOCK_DOMAIN_FLAGS).

    In:     id  an IOAS or HWPT; dev_flags  of MOCK_DOMAIN_FLAGS only
    Errors: EINVAL  unknown flag; a device without dirty tracking on a page table with it; others
            are those of Device.attach()
    Source: iommufd_test_mock_domain()
    """
    cmd, ctx = ucmd.cmd, ucmd.file
    flags = 0
    if cmd.op == uapi.IOMMU_TEST_OP_MOCK_DOMAIN_FLAGS:
        flags = cmd.mock_domain_flags.dev_flags
    with ctx.objects.new(SelftestDevice()) as stdev:
        function = ctx.test_ops.make_function(flags)
        stdev.device = bind(ctx, function, holds_ctx=False)
        cmd.mock_domain.out_hwpt_id = stdev.device.attach(cmd.id)
        cmd.mock_domain.out_stdev_id = stdev.id
        cmd.mock_domain.out_idev_id = stdev.device.id
        await ucmd.respond()


async def mock_domain_replace(ucmd: Ucmd) -> None:
    """Move a mock device to another IOAS or HWPT (MOCK_DOMAIN_REPLACE).

    Errors: ENOENT  no such mock device; others are those of Device.replace()
    Source: iommufd_test_mock_domain_replace()
    """
    pt = ucmd.cmd.mock_domain_replace
    pt.pt_id = _device_of(ucmd).replace(pt.pt_id)
    await ucmd.respond()


async def pasid_attach(ucmd: Ucmd) -> None:
    """Attach a PASID of a mock device (PASID_ATTACH); errors as MOCK_DOMAIN_REPLACE."""
    cmd, device = ucmd.cmd.pasid_attach, _device_of(ucmd)
    cmd.pt_id = device.attach(cmd.pt_id, cmd.pasid)
    try:
        await ucmd.respond()
    except BaseException:
        device.detach(cmd.pasid)
        raise


async def pasid_replace(ucmd: Ucmd) -> None:
    """Move a PASID of a mock device (PASID_REPLACE); errors as MOCK_DOMAIN_REPLACE."""
    cmd = ucmd.cmd.pasid_replace
    cmd.pt_id = _device_of(ucmd).replace(cmd.pt_id, cmd.pasid)
    await ucmd.respond()


def pasid_detach(ucmd: Ucmd) -> None:
    """Detach a PASID of a mock device, attached or not (PASID_DETACH). ENOENT: no such device."""
    _device_of(ucmd).detach(ucmd.cmd.pasid_detach.pasid)


def pasid_check_hwpt(ucmd: Ucmd) -> None:
    """Whether a PASID is attached to a certain HWPT, 0: to none (PASID_CHECK_HWPT).

    Errors: EINVAL  it is not; no HWPT      ENOENT  no such mock device, object
    Source: iommufd_test_pasid_check_hwpt()
    """
    cmd = ucmd.cmd.pasid_check
    attached = _device_of(ucmd).group.attached.get(cmd.pasid)
    hwpt = attached.hwpt if attached is not None else None
    expected = None
    if cmd.hwpt_id:
        expected = ucmd.file.objects.find(cmd.hwpt_id, Object)
        if not isinstance(expected, Hwpt):
            raise UapiError(errno.EINVAL, f"{expected} is no page table")
    if hwpt is not expected:
        raise UapiError(errno.EINVAL, f"attached to {hwpt}, not {expected}")


def check_iotlb(ucmd: Ucmd) -> None:
    """Whether an entry of a nested page table's IOTLB is this (MD_CHECK_IOTLB): ENOENT, EINVAL."""
    cmd = ucmd.cmd.check_iotlb
    hwpt = ucmd.file.objects.find(ucmd.cmd.id, HwptNested)
    _check_entry(hwpt.driver_domain.iotlb, cmd.id, cmd.iotlb)


def check_dev_cache(ucmd: Ucmd) -> None:
    """Whether an entry of a device's cache is this (DEV_CHECK_CACHE): ENOENT, EINVAL."""
    cmd = ucmd.cmd.check_dev_cache
    _check_entry(_mock_device(ucmd, ucmd.cmd.id).function.cache, cmd.id, cmd.cache)


def _check_entry(cache: list[int], index: int, expected: int) -> None:
    if index >= len(cache) or cache[index] != expected:
        raise UapiError(errno.EINVAL, f"entry {index} is not {expected:#x}: {cache}")


def _mock_device(ucmd: Ucmd, dev_id: int) -> Device:
    device = ucmd.file.objects.find(dev_id, Device)
    if device.iommu is not ucmd.file.test_ops:
        raise UapiError(errno.EINVAL, f"{device} is no mock")
    return device


def trigger_iopf(ucmd: Ucmd) -> None:
    """Let a mock device ask for a page (TRIGGER_IOPF), whether anybody answers or not.

    Errors: ENOENT  no such device      EINVAL  it is no mock
    Source: iommufd_test_trigger_iopf(), iommu_report_device_fault()
    """
    cmd = ucmd.cmd.trigger_iopf
    device = _mock_device(ucmd, cmd.dev_id)
    found = device.fault_hwpt(cmd.pasid)
    if found is None or found[0].fault is None:
        return
    hwpt, attached_pasid = found
    flags = uapi.IOMMU_PGFAULT_FLAGS_LAST_PAGE
    if cmd.pasid != RID:
        flags |= uapi.IOMMU_PGFAULT_FLAGS_PASID_VALID
    record = uapi.new(
        "iommu_hwpt_pgfault",
        flags=flags, dev_id=device.id, pasid=cmd.pasid, grpid=cmd.grpid, perm=cmd.perm,
        addr=cmd.addr,
    )  # fmt: skip
    # The mock does nothing with an answer.
    group = FaultGroup([record], lambda code: None, (device.group, attached_pasid))
    hwpt.fault.report(group)


def trigger_vevent(ucmd: Ucmd) -> None:
    """Let a mock device report an event to its vIOMMU (TRIGGER_VEVENT).

    Errors: ENOENT  no such device; it is in no vIOMMU      EOPNOTSUPP  there is no queue
    Source: iommufd_test_trigger_vevent()
    """
    _mock_device(ucmd, ucmd.cmd.trigger_vevent.dev_id).function.trigger_event()
