"""The contract of an emulated IOMMU, a driver in kernel words, and of the groups that it makes.

A driver says what its page tables can express, what must not be mapped, and which domains it makes
for whom; the tables themselves are native. What it does not override, it does not have.
"""

from __future__ import annotations

import enum
import errno
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from iommufs import uapi
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
    """What a page table can hold, and how.

    page_sizes  bit n for pages of 1 << n bytes
    format      of its entries: vtd or amd, see native/pt_*.c
    """

    aperture_start: int
    aperture_last: int
    page_sizes: int
    format: str = "vtd"


class IommuGroup:
    """Functions that the IOMMU cannot tell apart. Their DMA belongs to one owner at a time."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._owner: Any = None
        self._claims = 0

    def claim(self, owner: Any) -> None:
        """Own the DMA of the group, once more; EPERM if another does."""
        if self._claims and self._owner is not owner:
            raise UapiError(errno.EPERM, f"group {self.number} belongs to another")
        self._owner = owner
        self._claims += 1

    def release(self) -> None:
        assert self._claims > 0, "the group is not owned"
        self._claims -= 1
        if not self._claims:
            self._owner = None

    @property
    def owned(self) -> bool:
        return self._claims > 0


class Physical(Protocol):
    """A function as the IOMMU sees it."""

    iommu: Iommu
    group: IommuGroup | None


class Iommu:
    """Base of all drivers. `function` is the one that asks: an IOMMU may treat them differently."""

    name = ""
    dirty_tracking = False
    enforces_coherency = False  # page tables make DMA that asks not to snoop caches do so

    def __init__(self, reserved: Iterable[ReservedRegion] = ()) -> None:
        """`reserved`: ranges that the machine's firmware keeps, besides the driver's own."""
        self._reserved = tuple(reserved)

    def reserved_regions(self, function: Physical) -> Sequence[ReservedRegion]:
        return self._reserved

    def domain_alloc_paging(self, function: Physical, flags: int) -> DomainConfig:
        """A page table of its own format. flags: IOMMU_HWPT_ALLOC_…, checked for unknown ones.

        EOPNOTSUPP for those it cannot.
        """
        raise NotImplementedError

    async def domain_alloc_user(
        self, function: Physical, flags: int, parent: Any, data: UserData
    ) -> DomainConfig:
        """A page table described by the client: nested in `parent` unless that is None."""
        raise UapiError(errno.EOPNOTSUPP, f"{self.name}: no domains with user data")

    def check_attach(self, function: Physical, config: DomainConfig) -> None:
        """EINVAL if the function cannot work with a domain that was made for another one."""

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
