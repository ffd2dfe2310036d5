"""The features of VFIO_DEVICE_FEATURE that migrate a device; migration.py carries them out."""

from __future__ import annotations

import errno
from typing import Any

from iommufs import uapi
from iommufs.errors import UapiError
from iommufs.ucmd import Ucmd
from iommufs.vfio import payload


def can_migrate(df: Any) -> bool:
    return df.function.migration is not None


def can_copy_early(df: Any) -> bool:
    migration = df.function.migration
    return migration is not None and bool(migration.flags & uapi.VFIO_MIGRATION_PRE_COPY)


async def get_migration(ucmd: Ucmd) -> None:
    """Which states there are (feature MIGRATION)."""
    flags = ucmd.file.function.migration.flags
    await payload.write(ucmd, uapi.new("vfio_device_feature_migration", flags=flags))


async def mig_device_state(ucmd: Ucmd) -> None:
    """Get the state, or go to another one (feature MIG_DEVICE_STATE).

    In:     device_state
    Out:    device_state  of a GET          data_fd  the new stream, else -1
    Errors: those of DeviceMigration.set_state(), with data_fd written
            EMFILE  the caller has no fd for the stream, but the device is in the new state
            EOPNOTSUPP  no fd can be given to the caller; nothing has changed
    Source: vfio_ioctl_device_feature_mig_device_state()
    """
    migration = ucmd.file.function.migration
    state = await payload.read(ucmd, "vfio_device_feature_mig_state")
    state.data_fd = -1
    if ucmd.cmd.flags & uapi.VFIO_DEVICE_FEATURE_GET:
        state.device_state = await migration.settled()
        await payload.write(ucmd, state)
        return
    try:
        if migration.returns_file(state.device_state):
            _check_fds_can_be_given(ucmd)
        file = await migration.set_state(state.device_state)
    except UapiError:
        await payload.write(ucmd, state)
        raise
    if file is None:
        await payload.write(ucmd, state)
        return
    with await ucmd.caller.reserve_fd(file) as fd:
        state.data_fd = fd.number
        await payload.write(ucmd, state)
        if fd.install() != state.data_fd:  # another thread had opened a file
            state.data_fd = fd.number
            await payload.write(ucmd, state)


def _check_fds_can_be_given(ucmd: Ucmd) -> None:
    """EOPNOTSUPP. That the caller has no more of them is found out when the device has moved."""
    try:
        ucmd.caller.check_fd_available()
    except UapiError as error:
        if error.errno == errno.EOPNOTSUPP:
            raise


async def get_mig_data_size(ucmd: Ucmd) -> None:
    """How long the stream of STOP_COPY would be about now (feature MIG_DATA_SIZE)."""
    size = ucmd.file.function.migration.data_size()
    await payload.write(ucmd, uapi.new("vfio_device_feature_mig_data_size", stop_copy_length=size))


async def set_mig_precopy_info_v2(ucmd: Ucmd) -> None:
    """The client knows the flags of VFIO_MIG_GET_PRECOPY_INFO (feature MIG_PRECOPY_INFOv2)."""
    ucmd.file.function.migration.info_v2 = True
