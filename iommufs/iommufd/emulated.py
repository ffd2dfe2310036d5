"""Bound devices without an IOMMU: their driver reaches memory through an access.

Page tables and PASIDs mean nothing to them: they are attached to an IOAS. What their driver has
pinned it lets go of when it is told that the IOVAs go away.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from iommufs import logs
from iommufs.iommufd.access import Access
from iommufs.iommufd.ctx import Ctx
from iommufs.limits import U64_MAX

log = logs.get(__name__)


class EmulatedDevice:
    """What a device file knows of the iommufd, as device.Device is for others.

    unmap  tells the driver: it unpins all in a range, at the latest when this returns
    """

    domain = None
    has_pasids = False

    def __init__(self, ctx: Ctx, unmap: Callable[[int, int], None], name: str) -> None:
        self.ctx = ctx
        self._tell = unmap
        self._name = name
        self._pins: Counter[tuple[int, int]] = Counter()
        with ctx.objects.new(Access(ctx, self, needs_pin_pages=True)) as access:
            access.get()
        self._access: Access = access
        self.id: int = access.id

    def attach(self, pt_id: int, pasid: int = 0) -> int:
        """Attach to an IOAS; ENOENT: no such IOAS; EADDRINUSE: not of whole pages."""
        self._access.attach(pt_id)
        return pt_id

    def replace(self, pt_id: int, pasid: int = 0) -> int:
        """As attach(), of what is attached."""
        self._access.replace(pt_id)
        return pt_id

    def detach(self, pasid: int = 0) -> None:
        self._access.detach()

    def unbind(self) -> None:
        """The driver is through with it."""
        self._access.detach()
        self._access.close()

    # ---- for the driver

    def pin(self, iova: int, length: int, write: bool) -> None:
        """Errors: see Access.pin()."""
        self._access.pin(iova, length, write)
        self._pins[iova, length] += 1

    def unpin(self, iova: int, length: int) -> None:
        """Exactly what was pinned; EINVAL."""
        self._access.unpin(iova, length)
        self._pins[iova, length] -= 1
        if not self._pins[iova, length]:
            del self._pins[iova, length]

    async def read(self, iova: int, length: int) -> bytes:
        """Errors: see Access.read()."""
        return await self._access.read(iova, length)

    async def write(self, iova: int, data: bytes) -> None:
        await self._access.write(iova, data)

    # ---- the driver of the access

    def unmap(self, iova: int, length: int) -> None:
        self._tell(iova, length)
        if (iova, length) == (0, U64_MAX):  # it leaves the IOAS: nothing may be left
            self._drop_pins()

    def _drop_pins(self) -> None:
        for pin, count in list(self._pins.items()):
            log.warning("a device model kept pins", device=self._name, iova=hex(pin[0]))
            for _ in range(count):
                self.unpin(*pin)


def bind(ctx: Ctx, unmap: Callable[[int, int], None], name: str) -> EmulatedDevice:
    """Bind a device without an IOMMU (vfio_iommufd_emulated_bind())."""
    return EmulatedDevice(ctx, unmap, name)
