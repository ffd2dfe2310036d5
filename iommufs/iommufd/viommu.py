"""Virtual IOMMUs and what belongs to them. No IOMMU of ours has them yet.

The calls check their arguments as a kernel does whose IOMMU driver has no vIOMMU.
"""

import errno

from iommufs.errors import UapiError
from iommufs.iommufd.device import Device
from iommufs.iommufd.ioas import U64_MAX
from iommufs.iommufd.objects import Object
from iommufs.ucmd import Ucmd

MAX_VEVENTQ_DEPTH = 524288


class Viommu(Object):
    """A share of an IOMMU for one guest."""


def viommu_alloc(ucmd: Ucmd) -> None:
    """Make a vIOMMU (IOMMU_VIOMMU_ALLOC).

    Errors: EOPNOTSUPP  a flag; type 0; the IOMMU has none      ENOENT  no such device
    Source: iommufd_viommu_alloc_ioctl()
    """
    cmd = ucmd.cmd
    if cmd.flags or not cmd.type:
        raise UapiError(errno.EOPNOTSUPP, f"flags {cmd.flags:#x}, type {cmd.type}")
    device = ucmd.file.objects.find(cmd.dev_id, Device)
    raise UapiError(errno.EOPNOTSUPP, f"{device.iommu.name}: no vIOMMU")


def vdevice_alloc(ucmd: Ucmd) -> None:
    """Give a device an id in a vIOMMU (IOMMU_VDEVICE_ALLOC).

    Errors: ENOENT  no such vIOMMU
    Source: iommufd_vdevice_alloc_ioctl()
    """
    _no_viommu(ucmd)


def veventq_alloc(ucmd: Ucmd) -> None:
    """Make a queue of a vIOMMU's events (IOMMU_VEVENTQ_ALLOC).

    Errors: EOPNOTSUPP  a flag; reserved field; type 0      EINVAL  depth 0 or over 524288
            ENOENT      no such vIOMMU
    Source: iommufd_veventq_alloc()
    """
    cmd = ucmd.cmd
    if cmd.flags or cmd.__reserved or not cmd.type:
        raise UapiError(errno.EOPNOTSUPP, f"flags {cmd.flags:#x}, type {cmd.type}, reserved field")
    if not 0 < cmd.veventq_depth <= MAX_VEVENTQ_DEPTH:
        raise UapiError(errno.EINVAL, f"depth {cmd.veventq_depth}")
    _no_viommu(ucmd)


def hw_queue_alloc(ucmd: Ucmd) -> None:
    """Let hardware use a guest's queue (IOMMU_HW_QUEUE_ALLOC).

    Errors: EOPNOTSUPP  a flag; type 0              EINVAL  length 0
            EOVERFLOW   the queue passes 2**64 - 1  ENOENT  no such vIOMMU
    Source: iommufd_hw_queue_alloc_ioctl()
    """
    cmd = ucmd.cmd
    if cmd.flags or not cmd.type:
        raise UapiError(errno.EOPNOTSUPP, f"flags {cmd.flags:#x}, type {cmd.type}")
    if not cmd.length:
        raise UapiError(errno.EINVAL, "length 0")
    if cmd.nesting_parent_iova + cmd.length - 1 > U64_MAX:
        raise UapiError(errno.EOVERFLOW, "the queue passes 2**64 - 1")
    _no_viommu(ucmd)


def _no_viommu(ucmd: Ucmd) -> None:
    viommu = ucmd.file.objects.find(ucmd.cmd.viommu_id, Viommu)
    raise AssertionError(f"{viommu}: no driver makes these")
