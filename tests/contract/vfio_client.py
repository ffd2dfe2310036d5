"""A client of VFIO devices for contract tests, in process: the default machine's devices.

The client is this process: its memory and its eventfds are real, its iommufds are memfds that stand
for a context.
"""

import os

import trio

from iommufs import dispatch, jobs, topology_file, uapi
from iommufs._native import ffi
from iommufs.caller import Caller
from iommufs.devices import MODELS
from iommufs.devices.inert import Inert
from iommufs.errors import UapiError
from iommufs.files import OpenFiles
from iommufs.iommu.vtd import Vtd
from iommufs.iommufd.ctx import Ctx
from iommufs.iommufd.iommu import IommuGroup
from iommufs.vfio import reset
from iommufs.vfio.device import DeviceFile, DevSet, VfioDevice
from iommufs.vfio.function import PciFunction
from iommufs.vfio.group import VfioGroup
from iommufs.vfio.model import Description
from tests.contract.client import ProcessCaller

# What the default machine's vfio0 … vfio6 are.
EDU, NVME, NIC0, NIC1, EDU_BRIDGE, TESTDEV, IGB = range(7)
ALL = range(7)

CONFIG = 7 << 40


class StandIns(OpenFiles):
    """Finds our open files by the memfds that stand for them, as the transport would."""

    def __init__(self) -> None:
        super().__init__()
        self._by_inode = {}

    def stand_in(self, open_file) -> int:
        fd = os.memfd_create("stand-in")
        self._by_inode[os.fstat(fd).st_ino] = open_file
        return fd

    def resolve(self, caller, fd):
        duplicate = caller.get_fd(fd)
        try:
            return self._by_inode.get(os.fstat(duplicate).st_ino)
        finally:
            os.close(duplicate)


class VfioClient:
    """The devices, and calls on files that are open of them; errors as OSError."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self.files = StandIns()
        self.fds = []
        self.ctxs = []
        self.open_files = []
        self.descriptors = {}
        topology = topology_file.default()
        self._iommu = Vtd()
        iommu_groups = {number: IommuGroup(number) for number in topology.groups}
        self.groups = {
            number: VfioGroup(group, self.files) for number, group in iommu_groups.items()
        }
        dev_sets = {}
        self.devices = []
        for described in topology.functions:
            if described.cdev is None:
                continue
            scope = described.hot_reset
            dev_set = DevSet({bdf: topology.function(bdf).group for bdf in scope})
            if scope:
                dev_set = dev_sets.setdefault(scope, dev_set)
            function = PciFunction(
                described.bdf,
                self._model(described),
                spawn=self.spawn,
                config=described.image.data,
                can_reset=reset.works_alone(described.reset_methods, scope),
                iommu=self._iommu,
                group=iommu_groups[described.group],
            )
            group = self.groups[described.group]
            self.devices.append(VfioDevice(described.cdev, function, dev_set, group, self.files))

    def add(self, address: str, make_model, scope_of: int | None = None, **options) -> VfioDevice:
        """One more device, in a group of its own; reset together with another one or not at all."""
        dev_set = DevSet() if scope_of is None else self.devices[scope_of].dev_set
        if scope_of is not None:
            dev_set.scope[address] = 1000
        function = PciFunction(
            *(address, make_model),
            spawn=self.spawn,
            iommu=self._iommu,
            group=IommuGroup(1000),
            **options,
        )
        group = VfioGroup(function.group, self.files)
        self.devices.append(VfioDevice(len(self.devices), function, dev_set, group, self.files))
        return self.devices[-1]

    @staticmethod
    def inert(host):
        """A model that is nothing, for add()."""
        return Inert(host, {"description": Description(vendor=1, device=1, class_code=0)})

    @staticmethod
    def _model(described):
        options = dict(described.options)
        if described.model == "inert":
            options["description"] = described.description()
        return lambda host: MODELS[described.model](host, options)

    def spawn(self, task):
        scope = trio.CancelScope()

        async def run():
            with scope:
                await task()

        self._nursery.start_soon(run)
        return scope.cancel

    @property
    def caller(self) -> Caller:
        return ProcessCaller(self)

    # ---- files

    def iommufd(self):
        """A context and the fd that stands for it."""
        ctx = Ctx(files=self.files)
        self.ctxs.append(ctx)
        return ctx, self.fd(self.files.stand_in(ctx))

    def fd(self, fd: int) -> int:
        """Keep an fd for the length of the test."""
        self.fds.append(fd)
        return fd

    def eventfd(self) -> int:
        return self.fd(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))

    def open(self, index: int):
        df = self.devices[index].open()
        self.open_files.append(df)
        return df

    def open_group(self, index: int):
        """The group of a device, and the fd that stands for it."""
        try:
            group = self.devices[index].group.open()
        except UapiError as error:
            raise OSError(error.errno, str(error)) from error
        self.open_files.append(group)
        return group, self.fd(self.files.stand_in(group))

    def close(self, df) -> None:
        self.open_files.remove(df)
        df.release()

    async def bound(self, index: int, iommufd: int | None = None):
        """A device bound to an iommufd, a new one by default."""
        df = self.open(index)
        await self.bind(df, self.iommufd()[1] if iommufd is None else iommufd)
        return df

    def close_all(self) -> None:
        for number in list(self.descriptors):
            self.descriptors.pop(number).release()
        for df in list(self.open_files):
            self.close(df)
        for ctx in self.ctxs:
            ctx.release()
        for fd in self.fds:
            os.close(fd)

    # ---- calls

    async def ioctl(self, df, number: int, arg: int = 0) -> int:
        try:
            result, rest = jobs.begin(dispatch.ioctl(df, self.caller, number, arg))
            return result if rest is None else await rest
        except UapiError as error:
            raise OSError(error.errno, str(error)) from error

    async def call(self, df, number: int, struct: str, tail: bytes = b"", **fields):
        """One ioctl with a structure and bytes behind it; argsz covers both unless it is given.

        Returns the structure; `tail` of the last call is in self.tail.
        """
        size = uapi.sizeof(struct)
        fields.setdefault("argsz", size + len(tail))
        buffer = ffi.new("char[]", size + len(tail))
        cmd = ffi.cast(f"struct {struct} *", buffer)
        ffi.buffer(buffer)[:] = bytes(ffi.buffer(uapi.new(struct, **fields)))[:size] + tail
        try:
            self.result = await self.ioctl(df, number, int(ffi.cast("uintptr_t", buffer)))
        finally:
            self.tail = bytes(ffi.buffer(buffer))[size:]
            self.cmd = uapi.new(struct)
            ffi.buffer(self.cmd)[:size] = bytes(ffi.buffer(cmd, size))
        return self.cmd

    async def bind(self, df, iommufd: int, **fields) -> int:
        """Returns the id of the device."""
        cmd = await self.call(
            df, uapi.VFIO_DEVICE_BIND_IOMMUFD, "vfio_device_bind_iommufd", iommufd=iommufd, **fields
        )
        return cmd.out_devid

    async def ioas(self, ctx) -> int:
        """A new IOAS of a context."""
        cmd = uapi.new("iommu_ioas_alloc", size=uapi.sizeof("iommu_ioas_alloc"))
        await self.ioctl(ctx, uapi.IOMMU_IOAS_ALLOC, int(ffi.cast("uintptr_t", cmd)))
        return cmd.out_ioas_id

    async def attach(self, df, pt_id: int, **fields) -> int:
        """Returns the id of the page table in use."""
        cmd = await self.call(
            df, uapi.VFIO_DEVICE_ATTACH_IOMMUFD_PT, "vfio_device_attach_iommufd_pt",
            pt_id=pt_id, **fields,
        )  # fmt: skip
        return cmd.pt_id

    async def detach(self, df, **fields) -> None:
        await self.call(
            df, uapi.VFIO_DEVICE_DETACH_IOMMUFD_PT, "vfio_device_detach_iommufd_pt", **fields
        )

    async def set_irqs(self, df, flags: int, index: int, start=0, count=1, data=b"", **fields):
        await self.call(
            df, uapi.VFIO_DEVICE_SET_IRQS, "vfio_irq_set", tail=data,
            flags=flags, index=index, start=start, count=count, **fields,
        )  # fmt: skip

    async def group_status(self, group, **fields) -> int:
        """Returns the flags."""
        number = uapi.VFIO_GROUP_GET_STATUS
        return (await self.call(group, number, "vfio_group_status", **fields)).flags

    async def set_container(self, group, fd: int) -> None:
        cmd = ffi.new("int *", fd)
        await self.ioctl(group, uapi.VFIO_GROUP_SET_CONTAINER, int(ffi.cast("uintptr_t", cmd)))

    async def device_fd(self, group, index: int, words: str = "") -> int:
        """A number of self.descriptors, for the device and what follows its address."""
        name = ffi.new("char[]", (self.devices[index].function.address + words).encode())
        arg = int(ffi.cast("uintptr_t", name))
        return await self.ioctl(group, uapi.VFIO_GROUP_GET_DEVICE_FD, arg)

    async def pread(self, df, size: int, offset: int) -> bytes:
        """What Python answers; a reader of the transport does the same, or asks Python."""
        by_reader = df.fast.read(offset, size) if isinstance(df, DeviceFile) else b""
        try:
            data = await df.read(offset, size)
        except UapiError as error:
            assert not by_reader
            raise OSError(error.errno, str(error)) from error
        assert by_reader in (b"", data)
        return data

    async def pwrite(self, df, data: bytes, offset: int) -> int:
        try:
            return await df.write(offset, data)
        except UapiError as error:
            raise OSError(error.errno, str(error)) from error


def event(fd: int) -> int:
    """What an eventfd has counted, 0 if nothing."""
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0
