"""Ioctls with the nth access to the client's memory failing, for n = 1, 2, 3 … until none does.

An ioctl that fails so has done nothing, apart from those that Linux finishes before it answers.
"""

import errno
import os
import struct

import pytest

from iommufs import uapi
from iommufs.errors import UapiError
from iommufs.iommufd.ctx import statistics
from tests.contract.client import FIXED, PAGE, RW, U64_MAX, Memory, ProcessCaller, ProcessClient

IOVA = 0x100000


class FailingCaller(ProcessCaller):
    """Fails at the nth access, never if n is 0."""

    async def read_some(self, address, length):
        return b"" if self._client.fails() else await super().read_some(address, length)

    async def write(self, address, data):
        if self._client.fails():
            raise UapiError(errno.EFAULT, "the nth access")
        await super().write(address, data)


class FailingClient(ProcessClient):
    nth = 0

    def fails(self):
        self.nth -= 1
        return self.nth == 0

    @property
    def caller(self):
        return FailingCaller(self)


class Scene:
    """What the ioctls work on: an IOAS with a mapping and a page table, a device, a queue."""

    def __init__(self):
        self.client = FailingClient(prefetch=False)
        self.memory = Memory(4)
        self.fd = os.memfd_create("fault")
        os.ftruncate(self.fd, PAGE)

    async def open(self):
        self.file = await self.client.open()
        self.bound = await self.client.bind(self.file, 0)
        self.ioas = await self.client.ioas_alloc(self.file)
        await self.bound.attach(self.ioas)
        await self.client.map(self.file, self.ioas, self.memory.address, PAGE, IOVA)
        self.spare = await self.client.ioas_alloc(self.file)

    async def close(self):
        await self.client.close_all()
        self.memory.free()
        os.close(self.fd)


@pytest.fixture
async def scene():
    scene = Scene()
    await scene.open()
    yield scene
    await scene.close()


async def errno_of(call):
    try:
        await call
    except OSError as error:
        return error.errno
    return 0


def ranges_at(scene):
    return scene.memory.write(2 * PAGE, struct.pack("<QQ", 0, 0xFFFFFF))


# Name of the ioctl, its structure, its fields in a scene. Then those whose effect stays.
CASES = {
    "IOMMU_DESTROY": ("iommu_destroy", lambda s: {"id": s.spare}),
    "IOMMU_IOAS_ALLOC": ("iommu_ioas_alloc", lambda s: {}),
    "IOMMU_IOAS_ALLOW_IOVAS": (
        "iommu_ioas_allow_iovas",
        lambda s: {"ioas_id": s.ioas, "num_iovas": 1, "allowed_iovas": ranges_at(s)},
    ),
    "IOMMU_IOAS_IOVA_RANGES": (
        "iommu_ioas_iova_ranges",
        lambda s: {"ioas_id": s.ioas, "num_iovas": 2, "allowed_iovas": ranges_at(s)},
    ),
    "IOMMU_HWPT_ALLOC": (
        "iommu_hwpt_alloc",
        lambda s: {"dev_id": s.bound.devid, "pt_id": s.ioas},
    ),
    "IOMMU_GET_HW_INFO": (
        "iommu_hw_info",
        lambda s: {"dev_id": s.bound.devid, "data_len": 64, "data_uptr": s.memory.address},
    ),
    "IOMMU_FAULT_QUEUE_ALLOC": ("iommu_fault_alloc", lambda s: {}),
    "IOMMU_VFIO_IOAS": (
        "iommu_vfio_ioas",
        lambda s: {"ioas_id": s.ioas, "op": uapi.IOMMU_VFIO_IOAS_SET},
    ),
    "IOMMU_IOAS_MAP": (
        "iommu_ioas_map",
        lambda s: {"ioas_id": s.ioas, "user_va": s.memory.address, "length": PAGE, "flags": RW},
    ),
    "IOMMU_IOAS_MAP_FILE": (
        "iommu_ioas_map_file",
        lambda s: {"ioas_id": s.ioas, "fd": s.fd, "length": PAGE, "flags": RW},
    ),
    "IOMMU_IOAS_COPY": (
        "iommu_ioas_copy",
        lambda s: {
            "src_ioas_id": s.ioas,
            "dst_ioas_id": s.spare,
            "length": PAGE,
            "src_iova": IOVA,
            "dst_iova": 0x5000,
            "flags": RW | FIXED,
        },
    ),
    "IOMMU_IOAS_UNMAP": (
        "iommu_ioas_unmap",
        lambda s: {"ioas_id": s.ioas, "length": U64_MAX},
    ),
    "IOMMU_OPTION": (
        "iommu_option",
        lambda s: {"option_id": uapi.IOMMU_OPTION_HUGE_PAGES, "object_id": s.spare},
    ),
}
ANSWERED_LAST = {"IOMMU_IOAS_MAP", "IOMMU_IOAS_MAP_FILE", "IOMMU_IOAS_COPY", "IOMMU_IOAS_UNMAP"}


@pytest.mark.parametrize("name", CASES)
async def test_the_nth_access_fails(scene, name):
    struct_name, fields = CASES[name]
    number = getattr(uapi, name)
    for n in range(1, 20):
        before = statistics()
        scene.client.nth = n
        result = await errno_of(scene.client.call(scene.file, number, struct_name, **fields(scene)))
        scene.client.nth = 0
        if result == 0:
            assert n > 1, "the argument was not read"
            return
        assert result == errno.EFAULT
        if statistics() == before:
            continue
        assert name in ANSWERED_LAST, f"something is left by failure {n}"
        # It is done: begin anew, with the next access failing.
        await scene.client.close_all()
        await scene.open()
    raise AssertionError("it never succeeds")
