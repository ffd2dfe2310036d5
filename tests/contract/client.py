"""A client of /dev/iommu for contract tests: the test's own process, in one of two places.

ProcessClient calls the dispatcher directly; MountClient (mount_client.py) makes real system calls,
which a server in another process answers. The memory is the test's own in both, so a case is
written once.
"""

import contextlib
import ctypes
import errno
import itertools
import mmap
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import pytest

from iommufs import dispatch, jobs, uapi
from iommufs._native import ffi
from iommufs.caller import Caller
from iommufs.errors import UapiError
from iommufs.iommu.mock import MockIommu
from iommufs.iommu.vtd import Vtd
from iommufs.iommufd import device
from iommufs.iommufd.ctx import Ctx
from iommufs.iommufd.iommu import IommuGroup
from iommufs.iommufd.mmap import Arena
from iommufs.vfio.attachments import Attachments

PAGE = 4096
U64_MAX = 2**64 - 1
READ = uapi.IOMMU_IOAS_MAP_READABLE
WRITE = uapi.IOMMU_IOAS_MAP_WRITEABLE
RW = READ | WRITE
FIXED = uapi.IOMMU_IOAS_MAP_FIXED_IOVA

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class Memory:
    """Pages of the test at an address of its own; those that are unmapped stay a hole."""

    def __init__(self, pages: int) -> None:
        self.length = pages * PAGE
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self.address = _libc.mmap(None, self.length, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
        assert self.address != ctypes.c_void_p(-1).value, "mmap"

    def __getitem__(self, part: slice) -> bytes:
        return ctypes.string_at(self.address + part.start, part.stop - part.start)

    def write(self, offset: int, data: bytes) -> int:
        """Returns the address."""
        ctypes.memmove(self.address + offset, data, len(data))
        return self.address + offset

    def protect(self, page: int, prot: int) -> int:
        """prot: of mmap.PROT_…, 0 for none. Returns the address of the page."""
        assert _libc.mprotect(self.address + page * PAGE, PAGE, prot) == 0, "mprotect"
        return self.address + page * PAGE

    def free(self) -> None:
        _libc.munmap(self.address, self.length)


@contextlib.contextmanager
def refused(name: str) -> Iterator[None]:
    """The block's call fails with exactly this errno."""
    with pytest.raises(OSError) as info:  # noqa: PT011
        yield
    got = errno.errorcode.get(info.value.errno, info.value.errno)
    assert info.value.errno == getattr(errno, name), f"{got} instead of {name}"


class Client(ABC):
    """What a test does; results as from the C library, errors as OSError."""

    @abstractmethod
    async def open(self) -> Any:
        """A new /dev/iommu."""

    @abstractmethod
    async def open_container(self) -> Any:
        """A new /dev/vfio/vfio."""

    @abstractmethod
    async def close(self, file: Any) -> None: ...

    @abstractmethod
    async def ioctl(self, file: Any, number: int, arg: int) -> int: ...

    @abstractmethod
    async def close_fd(self, fd: int) -> None:
        """Close a descriptor that an ioctl returned."""

    @abstractmethod
    async def bind(self, file: Any, index: int) -> "BoundDevice":
        """Bind a device; those of index 2 and 3 share a group."""

    async def call(self, file: Any, number: int, struct: str, **fields: Any) -> Any:
        """One ioctl with a structure, its size filled in if not given; returns the structure."""
        fields.setdefault("size", uapi.sizeof(struct))
        cmd = uapi.new(struct, **fields)
        await self.ioctl(file, number, int(ffi.cast("uintptr_t", cmd)))
        return cmd

    # Shorthands for the calls that many tests begin with.

    async def ioas_alloc(self, file: Any) -> int:
        return (await self.call(file, uapi.IOMMU_IOAS_ALLOC, "iommu_ioas_alloc")).out_ioas_id

    async def destroy(self, file: Any, object_id: int) -> None:
        await self.call(file, uapi.IOMMU_DESTROY, "iommu_destroy", id=object_id)

    async def map(
        self, file: Any, ioas: int, address: int, length: int, iova: int | None = None,
        flags: int = RW,
    ) -> int:  # fmt: skip
        """Map at `iova`, or where there is room; returns the IOVA."""
        if iova is not None:
            flags |= FIXED
        cmd = await self.call(
            file, uapi.IOMMU_IOAS_MAP, "iommu_ioas_map",
            ioas_id=ioas, user_va=address, length=length, iova=iova or 0, flags=flags,
        )  # fmt: skip
        return cmd.iova

    async def unmap(self, file: Any, ioas: int, iova: int, length: int) -> int:
        """Returns the number of bytes that were mapped."""
        cmd = await self.call(
            file, uapi.IOMMU_IOAS_UNMAP, "iommu_ioas_unmap", ioas_id=ioas, iova=iova, length=length
        )
        return cmd.length

    async def hwpt_alloc(self, file: Any, devid: int, pt_id: int, **fields: Any) -> int:
        cmd = await self.call(
            file, uapi.IOMMU_HWPT_ALLOC, "iommu_hwpt_alloc", dev_id=devid, pt_id=pt_id, **fields
        )
        return cmd.out_hwpt_id

    async def ioas_with_domains(self, file: Any, domains: int) -> int:
        """An IOAS with 0, 1 or 2 page tables; the devices are closed with the test."""
        ioas = await self.ioas_alloc(file)
        if domains:
            bound = await self.bind(file, 0)
            await bound.attach(ioas)
            for _ in range(domains - 1):
                await self.hwpt_alloc(file, bound.devid, ioas)
        return ioas


class BoundDevice(ABC):
    """A device that a client has bound."""

    devid: int

    @abstractmethod
    async def attach(self, pt_id: int) -> int:
        """Returns the id of the HWPT in use."""

    @abstractmethod
    async def detach(self) -> None: ...

    @abstractmethod
    async def close(self) -> None: ...


class Function:
    """A function as the IOMMU sees it."""

    def __init__(self, iommu: Any, group: IommuGroup | None) -> None:
        self.iommu = iommu
        self.group = group


class ProcessCaller(Caller):
    """The test's own thread, which can be given descriptors: numbers that only the client knows."""

    def __init__(self, client: "ProcessClient") -> None:
        super().__init__(threading.get_native_id(), os.getuid(), os.getgid())
        self._client = client

    def check_fd_available(self) -> None:
        pass

    async def reserve_fd(self, open_file: Any) -> "ProcessFd":
        return ProcessFd(self._client, open_file)


class ProcessFd:
    """A descriptor about to be given out; what is not installed is released."""

    def __init__(self, client: "ProcessClient", open_file: Any) -> None:
        self._client = client
        self._file = open_file
        self.number = next(fd for fd in itertools.count(100) if fd not in client.descriptors)

    def __enter__(self) -> "ProcessFd":
        return self

    def __exit__(self, *exception: object) -> None:
        if self.number not in self._client.descriptors:
            self._file.release()

    def install(self) -> int:
        self._client.descriptors[self.number] = self._file
        return self.number


class ProcessClient(Client):
    """Calls the dispatcher in this process, as the fuse layer does, with and without prefetch.

    descriptors  the open files that ioctls returned; those not closed are with the test
    """

    def __init__(self, *, prefetch: bool = True, test_ops: bool = False) -> None:
        self.prefetch = prefetch
        self.mock = MockIommu() if test_ops else None
        self.arena = Arena() if test_ops else None
        self.descriptors: dict[int, Any] = {}
        iommu = Vtd()
        shared = IommuGroup(2)
        groups = [IommuGroup(0), IommuGroup(1), shared, shared]
        self.functions = [Function(iommu, group) for group in groups]
        self._open: list[Ctx] = []
        self._bound: list[ProcessDevice] = []

    @property
    def caller(self) -> Caller:
        return ProcessCaller(self)

    async def open(self) -> Ctx:
        return self._add(Ctx(test_ops=self.mock, files=self, arena=self.arena))

    async def open_container(self) -> Ctx:
        return self._add(Ctx(test_ops=self.mock, files=self, arena=self.arena, mm_mode=True))

    def _add(self, ctx: Ctx) -> Ctx:
        self._open.append(ctx)
        return ctx

    async def close(self, file: Ctx) -> None:
        self._open.remove(file)
        file.release()

    async def close_fd(self, fd: int) -> None:
        self.descriptors.pop(fd).release()

    def resolve(self, caller: Caller, fd: int) -> Any:
        """As OpenFiles: our open file behind a descriptor."""
        return self.descriptors.get(fd)

    async def close_all(self) -> None:
        for fd in list(self.descriptors):
            await self.close_fd(fd)
        for bound in list(self._bound):
            await bound.close()
        for file in list(self._open):
            await self.close(file)

    async def ioctl(self, file: Any, number: int, arg: int) -> int:
        head = await self.caller.read_some(arg, 128) if self.prefetch else b""
        try:
            result, rest = jobs.begin(dispatch.ioctl(file, self.caller, number, arg, head))
            return result if rest is None else await rest
        except UapiError as error:
            raise OSError(error.errno, str(error)) from error

    async def bind(self, file: Any, index: int) -> "ProcessDevice":
        try:
            bound = ProcessDevice(self, device.bind(file, self.functions[index]))
        except UapiError as error:
            raise OSError(error.errno, str(error)) from error
        self._bound.append(bound)
        return bound


class ProcessDevice(BoundDevice):
    def __init__(self, client: ProcessClient, bound: device.Device) -> None:
        self._client = client
        self.device = bound
        self.attachments = Attachments(bound)
        self.devid = bound.id

    async def attach(self, pt_id: int) -> int:
        try:
            return self.attachments.set_pt(pt_id)
        except UapiError as error:
            raise OSError(error.errno, str(error)) from error

    async def detach(self) -> None:
        self.attachments.detach()

    async def close(self) -> None:
        self._client._bound.remove(self)
        self.device.unbind()
