"""What follows the head of VFIO_DEVICE_FEATURE in the client's memory: one structure each."""

from typing import Any

from iommufs import uapi
from iommufs._native import ffi
from iommufs.ucmd import Ucmd

HEAD = uapi.sizeof("vfio_device_feature")


async def read(ucmd: Ucmd, struct_name: str) -> Any:
    """The structure, as a cffi pointer; EFAULT."""
    payload = uapi.new(struct_name)
    data = await ucmd.caller.read(ucmd.arg + HEAD, uapi.sizeof(struct_name))
    ffi.buffer(payload)[:] = data
    return payload


async def write(ucmd: Ucmd, payload: Any) -> None:
    """EFAULT."""
    await ucmd.caller.write(ucmd.arg + HEAD, bytes(ffi.buffer(payload)))
