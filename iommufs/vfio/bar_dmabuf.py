"""Parts of BARs as dma-bufs: what a client maps for the DMA of another device, by descriptor.

Their memory is that of the mapped BAR, so a DMA to it is seen as a store of a client's mapping is.
It is withdrawn while the device cannot be reached: memory decoding off, D3hot, low power, reset;
for good when the device is closed.
"""

from __future__ import annotations

import errno
import os

from iommufs import uapi
from iommufs._native import ffi
from iommufs.errors import UapiError
from iommufs.iommufd.dmabuf import Dmabuf
from iommufs.limits import MAX_DMABUF_RANGES, PAGE_SIZE, U64_MAX
from iommufs.ucmd import Ucmd
from iommufs.vfio import payload
from iommufs.vfio.bars import OFFSET_SHIFT
from iommufs.vfio.regions import ROM

# A longer one is refused (DMA_IOVA_USE_SWIOTLB).
TOO_LONG = 1 << 63


class BarDmabuf(Dmabuf):
    """Ranges (offset, length) of one BAR; a client may have it open when the device is not."""

    def __init__(
        self, owner: BarDmabufs, fd: int, region: int, ranges: list[tuple[int, int]], flags: int
    ) -> None:
        base = (region << OFFSET_SHIFT) + ranges[0][0]
        super().__init__(sum(length for _, length in ranges), os.dup(fd), base)
        self.n_ranges = len(ranges)
        self.access_mode = flags & os.O_ACCMODE
        self.stays_on_exec = not flags & os.O_CLOEXEC
        self._owner: BarDmabufs | None = owner

    def disown(self) -> None:
        """The device is closed."""
        self._owner = None

    def release(self) -> None:
        if self._owner is not None:
            self._owner.forget(self)
            self._owner = None
        super().release()


class BarDmabufs:
    """Those of one open device."""

    def __init__(self) -> None:
        self._all: set[BarDmabuf] = set()

    def add(self, dmabuf: BarDmabuf) -> None:
        self._all.add(dmabuf)

    def forget(self, dmabuf: BarDmabuf) -> None:
        self._all.discard(dmabuf)

    def withdraw(self) -> None:
        for dmabuf in self._all:
            if not dmabuf.revoked:
                dmabuf.revoke()

    def restore(self) -> None:
        for dmabuf in self._all:
            dmabuf.restore()

    def close(self) -> None:
        """The device is closed: what they name is never there again."""
        self.withdraw()
        for dmabuf in self._all:
            dmabuf.disown()
        self._all.clear()


async def get_dma_buf(ucmd: Ucmd) -> int:
    """Make a dma-buf of ranges of a BAR (feature DMA_BUF); its descriptor is the result.

    In:     region_index, open_flags, nr_ranges, ranges
    Errors: EINVAL  no range; flags; a range that is empty, misaligned or sticks out of the BAR
            ENODEV  not a BAR, or an empty one          EOVERFLOW   EFAULT
            ENOMEM  more ranges than anybody has use for
            EMFILE  EOPNOTSUPP  no fd can be given to the caller
    Source: vfio_pci_core_feature_dma_buf()
    """
    df = ucmd.file
    request = await payload.read(ucmd, "vfio_device_feature_dma_buf")
    regions = df.regions.table
    if not request.nr_ranges or request.flags:
        raise UapiError(errno.EINVAL, f"{request.nr_ranges} ranges, flags {request.flags:#x}")
    if request.region_index >= ROM or not regions[request.region_index].size:
        raise UapiError(errno.ENODEV, f"region {request.region_index}")
    ranges = await _read_ranges(ucmd, request.nr_ranges)
    if df.function.description.bars[request.region_index].io:
        raise UapiError(errno.EINVAL, "ports are no memory")
    address = df.function.bar_address(request.region_index)
    _check_inside(ranges, address, regions[request.region_index].size)
    dmabuf = BarDmabuf(
        df.function.dmabufs, df.device.backing_fd, request.region_index, ranges, request.open_flags
    )
    dmabuf.revoked = not df.config.memory_enabled
    df.function.dmabufs.add(dmabuf)
    return await ucmd.install_fd(dmabuf)


async def _read_ranges(ucmd: Ucmd, count: int) -> list[tuple[int, int]]:
    """(offset, length) of each; EFAULT, EINVAL, ENOMEM."""
    if count > MAX_DMABUF_RANGES:
        raise UapiError(errno.ENOMEM, f"{count} ranges")
    size = uapi.sizeof("vfio_region_dma_range")
    at = ucmd.arg + payload.HEAD + uapi.sizeof("vfio_device_feature_dma_buf")
    data = await ucmd.caller.read(at, count * size)
    ranges, total = [], 0
    for number in range(count):
        entry = ffi.new("struct vfio_region_dma_range *")
        ffi.buffer(entry)[:] = data[number * size : (number + 1) * size]
        offset, length = entry.offset, entry.length
        total += length
        if not length or (offset | length) % PAGE_SIZE or total > U64_MAX:
            raise UapiError(errno.EINVAL, f"range {offset:#x}, {length:#x} bytes")
        ranges.append((offset, length))
    if total & TOO_LONG:
        raise UapiError(errno.EINVAL, f"{total:#x} bytes")
    return ranges


def _check_inside(ranges: list[tuple[int, int]], address: int, size: int) -> None:
    """Source: vfio_pci_core_fill_phys_vec()"""
    for offset, length in ranges:
        if address + offset + length > U64_MAX:
            raise UapiError(errno.EOVERFLOW, f"range {offset:#x}, {length:#x} bytes")
        if offset + length > size:
            raise UapiError(errno.EINVAL, "a range outside of the BAR")
