"""What the ioctls of fault tests work on, and one good call of each."""

import os
import struct

from iommufs import uapi
from iommufs._native import lib
from iommufs.iommufd.ctx import statistics
from iommufs.iommufd.ioas import Ioas
from tests.contract.client import FIXED, PAGE, RW, U64_MAX, Memory, ProcessClient

IOVA = 0x100000


class Scene:
    """An IOAS with a mapping and an attached device, another one, a file."""

    def __init__(self, client: ProcessClient) -> None:
        self.client = client
        self.memory = Memory(4)
        self.fd = os.memfd_create("fault")
        os.ftruncate(self.fd, PAGE)

    async def open(self) -> None:
        self.file = await self.client.open()
        self.bound = await self.client.bind(self.file, 0)
        self.ioas = await self.client.ioas_alloc(self.file)
        await self.bound.attach(self.ioas)
        await self.client.map(self.file, self.ioas, self.memory.address, PAGE, IOVA)
        self.spare = await self.client.ioas_alloc(self.file)

    async def close(self) -> None:
        await self.client.close_all()
        self.memory.free()
        os.close(self.fd)

    async def call(self, name: str) -> None:
        """The good call of an ioctl."""
        struct_name, fields = CASES[name]
        await self.client.call(self.file, getattr(uapi, name), struct_name, **fields(self))

    def state(self) -> object:
        """All that a failed call must leave as it was."""
        spaces = [
            (
                ioas.id,
                ioas.users,
                ioas.holes(),
                lib.iofs_iopt_alignment(ioas.iopt),
                lib.iofs_iopt_n_areas(ioas.iopt),
                lib.iofs_iopt_huge_pages(ioas.iopt),
            )
            for ioas in self.file.objects.of_type(Ioas)
        ]
        return statistics(), spaces, self.bound.device.domain, self.file.vfio_ioas


async def errno_of(call) -> int:
    """0: it succeeded."""
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
ANSWERED_LAST = {
    "IOMMU_IOAS_MAP",
    "IOMMU_IOAS_MAP_FILE",
    "IOMMU_IOAS_COPY",
    "IOMMU_IOAS_UNMAP",
    "IOMMU_OPTION",
}
