"""VFIO_DEVICE_FEATURE: a second table of calls, each of which can be probed for, got or set.

A plain vfio-pci device has the power states, the VF token (if it can have virtual functions) and
the export of BARs as dma-bufs; migration and logging of DMA are for models that know them. Each
feature is carried out in the room of its topic.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from iommufs import uapi
from iommufs.errors import UapiError
from iommufs.ucmd import Ucmd
from iommufs.vfio import bar_dmabuf, dma_log, low_power, payload
from iommufs.vfio import feature_migration as migration

GET = uapi.VFIO_DEVICE_FEATURE_GET
SET = uapi.VFIO_DEVICE_FEATURE_SET
PROBE = uapi.VFIO_DEVICE_FEATURE_PROBE


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
            ENOTTY  no such feature, but EINVAL for MIG_PRECOPY_INFOv2
    Source: vfio_ioctl_device_feature(), vfio_check_feature()
    """
    flags = ucmd.cmd.flags
    if flags & ~(uapi.VFIO_DEVICE_FEATURE_MASK | GET | SET | PROBE):
        raise UapiError(errno.EINVAL, f"flags {flags:#x}")
    operations = flags & (GET | SET)
    if operations == GET | SET and not flags & PROBE:
        raise UapiError(errno.EINVAL, "both get and set")
    index = flags & uapi.VFIO_DEVICE_FEATURE_MASK
    feature = _FEATURES.get(index)
    if feature is None or not feature.supported(ucmd.file):
        other = index == uapi.VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2
        raise UapiError(errno.EINVAL if other else errno.ENOTTY, f"no feature {index}")
    if operations & ~feature.operation:
        raise UapiError(errno.EINVAL, f"flags {flags:#x}: not for feature {index}")
    if flags & PROBE:
        return 0
    if not operations or ucmd.user_size - payload.HEAD < feature.size:
        raise UapiError(errno.EINVAL, "neither get nor set, or argsz too small")
    return await feature.carry_out(ucmd)


async def _set_vf_token(ucmd: Ucmd) -> None:
    ucmd.file.device.vf_token = await ucmd.caller.read(ucmd.arg + payload.HEAD, 16)


def _has_vf_token(df: Any) -> bool:
    return df.device.has_vf_token


def _is_pci(df: Any) -> bool:
    """Whether vfio-pci has it; drivers of emulated devices have none of its features."""
    return df.low_power is not None


_FEATURES = {
    uapi.VFIO_DEVICE_FEATURE_PCI_VF_TOKEN: Feature(SET, 16, _set_vf_token, _has_vf_token),
    uapi.VFIO_DEVICE_FEATURE_MIGRATION: Feature(
        GET,
        uapi.sizeof("vfio_device_feature_migration"),
        migration.get_migration,
        migration.can_migrate,
    ),
    uapi.VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE: Feature(
        GET | SET,
        uapi.sizeof("vfio_device_feature_mig_state"),
        migration.mig_device_state,
        migration.can_migrate,
    ),
    uapi.VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY: Feature(SET, 0, low_power.enter_low_power, _is_pci),
    uapi.VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP: Feature(
        SET, low_power.SIZE_WITH_WAKEUP, low_power.enter_low_power_with_wakeup, _is_pci
    ),
    uapi.VFIO_DEVICE_FEATURE_LOW_POWER_EXIT: Feature(SET, 0, low_power.exit_low_power, _is_pci),
    uapi.VFIO_DEVICE_FEATURE_DMA_LOGGING_START: Feature(
        SET,
        uapi.sizeof("vfio_device_feature_dma_logging_control"),
        dma_log.start_dma_logging,
        dma_log.can_log,
    ),
    uapi.VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP: Feature(
        SET, 0, dma_log.stop_dma_logging, dma_log.can_log
    ),
    uapi.VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT: Feature(
        GET,
        uapi.sizeof("vfio_device_feature_dma_logging_report"),
        dma_log.report_dma_logging,
        dma_log.can_log,
    ),
    uapi.VFIO_DEVICE_FEATURE_MIG_DATA_SIZE: Feature(
        GET,
        uapi.sizeof("vfio_device_feature_mig_data_size"),
        migration.get_mig_data_size,
        migration.can_migrate,
    ),
    uapi.VFIO_DEVICE_FEATURE_DMA_BUF: Feature(
        GET, uapi.sizeof("vfio_device_feature_dma_buf"), bar_dmabuf.get_dma_buf, _is_pci
    ),
    uapi.VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2: Feature(
        SET, 0, migration.set_mig_precopy_info_v2, migration.can_copy_early
    ),
}
