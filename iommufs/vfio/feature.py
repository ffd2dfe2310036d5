"""VFIO_DEVICE_FEATURE: a second table of calls, each of which can be probed for, got or set.

A plain vfio-pci device has the power states, the VF token (if it can have virtual functions) and
the export of BARs as dma-bufs; migration and logging of DMA are for drivers that know them.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import structlog

from iommufs import uapi
from iommufs._native import ffi
from iommufs.errors import UapiError
from iommufs.limits import PAGE_SIZE, U64_MAX
from iommufs.ucmd import Ucmd
from iommufs.vfio.eventfd import take

log = structlog.get_logger(__name__)

GET = uapi.VFIO_DEVICE_FEATURE_GET
SET = uapi.VFIO_DEVICE_FEATURE_SET
PROBE = uapi.VFIO_DEVICE_FEATURE_PROBE

ROM_REGION = 6


@dataclass(frozen=True)
class Feature:
    """What can be done with it (GET or SET), how long its payload is, who carries it out."""

    operation: int
    size: int
    carry_out: Callable[[Ucmd], Awaitable[int | None]]
    supported: Callable[[Any], bool] = lambda df: True


async def device_feature(ucmd: Ucmd) -> int | None:
    """Ask about, read or set an optional feature (VFIO_DEVICE_FEATURE).

    In:     flags  index of the feature; GET or SET; PROBE asks whether that is possible
    Errors: EINVAL  unknown flags; GET and SET; not this operation; argsz too small
            ENOTTY  no such feature
    Source: vfio_ioctl_device_feature(), vfio_check_feature()
    """
    flags, header = ucmd.cmd.flags, uapi.sizeof("vfio_device_feature")
    if flags & ~(uapi.VFIO_DEVICE_FEATURE_MASK | GET | SET | PROBE):
        raise UapiError(errno.EINVAL, f"flags {flags:#x}")
    operations = flags & (GET | SET)
    if operations == GET | SET and not flags & PROBE:
        raise UapiError(errno.EINVAL, "both get and set")
    index = flags & uapi.VFIO_DEVICE_FEATURE_MASK
    if index == uapi.VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2:
        # It looks for the ability to migrate before anything else.
        raise UapiError(errno.EINVAL, "no PRE_COPY")
    feature = _FEATURES.get(index)
    if feature is None or not feature.supported(ucmd.file):
        raise UapiError(errno.ENOTTY, f"no feature {index}")
    if operations & ~feature.operation:
        raise UapiError(errno.EINVAL, f"flags {flags:#x}: not for feature {index}")
    if flags & PROBE:
        return 0
    if not operations or ucmd.user_size - header < feature.size:
        raise UapiError(errno.EINVAL, "neither get nor set, or argsz too small")
    return await feature.carry_out(ucmd)


async def _payload(ucmd: Ucmd, struct_name: str) -> Any:
    size, header = uapi.sizeof(struct_name), uapi.sizeof("vfio_device_feature")
    payload = uapi.new(struct_name)
    ffi.buffer(payload)[:] = await ucmd.caller.read(ucmd.arg + header, size)
    return payload


async def _set_vf_token(ucmd: Ucmd) -> None:
    header = uapi.sizeof("vfio_device_feature")
    ucmd.file.device.vf_token = await ucmd.caller.read(ucmd.arg + header, 16)


def _has_vf_token(df: Any) -> bool:
    return df.device.has_vf_token


async def _enter_low_power(ucmd: Ucmd) -> None:
    ucmd.file.enter_low_power(None)


async def _enter_low_power_with_wakeup(ucmd: Ucmd) -> None:
    entry = await _payload(ucmd, "vfio_device_low_power_entry_with_wakeup")
    if entry.wakeup_eventfd < 0:
        raise UapiError(errno.EINVAL, f"fd {entry.wakeup_eventfd}")
    ucmd.file.enter_low_power(take(ucmd.caller, entry.wakeup_eventfd))


async def _exit_low_power(ucmd: Ucmd) -> None:
    ucmd.file.exit_low_power()


async def _get_dma_buf(ucmd: Ucmd) -> None:
    """Checked as Linux does; then there is no way to give the client the new file from here."""
    request = await _payload(ucmd, "vfio_device_feature_dma_buf")
    regions = ucmd.file.regions.table
    if not request.nr_ranges or request.flags:
        raise UapiError(errno.EINVAL, f"{request.nr_ranges} ranges, flags {request.flags:#x}")
    if request.region_index >= ROM_REGION or not regions[request.region_index].size:
        raise UapiError(errno.ENODEV, f"region {request.region_index}")
    header = uapi.sizeof("vfio_device_feature") + uapi.sizeof("vfio_device_feature_dma_buf")
    size = uapi.sizeof("vfio_region_dma_range")
    total = 0
    ranges = []
    for number in range(request.nr_ranges):
        data = await ucmd.caller.read(ucmd.arg + header + number * size, size)
        offset, length = (int.from_bytes(data[i : i + 8], "little") for i in (0, 8))
        total += length
        if not length or offset % PAGE_SIZE or length % PAGE_SIZE or total > U64_MAX:
            raise UapiError(errno.EINVAL, f"range {offset:#x}, {length:#x} bytes")
        ranges.append((offset, length))
    for offset, length in ranges:
        if offset + length > U64_MAX:
            raise UapiError(errno.EOVERFLOW, f"range {offset:#x}, {length:#x} bytes")
        if offset + length > regions[request.region_index].size:
            raise UapiError(errno.EINVAL, "a range outside of the BAR")
    log.warning("a BAR cannot be exported as a dma-buf", device=ucmd.file.function.address)
    raise UapiError(errno.EOPNOTSUPP, "no dma-buf can be given to the client")


_FEATURES = {
    uapi.VFIO_DEVICE_FEATURE_PCI_VF_TOKEN: Feature(SET, 16, _set_vf_token, _has_vf_token),
    uapi.VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY: Feature(SET, 0, _enter_low_power),
    uapi.VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP: Feature(
        SET,
        uapi.sizeof("vfio_device_low_power_entry_with_wakeup"),
        _enter_low_power_with_wakeup,
    ),
    uapi.VFIO_DEVICE_FEATURE_LOW_POWER_EXIT: Feature(SET, 0, _exit_low_power),
    uapi.VFIO_DEVICE_FEATURE_DMA_BUF: Feature(
        GET, uapi.sizeof("vfio_device_feature_dma_buf"), _get_dma_buf
    ),
}
