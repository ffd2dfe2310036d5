"""Intel VT-d in its legacy mode, as the oracle's guest has it: 48 bits, second-stage tables only.

No nesting, no dirty tracking, no PASIDs; its page tables may be asked to suit PASIDs all the same.
"""

import errno
import struct
from collections.abc import Sequence

from iommufs import uapi
from iommufs.errors import UapiError
from iommufs.iommufd.iommu import DomainConfig, Iommu, Physical, RegionType, ReservedRegion

MSI_WINDOW = ReservedRegion(0xFEE00000, 0xFEEFFFFF, RegionType.MSI)

# The registers of the oracle's guest (GET_HW_INFO), fields by the VT-d specification, 11.4.2 and
# 11.4.3: MGAW 48 bits, SAGAW 39 and 48 bits, pages of 2 MiB and 1 GiB.
CAPABILITY = 0x80D2008C222F0686
EXTENDED_CAPABILITY = 0xF00FCA
ADDRESS = 0xFED90000

PAGE_SIZES = 1 << 12 | 1 << 21 | 1 << 30


class Vtd(Iommu):
    name = "vtd"
    instance = "dmar0"
    shown_in = "intel-iommu"
    enforces_coherency = True
    has_nesting = True  # its driver has; what it needs to be a parent, only scalable mode gives

    def shown(self, n_domains: int) -> dict[str, str]:
        return {
            "address": f"{ADDRESS:x}",
            "cap": f"{CAPABILITY:x}",
            "domains_supported": f"{1 << 4 + 2 * (CAPABILITY & 7)}",
            "domains_used": f"{n_domains}",
            "ecap": f"{EXTENDED_CAPABILITY:x}",
            "version": "1:0",
        }

    def reserved_regions(self, function: Physical) -> Sequence[ReservedRegion]:
        return (MSI_WINDOW, *super().reserved_regions(function))

    def domain_alloc_paging(self, function: Physical, flags: int) -> DomainConfig:
        if flags & ~uapi.IOMMU_HWPT_ALLOC_PASID:
            raise UapiError(errno.EOPNOTSUPP, f"vtd: flags {flags:#x}")
        return DomainConfig(0, 2**48 - 1, PAGE_SIZES)

    def check_page_requests(self, function: Physical) -> None:
        """Source: intel_iommu_enable_iopf(): there are none in legacy mode."""
        raise UapiError(errno.ENODEV, "vtd: no page requests")

    def hw_info(self, function: Physical, data_type: int) -> tuple[int, bytes]:
        if data_type not in (
            uapi.IOMMU_HW_INFO_TYPE_DEFAULT,
            uapi.IOMMU_HW_INFO_TYPE_INTEL_VTD,
        ):
            raise UapiError(errno.EOPNOTSUPP, f"vtd: no hw_info of type {data_type}")
        info = struct.pack(
            "<IIQQ", uapi.IOMMU_HW_INFO_VTD_ERRATA_772415_SPR17, 0, CAPABILITY, EXTENDED_CAPABILITY
        )
        return uapi.IOMMU_HW_INFO_TYPE_INTEL_VTD, info
