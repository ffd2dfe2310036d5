"""What a device, its regions and its interrupts are."""

import errno
import struct
from collections.abc import Sequence

from iommufs import uapi
from iommufs.errors import UapiError
from iommufs.ucmd import Ucmd
from iommufs.vfio import irqs
from iommufs.vfio.bars import OFFSET_SHIFT
from iommufs.vfio.regions import N_REGIONS, Region

CAP_HEADER = uapi.sizeof("vfio_info_cap_header")


def info_caps(start: int, caps: Sequence[tuple[int, int, bytes]]) -> bytes:
    """A chain of capabilities (id, version, what follows the header) that begins at `start`.

    Each is aligned to eight bytes and says where the next one begins (vfio_info_cap_add()).
    """
    chain = b""
    for number, (id, version, data) in enumerate(caps, 1):
        size = -(-(CAP_HEADER + len(data)) // 8) * 8
        next = start + len(chain) + size if number < len(caps) else 0
        chain += (struct.pack("<HHI", id, version, next) + data).ljust(size, b"\0")
    return chain


def _region_caps(region: Region) -> list[tuple[int, int, bytes]]:
    caps = []
    if region.msix and region.flags & uapi.VFIO_REGION_INFO_FLAG_MMAP:
        caps.append((uapi.VFIO_REGION_INFO_CAP_MSIX_MAPPABLE, 1, b""))
    if region.mapped:
        areas = b"".join(struct.pack("<QQ", *area) for area in region.mapped)
        data = struct.pack("<II", len(region.mapped), 0) + areas
        caps.append((uapi.VFIO_REGION_INFO_CAP_SPARSE_MMAP, 1, data))
    return caps


async def device_get_info(ucmd: Ucmd) -> None:
    """What kind of device it is (VFIO_DEVICE_GET_INFO).

    Out:    flags, num_regions, num_irqs, cap_offset; as much of them as argsz has room for
    Source: vfio_pci_ioctl_get_info()
    """
    cmd = ucmd.cmd
    cmd.flags = uapi.VFIO_DEVICE_FLAGS_PCI
    if ucmd.file.function.can_reset:
        cmd.flags |= uapi.VFIO_DEVICE_FLAGS_RESET
    cmd.num_regions = N_REGIONS
    cmd.num_irqs = irqs.N_INDEXES
    cmd.cap_offset = 0
    await ucmd.respond()


async def device_get_region_info(ucmd: Ucmd) -> None:
    """Size, place and abilities of one region (VFIO_DEVICE_GET_REGION_INFO).

    In:     index
    Out:    flags, size, offset, cap_offset; the chain behind the structure if argsz has room for
            it, else argsz says how much that takes
    Errors: EINVAL  no such region
    Source: vfio_pci_ioctl_get_region_info()
    """
    cmd = ucmd.cmd
    table = ucmd.file.regions.table
    if cmd.index >= len(table):
        raise UapiError(errno.EINVAL, f"region {cmd.index}")
    region = table[cmd.index]
    cmd.flags, cmd.size, cmd.offset = region.flags, region.size, cmd.index << OFFSET_SHIFT
    cmd.cap_offset = 0
    size = uapi.sizeof("vfio_region_info")
    if chain := info_caps(size, _region_caps(region)):
        cmd.flags |= uapi.VFIO_REGION_INFO_FLAG_CAPS
        if cmd.argsz < size + len(chain):
            cmd.argsz = size + len(chain)
        else:
            cmd.cap_offset = size
            await ucmd.caller.write(ucmd.arg + size, chain)
    await ucmd.respond()


async def device_get_irq_info(ucmd: Ucmd) -> None:
    """Abilities and number of one kind of interrupt (VFIO_DEVICE_GET_IRQ_INFO).

    In:     index
    Out:    flags, count
    Errors: EINVAL  no such index
    Source: vfio_pci_ioctl_get_irq_info()
    """
    cmd = ucmd.cmd
    if cmd.index >= irqs.N_INDEXES:
        raise UapiError(errno.EINVAL, f"interrupt index {cmd.index}")
    cmd.count = ucmd.file.function.n_irqs(cmd.index)
    cmd.flags = uapi.VFIO_IRQ_INFO_EVENTFD
    if cmd.index == irqs.INTX:
        cmd.flags |= uapi.VFIO_IRQ_INFO_MASKABLE | uapi.VFIO_IRQ_INFO_AUTOMASKED
    elif cmd.index != irqs.MSIX or not cmd.count:
        # MSI-X vectors can be added while it is on; without MSI-X there is nothing to add to.
        cmd.flags |= uapi.VFIO_IRQ_INFO_NORESIZE
    await ucmd.respond()
