"""A client that works with the mock IOMMU through IOMMU_TEST_CMD."""

from typing import Any

from iommufs import uapi
from iommufs._native import ffi
from tests.contract.client import ProcessClient

CMD = uapi.IOMMU_TEST_CMD
START = uapi.MOCK_APERTURE_START
NEST_PARENT = uapi.IOMMU_HWPT_ALLOC_NEST_PARENT
PASID = uapi.IOMMU_HWPT_ALLOC_PASID
DIRTY = uapi.IOMMU_HWPT_ALLOC_DIRTY_TRACKING
FAULT = uapi.IOMMU_HWPT_FAULT_ID_VALID
HAS_PASIDS = uapi.MOCK_FLAGS_DEVICE_PASID
NO_DIRTY = uapi.MOCK_FLAGS_DEVICE_NO_DIRTY
DATA = uapi.IOMMU_HWPT_DATA_SELFTEST
IOTLB = uapi.IOMMU_TEST_IOTLB_DEFAULT
SELFTEST_VIOMMU = uapi.IOMMU_VIOMMU_TYPE_SELFTEST


class Mock:
    """One iommufd with test operations; what is open is closed with the test."""

    def __init__(self, client: ProcessClient, file: Any) -> None:
        self.client = client
        self.file = file

    async def call(self, number: int, struct: str, **fields: Any) -> Any:
        return await self.client.call(self.file, number, struct, **fields)

    async def op(self, name: str, member: str = "", object_id: int = 0, **fields: Any) -> Any:
        """A test operation; returns the member of the union."""
        union = {member: fields} if member else {}
        op = getattr(uapi, f"IOMMU_TEST_OP_{name}")
        cmd = await self.call(CMD, "iommu_test_cmd", op=op, id=object_id, **union)
        self.last = cmd  # keeps the memory of what is returned
        return getattr(cmd, member) if member else cmd

    async def ioas(self) -> int:
        return await self.client.ioas_alloc(self.file)

    async def destroy(self, object_id: int) -> None:
        await self.client.destroy(self.file, object_id)

    async def device(self, pt_id: int, flags: int = 0) -> tuple[int, int, int]:
        """A mock device attached to an IOAS or HWPT: (stdev, device, hwpt)."""
        name, member = ("MOCK_DOMAIN_FLAGS", "mock_domain_flags") if flags else ("MOCK_DOMAIN",) * 2
        fields = {"dev_flags": flags} if flags else {}
        made = await self.op(name, member.lower(), pt_id, **fields)
        return made.out_stdev_id, made.out_idev_id, made.out_hwpt_id

    async def hwpt(self, device: int, pt_id: int, flags: int = 0, **fields: Any) -> int:
        return await self.client.hwpt_alloc(self.file, device, pt_id, flags=flags, **fields)

    async def nested(self, device: int, pt_id: int, flags: int = 0, **fields: Any) -> int:
        """A nested HWPT whose IOTLB holds IOTLB."""
        data = uapi.new("iommu_hwpt_selftest", iotlb=IOTLB)
        return await self.hwpt(device, pt_id, flags, **{**self.data(data), **fields})

    @staticmethod
    def data(struct: Any, data_type: int = DATA, length: int | None = None) -> dict[str, int]:
        address = int(ffi.cast("uintptr_t", struct))
        size = ffi.sizeof(struct[0]) if length is None else length
        return {"data_type": data_type, "data_uptr": address, "data_len": size}

    async def map(self, ioas: int, address: int, length: int, iova: int | None = START) -> int:
        return await self.client.map(self.file, ioas, address, length, iova)

    async def unmap(self, ioas: int, iova: int, length: int) -> int:
        return await self.client.unmap(self.file, ioas, iova, length)

    async def replace(self, stdev: int, pt_id: int) -> int:
        return (
            await self.op("MOCK_DOMAIN_REPLACE", "mock_domain_replace", stdev, pt_id=pt_id)
        ).pt_id

    async def fault_queue(self) -> tuple[int, Any]:
        """Its id, and its open file."""
        cmd = await self.call(uapi.IOMMU_FAULT_QUEUE_ALLOC, "iommu_fault_alloc")
        return cmd.out_fault_id, self.client.descriptors[cmd.out_fault_fd]
