"""Bound devices: whose DMA goes where.

All devices of an IOMMU group share one translation. So what is attached is the group: its first
device brings the page table, the others join it, the last one to leave takes it away; a replace
through any of them moves all (iommufd_hw_pagetable_attach(), iommufd_device_do_replace()).
This holds for each PASID by itself, and for RID, DMA without a PASID.
"""

import errno
import itertools
from collections.abc import Callable
from typing import Any

from iommufs import uapi
from iommufs._native import ffi, lib
from iommufs.errors import UapiError, check
from iommufs.iommufd.ctx import Ctx
from iommufs.iommufd.fault import FaultGroup
from iommufs.iommufd.hwpt import Hwpt, HwptNested, HwptPaging
from iommufs.iommufd.ioas import Ioas
from iommufs.iommufd.iommu import Domain, IommuGroup, Physical, RegionType
from iommufs.iommufd.objects import Object
from iommufs.limits import PAGE_SIZE

RID = 0

# Owners of reserved ranges; 0 is nobody's.
_owners = itertools.count(1)


class Attachment:
    """A page table that a group uses, and through which of its devices, in order."""

    def __init__(self, hwpt: Hwpt) -> None:
        self.hwpt = hwpt
        self.devices: list[Device] = []


class Group:
    """An IOMMU group as a context sees it. attached: by PASID, RID among them."""

    def __init__(self) -> None:
        self.members = 0
        self.attached: dict[int, Attachment] = {}


class Device(Object):
    """A device that a client has bound. Its driver holds it until unbind(), and it the ctx.

    DMA of the device goes through `domain`, a native page table, or nowhere while that is None.
    """

    has_pasids = True  # attachments of PASIDs can be asked for

    def __init__(
        self, ctx: Ctx, function: Physical, group: IommuGroup, holds_ctx: bool = True
    ) -> None:
        super().__init__()
        self.ctx = ctx
        self.function = function
        self.iommu = function.iommu
        self.vdevice: Any = None  # viommu.Vdevice
        self._iommu_group = group
        self._owner = next(_owners)
        self.group: Group = ctx.groups.setdefault(group, Group())
        self.group.members += 1
        self._holds_ctx = holds_ctx
        if holds_ctx:
            ctx.get()

    def destroy(self) -> None:
        self.group.members -= 1
        if not self.group.members:
            del self.ctx.groups[self._iommu_group]
        self._iommu_group.release()
        if self._holds_ctx:
            self.ctx.put()

    def unbind(self) -> None:
        """The driver is through with the device; it is detached if it was not yet."""
        for pasid in [pasid for pasid in self.group.attached if self.is_attached(pasid)]:
            self.detach(pasid)
        if self.vdevice is not None:
            self.ctx.objects.bury(self.vdevice)
        self.put()
        self.ctx.objects.remove(self)

    def is_attached(self, pasid: int) -> bool:
        return pasid in self.group.attached and self in self.group.attached[pasid].devices

    @property
    def attached(self) -> bool:
        return self.is_attached(RID)

    @property
    def domain(self) -> Any | None:
        """Where DMA goes: the page table of the group, even if only a sibling is attached."""
        attached = self.group.attached.get(RID)
        return attached.hwpt.domain if attached is not None else None

    def request_page(
        self, iova: int, write: bool, number: int, respond: Callable[[int], None]
    ) -> bool:
        """Ask whoever reads the fault queue for the page at iova; False: nobody does.

        number   of the request among the device's, PRG index
        respond  gets the answer, IOMMUFD_PAGE_RESP_…, once
        """
        found = self.fault_hwpt(RID)
        if found is None or found[0].fault is None:
            return False
        hwpt, pasid = found
        kinds = uapi.IOMMU_PGFAULT_PERM_READ, uapi.IOMMU_PGFAULT_PERM_WRITE
        record = uapi.new(
            "iommu_hwpt_pgfault",
            flags=uapi.IOMMU_PGFAULT_FLAGS_LAST_PAGE,
            dev_id=self.id,
            grpid=number,
            perm=kinds[write],
            addr=iova & ~(PAGE_SIZE - 1),
        )
        hwpt.fault.report(FaultGroup([record], respond, (self.group, pasid)))
        return True

    def attach(self, pt_id: int, pasid: int = RID) -> int:
        """Attach to an IOAS or HWPT; the id of the HWPT in use.

        ENOENT: no such object; EINVAL: neither of these, a sibling is attached elsewhere, another
        kind of IOMMU, not made for PASIDs; EBUSY: it is attached; EADDRINUSE, EFAULT, ENOMEM: the
        IOAS does not fit. Nothing has changed then.
        """
        return self._change(pt_id, pasid, self._attach)

    def replace(self, pt_id: int, pasid: int = RID) -> int:
        """As attach(), of what is attached: EINVAL if it is not."""
        return self._change(pt_id, pasid, self._replace)

    def _change(self, pt_id: int, pasid: int, change: Callable[[Hwpt, int], None]) -> int:
        pt = self.ctx.objects.find(pt_id, Object)
        if isinstance(pt, Hwpt):
            change(pt, pasid)
            return pt.id
        if isinstance(pt, Ioas):
            return self._auto_domain(pt, pasid, change)
        raise UapiError(errno.EINVAL, f"{pt} is nothing to attach to")

    def detach(self, pasid: int = RID) -> None:
        """DMA of the device goes nowhere, unless siblings stay attached."""
        if not self.is_attached(pasid):
            return
        attached = self.group.attached[pasid]
        hwpt = attached.hwpt
        attached.devices.remove(self)
        if not attached.devices:
            del self.group.attached[pasid]
            self._set_domain(pasid, None)
            self._show_route(pasid)
            hwpt.discard_faults(self.group, pasid)
        if pasid == RID:
            self._release_regions(hwpt.paging.ioas)
        hwpt.put_attached()
        self.put()

    def _auto_domain(self, ioas: Ioas, pasid: int, change: Callable[[Hwpt, int], None]) -> int:
        """Attach by an automatic HWPT of the IOAS: one there is that suits, or a new one."""
        for hwpt in [hwpt for hwpt in ioas.hwpts if hwpt.auto]:
            if self._suits(change, hwpt, pasid):
                return hwpt.id
        config = self.iommu.domain_alloc_paging(self.function, 0)
        with self.ctx.objects.new(HwptPaging(ioas, self.iommu, config)) as hwpt:
            if change == self._replace:
                hwpt.fill()
                self._replace(hwpt, pasid)
            else:
                self._attach(hwpt, pasid)
                try:
                    hwpt.fill()
                except UapiError:
                    self.detach(pasid)
                    raise
        hwpt.auto = True
        return hwpt.id

    @staticmethod
    def _suits(change: Callable[[Hwpt, int], None], hwpt: Hwpt, pasid: int) -> bool:
        try:
            change(hwpt, pasid)
        except UapiError as error:
            if error.errno != errno.EINVAL:
                raise
            return False
        return True

    def _attach(self, hwpt: Hwpt, pasid: int) -> None:
        attached = self.group.attached.get(pasid)
        if self.is_attached(pasid):
            raise UapiError(errno.EBUSY, f"{self} is attached")
        if attached is not None and attached.hwpt is not hwpt:
            raise UapiError(errno.EINVAL, f"the group is attached to {attached.hwpt}")
        if pasid == RID:
            self._reserve_regions(hwpt.paging.ioas)
        if attached is None:
            try:
                self._check_compatible(hwpt, pasid)
                self._set_domain(pasid, hwpt.driver_domain)
            except UapiError:
                if pasid == RID:
                    self._release_regions(hwpt.paging.ioas)
                raise
            attached = self.group.attached[pasid] = Attachment(hwpt)
            self._show_route(pasid)
        attached.devices.append(self)
        hwpt.get()
        self.get()

    def _replace(self, hwpt: Hwpt, pasid: int) -> None:
        if not self.is_attached(pasid):
            raise UapiError(errno.EINVAL, f"{self} is not attached")
        attached = self.group.attached[pasid]
        old, devices = attached.hwpt, attached.devices
        if old is hwpt:
            return
        old_ioas, ioas = old.paging.ioas, hwpt.paging.ioas
        moves = pasid == RID and ioas is not old_ioas
        reserved: list[Device] = []
        try:
            for device in devices if moves else ():
                device._reserve_regions(ioas)
                reserved.append(device)
            self._check_compatible(hwpt, pasid)
            self._set_domain(pasid, hwpt.driver_domain)
        except UapiError:
            for device in reserved:
                device._release_regions(ioas)
            raise
        attached.hwpt = hwpt
        self._show_route(pasid)
        old.discard_faults(self.group, pasid)
        for device in devices:
            if moves:
                device._release_regions(old_ioas)
            hwpt.get()
        for _ in devices:
            old.put_attached()

    def _check_compatible(self, hwpt: Hwpt, pasid: int) -> None:
        if type(hwpt.iommu) is not type(self.iommu):
            raise UapiError(errno.EINVAL, f"a page table of {hwpt.iommu.name}")
        rid = self.group.attached.get(RID)
        if pasid == RID:
            if not hwpt.suits_pasids and any(self.group.attached):
                raise UapiError(errno.EINVAL, f"{hwpt} does not suit PASIDs, which are in use")
        elif not hwpt.suits_pasids or (rid is not None and not rid.hwpt.suits_pasids):
            raise UapiError(errno.EINVAL, "a page table does not suit PASIDs")
        if hwpt.fault is not None:
            self.iommu.check_page_requests(self.function)

    def _set_domain(self, pasid: int, domain: Domain | None) -> None:
        """Tell the driver; iommu_attach_device_pasid() leaves out functions without PASIDs."""
        if pasid == RID:
            self.iommu.attach_dev(self.function, domain)
            return
        if not self.iommu.has_pasids:
            raise UapiError(errno.EOPNOTSUPP, f"{self.iommu.name}: no PASIDs")
        n_pasids = self.iommu.max_pasids(self.function)
        if n_pasids and pasid >= n_pasids:
            raise UapiError(errno.EINVAL, f"PASID {pasid} of {n_pasids}")
        if n_pasids:
            self.iommu.set_dev_pasid(self.function, pasid, domain)

    def _show_route(self, pasid: int) -> None:
        """Models in C do DMA by themselves: let it go where ours goes."""
        if pasid == RID:
            lib.iofs_route_set(self._iommu_group.route, self.domain or ffi.NULL)
            self._iommu_group.domain = self.domain

    def fault_hwpt(self, pasid: int) -> tuple[Hwpt, int] | None:
        """Whose faults those with a PASID are, and for which PASID that is attached.

        A nested page table of the RID, whose PASIDs the client keeps, has those of all that are
        not attached by themselves (find_fault_handler()).
        """
        attached = self.group.attached.get(pasid)
        if attached is None and pasid != RID:
            pasid = RID
            attached = self.group.attached.get(pasid)
            if attached is None or not isinstance(attached.hwpt, HwptNested):
                return None
        return (attached.hwpt, pasid) if attached is not None else None

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


def bind(ctx: Ctx, function: Physical, *, holds_ctx: bool = True) -> Device:
    """Bind a function to a context: its DMA is the context's from now on, and goes nowhere yet.

    ENODEV: it is in no IOMMU group; EPERM: a device of its group is bound to another context.
    The caller is the driver of the device and ends with unbind(). Without holds_ctx it is itself
    an object of the context, and ends with that.
    Source: iommufd_device_bind(), iommu_device_claim_dma_owner()
    """
    if function.group is None:
        raise UapiError(errno.ENODEV, "no IOMMU group")
    function.group.claim(ctx)
    with ctx.objects.new(Device(ctx, function, function.group, holds_ctx)) as device:
        device.get()
    return device
