"""What tests of migration share: an edu that migrates, and the calls."""

import struct

from iommufs import uapi
from iommufs._native import ffi
from iommufs.devices.edu import Edu

GET, SET = 1 << 16, 1 << 17
MIGRATION, STATE, DATA_SIZE, INFO_V2 = 1, 2, 9, 12
ERROR, STOP, RUNNING, STOP_COPY, RESUMING, RUNNING_P2P, PRE_COPY, PRE_COPY_P2P = range(8)


class Migrated:
    """A device that a client migrates; every descriptor that it gets is a number."""

    def __init__(self, vfio, df):
        self.vfio, self.df = vfio, df

    async def feature(self, flags, data=b"", **fields):
        """The bytes behind the head, afterwards."""
        await self.vfio.call(
            self.df, uapi.VFIO_DEVICE_FEATURE, "vfio_device_feature", tail=data, flags=flags,
            **fields,
        )  # fmt: skip
        return self.vfio.tail

    async def go(self, state):
        """The new stream, None without one."""
        tail = await self.feature(SET | STATE, struct.pack("<Ii", state, 77))
        got, fd = struct.unpack("<Ii", tail)
        assert got == state
        return self.vfio.descriptors[fd] if fd >= 0 else None

    async def state(self):
        state, fd = struct.unpack("<Ii", await self.feature(GET | STATE, bytes(8)))
        assert fd == -1
        return state

    async def data_size(self):
        (size,) = struct.unpack("<Q", await self.feature(GET | DATA_SIZE, bytes(8)))
        return size

    async def info(self, stream, argsz=24, flags=0x55):
        """flags, initial_bytes, dirty_bytes of the stream."""
        info = uapi.new("vfio_precopy_info", argsz=argsz, flags=flags)
        arg = int(ffi.cast("uintptr_t", info))
        await self.vfio.ioctl(stream, uapi.VFIO_MIG_GET_PRECOPY_INFO, arg)
        return info.flags, info.initial_bytes, info.dirty_bytes


async def migrated(vfio, slot=0x1D, make_model=None, **bound):
    """One more device, bound."""

    def edu(host):
        return Edu(host, {"migration": True})

    device = vfio.add(f"0000:00:{slot:02x}.0", make_model or edu)
    return Migrated(vfio, await vfio.bound(device.index, **bound))


async def read_all(vfio, stream, size=1000):
    data = b""
    while part := await vfio.pread(stream, size, 0):
        data += part
    return data
