"""What programs written for a VFIO type1 container ask, on an iommufd.

The calls work on one address space of the context, the compatibility IOAS: the one chosen by
IOMMU_VFIO_IOAS. VFIO's rules hold where they differ from iommufd's: unknown flags are EINVAL, a
mapping may have no access right, unmapping nothing is a success. GET_INFO: vfio_compat_info.py.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from iommufs import uapi
from iommufs._native import ffi, lib
from iommufs.errors import UapiError, check
from iommufs.iommufd.ctx import Ctx
from iommufs.iommufd.ioas import Ioas
from iommufs.ucmd import Ucmd

_READ = uapi.VFIO_DMA_MAP_FLAG_READ
_WRITE = uapi.VFIO_DMA_MAP_FLAG_WRITE
_ALL = uapi.VFIO_DMA_UNMAP_FLAG_ALL

_ALWAYS = (uapi.VFIO_TYPE1_IOMMU, uapi.VFIO_TYPE1v2_IOMMU, uapi.VFIO_UNMAP_ALL)


@contextmanager
def compat_ioas(ctx: Ctx) -> Iterator[Ioas]:
    """The compatibility IOAS, held while the block works with it; ENODEV."""
    ioas = ctx.vfio_ioas
    if ioas is None:
        raise UapiError(errno.ENODEV, "no IOAS chosen")
    assert isinstance(ioas, Ioas), f"{ioas} was chosen"
    ioas.get()
    try:
        yield ioas
    finally:
        ioas.put()


def create_compat_ioas(ctx: Ctx) -> None:
    """Make a compatibility IOAS if there is none: an ordinary object of the client's."""
    if ctx.vfio_ioas is None:
        with ctx.objects.new(Ioas(ctx)) as ioas:
            pass
        ctx.vfio_ioas = ioas


def get_api_version(ucmd: Ucmd) -> int:
    """The version of VFIO's uAPI (VFIO_GET_API_VERSION)."""
    return uapi.VFIO_API_VERSION


def check_extension(ucmd: Ucmd) -> int:
    """Whether something is there (VFIO_CHECK_EXTENSION): 1 or 0.

    Errors: ENODEV  VFIO_DMA_CC_IOMMU without an IOAS
    Source: iommufd_vfio_check_extension(); oracle: all numbers up to 64
    """
    if ucmd.arg in _ALWAYS:
        return 1
    if ucmd.arg == uapi.VFIO_DMA_CC_IOMMU:
        with compat_ioas(ucmd.file) as ioas:
            return int(all(hwpt.iommu.enforces_coherency for hwpt in ioas.hwpts))
    return 0


def set_iommu(ucmd: Ucmd) -> None:
    """Choose between the two versions of type1 (VFIO_SET_IOMMU), as often as wanted.

    After:  VFIO_TYPE1_IOMMU: mappings can be split, so all leaves are small; the other version does
            not undo that.
    Errors: EINVAL      another type; VFIO_TYPE1_IOMMU with a domain and mappings
            ENODEV      no IOAS
            EADDRINUSE  VFIO_TYPE1_IOMMU with a mapping off page boundaries
    Source: iommufd_vfio_set_iommu()
    """
    if ucmd.arg not in (uapi.VFIO_TYPE1_IOMMU, uapi.VFIO_TYPE1v2_IOMMU):
        raise UapiError(errno.EINVAL, f"IOMMU type {ucmd.arg}")
    with compat_ioas(ucmd.file) as ioas:
        if ucmd.arg == uapi.VFIO_TYPE1_IOMMU:
            check(lib.iofs_iopt_set_huge_pages(ioas.iopt, 0), "small pages only")


async def iommu_map_dma(ucmd: Ucmd) -> None:
    """Map client memory at an IOVA (VFIO_IOMMU_MAP_DMA).

    In:     flags   READ, WRITE; none of them will do as long as there is no domain
    Errors: EINVAL  argsz, unknown flag     ENODEV  no IOAS
            else as IOAS_MAP with FIXED_IOVA, but 2**64 - 1 is nothing special
    Source: iommufd_vfio_map_dma(); oracle
    """
    cmd, ctx = ucmd.cmd, ucmd.file
    if cmd.flags & ~(_READ | _WRITE):
        raise UapiError(errno.EINVAL, f"flags {cmd.flags:#x}")
    prot = 0
    if cmd.flags & _READ:
        prot |= lib.IOFS_READ
    if cmd.flags & _WRITE:
        prot |= lib.IOFS_WRITE
    with compat_ioas(ctx) as ioas:
        source = *await ctx.source(ucmd.caller), cmd.vaddr, cmd.size
        iova = ffi.new("uint64_t *", cmd.iova)
        result = lib.iofs_iopt_map_user(ioas.iopt, *source, prot, True, iova)
        check(result, f"map {cmd.size:#x} bytes of {cmd.vaddr:#x}")


async def iommu_unmap_dma(ucmd: Ucmd) -> None:
    """Unmap a range of IOVAs (VFIO_IOMMU_UNMAP_DMA).

    In:     flags       ALL, with iova and size 0: everything
    Out:    size        bytes unmapped, written also if the unmapping stopped half-way
    Errors: EINVAL      argsz, unknown flag; ALL with a range; size 0; version 1: the range begins
                        or ends inside a mapping that cannot be split there
            ENODEV      no IOAS                 EOVERFLOW  the range passes 2**64 - 1
            ENOENT      version 2: a mapping sticks out of the range
            EBUSY, EDEADLK  as IOAS_UNMAP
    After:  version 1, the one with small pages, has split mappings at the ends of the range; they
            stay so if it fails then. Not atomic.
    Source: iommufd_vfio_unmap_dma()
    """
    cmd = ucmd.cmd
    if cmd.flags & ~_ALL:
        raise UapiError(errno.EINVAL, f"flags {cmd.flags:#x}")
    with compat_ioas(ucmd.file) as ioas:
        if cmd.flags & _ALL:
            if cmd.iova or cmd.size:
                raise UapiError(errno.EINVAL, "everything, and a range")
            result, unmapped = ioas.unmap_all()
        else:
            if not lib.iofs_iopt_huge_pages(ioas.iopt):
                _cut_ends(ioas, cmd.iova, cmd.size)
            result, unmapped = ioas.unmap(cmd.iova, cmd.size)
        cmd.size = unmapped
        await ucmd.respond()
        check(result, "unmap")


def _cut_ends(ioas: Ioas, iova: int, size: int) -> None:
    """Split what reaches over the ends of a range, its last byte first; sizes wrap around."""
    cuts = [(iova + size - 1) % 2**64]
    if iova:
        cuts.append(iova - 1)
    for cut in cuts:
        check(lib.iofs_iopt_cut(ioas.iopt, cut), f"split at {cut:#x}")
