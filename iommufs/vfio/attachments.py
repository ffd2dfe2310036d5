"""What a client has attached of a device, by the RID and by PASIDs, whatever siblings have."""

from __future__ import annotations

import errno
from typing import Any

from iommufs.errors import UapiError

INT_MAX = 0x7FFFFFFF


class Attachments:
    """Those of one bound device; `device` is what the iommufd has of it.

    A PASID of None is the RID. PASID 0 is the RID, too (IOMMU_NO_PASID), but under a name of its
    own: what was attached by the one is not replaced or detached by the other.
    Source: vfio_iommufd_physical_attach_ioas(), vfio_iommufd_physical_pasid_attach_ioas()
    """

    def __init__(self, device: Any) -> None:
        self._device = device
        self._attached: set[int | None] = set()

    def set_pt(self, pt_id: int, pasid: int | None = None) -> int:
        """Attach to an IOAS or HWPT, or replace what is attached; the id of what is in use.

        ENOENT: no such object; EINVAL: neither of these, a sibling is attached elsewhere, another
        kind of IOMMU, not made for PASIDs; EBUSY: the RID is attached by its other name;
        EADDRINUSE, EFAULT, ENOMEM: the IOAS does not fit; ENOSPC: a PASID past INT_MAX. Nothing
        has changed then.
        """
        if pasid is not None and pasid > INT_MAX:
            raise UapiError(errno.ENOSPC, f"PASID {pasid:#x}")
        change = self._device.replace if pasid in self._attached else self._device.attach
        used = change(pt_id, pasid or 0)
        self._attached.add(pasid)
        return used

    def detach(self, pasid: int | None = None) -> None:
        """Nothing happens if it is not attached by this name."""
        if pasid in self._attached:
            self._device.detach(pasid or 0)
            self._attached.remove(pasid)
