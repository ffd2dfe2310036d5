"""The contract of an emulated IOMMU, a driver in kernel words, and of the groups that it makes.

A driver says what its page tables can express, what must not be mapped, and which domains it makes
for whom; the tables themselves are native. What it does not override, it does not have.
A page table in a client's memory, and what belongs to a vIOMMU, are the driver's own objects.
"""

from __future__ import annotations

import enum
import errno
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from iommufs import jobs, uapi
from iommufs._native import ffi, lib
from iommufs.errors import UapiError


class RegionType(enum.Enum):
    """Why a device cannot use a range of IOVAs for memory; DIRECT_RELAXABLE: it can after all."""

    DIRECT = enum.auto()
    DIRECT_RELAXABLE = enum.auto()
    RESERVED = enum.auto()
    MSI = enum.auto()
    SW_MSI = enum.auto()


@dataclass(frozen=True)
class ReservedRegion:
    start: int
    last: int
    type: RegionType


@dataclass(frozen=True)
class DomainConfig:
    """A page table that the core keeps for a driver: what it can hold, and how.

    page_sizes  bit n for pages of 1 << n bytes
    format      of its entries: vtd, amd or mock, see native/pt_*.c
    dirty       it can track what devices write
    """

    aperture_start: int
    aperture_last: int
    page_sizes: int
    format: str = "vtd"
    dirty: bool = False


class NestedDomain:
    """A page table that a client keeps in its own memory, below one of ours."""

    async def cache_invalidate(self, array: UserArray) -> None:
        """Forget cached translations; array.done counts what was done before an error."""
        raise UapiError(errno.EOPNOTSUPP, "no cache to invalidate")


Domain = DomainConfig | NestedDomain


class IommuGroup:
    """Functions that the IOMMU cannot tell apart. Their DMA belongs to one owner at a time.

    The machine's own drivers are one owner together: None.

    route   where their DMA goes, for models in C
    domain  the page table that a client attached; None: none

    ENOMEM.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        route = lib.iofs_route_new()
        if not route:
            raise UapiError(errno.ENOMEM, "no memory for a group")
        self.route = ffi.gc(route, lib.iofs_route_put)
        self.domain: Any = None
        self._owner: Any = None
        self._claims = 0

    def claim(self, owner: Any) -> None:
        """Own the DMA of the group, once more; EPERM if another does."""
        if self._claims and self._owner is not owner:
            raise UapiError(errno.EPERM, f"group {self.number} belongs to another")
        self._owner = owner
        self._claims += 1

    def claim_by_host(self) -> None:
        """A driver of the machine's own uses one of the functions, with the machine's page table.

        EBUSY: a client owns the group. Source: iommu_device_use_default_domain()
        """
        if self._claims and self._owner is not None:
            raise UapiError(errno.EBUSY, f"group {self.number} belongs to a client")
        self._claims += 1

    def release(self) -> None:
        assert self._claims > 0, "the group is not owned"
        self._claims -= 1
        if not self._claims:
            self._owner = None

    @property
    def owned(self) -> bool:
        return self._claims > 0

    @property
    def owned_by_client(self) -> bool:
        return self._owner is not None


class Physical(Protocol):
    """A function as the IOMMU sees it."""

    iommu: Iommu
    group: IommuGroup | None


class ViommuCore(Protocol):
    """What a driver's vIOMMU asks of the core's."""

    def function_of(self, virt_id: int) -> Any | None:
        """Which function has this id in the vIOMMU."""

    def virt_id_of(self, function: Any) -> int:
        """The other way round; ENOENT."""

    def alloc_mmap(self, length: int) -> Any:
        """Pages for the client to map: a mmap.Region, which goes with the vIOMMU; EOPNOTSUPP."""

    def report_event(self, kind: int, data: bytes) -> None:
        """For the queue of this type; EOPNOTSUPP: there is none."""


class ViommuDriver:
    """A driver's part of a vIOMMU."""

    def destroy(self) -> None: ...

    async def domain_alloc_nested(self, flags: int, data: UserData) -> NestedDomain:
        raise UapiError(errno.EOPNOTSUPP, "no nested page tables")

    async def cache_invalidate(self, array: UserArray) -> None:
        """As of a NestedDomain."""
        raise UapiError(errno.EOPNOTSUPP, "no cache to invalidate")

    def has_hw_queues(self, kind: int) -> bool:
        return False

    def hw_queue_add(self, index: int) -> Callable[[], None]:
        """Let the hardware use a queue, whose memory is pinned; what is returned ends that.

        EINVAL: no such index; EEXIST: it is in use; EIO: another must be there before.
        """
        raise NotImplementedError

    def hw_queue_depends_on(self, index: int) -> int | None:
        """The queue that must live as long as this one."""
        return None


class Iommu:
    """Base of all drivers. `function` is the one that asks: an IOMMU may treat them differently."""

    name = ""
    instance = ""  # in /sys/class/iommu
    shown_in = ""  # the directory there that has its registers
    enforces_coherency = False  # page tables make DMA that asks not to snoop caches do so
    has_pasids = False
    has_nesting = False

    def __init__(self, reserved: Iterable[ReservedRegion] = ()) -> None:
        """`reserved`: ranges that the machine's firmware keeps, besides the driver's own."""
        self._reserved = tuple(reserved)

    def shown(self, n_domains: int) -> dict[str, str]:
        """What is in there; `n_domains` page tables are in use, the machine's own among them."""
        return {}

    def reserved_regions(self, function: Physical) -> Sequence[ReservedRegion]:
        return self._reserved

    def dirty_tracking(self, function: Physical) -> bool:
        return False

    def domain_alloc_paging(self, function: Physical, flags: int) -> DomainConfig:
        """A page table of its own format. flags: IOMMU_HWPT_ALLOC_…, checked for unknown ones.

        EOPNOTSUPP for those it cannot.
        """
        raise NotImplementedError

    async def domain_alloc_user(
        self, function: Physical, flags: int, data: UserData
    ) -> DomainConfig:
        """A page table described by the client."""
        raise UapiError(errno.EOPNOTSUPP, f"{self.name}: no domains with user data")

    async def domain_alloc_nested(
        self, function: Physical, flags: int, data: UserData
    ) -> NestedDomain:
        """One that the client keeps, below one of ours."""
        raise UapiError(errno.EOPNOTSUPP, f"{self.name}: no nested page tables")

    def attach_dev(self, function: Physical, domain: Domain | None) -> None:
        """Let DMA of the function go through the domain, or, with None, nowhere: that always works.

        EINVAL: the function cannot work with a domain that was made for another one.
        """

    def check_page_requests(self, function: Physical) -> None:
        """Before a function gets a domain whose faults a client answers: the driver's errno."""

    def set_dev_pasid(self, function: Physical, pasid: int, domain: Domain | None) -> None:
        """As attach_dev(), for DMA with a PASID. Only of functions with max_pasids() above 0."""

    def has_viommus(self, function: Physical, kind: int) -> bool:
        """kind: IOMMU_VIOMMU_TYPE_…"""
        return False

    async def viommu_alloc(self, core: ViommuCore, data: UserData | None) -> ViommuDriver:
        raise NotImplementedError

    def hw_info(self, function: Physical, data_type: int) -> tuple[int, bytes]:
        """Type and content of the driver's structure for GET_HW_INFO; EOPNOTSUPP.

        data_type: IOMMU_HW_INFO_TYPE_…, DEFAULT for the driver's own choice.
        """
        if data_type != uapi.IOMMU_HW_INFO_TYPE_DEFAULT:
            raise UapiError(errno.EOPNOTSUPP, f"{self.name}: no hw_info of type {data_type}")
        return uapi.IOMMU_HW_INFO_TYPE_NONE, b""

    def hw_capabilities(self, function: Physical) -> int:
        """IOMMU_HW_CAP_… of GET_HW_INFO."""
        return uapi.IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED

    def max_pasids(self, function: Physical) -> int:
        return 0


@dataclass(frozen=True)
class UserData:
    """Driver data of a client: a structure of a type, not read yet."""

    caller: Any
    type: int
    address: int
    length: int

    async def read(self, kind: int, struct: str, last: str) -> Any:
        """The structure, if it is of this type and reaches to member `last`: EINVAL, EFAULT.

        What the client leaves out is 0. Source: iommu_copy_struct_from_user()
        """
        if self.type != kind:
            raise UapiError(errno.EINVAL, f"data of type {self.type:#x}, not {kind:#x}")
        _check_length(self.length, struct, last)
        return _filled(struct, await self.caller.read(self.address, self.length))

    async def write(self, struct: Any) -> None:
        """Write it back, as far as the client's goes: EFAULT."""
        await self.caller.write(self.address, bytes(ffi.buffer(struct))[: self.length])


@dataclass
class UserArray:
    """Driver data of a client: n structures of a type, not read yet.

    done  how many of them are carried out: what the client is told, also after an error
    """

    caller: Any
    type: int
    address: int
    length: int
    n: int
    done: int = 0

    async def read(self, kind: int, struct: str, last: str, index: int) -> Any:
        """One structure, as UserData.read(). Source: iommu_copy_struct_from_user_array()"""
        if self.type != kind or index >= self.n:
            raise UapiError(errno.EINVAL, f"{self.n} items of type {self.type:#x}")
        _check_length(self.length, struct, last)
        data = await self.caller.read(self.address + index * self.length, self.length)
        return _filled(struct, data)

    async def read_all(self, kind: int, struct: str) -> list[Any]:
        """All structures, of whatever length: E2BIG if bytes that we do not know are not 0.

        Source: iommu_copy_struct_from_full_user_array()
        """
        if self.type != kind or not self.n or not self.length:
            raise UapiError(errno.EINVAL, f"{self.n} items of type {self.type:#x}")
        size = uapi.sizeof(struct)
        items = []
        for i in range(self.n):
            data = await self.caller.read(self.address + i * self.length, self.length)
            if any(data[size:]):
                raise UapiError(errno.E2BIG, f"item {i} has unknown trailing bytes")
            items.append(_filled(struct, data[:size]))
            if i % 256 == 255:
                await jobs.let_others()  # up to 524288: others get their turn
        return items


def _check_length(length: int, struct: str, last: str) -> None:
    if not uapi.offsetofend(struct, last) <= length <= uapi.sizeof(struct):
        raise UapiError(errno.EINVAL, f"{struct} of {length} bytes")


def _filled(struct: str, data: bytes) -> Any:
    made = uapi.new(struct)
    ffi.buffer(made)[: len(data)] = data
    return made
