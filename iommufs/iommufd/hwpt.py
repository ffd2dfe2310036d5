"""HWPT: a page table that devices are attached to. The ioctls about them: hwpt_ioctls.py."""

from iommufs._native import ffi, lib
from iommufs.errors import check
from iommufs.iommufd.fault import FaultQueue
from iommufs.iommufd.ioas import Ioas
from iommufs.iommufd.iommu import DomainConfig, Iommu
from iommufs.iommufd.objects import Object

FORMATS = {"vtd": lib.IOFS_PT_VTD, "amd": lib.IOFS_PT_AMD}


class HwptPaging(Object):
    """A page table with the contents of an IOAS, in the format of the IOMMU it was made for.

    auto    made by attaching a device to an IOAS; it goes with the last device
    domain  the native page table; from fill() on it follows the IOAS
    """

    def __init__(self, ioas: Ioas, iommu: Iommu, config: DomainConfig) -> None:
        super().__init__()
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
        self.iommu = iommu
        self.config = config
        self.auto = False
        self.fault: FaultQueue | None = None
        self.ioas = ioas
        self._filled = False
        ioas.get()

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
        if self.fault is not None:
            self.fault.put()
        self.ioas.put()

    def put_attached(self) -> None:
        """A device lets go of it."""
        self.put()
        if self.auto:
            self.ioas.ctx.objects.remove_unused(self)
