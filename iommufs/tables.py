"""The tables: what each ioctl number means, as rows of plain data.

A row names the structure at the pointer, how much of it a client must have (the last member of the
structure as it was first released), by which rule it is read, and who answers. Adding an ioctl is
one row here, one handler, one test. How rows are carried out: dispatch.py.
"""

import enum
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from iommufs import uapi
from iommufs.iommufd import (
    dirty,
    fault,
    hwpt_ioctls,
    info,
    ioas,
    ioas_map,
    option,
    test_ops,
    veventq,
    vfio_compat,
    vfio_compat_info,
    viommu,
)
from iommufs.iommufd.ctx import destroy
from iommufs.vfio import (
    bind,
    feature,
    group,
    ioeventfd,
    mediated_irqs,
    migration_stream,
    reset,
    set_irqs,
)
from iommufs.vfio import info as vfio_info
from iommufs.vfio import mediated_ioctls as mediated


class Payload(enum.Enum):
    """How the argument of an ioctl is read.

    SIZED   the structure begins with its size, that of the client's headers; bytes that we do not
            know must be 0 (E2BIG), bytes that the client does not know are 0 for the handler
    ARGSZ   only the part up to the minimum is read; `argsz` says what may be written back
    VALUE   the argument is not read: a plain number, or a pointer the handler follows itself
    """

    SIZED = enum.auto()
    ARGSZ = enum.auto()
    VALUE = enum.auto()


@dataclass(frozen=True)
class Row:
    """One ioctl. `struct` and `min_size` are empty for Payload.VALUE."""

    number: int
    handler: Callable[..., Any]
    struct: str = ""
    min_size: int = 0
    payload: Payload = Payload.VALUE

    @cached_property
    def size(self) -> int:
        return uapi.sizeof(self.struct) if self.struct else 0

    @cached_property
    def pointer(self) -> Any:
        """The type of a pointer to the structure."""
        return uapi.pointer_to(self.struct)


def sized(number: int, struct: str, last: str, handler: Callable[..., Any]) -> Row:
    """A row whose structure begins with its size; `last`: of the first release's members."""
    return Row(number, handler, struct, uapi.offsetofend(struct, last), Payload.SIZED)


def argsz(number: int, struct: str, last: str, handler: Callable[..., Any]) -> Row:
    """A row of VFIO's usual kind; `last`: the last member that a client must have."""
    return Row(number, handler, struct, uapi.offsetofend(struct, last), Payload.ARGSZ)


def by_number(rows: Iterable[Row]) -> dict[int, Row]:
    table = {}
    for row in rows:
        assert row.number not in table, f"two rows for {row.number:#x}"
        table[row.number] = row
    return table


# fmt: off
IOMMUFD = by_number([
    sized(uapi.IOMMU_DESTROY, "iommu_destroy", "id", destroy),
    sized(uapi.IOMMU_IOAS_ALLOC, "iommu_ioas_alloc", "out_ioas_id", ioas.ioas_alloc),
    sized(uapi.IOMMU_IOAS_ALLOW_IOVAS, "iommu_ioas_allow_iovas", "allowed_iovas",
          ioas.ioas_allow_iovas),
    sized(uapi.IOMMU_IOAS_COPY, "iommu_ioas_copy", "src_iova", ioas_map.ioas_copy),
    sized(uapi.IOMMU_IOAS_IOVA_RANGES, "iommu_ioas_iova_ranges", "out_iova_alignment",
          ioas.ioas_iova_ranges),
    sized(uapi.IOMMU_IOAS_MAP, "iommu_ioas_map", "iova", ioas_map.ioas_map),
    sized(uapi.IOMMU_IOAS_UNMAP, "iommu_ioas_unmap", "length", ioas_map.ioas_unmap),
    sized(uapi.IOMMU_OPTION, "iommu_option", "val64", option.option),
    sized(uapi.IOMMU_VFIO_IOAS, "iommu_vfio_ioas", "__reserved", ioas.vfio_ioas),
    sized(uapi.IOMMU_HWPT_ALLOC, "iommu_hwpt_alloc", "__reserved", hwpt_ioctls.hwpt_alloc),
    sized(uapi.IOMMU_GET_HW_INFO, "iommu_hw_info", "__reserved", info.get_hw_info),
    sized(uapi.IOMMU_HWPT_SET_DIRTY_TRACKING, "iommu_hwpt_set_dirty_tracking", "__reserved",
          dirty.hwpt_set_dirty_tracking),
    sized(uapi.IOMMU_HWPT_GET_DIRTY_BITMAP, "iommu_hwpt_get_dirty_bitmap", "data",
          dirty.hwpt_get_dirty_bitmap),
    sized(uapi.IOMMU_HWPT_INVALIDATE, "iommu_hwpt_invalidate", "__reserved",
          hwpt_ioctls.hwpt_invalidate),
    sized(uapi.IOMMU_FAULT_QUEUE_ALLOC, "iommu_fault_alloc", "out_fault_fd",
          fault.fault_queue_alloc),
    sized(uapi.IOMMU_IOAS_MAP_FILE, "iommu_ioas_map_file", "iova", ioas_map.ioas_map_file),
    sized(uapi.IOMMU_VIOMMU_ALLOC, "iommu_viommu_alloc", "out_viommu_id", viommu.viommu_alloc),
    sized(uapi.IOMMU_VDEVICE_ALLOC, "iommu_vdevice_alloc", "virt_id", viommu.vdevice_alloc),
    sized(uapi.IOMMU_IOAS_CHANGE_PROCESS, "iommu_ioas_change_process", "__reserved",
          ioas.ioas_change_process),
    sized(uapi.IOMMU_VEVENTQ_ALLOC, "iommu_veventq_alloc", "out_veventq_fd",
          veventq.veventq_alloc),
    sized(uapi.IOMMU_HW_QUEUE_ALLOC, "iommu_hw_queue_alloc", "length", viommu.hw_queue_alloc),
    sized(uapi.IOMMU_IOAS_NOIOMMU_GET_PA, "iommu_ioas_noiommu_get_pa", "out_phys",
          ioas.ioas_noiommu_get_pa),
])

# Only for a context with test_ops, as with CONFIG_IOMMUFD_TEST.
IOMMUFD_TEST = by_number([
    sized(uapi.IOMMU_TEST_CMD, "iommu_test_cmd", "last", test_ops.test_cmd),
])

# What VFIO type1 drivers ask a container, here of every context.
IOMMUFD_VFIO = by_number([
    Row(uapi.VFIO_GET_API_VERSION, vfio_compat.get_api_version),
    Row(uapi.VFIO_CHECK_EXTENSION, vfio_compat.check_extension),
    Row(uapi.VFIO_SET_IOMMU, vfio_compat.set_iommu),
    argsz(uapi.VFIO_IOMMU_GET_INFO, "vfio_iommu_type1_info", "iova_pgsizes",
          vfio_compat_info.iommu_get_info),
    argsz(uapi.VFIO_IOMMU_MAP_DMA, "vfio_iommu_type1_dma_map", "size", vfio_compat.iommu_map_dma),
    argsz(uapi.VFIO_IOMMU_UNMAP_DMA, "vfio_iommu_type1_dma_unmap", "size",
          vfio_compat.iommu_unmap_dma),
])
# fmt: on

# Numbers in this range are read as SIZED before they are even known.
IOMMUFD_FIRST_NR = 0x80
IOMMUFD_LAST_NR = 0x95
IOMMUFD_TEST_LAST_NR = 0xA0

VFIO_DEVICE = by_number(
    [
        argsz(uapi.VFIO_DEVICE_GET_INFO, "vfio_device_info", "num_irqs", vfio_info.device_get_info),
        argsz(
            uapi.VFIO_DEVICE_GET_REGION_INFO,
            "vfio_region_info",
            "offset",
            vfio_info.device_get_region_info,
        ),
        argsz(
            uapi.VFIO_DEVICE_GET_IRQ_INFO, "vfio_irq_info", "count", vfio_info.device_get_irq_info
        ),
        argsz(uapi.VFIO_DEVICE_SET_IRQS, "vfio_irq_set", "count", set_irqs.device_set_irqs),
        Row(uapi.VFIO_DEVICE_RESET, reset.device_reset),
        argsz(
            uapi.VFIO_DEVICE_GET_PCI_HOT_RESET_INFO,
            "vfio_pci_hot_reset_info",
            "count",
            reset.device_get_pci_hot_reset_info,
        ),
        argsz(
            uapi.VFIO_DEVICE_PCI_HOT_RESET,
            "vfio_pci_hot_reset",
            "count",
            reset.device_pci_hot_reset,
        ),
        argsz(
            uapi.VFIO_DEVICE_IOEVENTFD, "vfio_device_ioeventfd", "fd", ioeventfd.device_ioeventfd
        ),
        argsz(uapi.VFIO_DEVICE_FEATURE, "vfio_device_feature", "flags", feature.device_feature),
        sized(
            uapi.VFIO_DEVICE_BIND_IOMMUFD,
            "vfio_device_bind_iommufd",
            "out_devid",
            bind.device_bind_iommufd,
        ),
        argsz(
            uapi.VFIO_DEVICE_ATTACH_IOMMUFD_PT,
            "vfio_device_attach_iommufd_pt",
            "pt_id",
            bind.device_attach_iommufd_pt,
        ),
        argsz(
            uapi.VFIO_DEVICE_DETACH_IOMMUFD_PT,
            "vfio_device_detach_iommufd_pt",
            "flags",
            bind.device_detach_iommufd_pt,
        ),
    ]
)

# What devices without an IOMMU have in common with PCI functions, and what is their own.
VFIO_MEDIATED = by_number(
    [
        *(
            VFIO_DEVICE[number]
            for number in (
                uapi.VFIO_DEVICE_FEATURE,
                uapi.VFIO_DEVICE_BIND_IOMMUFD,
                uapi.VFIO_DEVICE_ATTACH_IOMMUFD_PT,
                uapi.VFIO_DEVICE_DETACH_IOMMUFD_PT,
            )
        ),
        argsz(
            uapi.VFIO_DEVICE_GET_INFO, "vfio_device_info", "num_irqs", mediated.mediated_get_info
        ),
        argsz(
            uapi.VFIO_DEVICE_GET_REGION_INFO,
            "vfio_region_info",
            "offset",
            mediated.mediated_get_region_info,
        ),
        argsz(
            uapi.VFIO_DEVICE_GET_IRQ_INFO,
            "vfio_irq_info",
            "count",
            mediated_irqs.mediated_get_irq_info,
        ),
        argsz(uapi.VFIO_DEVICE_SET_IRQS, "vfio_irq_set", "count", mediated_irqs.mediated_set_irqs),
        Row(uapi.VFIO_DEVICE_RESET, mediated.mediated_reset),
    ]
)

VFIO_GROUP = by_number(
    [
        argsz(uapi.VFIO_GROUP_GET_STATUS, "vfio_group_status", "flags", group.group_get_status),
        Row(uapi.VFIO_GROUP_SET_CONTAINER, group.group_set_container),
        Row(uapi.VFIO_GROUP_UNSET_CONTAINER, group.group_unset_container),
        Row(uapi.VFIO_GROUP_GET_DEVICE_FD, group.group_get_device_fd),
    ]
)

VFIO_MIGRATION = by_number(
    [
        argsz(
            uapi.VFIO_MIG_GET_PRECOPY_INFO,
            "vfio_precopy_info",
            "dirty_bytes",
            migration_stream.mig_get_precopy_info,
        ),
    ]
)
