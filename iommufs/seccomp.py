"""The seccomp filter of a run, as the process that becomes the client puts it on itself.

Nothing here waits for anything, so that the start of the command does not wait for this room's
imports; what the listener does is in fdreturn.py, the filter itself in native/seccomp.c.
"""

import os

from iommufs import uapi
from iommufs._native import lib

# The ioctls of which some calls return a descriptor. VFIO_DEVICE_FEATURE and IOMMU_TEST_CMD do
# much else; a filter sees no memory, so the listener tells those calls apart.
REQUESTS = (
    uapi.IOMMU_FAULT_QUEUE_ALLOC,
    uapi.IOMMU_VEVENTQ_ALLOC,
    uapi.VFIO_GROUP_GET_DEVICE_FD,
    uapi.VFIO_DEVICE_FEATURE,
    uapi.IOMMU_TEST_CMD,
)


def install_filter() -> int:
    """Put the filter on this process and all that it will start; returns the listener. OSError."""
    listener = lib.iofs_seccomp_install(REQUESTS, len(REQUESTS))
    if listener < 0:
        raise OSError(-listener, os.strerror(-listener))
    return listener
