"""Ctx: one open file of /dev/iommu, and the objects behind it.

It lives as long as its file, and longer while a bound device or the file of a queue holds it: then
the client can no longer name its objects, but they go on working.
"""

import errno
from collections import Counter
from typing import Any

from iommufs._native import ffi, lib
from iommufs.caller import Caller, Mm
from iommufs.errors import UapiError
from iommufs.fast import Fast
from iommufs.iommufd.mmap import Arena, check_mmap
from iommufs.iommufd.objects import ObjectTable
from iommufs.limits import CAP_IPC_LOCK, DEFAULT_POLLMASK
from iommufs.ucmd import Ucmd

_live: set["Ctx"] = set()


class Ctx:
    """A context. Also the open file: the fuse layer reads, writes, polls and releases it.

    test_ops  the mock IOMMU: the ioctl table reaches to IOMMU_TEST_CMD, as with
              CONFIG_IOMMUFD_TEST; None: it does not
    files     finds the open files behind descriptors that test operations name
    arena     the memory that can be mapped; None: none
    mm_mode   pages count against the client's process, not its user; /dev/vfio/vfio starts so
    """

    table = "iommufd"

    def __init__(
        self,
        *,
        test_ops: Any | None = None,
        files: Any = None,
        arena: Arena | None = None,
        mm_mode: bool = False,
    ) -> None:
        self.test_ops = test_ops
        self.files = files
        self.arena = arena
        self.regions: dict[int, Any] = {}  # mmap.Region by offset
        self.fast = Fast()
        self.mm_mode = mm_mode
        self.objects = ObjectTable()
        self._vfio_ioas: Any = None
        self.groups: dict[Any, Any] = {}  # iommu group -> device.Group
        self._mms: dict[int, Mm] = {}
        self._users = 1
        _live.add(self)

    @property
    def vfio_ioas(self) -> Any:
        """The IOAS that the VFIO container calls work on, which is not held; None."""
        return self._vfio_ioas

    @vfio_ioas.setter
    def vfio_ioas(self, ioas: Any) -> None:
        self._vfio_ioas = ioas
        self.fast.set_compat(ffi.NULL if ioas is None else ioas.iopt)

    def get(self) -> None:
        assert self._users > 0, "the context is gone"
        self._users += 1

    def put(self) -> None:
        assert self._users > 0, "the context is gone"
        self._users -= 1
        if not self._users:
            self.objects.clear()
            self._close_mms(list(self._mms))
            self.fast.close()
            _live.discard(self)

    def _close_mms(self, tgids: list[int]) -> None:
        for tgid in tgids:
            self.fast.remove_source(tgid)
            self._mms.pop(tgid).close()

    async def source(self, caller: Caller) -> tuple[Any, Any]:
        """Whose memory a mapping by this caller is, and whom it is charged to, for native calls.

        The caller's address space comes from the same handle for as long as it stays the same one.
        """
        mm = await self._mm_of(caller)
        mode, tgid = self._charge_mode(caller), caller.tgid
        charge = {"mode": mode, "uid": caller.real_uid, "tgid": tgid}
        return mm.handle, ffi.new("struct iofs_charge *", charge)

    async def _mm_of(self, caller: Caller) -> Mm:
        tgid = caller.tgid
        while True:
            mm = self._mms.get(tgid)
            secret = await caller.secret(mm)
            if self._mms.get(tgid) is not mm:
                continue  # another thread of the client was faster
            if mm is None:
                break
            if mm.runs(tgid, secret):
                return mm
            self._close_mms([tgid])
        self._close_mms([other for other, mm in self._mms.items() if not mm.has(other)])
        mm = self._mms[tgid] = caller.mm(secret)
        self.fast.add_source(tgid, mm.handle)
        return mm

    def _charge_mode(self, caller: Caller) -> int:
        if caller.capable(CAP_IPC_LOCK):
            return lib.IOFS_CHARGE_NONE
        return self._limited_mode

    @property
    def mm_mode(self) -> bool:
        return self._limited_mode == lib.IOFS_CHARGE_MM

    @mm_mode.setter
    def mm_mode(self, mm_mode: bool) -> None:
        self._limited_mode = lib.IOFS_CHARGE_MM if mm_mode else lib.IOFS_CHARGE_USER
        self.fast.set_charge_mode(self._limited_mode)

    # The open file.

    def check_mmap(self, caller: Caller, fd: int, length: int, prot: int, offset: int) -> None:
        check_mmap(self, caller, fd, length, prot, offset)

    async def read(self, offset: int, size: int) -> bytes:
        raise UapiError(errno.EINVAL, "an iommufd is not read")

    async def write(self, offset: int, data: bytes) -> int:
        raise UapiError(errno.EINVAL, "an iommufd is not written")

    def poll(self) -> int:
        return DEFAULT_POLLMASK

    def release(self) -> None:
        self.put()


def destroy(ucmd: Ucmd) -> None:
    """Destroy an object of any type (IOMMU_DESTROY).

    Errors: ENOENT  no such id         EBUSY  something holds the object
    Source: iommufd_destroy()
    """
    ucmd.file.objects.destroy(ucmd.cmd.id)


def live() -> list[Ctx]:
    """All contexts."""
    return list(_live)


def statistics() -> dict[str, Any]:
    """What lives now: contexts, their objects by type, and the counters of the native core."""
    objects: Counter[str] = Counter()
    for ctx in _live:
        objects += ctx.objects.counts()
    native = ffi.new("struct iofs_stats *")
    lib.iofs_statistics(native)
    fields = [name for name, _ in ffi.typeof("struct iofs_stats").fields]
    return {
        "ctxs": len(_live),
        "objects": dict(objects),
        **{name: getattr(native, name) for name in fields},
    }
