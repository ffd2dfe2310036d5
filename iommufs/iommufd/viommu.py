"""Virtual IOMMUs: a guest's share of an IOMMU, its devices in it, and the queues of its hardware.

The queue of its events is in veventq.py. What a vIOMMU does is its driver's (see iommu.py).
"""

import errno
from typing import Any

from iommufs.errors import UapiError
from iommufs.iommufd.access import InternalAccess
from iommufs.iommufd.device import Device
from iommufs.iommufd.hwpt import HwptPaging
from iommufs.iommufd.iommu import Iommu, UserData, ViommuDriver
from iommufs.iommufd.mmap import Region
from iommufs.iommufd.objects import Object, ObjectTable
from iommufs.limits import PAGE_SIZE, U64_MAX
from iommufs.ucmd import Ucmd


class Viommu(Object):
    """A vIOMMU. It holds `parent`; what belongs to it holds it.

    vdevices   by virt_id
    veventqs   by type
    hw_queues  by index
    """

    def __init__(self, iommu: Iommu, parent: HwptPaging) -> None:
        super().__init__()
        self.iommu = iommu
        self.parent = parent
        self.driver = ViommuDriver()
        self.vdevices: dict[int, Vdevice] = {}
        self.veventqs: dict[int, Any] = {}
        self.hw_queues: dict[int, HwQueue] = {}
        self._regions: list[Region] = []
        parent.get()

    def destroy(self) -> None:
        self.driver.destroy()
        for region in self._regions:
            region.free()
        self.parent.put()

    def is_mapped(self) -> bool:
        return any(region.is_mapped for region in self._regions)

    # What the driver asks.

    def alloc_mmap(self, length: int) -> Region:
        if self.parent.ioas.ctx.arena is None:
            raise UapiError(errno.EOPNOTSUPP, "no memory that could be mapped")
        region = Region(self.parent.ioas.ctx, length)
        self._regions.append(region)
        return region

    def function_of(self, virt_id: int) -> Any | None:
        vdevice = self.vdevices.get(virt_id)
        return vdevice.device.function if vdevice is not None else None

    def virt_id_of(self, function: Any) -> int:
        for vdevice in self.vdevices.values():
            if vdevice.device.function is function:
                return vdevice.virt_id
        raise UapiError(errno.ENOENT, "the device has no id in the vIOMMU")

    def report_event(self, kind: int, data: bytes) -> None:
        if kind not in self.veventqs:
            raise UapiError(errno.EOPNOTSUPP, f"no queue of events of type {kind:#x}")
        self.veventqs[kind].report(data)


async def viommu_alloc(ucmd: Ucmd) -> None:
    """Make a vIOMMU (IOMMU_VIOMMU_ALLOC).

    In:     hwpt_id     a page table made with NEST_PARENT; the vIOMMU holds it
    Errors: EOPNOTSUPP  a flag; type 0; the IOMMU has none      ENOENT  no such device, HWPT
            EINVAL      the HWPT is no parent; others are the driver's
    Source: iommufd_viommu_alloc_ioctl()
    """
    cmd, objects = ucmd.cmd, ucmd.file.objects
    if cmd.flags or not cmd.type:
        raise UapiError(errno.EOPNOTSUPP, f"flags {cmd.flags:#x}, type {cmd.type}")
    with objects.use(cmd.dev_id, Device) as device:
        iommu = device.iommu
        if not iommu.has_viommus(device.function, cmd.type):
            raise UapiError(errno.EOPNOTSUPP, f"{iommu.name}: no vIOMMU of type {cmd.type:#x}")
        with objects.use(cmd.hwpt_id, HwptPaging) as parent:
            if not parent.nest_parent:
                raise UapiError(errno.EINVAL, f"{parent} is no parent")
            data = UserData(ucmd.caller, cmd.type, cmd.data_uptr, cmd.data_len)
            with objects.new(Viommu(iommu, parent)) as viommu:
                viommu.driver = await iommu.viommu_alloc(viommu, data if cmd.data_len else None)
                cmd.out_viommu_id = viommu.id
                await ucmd.respond()


class Vdevice(Object):
    """A device's id in a vIOMMU. It goes with the device, and its own id is not used again then."""

    def __init__(self, viommu: Viommu, device: Device, virt_id: int) -> None:
        super().__init__()
        self.viommu = viommu
        self.device = device
        self.virt_id = virt_id
        viommu.vdevices[virt_id] = self
        device.vdevice = self
        viommu.get()

    def destroy(self) -> None:
        del self.viommu.vdevices[self.virt_id]
        self.device.vdevice = None
        self.viommu.put()


async def vdevice_alloc(ucmd: Ucmd) -> None:
    """Give a device an id in a vIOMMU (IOMMU_VDEVICE_ALLOC).

    Errors: ENOENT  no such vIOMMU, device              EINVAL  of another IOMMU
            EEXIST  the device has an id, or the id is another's
    Source: iommufd_vdevice_alloc_ioctl()
    """
    cmd, objects = ucmd.cmd, ucmd.file.objects
    viommu = objects.find(cmd.viommu_id, Viommu)
    device = objects.find(cmd.dev_id, Device)
    if device.iommu is not viommu.iommu:
        raise UapiError(errno.EINVAL, f"{viommu} is another IOMMU's")
    if device.vdevice is not None:
        raise UapiError(errno.EEXIST, f"{device} has an id in a vIOMMU")
    if cmd.virt_id in viommu.vdevices:
        raise UapiError(errno.EEXIST, f"id {cmd.virt_id:#x} is in use")
    with objects.new(Vdevice(viommu, device, cmd.virt_id)) as vdevice:
        cmd.out_vdevice_id = vdevice.id
        await ucmd.respond()


class HwQueue(Object):
    """A guest's queue that hardware uses: its memory stays where it is, and mapped."""

    def __init__(self, viommu: Viommu, index: int) -> None:
        super().__init__()
        self._viommu = viommu
        self._access: InternalAccess | None = None
        self._index = index
        self._end_use: Any = None
        self._needed: HwQueue | None = None
        viommu.get()

    def pin(self, objects: ObjectTable, iova: int, length: int) -> None:
        """Errors: see InternalAccess."""
        with objects.new(InternalAccess(self._viommu.parent.ioas, iova, length)) as access:
            access.get()
        self._access = access

    def start(self) -> None:
        """EINVAL, EEXIST, EIO: the driver does not take it."""
        self._end_use = self._viommu.driver.hw_queue_add(self._index)
        needed = self._viommu.driver.hw_queue_depends_on(self._index)
        if needed is not None:
            self._needed = self._viommu.hw_queues[needed]
            self._needed.get()
        self._viommu.hw_queues[self._index] = self

    def destroy(self) -> None:
        if self._end_use is not None:
            del self._viommu.hw_queues[self._index]
            self._end_use()
        if self._needed is not None:
            self._needed.put()
        if self._access is not None:
            self._access.close()
        self._viommu.put()


async def hw_queue_alloc(ucmd: Ucmd) -> None:
    """Let hardware use a guest's queue (IOMMU_HW_QUEUE_ALLOC).

    In:     nesting_parent_iova, length  where it is in the IOAS of the vIOMMU's parent
    Errors: EOPNOTSUPP  a flag; type 0; the vIOMMU has none     EINVAL  length 0; the driver's
            EOVERFLOW   the queue passes 2**64 - 1              ENOENT  no such vIOMMU; not mapped
            ERANGE      its pages do                            EPERM   not mapped for reading
            EADDRINUSE, EFAULT, ENOMEM  it cannot be pinned; others are the driver's
    After:  what holds it cannot be unmapped: EBUSY; its access has an id, too, the next one.
    Source: iommufd_hw_queue_alloc_ioctl(), iommufd_hw_queue_alloc_phys()
    """
    cmd, objects = ucmd.cmd, ucmd.file.objects
    if cmd.flags or not cmd.type:
        raise UapiError(errno.EOPNOTSUPP, f"flags {cmd.flags:#x}, type {cmd.type}")
    if not cmd.length:
        raise UapiError(errno.EINVAL, "length 0")
    if cmd.nesting_parent_iova + cmd.length - 1 > U64_MAX:
        raise UapiError(errno.EOVERFLOW, "the queue passes 2**64 - 1")
    viommu = objects.find(cmd.viommu_id, Viommu)
    if not viommu.driver.has_hw_queues(cmd.type):
        raise UapiError(errno.EOPNOTSUPP, f"no queues of type {cmd.type:#x}")
    offset = cmd.nesting_parent_iova % PAGE_SIZE
    iova = cmd.nesting_parent_iova - offset
    length = -(-(offset + cmd.length) // PAGE_SIZE) * PAGE_SIZE
    if length > U64_MAX:
        raise UapiError(errno.ERANGE, "the pages of the queue pass 2**64 - 1")
    with objects.new(HwQueue(viommu, cmd.index)) as queue:
        queue.pin(objects, iova, length)
        queue.start()
        cmd.out_hw_queue_id = queue.id
        await ucmd.respond()
