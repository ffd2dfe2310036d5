"""VFIO devices: one for each /dev/vfio/devices/vfioN, and the files that are open of them.

Any number of files may be open of a device; one at a time is bound, and until then a file refuses
everything but BIND with EINVAL. Binding makes the client's view of the function (config space,
regions, interrupts); closing the file ends it. A group (group.py) gives out descriptors of a file
that is bound from the start, any number of them.

Not here: the ioctls, each in the room of its topic (bind, info, set_irqs, reset, feature, …).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import trio

from iommufs import baton, jobs, uapi
from iommufs.caller import Caller
from iommufs.errors import UapiError
from iommufs.fast import Fast
from iommufs.files import OpenFiles
from iommufs.iommufd import device as iommufd_device
from iommufs.iommufd.ctx import Ctx
from iommufs.iommufd.vfio_compat import compat_ioas
from iommufs.limits import DEFAULT_POLLMASK, PAGE_SIZE
from iommufs.vfio import capabilities as caps
from iommufs.vfio import info
from iommufs.vfio.attachments import Attachments
from iommufs.vfio.bar_dmabuf import BarDmabufs
from iommufs.vfio.bars import OFFSET_SHIFT
from iommufs.vfio.config import ConfigSpace
from iommufs.vfio.dev_set import DevSet
from iommufs.vfio.dma_log import DmaLog
from iommufs.vfio.function import PciFunction
from iommufs.vfio.group import VfioGroup
from iommufs.vfio.irqs import REQ, Irqs
from iommufs.vfio.low_power import LowPower
from iommufs.vfio.migration import DeviceMigration
from iommufs.vfio.regions import CONFIG, OFFSET_MASK, Regions

# A model is asked for this many bytes of a BAR, then others get their turn.
TURN = 4096
# A client that is asked to give its device back is asked again after so long.
REQUEST_SECONDS = 10

_ONLY_CDEV = (uapi.VFIO_DEVICE_ATTACH_IOMMUFD_PT, uapi.VFIO_DEVICE_DETACH_IOMMUFD_PT)


class VfioDevice:
    """One cdev.

    index     the N of vfioN
    function  the PCI function behind it
    dev_set   shared with the devices that are reset together with it
    group     the one that it is in
    files     where fds of clients are looked up
    n_open    files that are open of it
    vf_token  what a client of its virtual functions must know; vf_users: how many are bound
    pf        of a virtual function: the device that has made it, if that is a VFIO device

    knows_tokens  clients may name one; file_class: what an open of it is
    """

    knows_tokens = True
    file_class: type[DeviceFile]

    def __init__(
        self,
        index: int,
        function: PciFunction,
        dev_set: DevSet,
        group: VfioGroup,
        files: OpenFiles,
    ) -> None:
        self.index = index
        self.function = function
        self.dev_set = dev_set
        self.group = group
        self.files = files
        self.bound: DeviceFile | None = None
        self.n_open = 0
        self._unused = trio.Event()
        self.vf_token = os.urandom(16)
        self.vf_users = 0
        self.pf: VfioDevice | None = None
        dev_set.add(self)
        group.devices.append(self)

    @property
    def has_vf_token(self) -> bool:
        """Functions that can have virtual functions have one."""
        return any(cap.extended and cap.id == caps.X_SRIOV for cap in self.function.raw.owned)

    @property
    def backing_fd(self) -> int | None:
        """What mapping an open file of this device maps; None: nothing."""
        return self.function.bars.fd

    @property
    def mappings(self) -> list[tuple[int, int, int]]:
        """Where we have that mapped ourselves (DeviceNode.mappings)."""
        return self.function.bars.mappings

    def open(self, flags: int = 0) -> DeviceFile:
        """One more open file; any number may be. ENODEV: the device is going away."""
        if self not in self.group.devices:
            raise UapiError(errno.ENODEV, f"vfio{self.index} is gone")
        self.n_open += 1
        return self.file_class(self)

    def closed(self) -> None:
        """A file of it is not open any more."""
        self.n_open -= 1
        if not self.n_open:
            baton.in_loop(self._unused.set)

    def withdraw(self) -> None:
        """From now on nobody can open it."""
        self.group.devices.remove(self)

    async def wait_unused(self) -> None:
        """Ask the client to give the device back, again and again, until no file of it is open.

        Source: vfio_unregister_group_dev()
        """
        while self.n_open:
            self._unused = trio.Event()
            if self.bound and (request := self.bound.irqs.single(REQ)):
                request.signal()
            with trio.move_on_after(REQUEST_SECONDS):
                await self._unused.wait()
        self.dev_set.remove(self)

    def open_by_group(self, ctx: Ctx) -> DeviceFile:
        """One more use of the file that a group gives out; the first one binds and attaches.

        ENODEV: no compatibility IOAS; else as DeviceFile.bind(), Attachments.set_pt().
        Source: vfio_df_group_open()
        """
        df = self.bound
        if df is None:
            df = self.file_class(self, by_group=True)
            df.bind(ctx)
            try:
                with compat_ioas(ctx) as ioas:
                    df.attachments.set_pt(ioas.id)
            except UapiError:
                df.unbind()
                raise
            df.grant()
            self.n_open += 1
        else:
            assert df.by_group, "a group with a bound cdev is open"
            df.uses += 1
        return df


class DeviceFile:
    """One open of a device (df). What a client has of it exists while `granted`.

    by_group  it is what a group gives out; `uses`: how often, each ending with its own release
    """

    table = "vfio"
    stays_while_mapped = True

    def __init__(self, device: VfioDevice, *, by_group: bool = False) -> None:
        self.device = device
        self.by_group = by_group
        self.uses = 1
        self.function = device.function
        self.granted = False
        self.fast = Fast()
        self.iommu_device: Any = None
        self.attachments: Attachments
        self.irqs: Irqs
        self.config: ConfigSpace
        self.regions: Regions
        self.ioeventfds: dict[tuple[int, int, int, int], Any] = {}
        self.low_power: LowPower | None = None

    # ---- the open file

    @property
    def backing_fd(self) -> int:
        """What mapping it maps."""
        return self.device.backing_fd

    @property
    def mappings(self) -> list[tuple[int, int, int]]:
        """Where we have that mapped ourselves."""
        return self.device.mappings

    def check_ioctl(self, number: int) -> None:
        """EINVAL for everything but BIND before the device is bound through this file.

        ENOTTY for what is only for cdevs.
        """
        if number != uapi.VFIO_DEVICE_BIND_IOMMUFD:
            self._check_granted()
        if self.by_group and number in _ONLY_CDEV:
            raise UapiError(errno.ENOTTY, "the file came from a group")

    def awake(self) -> AbstractContextManager[None]:
        """For the time of a call: a device that the client lets sleep is awake."""
        return self.low_power.awake() if self.low_power is not None else nullcontext()

    def _check_granted(self) -> None:
        if not self.granted:
            raise UapiError(errno.EINVAL, "the device is not bound through this file")

    def check_mmap(self, caller: Caller, fd: int, length: int, prot: int, offset: int) -> None:
        """Whether a client may map this, shared: EINVAL. Asked where mmap() is noticed at all."""
        self._check_granted()
        self.regions.check_mmap(offset, -(-length // PAGE_SIZE) * PAGE_SIZE)

    async def read(self, offset: int, size: int) -> bytes:
        """Read a region; EINVAL, EFAULT, EIO."""
        self._check_granted()
        if offset >> OFFSET_SHIFT == CONFIG and not size:
            return b""
        with self.awake():
            if offset >> OFFSET_SHIFT == CONFIG:
                return self.regions.read(offset, size)
            data = bytearray()
            for at, turn in self._turns(offset, size):
                if data:
                    await jobs.let_others()
                data += self.regions.read(at, turn)
            return bytes(data)

    async def write(self, offset: int, data: bytes) -> int:
        """Write a region; EINVAL, EFAULT, EIO."""
        self._check_granted()
        if offset >> OFFSET_SHIFT == CONFIG and not data:
            return 0
        with self.awake():
            if offset >> OFFSET_SHIFT == CONFIG:
                return self.regions.write(offset, data)
            done = 0
            for at, turn in self._turns(offset, len(data)):
                if done:
                    await jobs.let_others()
                done += self.regions.write(at, data[done : done + turn])
            return done

    def _turns(self, offset: int, size: int) -> Iterator[tuple[int, int]]:
        """Cut an access into parts (offset, size), between which others get their turn.

        It ends with the region; an access that begins past its end is one part, for its errno.
        """
        index, start = offset >> OFFSET_SHIFT, offset & OFFSET_MASK
        end = min(start + size, self.regions.end(index, start))
        if size and start >= end:
            yield offset, size
        while start < end:
            turn = min(TURN - start % TURN, end - start)
            yield index << OFFSET_SHIFT | start, turn
            start += turn

    def poll(self) -> int:
        """Always ready: a device has no poll operation."""
        return DEFAULT_POLLMASK

    def release(self) -> None:
        """The last reference is gone, for each use of the file."""
        self.uses -= 1
        if not self.uses:
            if self.device.bound is self:
                self.unbind()
            self.fast.close()
            self.device.closed()

    # ---- bound or not

    def bind(self, ctx: Ctx) -> None:
        """Make the device this file's and its DMA the context's; EBUSY, EINVAL, ENODEV, EPERM, EIO.

        It is not granted yet: that is for when the client knows.
        """
        if not self.by_group:
            self.device.group.check_closed()
        if self.device.bound:
            raise UapiError(errno.EINVAL, "the device is bound through another file")
        self.iommu_device = self._bind_iommu(ctx)
        try:
            self.function.open()
            self._make_view()
        except BaseException:
            self.function.irqs = self.function.config = None
            self.iommu_device.unbind()
            self.iommu_device = None
            raise
        self.function.iommu_device = self.iommu_device
        self.attachments = Attachments(self.iommu_device)
        self._offer_features()
        self.device.bound = self
        if self.device.pf:
            self.device.pf.vf_users += 1

    def _bind_iommu(self, ctx: Ctx) -> Any:
        return iommufd_device.bind(ctx, self.function)

    def _make_view(self) -> None:
        """What the client sees of the device."""
        function = self.function
        function.irqs = self.irqs = Irqs(function, function.spawn, self.fast.set_triggers)
        function.config = self.config = ConfigSpace(function, self.irqs)
        self.regions = Regions(function, self.config)

    def grant(self) -> None:
        """The client knows that the device is its own."""
        self.granted = True
        self._publish(True)
        self.function.changed = self._publish_anew
        self.function.memory_changed = self.fast.set_memory

    def _publish(self, answers: bool) -> None:
        """Let readers of the transport answer for this file, or not."""
        if answers:
            info.publish(self.fast, self)
            self.regions.publish(self.fast)
        else:
            self.fast.withdraw()

    def _publish_anew(self) -> None:
        self._publish(not self.low_power.entered)

    def _offer_features(self) -> None:
        """What VFIO_DEVICE_FEATURE can ask for."""
        self._offer_those_of_models()
        self.low_power = self.function.low_power = LowPower(self.function, self._publish)
        self.function.dmabufs = BarDmabufs()

    def _offer_those_of_models(self) -> None:
        function, description = self.function, self.function.description
        if description.migration:
            function.migration = DeviceMigration(function)
        if description.dma_logging:
            function.dma_log = DmaLog()

    def _end_features(self) -> None:
        function = self.function
        if self.low_power:
            self.low_power.leave()
        if function.dmabufs:
            function.dmabufs.close()
        if function.migration:
            function.migration.close()
            function.host.resume()
        function.low_power = function.dmabufs = function.migration = function.dma_log = None
        self.low_power = None

    def unbind(self) -> None:
        """Undo bind(), and all that was done since."""
        self.granted = False
        self.function.changed = self.function.memory_changed = lambda *_: None
        self._end_features()
        self.fast.withdraw()
        for ioeventfd in self.ioeventfds.values():
            ioeventfd.close()
        self.ioeventfds.clear()
        self.function.close()
        self.irqs.release()
        self.iommu_device.unbind()
        self.function.irqs = self.function.config = self.function.iommu_device = None
        self.iommu_device = None
        self.device.bound = None
        if self.device.pf:
            self.device.pf.vf_users -= 1
        self.device.dev_set.closed(self.device)


VfioDevice.file_class = DeviceFile
