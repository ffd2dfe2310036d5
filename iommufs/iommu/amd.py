"""AMD's IOMMU as the oracle's guest has it: 64 bits, I/O page tables of version 1.

No nesting, no dirty tracking, no PASIDs, and no page tables that would suit them either.
"""

import errno
import struct
from collections.abc import Sequence

from iommufs import uapi
from iommufs.errors import UapiError
from iommufs.iommufd.iommu import DomainConfig, Iommu, Physical, RegionType, ReservedRegion

MSI_WINDOW = ReservedRegion(0xFEE00000, 0xFEEFFFFF, RegionType.MSI)
# AMD64 manual, volume 2: addresses that HyperTransport uses for interrupts and configuration.
HYPERTRANSPORT = ReservedRegion(0xFD00000000, 0xFFFFFFFFFF, RegionType.RESERVED)

# The registers at MMIO offsets 0x30 and 0x1a0 of the oracle's guest (GET_HW_INFO).
EXTENDED_FEATURE = 0x29D7
EXTENDED_FEATURE_2 = 0
CAPABILITY = 0x1F03000F  # the first word of its PCI capability

# Every power of two from 4 KiB on that the format has, but 512 GiB, which Linux leaves out.
PAGE_SIZES = 0x000FFF7FFFFFF000


class Amd(Iommu):
    name = "amd"
    instance = "ivhd0"
    shown_in = "amd-iommu"
    enforces_coherency = True

    def shown(self, n_domains: int) -> dict[str, str]:
        features = f"{EXTENDED_FEATURE:x}:{EXTENDED_FEATURE_2:x}"
        return {"cap": f"{CAPABILITY:x}", "features": features}

    def reserved_regions(self, function: Physical) -> Sequence[ReservedRegion]:
        return (MSI_WINDOW, HYPERTRANSPORT, *super().reserved_regions(function))

    def domain_alloc_paging(self, function: Physical, flags: int) -> DomainConfig:
        if flags:
            raise UapiError(errno.EOPNOTSUPP, f"amd: flags {flags:#x}")
        return DomainConfig(0, 2**64 - 1, PAGE_SIZES, "amd")

    def has_viommus(self, function: Physical, kind: int) -> bool:
        """Of any type; no page table here is the parent that one needs.

        Source: amd_iommufd_get_viommu_size()
        """
        return True

    def hw_info(self, function: Physical, data_type: int) -> tuple[int, bytes]:
        if data_type not in (uapi.IOMMU_HW_INFO_TYPE_DEFAULT, uapi.IOMMU_HW_INFO_TYPE_AMD):
            raise UapiError(errno.EOPNOTSUPP, f"amd: no hw_info of type {data_type}")
        info = struct.pack("<QQ", EXTENDED_FEATURE, EXTENDED_FEATURE_2)
        return uapi.IOMMU_HW_INFO_TYPE_AMD, info
