"""Calls on the mock IOMMU, and of type1, with the nth allocation of the native core failing.

As test_native_memory.py, for what the other IOMMUs do not have; each n has a context of its own.
"""

import errno
import os

import pytest

from iommufs import uapi
from iommufs._native import lib
from iommufs.iommufd.ctx import statistics
from tests.contract.client import FIXED, PAGE, RW, U64_MAX, Memory, ProcessClient
from tests.contract.mock import DIRTY, NEST_PARENT, SELFTEST_VIOMMU, START, Mock
from tests.fault.scene import errno_of

SET_DIRTY = uapi.IOMMU_HWPT_SET_DIRTY_TRACKING, "iommu_hwpt_set_dirty_tracking"
GET_DIRTY = uapi.IOMMU_HWPT_GET_DIRTY_BITMAP, "iommu_hwpt_get_dirty_bitmap"


class Stage:
    """A mock device on an IOAS with a mapping, page tables of each kind, a vIOMMU, an access."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.client = ProcessClient(test_ops=True)

    async def open(self) -> None:
        self.mock = Mock(self.client, await self.client.open())
        mock, self.ioas = self.mock, await self.mock.ioas()
        self.stdev, self.device, _ = await mock.device(self.ioas)
        await mock.map(self.ioas, self.memory.address, 4 * PAGE)
        self.parent = await mock.hwpt(self.device, self.ioas, NEST_PARENT)
        self.tracked = await mock.hwpt(self.device, self.ioas, DIRTY)
        self.viommu = await self.alloc_viommu()
        created = await mock.op("CREATE_ACCESS", "create_access", self.ioas, flags=1)
        self.access = created.out_access_fd
        self.other = await mock.ioas()
        self.compat = await mock.ioas()
        fields = {"ioas_id": self.compat, "op": uapi.IOMMU_VFIO_IOAS_SET}
        await mock.call(uapi.IOMMU_VFIO_IOAS, "iommu_vfio_ioas", **fields)
        await self.map_dma(0)

    async def alloc_viommu(self) -> int:
        fields = {"type": SELFTEST_VIOMMU, "dev_id": self.device, "hwpt_id": self.parent}
        call = uapi.IOMMU_VIOMMU_ALLOC, "iommu_viommu_alloc"
        return (await self.mock.call(*call, **fields)).out_viommu_id

    async def map_dma(self, iova: int) -> None:
        call = uapi.VFIO_IOMMU_MAP_DMA, "vfio_iommu_type1_dma_map"
        fields = {"vaddr": self.memory.address, "iova": iova, "size": PAGE, "flags": 3}
        await self.mock.call(*call, argsz=32, **fields)

    async def unmap_dma(self) -> None:
        call = uapi.VFIO_IOMMU_UNMAP_DMA, "vfio_iommu_type1_dma_unmap"
        await self.mock.call(*call, argsz=24, iova=0, size=PAGE)

    async def hw_queue(self) -> None:
        call = uapi.IOMMU_HW_QUEUE_ALLOC, "iommu_hw_queue_alloc"
        kind = uapi.IOMMU_HW_QUEUE_TYPE_SELFTEST
        fields = {"viommu_id": self.viommu, "type": kind, "nesting_parent_iova": START}
        await self.mock.call(*call, length=PAGE, **fields)

    async def pin(self) -> None:
        fields = {"iova": START, "length": 2 * PAGE}
        await self.mock.op("ACCESS_PAGES", "access_pages", self.access, **fields)

    async def rw(self) -> None:
        fields = {"iova": START, "length": PAGE, "uptr": self.memory.address + 8 * PAGE}
        await self.mock.op("ACCESS_RW", "access_rw", self.access, **fields)

    async def replace_access(self) -> None:
        member = "access_replace_ioas"
        await self.mock.op(member.upper(), member, self.access, ioas_id=self.other)

    async def keep_only_a_file(self) -> None:
        """What IOAS_CHANGE_PROCESS asks for."""
        for ioas in (self.ioas, self.compat):
            await self.mock.unmap(ioas, 0, U64_MAX)
        fd = os.memfd_create("fault")
        try:
            os.ftruncate(fd, 4 * PAGE)
            fields = {"ioas_id": self.ioas, "fd": fd, "length": 4 * PAGE, "iova": START}
            call = uapi.IOMMU_IOAS_MAP_FILE, "iommu_ioas_map_file"
            await self.mock.call(*call, flags=RW | FIXED, **fields)
        finally:
            os.close(fd)

    async def change_process(self) -> None:
        await self.mock.call(uapi.IOMMU_IOAS_CHANGE_PROCESS, "iommu_ioas_change_process")

    async def dirty(self) -> None:
        fields = {"iova": START, "length": 4 * PAGE, "page_size": PAGE}
        data = self.memory.address + 9 * PAGE
        await self.mock.call(*GET_DIRTY, hwpt_id=self.tracked, data=data, **fields)


CALLS = {
    "HWPT_ALLOC nested": lambda s: s.mock.nested(s.device, s.parent),
    "HWPT_ALLOC for dirty tracking": lambda s: s.mock.hwpt(s.device, s.ioas, DIRTY),
    "HWPT_SET_DIRTY_TRACKING": lambda s: s.mock.call(*SET_DIRTY, hwpt_id=s.tracked, flags=1),
    "HWPT_GET_DIRTY_BITMAP": lambda s: s.dirty(),
    "VIOMMU_ALLOC": lambda s: s.alloc_viommu(),
    "HW_QUEUE_ALLOC": lambda s: s.hw_queue(),
    "a mock device": lambda s: s.mock.device(s.ioas),
    "replace of a mock device": lambda s: s.mock.replace(s.stdev, s.other),
    "CREATE_ACCESS": lambda s: s.mock.op("CREATE_ACCESS", "create_access", s.ioas, flags=1),
    "ACCESS_PAGES": lambda s: s.pin(),
    "ACCESS_RW": lambda s: s.rw(),
    "ACCESS_REPLACE_IOAS": lambda s: s.replace_access(),
    "IOMMU_MAP_DMA": lambda s: s.map_dma(PAGE),
    "IOMMU_UNMAP_DMA": lambda s: s.unmap_dma(),
    "IOAS_CHANGE_PROCESS": lambda s: s.change_process(),
}
PREPARATIONS = {"IOAS_CHANGE_PROCESS": lambda s: s.keep_only_a_file()}


@pytest.mark.parametrize("name", CALLS)
async def test_the_nth_allocation_fails(name):
    memory = Memory(16)
    nothing = statistics()
    for n in range(1, 500):
        stage = Stage(memory)
        await stage.open()
        if name in PREPARATIONS:
            await PREPARATIONS[name](stage)
        before = statistics()
        lib.iofs_fail_allocation(n)
        result = await errno_of(CALLS[name](stage))
        none_failed = lib.iofs_fail_allocation(0)
        after = statistics()
        await stage.client.close_all()
        assert statistics() == nothing, f"something outlives failure {n}"
        if none_failed:
            assert result == 0
            break
        if result:
            assert result == errno.ENOMEM
            assert after == before, f"something is left by failure {n}"
    else:
        raise AssertionError("allocations never end")
    memory.free()
