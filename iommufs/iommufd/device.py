"""Bound devices: whose DMA goes where.

All devices of an IOMMU group share one translation. So what is attached is the group: its first
device brings the page table, the others join it, the last one to leave takes it away; a replace
through any of them moves all (iommufd_hw_pagetable_attach(), iommufd_device_do_replace()).
"""

import errno
import itertools
from collections.abc import Callable
from typing import Any

from iommufs._native import lib
from iommufs.errors import UapiError, check
from iommufs.iommufd.ctx import Ctx
from iommufs.iommufd.hwpt import HwptPaging
from iommufs.iommufd.ioas import Ioas
from iommufs.iommufd.iommu import IommuGroup, Physical, RegionType
from iommufs.iommufd.objects import Object

# Owners of reserved ranges; 0 is nobody's.
_owners = itertools.count(1)


class Group:
    """An IOMMU group as a context sees it. `hwpt` is set while `devices` has attached members."""

    def __init__(self) -> None:
        self.members = 0
        self.hwpt: HwptPaging | None = None
        self.devices: list[Device] = []


class Device(Object):
    """A device that a client has bound. Its driver holds it until unbind(), and it holds the ctx.

    DMA of the device goes through `domain`, a native page table, or nowhere while that is None.
    """

    def __init__(self, ctx: Ctx, function: Physical, group: IommuGroup) -> None:
        super().__init__()
        self.ctx = ctx
        self.function = function
        self.iommu = function.iommu
        self._iommu_group = group
        self._owner = next(_owners)
        self.group: Group = ctx.groups.setdefault(group, Group())
        self.group.members += 1
        ctx.get()

    def destroy(self) -> None:
        self.group.members -= 1
        if not self.group.members:
            del self.ctx.groups[self._iommu_group]
        self._iommu_group.release()
        self.ctx.put()

    def unbind(self) -> None:
        """The driver is through with the device; it is detached if it was not yet."""
        self.detach()
        self.put()
        self.ctx.objects.remove(self)

    @property
    def attached(self) -> bool:
        return self in self.group.devices

    @property
    def domain(self) -> Any | None:
        """Where DMA goes: the page table of the group, even if only a sibling is attached."""
        return self.group.hwpt.domain if self.group.hwpt is not None else None

    def attach(self, pt_id: int) -> int:
        """Attach to an IOAS or HWPT, or replace what is attached; the id of the HWPT in use.

        ENOENT: no such object; EINVAL: neither of these, a sibling is attached elsewhere, another
        kind of IOMMU; EADDRINUSE, EFAULT, ENOMEM: the IOAS does not fit. Nothing has changed then.
        """
        pt = self.ctx.objects.find(pt_id, Object)
        if isinstance(pt, HwptPaging):
            (self._replace if self.attached else self._attach)(pt)
            return pt.id
        if isinstance(pt, Ioas):
            return self._auto_domain(pt)
        raise UapiError(errno.EINVAL, f"{pt} is nothing to attach to")

    def detach(self) -> None:
        """DMA of the device goes nowhere, unless siblings stay attached."""
        if not self.attached:
            return
        group, hwpt = self.group, self.group.hwpt
        assert hwpt is not None
        group.devices.remove(self)
        if not group.devices:
            group.hwpt = None
        self._release_regions(hwpt.ioas)
        hwpt.put_attached()
        self.put()

    def _auto_domain(self, ioas: Ioas) -> int:
        """Attach by an automatic HWPT of the IOAS: one there is that suits, or a new one."""
        change = self._replace if self.attached else self._attach
        for hwpt in [hwpt for hwpt in ioas.hwpts if hwpt.auto]:
            if self._suits(change, hwpt):
                return hwpt.id
        config = self.iommu.domain_alloc_paging(self.function, 0)
        with self.ctx.objects.new(HwptPaging(ioas, self.iommu, config)) as hwpt:
            if self.attached:
                hwpt.fill()
                self._replace(hwpt)
            else:
                self._attach(hwpt)
                try:
                    hwpt.fill()
                except UapiError:
                    self.detach()
                    raise
        hwpt.auto = True
        return hwpt.id

    @staticmethod
    def _suits(change: Callable[[HwptPaging], None], hwpt: HwptPaging) -> bool:
        try:
            change(hwpt)
        except UapiError as error:
            if error.errno != errno.EINVAL:
                raise
            return False
        return True

    def _attach(self, hwpt: HwptPaging) -> None:
        if self.attached:
            raise UapiError(errno.EBUSY, f"{self} is attached")
        if self.group.hwpt not in (None, hwpt):
            raise UapiError(errno.EINVAL, f"the group is attached to {self.group.hwpt}")
        self._reserve_regions(hwpt.ioas)
        if self.group.hwpt is None:
            try:
                self._check_compatible(hwpt)
            except UapiError:
                self._release_regions(hwpt.ioas)
                raise
        self.group.hwpt = hwpt
        self.group.devices.append(self)
        hwpt.get()
        self.get()

    def _replace(self, hwpt: HwptPaging) -> None:
        old, devices = self.group.hwpt, self.group.devices
        if old is None or self not in devices:
            raise UapiError(errno.EINVAL, f"{self} is not attached")
        if old is hwpt:
            return
        moves = hwpt.ioas is not old.ioas
        reserved: list[Device] = []
        try:
            for device in devices if moves else ():
                device._reserve_regions(hwpt.ioas)
                reserved.append(device)
            self._check_compatible(hwpt)
        except UapiError:
            for device in reserved:
                device._release_regions(hwpt.ioas)
            raise
        self.group.hwpt = hwpt
        for device in devices:
            if moves:
                device._release_regions(old.ioas)
            hwpt.get()
        for _ in devices:
            old.put_attached()

    def _check_compatible(self, hwpt: HwptPaging) -> None:
        if type(hwpt.iommu) is not type(self.iommu):
            raise UapiError(errno.EINVAL, f"a page table of {hwpt.iommu.name}")
        self.iommu.check_attach(self.function, hwpt.config)

    def _reserve_regions(self, ioas: Ioas) -> None:
        """Keep IOVAs free that the device cannot use; EADDRINUSE, EINVAL."""
        kinds = []
        try:
            for region in self.iommu.reserved_regions(self.function):
                if region.type is RegionType.DIRECT_RELAXABLE:
                    continue
                kinds.append(region.type)
                check(
                    lib.iofs_iopt_reserve(ioas.iopt, region.start, region.last, self._owner),
                    f"reserve {region.start:#x}-{region.last:#x}",
                )
            software = kinds.count(RegionType.SW_MSI)
            if software > 1 or (software and RegionType.MSI in kinds):
                raise UapiError(errno.EINVAL, "more than one way to translate MSIs")
        except UapiError:
            self._release_regions(ioas)
            raise

    def _release_regions(self, ioas: Ioas) -> None:
        lib.iofs_iopt_remove_reserved(ioas.iopt, self._owner)


def bind(ctx: Ctx, function: Physical) -> Device:
    """Bind a function to a context: its DMA is the context's from now on, and goes nowhere yet.

    ENODEV: it is in no IOMMU group; EPERM: a device of its group is bound to another context.
    The caller is the driver of the device and ends with unbind().
    Source: iommufd_device_bind(), iommu_device_claim_dma_owner()
    """
    if function.group is None:
        raise UapiError(errno.ENODEV, "no IOMMU group")
    function.group.claim(ctx)
    with ctx.objects.new(Device(ctx, function, function.group)) as device:
        device.get()
    return device
