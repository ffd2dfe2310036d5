"""What mediated devices answer otherwise than PCI functions do: infos and reset."""

from __future__ import annotations

import errno

from iommufs import uapi
from iommufs._native import ffi
from iommufs.errors import UapiError
from iommufs.ucmd import Ucmd
from iommufs.vfio.bars import OFFSET_SHIFT
from iommufs.vfio.irqs import N_INDEXES
from iommufs.vfio.regions import N_REGIONS, READ, WRITE


async def mediated_get_info(ucmd: Ucmd) -> None:
    """What kind of device it is (VFIO_DEVICE_GET_INFO): the part that was first released.

    Source: mtty_get_device_info()
    """
    cmd = ucmd.cmd
    cmd.flags = uapi.VFIO_DEVICE_FLAGS_PCI
    cmd.num_regions, cmd.num_irqs = N_REGIONS, N_INDEXES
    ucmd.file.function.info_asked = True
    length = uapi.offsetof("vfio_device_info", "cap_offset")
    await ucmd.caller.write(ucmd.arg, bytes(ffi.buffer(cmd, length)))


async def mediated_get_region_info(ucmd: Ucmd) -> None:
    """Size and place of one region (VFIO_DEVICE_GET_REGION_INFO); all can be read and written.

    Errors: EINVAL  no such region
    Source: mtty_ioctl_get_region_info()
    """
    cmd = ucmd.cmd
    if cmd.index >= N_REGIONS:
        raise UapiError(errno.EINVAL, f"region {cmd.index}")
    cmd.flags = READ | WRITE
    cmd.size = ucmd.file.function.region_size(cmd.index)
    cmd.offset = cmd.index << OFFSET_SHIFT
    await ucmd.respond()


def mediated_reset(ucmd: Ucmd) -> None:
    """Reset the device (VFIO_DEVICE_RESET): EIO."""
    ucmd.file.function.reset_function()
