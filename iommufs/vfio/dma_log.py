"""DMA logging of one open device: which pages its DMA has written since it was last asked."""

from __future__ import annotations

import errno
from typing import Any

from iommufs import uapi
from iommufs._native import ffi
from iommufs.errors import UapiError
from iommufs.iommufd.dirty import ClientBitmap
from iommufs.limits import MAX_DMA_LOG_RANGES, PAGE_SIZE, U64_MAX
from iommufs.ucmd import Ucmd
from iommufs.vfio import payload

PAGE_LG2 = PAGE_SIZE.bit_length() - 1


class DmaLog:
    """Pages of 4 KiB, whatever the client asks for; None but while it is on.

    Errors and their absence are those of mlx5, the driver that most clients know.
    """

    def __init__(self) -> None:
        self._ranges: list[tuple[int, int]] | None = None
        self._pages: set[int] = set()

    @property
    def on(self) -> bool:
        return self._ranges is not None

    def start(self, ranges: list[tuple[int, int]]) -> None:
        """Log writes to these ranges (start, last); EINVAL: it is on."""
        if self._ranges is not None:
            raise UapiError(errno.EINVAL, "DMA is logged already")
        self._ranges = sorted(ranges)

    def stop(self) -> None:
        """And forget; nothing if it is off."""
        self._ranges = None
        self._pages.clear()

    def wrote(self, iova: int, length: int) -> None:
        """The device wrote there."""
        if self._ranges is None or not length:
            return
        for start, last in self._ranges:
            first, end = max(start, iova), min(last, iova + length - 1)
            if first <= end:
                self._pages.update(range(first >> PAGE_LG2, (end >> PAGE_LG2) + 1))

    def take(self, start: int, last: int) -> list[int]:
        """The pages among these IOVAs, in order; they are clean from now on. EINVAL: it is off."""
        if self._ranges is None:
            raise UapiError(errno.EINVAL, "DMA is not logged")
        first, end = start >> PAGE_LG2, last >> PAGE_LG2
        found = sorted(page for page in self._pages if first <= page <= end)
        self._pages.difference_update(found)
        return found


def can_log(df: Any) -> bool:
    return df.function.dma_log is not None


def _page_size(wanted: int) -> int:
    """The size in which it will be logged as far as the client can tell: a power of two."""
    return max(1 << wanted.bit_length() >> 1, PAGE_SIZE)


async def start_dma_logging(ucmd: Ucmd) -> None:
    """Begin to log DMA (feature DMA_LOGGING_START).

    In:     page_size, num_ranges, ranges
    Out:    page_size  the one in use
    Errors: EINVAL  no range; misaligned; overlapping; it is on     E2BIG   more than 256 ranges
            EFAULT  EOVERFLOW  a range passes 2**64 - 1
    Source: vfio_ioctl_device_feature_logging_start()
    """
    control = await payload.read(ucmd, "vfio_device_feature_dma_logging_control")
    if not control.num_ranges:
        raise UapiError(errno.EINVAL, "no range")
    if control.num_ranges > MAX_DMA_LOG_RANGES:
        raise UapiError(errno.E2BIG, f"{control.num_ranges} ranges")
    log = ucmd.file.function.dma_log
    log.start(await _read_ranges(ucmd, control))
    control.page_size = _page_size(control.page_size)
    try:
        await payload.write(ucmd, control)
    except BaseException:
        log.stop()
        raise


async def _read_ranges(ucmd: Ucmd, control: Any) -> list[tuple[int, int]]:
    size = uapi.sizeof("vfio_device_feature_dma_logging_range")
    entry = uapi.new("vfio_device_feature_dma_logging_range")
    misaligned = control.page_size - 1 & U64_MAX
    ranges: list[tuple[int, int]] = []
    for number in range(control.num_ranges):
        ffi.buffer(entry)[:] = await ucmd.caller.read(control.ranges + number * size, size)
        start, end = entry.iova, entry.iova + entry.length
        if (start | entry.length) & misaligned:
            raise UapiError(errno.EINVAL, f"range {start:#x}, {entry.length:#x} bytes")
        if end > U64_MAX:
            raise UapiError(errno.EOVERFLOW, f"range {start:#x}, {entry.length:#x} bytes")
        last = end - 1 & U64_MAX
        if any(first <= last and start <= other for first, other in ranges):
            raise UapiError(errno.EINVAL, f"range {start:#x} overlaps another one")
        ranges.append((start, last))
    return ranges


async def stop_dma_logging(ucmd: Ucmd) -> None:
    """End it (feature DMA_LOGGING_STOP)."""
    ucmd.file.function.dma_log.stop()


async def report_dma_logging(ucmd: Ucmd) -> None:
    """Set the bits of pages that were written; they are clean then (feature DMA_LOGGING_REPORT).

    In:     iova, length, page_size, bitmap  bit 0 is the page of `page_size` bytes at iova
    Errors: EINVAL  page_size is under 4 KiB or no power of two; it is off
            EOVERFLOW  the range passes 2**64 - 1; that the bitmap cannot be written is not told
    Source: vfio_ioctl_device_feature_logging_report(), iova_bitmap_set()
    """
    report = await payload.read(ucmd, "vfio_device_feature_dma_logging_report")
    page_size, start = report.page_size, report.iova
    if page_size < PAGE_SIZE or page_size & (page_size - 1):
        raise UapiError(errno.EINVAL, f"pages of {page_size:#x} bytes")
    last = start + report.length - 1
    if last >= U64_MAX:
        raise UapiError(errno.EOVERFLOW, f"range {start:#x}, {report.length:#x} bytes")
    pages = ucmd.file.function.dma_log.take(start, last)
    bitmap = ClientBitmap(ucmd.caller, report.bitmap)
    try:
        for page in pages:
            first = max(page << PAGE_LG2, start) - start
            end = min((page + 1 << PAGE_LG2) - 1, last) - start
            await bitmap.set(first // page_size, end // page_size)
        await bitmap.flush()
    except UapiError as error:
        if error.errno != errno.EFAULT:
            raise
