"""What a device, its regions and its interrupts are."""

import errno
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

from iommufs import uapi
from iommufs._native import ffi
from iommufs.errors import UapiError
from iommufs.fast import Fast
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


class Info(NamedTuple):
    """What a call answers: its structure, argsz left out, and the capabilities behind it."""

    cmd: Any
    chain: bytes = b""


async def _respond(ucmd: Ucmd, info: Info) -> None:
    """As much as the client has room for; argsz says how much that takes if the chain does not fit.

    The readers of the transport do the same (native/fast_ioctl.c).
    """
    cmd, size = ucmd.cmd, ffi.sizeof(info.cmd[0])
    argsz = cmd.argsz
    ffi.buffer(cmd)[:] = ffi.buffer(info.cmd)
    cmd.argsz = argsz
    if info.chain and argsz < size + len(info.chain):
        cmd.argsz = size + len(info.chain)
    elif info.chain:
        cmd.cap_offset = size
        await ucmd.caller.write(ucmd.arg + size, info.chain)
    await ucmd.respond()


def publish(fast: Fast, df: Any) -> None:
    """Let readers of the transport answer: called anew when something of it has changed."""
    cap_at = uapi.offsetof("vfio_device_info", "cap_offset")
    fast.add_answer(uapi.VFIO_DEVICE_GET_INFO, 0, *_device_info(df), cap_at)
    cap_at = uapi.offsetof("vfio_region_info", "cap_offset")
    for index in range(len(df.regions.table)):
        info = _region_info(df, index)
        fast.add_answer(uapi.VFIO_DEVICE_GET_REGION_INFO, index, *info, cap_at)
    for index in range(irqs.N_INDEXES):
        fast.add_answer(uapi.VFIO_DEVICE_GET_IRQ_INFO, index, *_irq_info(df, index), 0)


def _device_info(df: Any) -> Info:
    flags = uapi.VFIO_DEVICE_FLAGS_PCI
    if df.function.can_reset:
        flags |= uapi.VFIO_DEVICE_FLAGS_RESET
    numbers = {"num_regions": N_REGIONS, "num_irqs": irqs.N_INDEXES}
    return Info(uapi.new("vfio_device_info", flags=flags, **numbers))


async def device_get_info(ucmd: Ucmd) -> None:
    """What kind of device it is (VFIO_DEVICE_GET_INFO).

    Out:    flags, num_regions, num_irqs, cap_offset; as much of them as argsz has room for
    Source: vfio_pci_ioctl_get_info()
    """
    await _respond(ucmd, _device_info(ucmd.file))


def _region_info(df: Any, index: int) -> Info:
    region = df.regions.shown(index)
    chain = info_caps(uapi.sizeof("vfio_region_info"), _region_caps(region))
    flags = region.flags | (uapi.VFIO_REGION_INFO_FLAG_CAPS if chain else 0)
    place = {"index": index, "size": region.size, "offset": index << OFFSET_SHIFT}
    return Info(uapi.new("vfio_region_info", flags=flags, **place), chain)


async def device_get_region_info(ucmd: Ucmd) -> None:
    """Size, place and abilities of one region (VFIO_DEVICE_GET_REGION_INFO).

    In:     index
    Out:    flags, size, offset, cap_offset; the chain behind the structure if argsz has room for
            it, else argsz says how much that takes
    Errors: EINVAL  no such region
    Source: vfio_pci_ioctl_get_region_info()
    """
    index = ucmd.cmd.index
    if index >= len(ucmd.file.regions.table):
        raise UapiError(errno.EINVAL, f"region {index}")
    await _respond(ucmd, _region_info(ucmd.file, index))


def _irq_info(df: Any, index: int) -> Info:
    count = df.function.n_irqs(index)
    flags = uapi.VFIO_IRQ_INFO_EVENTFD
    if index == irqs.INTX:
        flags |= uapi.VFIO_IRQ_INFO_MASKABLE | uapi.VFIO_IRQ_INFO_AUTOMASKED
    elif index != irqs.MSIX or not count:
        # MSI-X vectors can be added while it is on; without MSI-X there is nothing to add to.
        flags |= uapi.VFIO_IRQ_INFO_NORESIZE
    return Info(uapi.new("vfio_irq_info", flags=flags, index=index, count=count))


async def device_get_irq_info(ucmd: Ucmd) -> None:
    """Abilities and number of one kind of interrupt (VFIO_DEVICE_GET_IRQ_INFO).

    In:     index
    Out:    flags, count
    Errors: EINVAL  no such index
    Source: vfio_pci_ioctl_get_irq_info()
    """
    index = ucmd.cmd.index
    if index >= irqs.N_INDEXES:
        raise UapiError(errno.EINVAL, f"interrupt index {index}")
    await _respond(ucmd, _irq_info(ucmd.file, index))
