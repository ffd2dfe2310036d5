"""The mock IOMMU of the kernel's selftests, and the mock devices that IOMMU_TEST_CMD makes.

It has all that an IOMMU can have, in its simplest form: page tables with pages of 2 KiB, nested
ones whose only content is an IOTLB of four numbers, PASIDs, vIOMMUs, queues. Each device is alone
in its group and has a cache of four numbers. Source: drivers/iommu/iommufd/selftest.c
"""

import errno
from collections.abc import Callable

from iommufs import uapi
from iommufs.errors import UapiError
from iommufs.iommufd.iommu import (
    Domain,
    DomainConfig,
    Iommu,
    IommuGroup,
    NestedDomain,
    UserArray,
    UserData,
    ViommuCore,
    ViommuDriver,
)
from iommufs.limits import PAGE_SIZE

_DEVICE_FLAGS = uapi.MOCK_FLAGS_DEVICE_NO_DIRTY | uapi.MOCK_FLAGS_DEVICE_PASID
_PAGING_FLAGS = (
    uapi.IOMMU_HWPT_ALLOC_DIRTY_TRACKING
    | uapi.IOMMU_HWPT_ALLOC_NEST_PARENT
    | uapi.IOMMU_HWPT_ALLOC_PASID
)
_FLAG_ALL = uapi.IOMMU_TEST_INVALIDATE_FLAG_ALL

# Every power of two that AMD's format can have with a granule of 2 KiB and three levels of tables.
PAGE_SIZES = (1 << 37) - (1 << 11)
HUGE_PAGE_SIZES = uapi.MOCK_HUGE_PAGE_SIZE | 1 << 12
HUGE_LAST = 2**56 - 1


class MockFunction:
    """A device of the mock IOMMU, with a group of its own. EINVAL: an unknown flag."""

    def __init__(self, iommu: "MockIommu", flags: int) -> None:
        if flags & ~_DEVICE_FLAGS:
            raise UapiError(errno.EINVAL, f"device flags {flags:#x}")
        self.iommu = iommu
        self.group: IommuGroup | None = IommuGroup(0)
        self.tracks_dirty = not flags & uapi.MOCK_FLAGS_DEVICE_NO_DIRTY
        self.has_pasids = bool(flags & uapi.MOCK_FLAGS_DEVICE_PASID)
        self.cache = [uapi.IOMMU_TEST_DEV_CACHE_DEFAULT] * uapi.MOCK_DEV_CACHE_NUM
        self.fails_next = False  # for the reserved PASID
        self._viommu: ViommuCore | None = None
        self._virt_id = 0

    def check_attach(self, domain: Domain | None) -> None:
        if isinstance(domain, DomainConfig) and domain.dirty and not self.tracks_dirty:
            raise UapiError(errno.EINVAL, "the device does not track what it writes")

    def join(self, domain: Domain | None) -> None:
        """Its events are from now on those of the vIOMMU of this domain, if it has one: ENOENT."""
        viommu = domain.viommu if isinstance(domain, MockNested) else None
        virt_id = viommu.virt_id_of(self) if viommu is not None else 0
        if viommu is not self._viommu:
            self._viommu, self._virt_id = viommu, virt_id

    def trigger_event(self) -> None:
        """ENOENT: it is not attached to a vIOMMU's page table; EOPNOTSUPP: nobody listens."""
        if self._viommu is None or not self._virt_id:
            raise UapiError(errno.ENOENT, "the device is in no vIOMMU")
        data = uapi.new("iommu_viommu_event_selftest", virt_id=self._virt_id & 0xFFFFFFFF)
        self._viommu.report_event(
            uapi.IOMMU_VEVENTQ_TYPE_SELFTEST, data.virt_id.to_bytes(4, "little")
        )


class MockNested(NestedDomain):
    """A nested page table: an IOTLB. viommu: the one it was made in, or None."""

    def __init__(self, iotlb: int, viommu: ViommuCore | None) -> None:
        self.iotlb = [iotlb] * uapi.MOCK_NESTED_DOMAIN_IOTLB_NUM
        self.viommu = viommu

    async def cache_invalidate(self, array: UserArray) -> None:
        kind = uapi.IOMMU_HWPT_INVALIDATE_DATA_SELFTEST
        if array.type != kind:
            raise UapiError(errno.EINVAL, f"invalidation of type {array.type:#x}")
        while array.done < array.n:
            item = await array.read(kind, "iommu_hwpt_invalidate_selftest", "iotlb_id", array.done)
            if item.flags & ~_FLAG_ALL:
                raise UapiError(errno.EOPNOTSUPP, f"flags {item.flags:#x}")
            if item.iotlb_id > uapi.MOCK_NESTED_DOMAIN_IOTLB_ID_MAX:
                raise UapiError(errno.EINVAL, f"IOTLB entry {item.iotlb_id}")
            if item.flags & _FLAG_ALL:
                self.iotlb = [0] * len(self.iotlb)
            else:
                self.iotlb[item.iotlb_id] = 0
            array.done += 1


async def _make_nested(data: UserData, flags: int, viommu: ViommuCore | None) -> MockNested:
    kind = uapi.IOMMU_HWPT_DATA_SELFTEST
    if flags & ~uapi.IOMMU_HWPT_ALLOC_PASID or data.type != kind:
        raise UapiError(errno.EOPNOTSUPP, f"flags {flags:#x}, data of type {data.type:#x}")
    config = await data.read(kind, "iommu_hwpt_selftest", "iotlb")
    return MockNested(config.iotlb, viommu)


class MockViommu(ViommuDriver):
    """A vIOMMU that can forget the caches of its devices, and has queues that need each other."""

    def __init__(self, core: ViommuCore) -> None:
        self._core = core
        self._queues: set[int] = set()

    async def domain_alloc_nested(self, flags: int, data: UserData) -> NestedDomain:
        return await _make_nested(data, flags, self._core)

    async def cache_invalidate(self, array: UserArray) -> None:
        kind = uapi.IOMMU_VIOMMU_INVALIDATE_DATA_SELFTEST
        if not array.n and array.type == kind:
            return
        for item in await array.read_all(kind, "iommu_viommu_invalidate_selftest"):
            if item.flags & ~_FLAG_ALL:
                raise UapiError(errno.EOPNOTSUPP, f"flags {item.flags:#x}")
            if item.cache_id > uapi.MOCK_DEV_CACHE_ID_MAX:
                raise UapiError(errno.EINVAL, f"cache entry {item.cache_id}")
            function = self._core.function_of(item.vdev_id)
            if function is None:
                raise UapiError(errno.EINVAL, f"no device with id {item.vdev_id:#x}")
            if item.flags & _FLAG_ALL:
                function.cache = [0] * len(function.cache)
            else:
                function.cache[item.cache_id] = 0
            array.done += 1

    def has_hw_queues(self, kind: int) -> bool:
        return kind == uapi.IOMMU_HW_QUEUE_TYPE_SELFTEST

    def hw_queue_add(self, index: int) -> Callable[[], None]:
        if index >= uapi.IOMMU_TEST_HW_QUEUE_MAX:
            raise UapiError(errno.EINVAL, f"queue {index}")
        if index in self._queues:
            raise UapiError(errno.EEXIST, f"queue {index} is in use")
        if index and index - 1 not in self._queues:
            raise UapiError(errno.EIO, f"queue {index - 1} must be there before")
        self._queues.add(index)
        return lambda: self._queues.discard(index)

    def hw_queue_depends_on(self, index: int) -> int | None:
        return index - 1 if index else None


class MockIommu(Iommu):
    name = "mock"
    has_pasids = True
    has_nesting = True

    def make_function(self, flags: int) -> MockFunction:
        """A new device; flags: MOCK_FLAGS_DEVICE_…; EINVAL."""
        return MockFunction(self, flags)

    def dirty_tracking(self, function: MockFunction) -> bool:
        return function.tracks_dirty

    def domain_alloc_paging(self, function: MockFunction, flags: int) -> DomainConfig:
        return self._make_paging(function, flags, uapi.MOCK_IOMMUPT_DEFAULT)

    async def domain_alloc_user(
        self, function: MockFunction, flags: int, data: UserData
    ) -> DomainConfig:
        self._check_flags(function, flags)
        kind = uapi.IOMMU_HWPT_DATA_SELFTEST
        if data.type != kind:
            raise UapiError(errno.EOPNOTSUPP, f"data of type {data.type:#x}")
        config = await data.read(kind, "iommu_hwpt_selftest", "iotlb")
        return self._make_paging(function, flags, config.pagetable_type)

    def _check_flags(self, function: MockFunction, flags: int) -> None:
        dirty = flags & uapi.IOMMU_HWPT_ALLOC_DIRTY_TRACKING
        if flags & ~_PAGING_FLAGS or (dirty and not function.tracks_dirty):
            raise UapiError(errno.EOPNOTSUPP, f"flags {flags:#x}")

    def _make_paging(self, function: MockFunction, flags: int, kind: int) -> DomainConfig:
        self._check_flags(function, flags)
        dirty = bool(flags & uapi.IOMMU_HWPT_ALLOC_DIRTY_TRACKING)
        if kind == uapi.MOCK_IOMMUPT_DEFAULT:
            first, last = uapi.MOCK_APERTURE_START, uapi.MOCK_APERTURE_LAST
            return DomainConfig(first, last, PAGE_SIZES, "mock", dirty)
        if kind == uapi.MOCK_IOMMUPT_HUGE:
            return DomainConfig(0, HUGE_LAST, HUGE_PAGE_SIZES, "mock", dirty)
        raise UapiError(errno.EOPNOTSUPP, f"page table of type {kind}")

    async def domain_alloc_nested(
        self, function: MockFunction, flags: int, data: UserData
    ) -> NestedDomain:
        return await _make_nested(data, flags, None)

    def attach_dev(self, function: MockFunction, domain: Domain | None) -> None:
        function.check_attach(domain)
        function.join(domain)

    def set_dev_pasid(self, function: MockFunction, pasid: int, domain: Domain | None) -> None:
        """Every second attach to the reserved PASID fails, so that a rollback can be seen."""
        if pasid != uapi.IOMMU_TEST_PASID_RESERVED:
            return
        fails = function.fails_next
        function.fails_next = domain is not None and not fails
        if domain is not None and fails:
            raise UapiError(errno.ENOMEM, f"PASID {pasid} fails every second time")

    def hw_info(self, function: MockFunction, data_type: int) -> tuple[int, bytes]:
        kind = uapi.IOMMU_HW_INFO_TYPE_SELFTEST
        if data_type not in (uapi.IOMMU_HW_INFO_TYPE_DEFAULT, kind):
            raise UapiError(errno.EOPNOTSUPP, f"mock: no hw_info of type {data_type}")
        flags, register = 0, uapi.IOMMU_HW_INFO_SELFTEST_REGVAL
        return kind, flags.to_bytes(4, "little") + register.to_bytes(4, "little")

    def hw_capabilities(self, function: MockFunction) -> int:
        dirty = uapi.IOMMU_HW_CAP_DIRTY_TRACKING if function.tracks_dirty else 0
        return dirty | uapi.IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED

    def max_pasids(self, function: MockFunction) -> int:
        # A device without the flag says that it has 0 bits: that is the one PASID of the RID.
        return 1 << uapi.MOCK_PASID_WIDTH if function.has_pasids else 1

    def has_viommus(self, function: MockFunction, kind: int) -> bool:
        return kind == uapi.IOMMU_VIOMMU_TYPE_SELFTEST

    async def viommu_alloc(self, core: ViommuCore, data: UserData | None) -> ViommuDriver:
        if data is not None:
            kind = uapi.IOMMU_VIOMMU_TYPE_SELFTEST
            config = await data.read(kind, "iommu_viommu_selftest", "out_data")
            region = core.alloc_mmap(2 * PAGE_SIZE)
            region.write(config.in_data.to_bytes(4, "little"))
            config.out_data = config.in_data
            config.out_mmap_offset, config.out_mmap_length = region.offset, region.length
            await data.write(config)
        return MockViommu(core)
