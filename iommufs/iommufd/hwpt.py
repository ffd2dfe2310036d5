"""HWPT: a page table that devices are attached to. The ioctls about them: hwpt_ioctls.py."""

from __future__ import annotations

from typing import Any

from iommufs._native import ffi, lib
from iommufs.errors import check
from iommufs.iommufd.fault import FaultQueue
from iommufs.iommufd.ioas import Ioas
from iommufs.iommufd.iommu import Domain, DomainConfig, Iommu, NestedDomain
from iommufs.iommufd.objects import Object

FORMATS = {"vtd": lib.IOFS_PT_VTD, "amd": lib.IOFS_PT_AMD, "mock": lib.IOFS_PT_MOCK}


class Hwpt(Object):
    """A page table of any kind.

    domain         the native page table; None if a client keeps it
    driver_domain  what the driver knows it by
    paging         the page table of ours: this, or the parent
    auto           made by attaching a device to an IOAS; it goes with the last device
    suits_pasids   made with IOMMU_HWPT_ALLOC_PASID
    """

    domain: Any | None
    auto = False

    def __init__(self, iommu: Iommu, driver_domain: Domain) -> None:
        super().__init__()
        self.iommu = iommu
        self.driver_domain = driver_domain
        self.suits_pasids = False
        self.fault: FaultQueue | None = None

    @property
    def paging(self) -> HwptPaging:
        raise NotImplementedError

    def set_fault(self, fault: FaultQueue) -> None:
        """Where page requests of attached devices go."""
        fault.get()
        self.fault = fault

    def discard_faults(self, group: Any, pasid: int) -> None:
        """A group has left: nobody will answer its faults. See report_fault()."""
        if self.fault is not None:
            self.fault.discard((group, pasid))

    def destroy(self) -> None:
        if self.fault is not None:
            self.fault.put()

    def put_attached(self) -> None:
        """A device lets go of it."""
        self.put()


class HwptPaging(Hwpt):
    """A page table with the contents of an IOAS, in the format of the IOMMU it was made for.

    domain       the native page table; from fill() on it follows the IOAS
    nest_parent  made to have nested ones below it
    """

    def __init__(self, ioas: Ioas, iommu: Iommu, config: DomainConfig) -> None:
        super().__init__(iommu, config)
        out = ffi.new("struct iofs_domain **")
        native = ffi.new(
            "struct iofs_domain_config *",
            {
                "aperture_start": config.aperture_start,
                "aperture_last": config.aperture_last,
                "pgsize_bitmap": config.page_sizes,
                "format": FORMATS[config.format],
            },
        )
        check(lib.iofs_domain_new(native, out), "no page table")
        self.domain = out[0]
        self.config = config
        self.nest_parent = False
        self.ioas = ioas
        self._filled = False
        ioas.get()

    @property
    def paging(self) -> HwptPaging:
        return self

    def fill(self) -> None:
        """Take in all that is mapped, and from now on all that will be.

        EINVAL, EADDRINUSE: the IOAS does not fit; EFAULT, ENOMEM: its memory cannot be pinned.
        """
        check(lib.iofs_iopt_add_domain(self.ioas.iopt, self.domain), "fill the page table")
        self._filled = True
        self.ioas.hwpts.append(self)

    def destroy(self) -> None:
        if self._filled:
            self.ioas.hwpts.remove(self)
            lib.iofs_iopt_remove_domain(self.ioas.iopt, self.domain)
        lib.iofs_domain_put(self.domain)
        self.domain = ffi.NULL
        super().destroy()
        self.ioas.put()

    def put_attached(self) -> None:
        super().put_attached()
        if self.auto:
            self.ioas.ctx.objects.remove_unused(self)


class HwptNested(Hwpt):
    """A page table that a client keeps; what it translates to, the parent translates further.

    No driver of ours lets DMA through yet: it goes nowhere.
    holder  what keeps it alive: the parent, or the vIOMMU that it belongs to
    """

    domain = None

    def __init__(
        self, parent: HwptPaging, holder: Object, iommu: Iommu, nested: NestedDomain
    ) -> None:
        super().__init__(iommu, nested)
        self._parent = parent
        self._holder = holder
        holder.get()

    @property
    def paging(self) -> HwptPaging:
        return self._parent

    def destroy(self) -> None:
        super().destroy()
        self._holder.put()
