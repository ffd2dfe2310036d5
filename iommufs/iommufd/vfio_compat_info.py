"""VFIO_IOMMU_GET_INFO on an iommufd: page sizes, and a chain of capabilities behind them."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from iommufs import uapi
from iommufs._native import lib
from iommufs.iommufd.ioas import RANGE, Ioas
from iommufs.iommufd.vfio_compat import compat_ioas
from iommufs.limits import PAGE_SIZE, U64_MAX
from iommufs.ucmd import Ucmd

HEADER = struct.Struct("<HHI")  # struct vfio_info_cap_header: id, version, next
NEXT = struct.Struct("<I")
NEXT_OFFSET = 4
ALIGNMENT = 8

# type1 allows for 65535 mappings; an IOAS has no such limit.
ANY_NUMBER = 2**32 - 1


@dataclass(frozen=True)
class Capability:
    """One link of the chain: its header, what follows it, then a list of entries."""

    id: int
    fields: bytes
    entries: Sequence[bytes] = ()

    @property
    def head(self) -> bytes:
        return HEADER.pack(self.id, 1, 0) + self.fields

    @property
    def size(self) -> int:
        return len(self.head) + sum(map(len, self.entries))


async def iommu_get_info(ucmd: Ucmd) -> None:
    """What can be mapped where (VFIO_IOMMU_GET_INFO).

    Out:    iova_pgsizes  bit n: pages of 1 << n bytes, in every domain; without one, all that Linux
                          could have
            argsz         bytes of the structure with all capabilities
            cap_offset    where they begin if all fit, else 0; those that fit are written even so
    Errors: EINVAL  argsz       ENODEV  no IOAS         EFAULT  the structure or a capability
    Source: iommufd_vfio_iommu_get_info(); oracle: every argsz up to 129
    """
    cmd = ucmd.cmd
    with compat_ioas(ucmd.file) as ioas:
        cmd.flags = uapi.VFIO_IOMMU_INFO_PGSIZES | uapi.VFIO_IOMMU_INFO_CAPS
        cmd.iova_pgsizes = _page_sizes(ioas)
        cmd.argsz = await _write_chain(ucmd, _capabilities(ioas))
        if cmd.argsz <= ucmd.user_size:
            cmd.cap_offset = uapi.sizeof("vfio_iommu_type1_info")
        await ucmd.respond()


def _page_sizes(ioas: Ioas) -> int:
    sizes = U64_MAX
    for hwpt in ioas.hwpts:
        sizes &= hwpt.config.page_sizes
    if sizes % PAGE_SIZE:
        # Smaller than a page is of no use to a client: one page then has several leaves.
        sizes -= sizes % PAGE_SIZE
        sizes |= PAGE_SIZE
    return max(sizes, lib.iofs_iopt_alignment(ioas.iopt))


def _capabilities(ioas: Ioas) -> list[Capability]:
    ranges = [RANGE.pack(*hole) for hole in ioas.holes()]
    return [
        Capability(uapi.VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL, struct.pack("<I", ANY_NUMBER)),
        Capability(
            uapi.VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, struct.pack("<II", len(ranges), 0), ranges
        ),
    ]


async def _write_chain(ucmd: Ucmd, capabilities: Sequence[Capability]) -> int:
    """Write what the client has room for, in the order in which Linux does; EFAULT.

    Returns the length of the structure with the whole chain.
    """
    caller, room = ucmd.caller, ucmd.user_size
    end, last = uapi.sizeof("vfio_iommu_type1_info"), 0
    for capability in capabilities:
        await _write_capability(caller, ucmd.arg + end, room - end, capability)
        if last and end <= room:  # said already where only the beginning of this one fits
            await caller.write(ucmd.arg + last + NEXT_OFFSET, NEXT.pack(end))
        last = end
        end += -(-capability.size // ALIGNMENT) * ALIGNMENT
    return end


async def _write_capability(caller: Any, at: int, room: int, capability: Capability) -> None:
    """Entries as far as they fit, then the head if all of them do."""
    offset = len(capability.head)
    for entry in capability.entries:
        if offset + len(entry) > room:
            return
        await caller.write(at + offset, entry)
        offset += len(entry)
    if offset <= room:
        await caller.write(at, capability.head)
