"""Mapping: what clients put into an address space and take out of it.

The checks made here come before those of the native core, which are listed in native/iommufs.h.
"""

import errno
from typing import Any

from iommufs import uapi
from iommufs._native import ffi, lib
from iommufs.errors import UapiError, check
from iommufs.iommufd.dmabuf import Dmabuf, find_dmabuf
from iommufs.iommufd.ioas import Ioas
from iommufs.limits import U64_MAX
from iommufs.ucmd import Ucmd

_FIXED = uapi.IOMMU_IOAS_MAP_FIXED_IOVA
_WRITEABLE = uapi.IOMMU_IOAS_MAP_WRITEABLE
_READABLE = uapi.IOMMU_IOAS_MAP_READABLE


def _check_flags(flags: int) -> None:
    if flags & ~(_FIXED | _WRITEABLE | _READABLE):
        raise UapiError(errno.EOPNOTSUPP, f"flags {flags:#x}")


def _check_not_max(**values: int) -> None:
    for name, value in values.items():
        if value == U64_MAX:
            raise UapiError(errno.EOVERFLOW, f"{name} is 2**64 - 1")


def _prot(flags: int) -> int:
    prot = 0
    if flags & _READABLE:
        prot |= lib.IOFS_READ
    if flags & _WRITEABLE:
        prot |= lib.IOFS_WRITE
    if not prot:
        raise UapiError(errno.EINVAL, "neither readable nor writeable")
    return prot


def _iova_out(iova: int) -> Any:
    return ffi.new("uint64_t *", iova)


async def ioas_map(ucmd: Ucmd) -> None:
    """Map client memory at an IOVA (IOMMU_IOAS_MAP).

    In:     user_va, length  bytes, multiples of the IOAS alignment; length > 0
            iova             used with FIXED_IOVA only, else chosen and written back
    Errors: EOPNOTSUPP  unknown flag or reserved field      ENOENT     no such IOAS
            EINVAL      no access right; misaligned; hits a reserved range
            EEXIST      overlaps an area                    ENOSPC     no hole large enough
            EOVERFLOW   a range passes 2**64 - 1            EFAULT     with a domain: bad memory
            ENOMEM      with a domain: RLIMIT_MEMLOCK
    After:  nothing is pinned unless a domain is attached. The mapping stays if the answer cannot
            be written.
    Source: iommufd_ioas_map()
    """
    cmd, ctx = ucmd.cmd, ucmd.file
    _check_flags(cmd.flags)
    if cmd.__reserved:
        raise UapiError(errno.EOPNOTSUPP, "reserved field")
    _check_not_max(iova=cmd.iova, length=cmd.length)
    prot = _prot(cmd.flags)
    with ctx.objects.use(cmd.ioas_id, Ioas) as ioas:
        iova = _iova_out(cmd.iova)
        source = *await ctx.source(ucmd.caller), cmd.user_va, cmd.length
        result = lib.iofs_iopt_map_user(ioas.iopt, *source, prot, cmd.flags & _FIXED, iova)
        check(result, f"map {cmd.length:#x} bytes of {cmd.user_va:#x}")
        cmd.iova = iova[0]
        await ucmd.respond()


async def ioas_map_file(ucmd: Ucmd) -> None:
    """Map part of a file (IOMMU_IOAS_MAP_FILE).

    In:     fd, start, length  which part; not checked before it has to be pinned
            iova               as in IOAS_MAP
    Errors: as IOAS_MAP, and  EBADF  the file is not open
            of a dma-buf: EINVAL  it is shorter     ENODEV  it is revoked
                          EOPNOTSUPP  it has more than one range
    After:  the mapping holds the file; the fd may be closed.
    Source: iommufd_ioas_map_file()
    """
    cmd, ctx = ucmd.cmd, ucmd.file
    _check_flags(cmd.flags)
    _check_not_max(iova=cmd.iova, length=cmd.length)
    prot = _prot(cmd.flags)
    with ctx.objects.use(cmd.ioas_id, Ioas) as ioas:
        if not cmd.length:
            raise UapiError(errno.EINVAL, "length 0")
        if cmd.start + cmd.length - 1 > U64_MAX:
            raise UapiError(errno.EOVERFLOW, "the part of the file passes 2**64 - 1")
        iova = _iova_out(cmd.iova)
        dmabuf = find_dmabuf(ctx, ucmd.caller, cmd.fd)
        if dmabuf is not None:
            await _map_dmabuf(ucmd, ioas, dmabuf, prot, iova)
        else:
            await _map_file(ucmd, ioas, prot, iova)
        cmd.iova = iova[0]
        await ucmd.respond()


async def _map_file(ucmd: Ucmd, ioas: Ioas, prot: int, iova: Any) -> None:
    cmd = ucmd.cmd
    fd = ucmd.caller.get_fd(cmd.fd)
    try:
        source = *await ucmd.file.source(ucmd.caller), fd, cmd.start, cmd.length
        result = lib.iofs_iopt_map_file(ioas.iopt, *source, prot, cmd.flags & _FIXED, iova)
        check(result, f"map {cmd.length:#x} bytes at {cmd.start:#x} of a file")
    finally:
        lib.iofs_client_close(fd)


async def _map_dmabuf(ucmd: Ucmd, ioas: Ioas, dmabuf: Dmabuf, prot: int, iova: Any) -> None:
    """Source: iopt_alloc_dmabuf_pages()"""
    cmd = ucmd.cmd
    if cmd.start + cmd.length > dmabuf.length:
        raise UapiError(errno.EINVAL, f"a dma-buf of {dmabuf.length} bytes")
    if dmabuf.revoked:
        raise UapiError(errno.ENODEV, "the dma-buf is revoked")
    if dmabuf.n_ranges != 1:
        raise UapiError(errno.EOPNOTSUPP, f"a dma-buf of {dmabuf.n_ranges} ranges")
    mm, _ = await ucmd.file.source(ucmd.caller)
    start = dmabuf.base + cmd.start
    source = mm, dmabuf.memory_fd, dmabuf.name, start, cmd.length
    result = lib.iofs_iopt_map_dmabuf(ioas.iopt, *source, prot, cmd.flags & _FIXED, iova)
    check(result, f"map {cmd.length:#x} bytes at {cmd.start:#x} of a dma-buf")


async def ioas_copy(ucmd: Ucmd) -> None:
    """Map elsewhere what is mapped in an address space (IOMMU_IOAS_COPY).

    In:     src_iova, length  any part of neighbouring mappings
            dst_iova          as iova in IOAS_MAP
    Errors: EOPNOTSUPP  unknown flag                ENOENT  no such IOAS; the source has a gap
            EPERM       WRITEABLE, and the source was not mapped so; others as IOAS_MAP
    After:  the memory is shared: neither pinned nor charged a second time.
    Source: iommufd_ioas_copy()
    """
    cmd, objects = ucmd.cmd, ucmd.file.objects
    _check_flags(cmd.flags)
    _check_not_max(length=cmd.length, src_iova=cmd.src_iova, dst_iova=cmd.dst_iova)
    prot = _prot(cmd.flags)
    out = ffi.new("struct iofs_piece_list **")
    src = objects.find(cmd.src_ioas_id, Ioas)
    check(lib.iofs_iopt_get_pieces(src.iopt, cmd.src_iova, cmd.length, out), "source")
    try:
        with objects.use(cmd.dst_ioas_id, Ioas) as dst:
            iova = _iova_out(cmd.dst_iova)
            check(
                lib.iofs_iopt_map_pieces(dst.iopt, out[0], prot, cmd.flags & _FIXED, iova),
                "destination",
            )
            cmd.dst_iova = iova[0]
            await ucmd.respond()
    finally:
        lib.iofs_piece_list_free(out[0])


async def ioas_unmap(ucmd: Ucmd) -> None:
    """Unmap all mappings in a range (IOMMU_IOAS_UNMAP).

    In:     iova, length  0 and 2**64 - 1: everything, also if that is nothing
    Out:    length        bytes that were mapped; written on success only
    Errors: ENOENT     no such IOAS; nothing mapped; a mapping sticks out of the range
            EOVERFLOW  the range passes 2**64 - 1       EINVAL   length 0
            EBUSY      a mapping is locked              EDEADLK  pins that nobody gives back
    After:  not atomic: what lies before the mapping that failed is gone.
    Source: iommufd_ioas_unmap()
    """
    cmd = ucmd.cmd
    with ucmd.file.objects.use(cmd.ioas_id, Ioas) as ioas:
        everything = cmd.iova == 0 and cmd.length == U64_MAX
        if everything:
            result, unmapped = ioas.unmap_all()
        else:
            _check_not_max(iova=cmd.iova, length=cmd.length)
            result, unmapped = ioas.unmap(cmd.iova, cmd.length)
        check(result, f"unmap {cmd.length:#x} bytes at {cmd.iova:#x}")
        if not unmapped and not everything:
            raise UapiError(errno.ENOENT, "nothing is mapped there")
        cmd.length = unmapped
        await ucmd.respond()
