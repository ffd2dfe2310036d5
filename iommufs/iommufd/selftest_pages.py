"""Test operations on address spaces and page tables: what is where, who pins it, what is dirty."""

import errno

from iommufs._native import lib
from iommufs.errors import UapiError, check
from iommufs.iommufd.hwpt import HwptPaging
from iommufs.iommufd.ioas import Ioas
from iommufs.limits import MAX_DIRTY_BITS, PAGE_SIZE, U64_MAX
from iommufs.ucmd import Ucmd

MIN_MEMORY_LIMIT = 12

# Nobody's in particular: what is reserved by a test stays.
_NO_OWNER = 0


def add_reserved(ucmd: Ucmd) -> None:
    """Reserve IOVAs of an IOAS (ADD_RESERVED), for as long as it lives.

    Errors: EINVAL  length 0    EOVERFLOW   the range passes 2**64 - 1
            ENOENT  no such IOAS EADDRINUSE  an area or an allowed range is there
    Source: iommufd_test_add_reserved()
    """
    start, length = ucmd.cmd.add_reserved.start, ucmd.cmd.add_reserved.length
    if not length:
        raise UapiError(errno.EINVAL, "length 0")
    last = start + length - 1
    if last > U64_MAX:
        raise UapiError(errno.EOVERFLOW, "the range passes 2**64 - 1")
    ioas = ucmd.file.objects.find(ucmd.cmd.id, Ioas)
    check(lib.iofs_iopt_reserve(ioas.iopt, start, last, _NO_OWNER), f"reserve {start:#x}")


def set_temp_memory_limit(ucmd: Ucmd) -> None:
    """Limit the memory of one step of a mapping (SET_TEMP_MEMORY_LIMIT): ours are never longer.

    Errors: EINVAL  less than a step needs
    """
    if ucmd.cmd.memory_limit.limit < MIN_MEMORY_LIMIT:
        raise UapiError(errno.EINVAL, f"{ucmd.cmd.memory_limit.limit} bytes")


async def check_map(ucmd: Ucmd) -> None:
    """Whether IOVAs lead to the very pages that the client has at an address (MD_CHECK_MAP).

    Errors: ENOENT  no such HWPT        EFAULT  the client has no page there
            EINVAL  they do not; not in multiples of the page table's pages; past 2**64 - 1
    Source: iommufd_test_md_check_pa()
    """
    cmd = ucmd.cmd.check_map
    with ucmd.file.objects.use(ucmd.cmd.id, HwptPaging) as hwpt:
        page_size = hwpt.config.page_sizes & -hwpt.config.page_sizes
        if (cmd.iova | cmd.length | cmd.uptr) % page_size or cmd.uptr + cmd.length > U64_MAX:
            raise UapiError(errno.EINVAL, "not in whole pages")
        mm, _ = await ucmd.file.source(ucmd.caller)
        result = lib.iofs_domain_check_map(hwpt.domain, cmd.iova, cmd.length, mm, cmd.uptr)
        check(result, f"{cmd.iova:#x} is not {cmd.uptr:#x}")


async def check_refs(ucmd: Ucmd) -> None:
    """Whether each of the client's pages is pinned so many times (MD_CHECK_REFS).

    Errors: EIO     one is not      EFAULT  the client has no page there
            EINVAL  not in whole pages; past 2**64 - 1
    Source: iommufd_test_md_check_refs()
    """
    cmd = ucmd.cmd.check_refs
    if (cmd.length | cmd.uptr) % PAGE_SIZE or cmd.uptr + cmd.length > U64_MAX:
        raise UapiError(errno.EINVAL, "not in whole pages")
    mm, _ = await ucmd.file.source(ucmd.caller)
    check(lib.iofs_check_pins(mm, cmd.uptr, cmd.length, cmd.refs), f"pins of {cmd.uptr:#x}")


async def dirty(ucmd: Ucmd) -> None:
    """As if a device wrote pages (DIRTY).

    In:     uptr          a bitmap: bit n for iova + n * page_size
    Out:    out_nr_dirty  how many bits are set in it
    Errors: EINVAL  length, page_size or uptr 0; not in whole pages; tracking is not on
            ENOENT  no such HWPT    EOVERFLOW  more than 2**27 bits     EFAULT  the bitmap
    Source: iommufd_test_dirty()
    """
    cmd = ucmd.cmd.dirty
    size = cmd.page_size
    if not size or not cmd.length or cmd.iova % size or cmd.length % size or not cmd.uptr:
        raise UapiError(errno.EINVAL, f"{cmd.length:#x} bytes in pages of {size:#x}")
    n_bits = cmd.length // size
    if n_bits > MAX_DIRTY_BITS:
        raise UapiError(errno.EOVERFLOW, f"{n_bits} bits")
    with ucmd.file.objects.use(ucmd.cmd.id, HwptPaging) as hwpt:
        if not lib.iofs_domain_tracks_dirty(hwpt.domain):
            raise UapiError(errno.EINVAL, "dirty tracking is not on")
        bitmap = await ucmd.caller.read(cmd.uptr, (n_bits + 7) // 8)
        cmd.out_nr_dirty = lib.iofs_domain_mark_dirty(hwpt.domain, cmd.iova, size, bitmap, n_bits)
        await ucmd.respond()
