"""Dirty tracking: which pages devices wrote through a page table."""

import errno
from collections.abc import Iterator

from iommufs import uapi
from iommufs._native import ffi, lib
from iommufs.caller import Caller
from iommufs.errors import UapiError
from iommufs.iommufd.hwpt import HwptPaging
from iommufs.limits import U64_MAX
from iommufs.ucmd import Ucmd

N_RANGES = 4096  # fetched at a time
CHUNK = 4096  # bytes of a client's bitmap written at a time


def hwpt_set_dirty_tracking(ucmd: Ucmd) -> None:
    """Switch dirty tracking (IOMMU_HWPT_SET_DIRTY_TRACKING).

    Errors: EOPNOTSUPP  unknown flag; the page table was not made for it
            ENOENT      no such HWPT
    After:  switched on, even again: all pages are clean.
    Source: iommufd_hwpt_set_dirty_tracking(), iopt_set_dirty_tracking()
    """
    flags = ucmd.cmd.flags
    if flags & ~uapi.IOMMU_HWPT_DIRTY_TRACKING_ENABLE:
        raise UapiError(errno.EOPNOTSUPP, f"flags {flags:#x}")
    hwpt = ucmd.file.objects.find(ucmd.cmd.hwpt_id, HwptPaging)
    _check_tracks(hwpt)
    lib.iofs_domain_set_dirty_tracking(hwpt.domain, flags)


def _check_tracks(hwpt: HwptPaging) -> None:
    if not hwpt.config.dirty:
        raise UapiError(errno.EOPNOTSUPP, f"{hwpt} was made without dirty tracking")


async def hwpt_get_dirty_bitmap(ucmd: Ucmd) -> None:
    """Which pages devices wrote (IOMMU_HWPT_GET_DIRTY_BITMAP).

    In:     data        a bitmap: bit n for iova + n * page_size, set and never cleared
    Errors: EOPNOTSUPP  unknown flag, reserved field; the page table was not made for it
            ENOENT      no such HWPT                EOVERFLOW  the range passes 2**64 - 1
            EINVAL      length or page_size 0; range not in multiples of the alignment, of pages
    After:  without NO_CLEAR, what was reported is clean. It ends at the first hole, or where the
            bitmap cannot be written, with success.
    Source: iommufd_hwpt_get_dirty_bitmap(), iommu_read_and_clear_dirty()
    """
    cmd = ucmd.cmd
    if cmd.flags & ~uapi.IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR or cmd.__reserved:
        raise UapiError(errno.EOPNOTSUPP, f"flags {cmd.flags:#x} or reserved field")
    with ucmd.file.objects.use(cmd.hwpt_id, HwptPaging) as hwpt:
        end = cmd.iova + cmd.length
        if not cmd.length:
            raise UapiError(errno.EINVAL, "length 0")
        if end - 1 > U64_MAX:
            raise UapiError(errno.EOVERFLOW, "the range passes 2**64 - 1")
        if (cmd.iova | end) & (lib.iofs_iopt_alignment(hwpt.ioas.iopt) - 1):
            raise UapiError(errno.EINVAL, "the range is not aligned")
        if not cmd.page_size or (cmd.iova | end) & (cmd.page_size - 1):
            raise UapiError(errno.EINVAL, f"pages of {cmd.page_size:#x} bytes")
        _check_tracks(hwpt)
        clear = not cmd.flags & uapi.IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR
        # A power of two, or what of it is one: iova_bitmap_alloc().
        page_lg2 = (cmd.page_size & -cmd.page_size).bit_length() - 1
        bitmap = ClientBitmap(ucmd.caller, cmd.data)
        try:
            for start, last in _dirty_ranges(hwpt, cmd.iova, end - 1, clear):
                await bitmap.set(start - cmd.iova >> page_lg2, last - cmd.iova >> page_lg2)
            await bitmap.flush()
        except UapiError as error:
            if error.errno != errno.EFAULT:
                raise


def _dirty_ranges(hwpt: HwptPaging, iova: int, last: int, clear: bool) -> Iterator[tuple[int, int]]:
    at = ffi.new("uint64_t *", iova)
    out = ffi.new("struct iofs_range[]", N_RANGES)
    while True:
        n = lib.iofs_domain_read_dirty(hwpt.domain, at, last, clear, out, N_RANGES)
        for i in range(n):
            yield out[i].start, out[i].last
        if not at[0]:
            return


class ClientBitmap:
    """Sets bits of a bitmap in client memory, in ascending order, a chunk of it at a time."""

    def __init__(self, caller: Caller, address: int) -> None:
        self._caller = caller
        self._address = address
        self._chunk = -1
        self._bits = 0  # of the chunk, as one number

    async def set(self, first: int, last: int) -> None:
        """EFAULT: the part before is written."""
        n_bits = CHUNK * 8
        for chunk in range(first // n_bits, last // n_bits + 1):
            if chunk != self._chunk:
                await self.flush()
                self._chunk = chunk
            start = max(first - chunk * n_bits, 0)
            end = min(last - chunk * n_bits + 1, n_bits)
            self._bits |= ((1 << end - start) - 1) << start

    async def flush(self) -> None:
        """Write what is left. Bytes in which nothing is set are not touched."""
        if not self._bits:
            return
        skip = ((self._bits & -self._bits).bit_length() - 1) // 8
        new = (self._bits >> skip * 8).to_bytes((self._bits.bit_length() + 7) // 8 - skip, "little")
        self._bits = 0
        address = self._address + self._chunk * CHUNK + skip
        old = await self._caller.read(address, len(new))
        await self._caller.write(address, bytes(a | b for a, b in zip(old, new, strict=True)))
