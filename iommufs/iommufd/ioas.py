"""IOAS: an I/O address space, and the ioctls about it other than mapping (see ioas_map.py)."""

import errno
import struct
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any, Protocol

from iommufs import jobs, uapi
from iommufs._native import ffi, lib
from iommufs.errors import UapiError, check
from iommufs.iommufd.objects import Object
from iommufs.limits import MAX_ALLOWED_RANGES
from iommufs.ucmd import Ucmd

RANGE = struct.Struct("<QQ")
# ALLOW_IOVAS reads the client's ranges so many at a time.
CHUNK_RANGES = 4096


class Notified(Protocol):
    """A user of an IOAS without a domain, told to let go of what it has pinned."""

    def unmap(self, iova: int, length: int) -> None: ...


class Ioas(Object):
    """An address space. Page tables (HWPTs) hold it, mappings in it do not."""

    def __init__(self, ctx: Any) -> None:
        super().__init__()
        self.ctx = ctx
        self.hwpts: list[Any] = []  # in order of creation
        self.accesses: list[Notified] = []
        self.iopt = lib.iofs_iopt_new()
        if self.iopt == ffi.NULL:
            raise UapiError(errno.ENOMEM, "no memory for an address space")

    def published(self) -> None:
        self.ctx.fast.set_iopt(self.id, self.iopt)

    def destroy(self) -> None:
        self.ctx.fast.set_iopt(self.id, ffi.NULL)
        if self.ctx.vfio_ioas is self:
            self.ctx.vfio_ioas = None
        lib.iofs_iopt_free(self.iopt)
        self.iopt = ffi.NULL

    def holes(self) -> list[tuple[int, int]]:
        """What is not reserved, ascending (first, last)."""
        room = 16
        while True:
            out = ffi.new("struct iofs_range[]", room)
            n = lib.iofs_iopt_holes(self.iopt, out, room)
            if n <= room:
                return [(out[i].start, out[i].last) for i in range(n)]
            room = n

    def unmap(self, iova: int, length: int) -> tuple[int, int]:
        """Unmap [iova, iova + length), nothing if nothing is there, not atomically.

        0 or -errno (see iofs_iopt_unmap), and how many bytes were unmapped, by a failure too.
        """
        return self._unmap(lambda *out: lib.iofs_iopt_unmap(self.iopt, iova, length, *out))

    def unmap_all(self) -> tuple[int, int]:
        return self._unmap(lambda *out: lib.iofs_iopt_unmap_all(self.iopt, *out))

    def _unmap(self, unmap: Callable[..., int]) -> tuple[int, int]:
        unmapped = ffi.new("uint64_t *")
        pinned = ffi.new("struct iofs_range *")
        while (result := unmap(unmapped, pinned)) > 0:
            for access in list(self.accesses):
                access.unmap(pinned.start, pinned.last - pinned.start + 1)
        return result, unmapped[0]


async def ioas_alloc(ucmd: Ucmd) -> None:
    """Make an empty address space (IOMMU_IOAS_ALLOC).

    Errors: EOPNOTSUPP  unknown flag
    Source: iommufd_ioas_alloc_ioctl()
    """
    if ucmd.cmd.flags:
        raise UapiError(errno.EOPNOTSUPP, f"flags {ucmd.cmd.flags:#x}")
    ctx = ucmd.file
    with ctx.objects.new(Ioas(ctx)) as ioas:
        ucmd.cmd.out_ioas_id = ioas.id
        await ucmd.respond()


async def ioas_iova_ranges(ucmd: Ucmd) -> None:
    """Say which IOVAs are not reserved (IOMMU_IOAS_IOVA_RANGES).

    In:     allowed_iovas   room for num_iovas ranges
    Out:    num_iovas       how many there are, written also when the room does not suffice
    Errors: EOPNOTSUPP  reserved field      ENOENT    no such IOAS
            EFAULT      a bad pointer       EMSGSIZE  not room enough; what fits is written
    Source: iommufd_ioas_iova_ranges()
    """
    cmd = ucmd.cmd
    if cmd.__reserved:
        raise UapiError(errno.EOPNOTSUPP, "reserved field")
    with ucmd.file.objects.use(cmd.ioas_id, Ioas) as ioas:
        holes = ioas.holes()
        room = cmd.num_iovas
        data = b"".join(RANGE.pack(*hole) for hole in holes[:room])
        await ucmd.caller.write(cmd.allowed_iovas, data)
        cmd.num_iovas = len(holes)
        cmd.out_iova_alignment = lib.iofs_iopt_alignment(ioas.iopt)
        await ucmd.respond()
        if len(holes) > room:
            raise UapiError(errno.EMSGSIZE, f"{len(holes)} ranges, room for {room}")


async def ioas_allow_iovas(ucmd: Ucmd) -> None:
    """Replace the list of IOVAs that must stay usable (IOMMU_IOAS_ALLOW_IOVAS).

    Errors: EOPNOTSUPP  reserved field      ENOENT      no such IOAS
            EFAULT      a bad pointer       EADDRINUSE  a range meets a reserved one
            EINVAL      start >= last, or two ranges overlap
            ENOMEM      more than 2**20 ranges
    After:  automatic IOVAs come from the list; nothing in it can become reserved.
    Source: iommufd_ioas_allow_iovas(), iopt_set_allow_iova()
    """
    cmd = ucmd.cmd
    if cmd.__reserved:
        raise UapiError(errno.EOPNOTSUPP, "reserved field")
    with ucmd.file.objects.use(cmd.ioas_id, Ioas) as ioas:
        data = await _read_ranges(ucmd)
        n = len(data) // RANGE.size
        ranges = ffi.new("struct iofs_range[]", n)
        ffi.buffer(ranges)[:] = data
        check(lib.iofs_iopt_set_allowed(ioas.iopt, ranges, n), "allowed ranges")


async def _read_ranges(ucmd: Ucmd) -> bytes:
    """The ranges of ALLOW_IOVAS. One that is wrong counts before a later one that is unreadable."""
    count = ucmd.cmd.num_iovas
    data = bytearray()
    while len(data) < count * RANGE.size:
        if len(data) >= MAX_ALLOWED_RANGES * RANGE.size:
            raise UapiError(errno.ENOMEM, f"{count} ranges")
        length = min(CHUNK_RANGES * RANGE.size, count * RANGE.size - len(data))
        chunk = await ucmd.caller.read_some(ucmd.cmd.allowed_iovas + len(data), length)
        whole = len(chunk) - len(chunk) % RANGE.size
        if any(start >= last for start, last in RANGE.iter_unpack(chunk[:whole])):
            raise UapiError(errno.EINVAL, "start >= last")
        data += chunk[:whole]
        if len(chunk) < length:
            if _overlap(RANGE.iter_unpack(data)):
                raise UapiError(errno.EINVAL, "ranges overlap")
            raise UapiError(errno.EFAULT, f"range {len(data) // RANGE.size} is unreadable")
        await jobs.let_others()
    return bytes(data)


def _overlap(ranges: Iterable[tuple[int, ...]]) -> bool:
    order = sorted(ranges)
    return any(left[1] >= right[0] for left, right in pairwise(order))


async def vfio_ioas(ucmd: Ucmd) -> None:
    """Say, choose or clear the IOAS that VFIO container calls work on (IOMMU_VFIO_IOAS).

    Errors: EOPNOTSUPP  reserved field, unknown op      ENODEV  GET without one
            ENOENT      SET of what is not an IOAS
    Source: iommufd_vfio_ioas()
    """
    cmd, ctx = ucmd.cmd, ucmd.file
    if cmd.__reserved:
        raise UapiError(errno.EOPNOTSUPP, "reserved field")
    if cmd.op == uapi.IOMMU_VFIO_IOAS_GET:
        if ctx.vfio_ioas is None:
            raise UapiError(errno.ENODEV, "no IOAS chosen")
        cmd.ioas_id = ctx.vfio_ioas.id
        await ucmd.respond()
    elif cmd.op == uapi.IOMMU_VFIO_IOAS_SET:
        ctx.vfio_ioas = ctx.objects.find(cmd.ioas_id, Ioas)
    elif cmd.op == uapi.IOMMU_VFIO_IOAS_CLEAR:
        ctx.vfio_ioas = None
    else:
        raise UapiError(errno.EOPNOTSUPP, f"op {cmd.op}")


async def ioas_change_process(ucmd: Ucmd) -> None:
    """Let the calling process own and pay for all mappings (IOMMU_IOAS_CHANGE_PROCESS).

    Errors: EOPNOTSUPP  reserved field      ENOMEM  its RLIMIT_MEMLOCK
            EINVAL      a mapping is not one of a file; or, after it is done, RLIMIT_MODE 1 and the
                        process that paid has ended (oracle: a warning of Linux)
    After:  who is charged changes, whether (CAP_IPC_LOCK) and how does not.
    Source: iommufd_ioas_change_process()
    """
    if ucmd.cmd.__reserved:
        raise UapiError(errno.EOPNOTSUPP, "reserved field")
    ctx = ucmd.file
    mm, charge = await ctx.source(ucmd.caller)
    iopts = [ioas.iopt for ioas in ctx.objects.of_type(Ioas)]
    result = lib.iofs_iopts_change_process(iopts, len(iopts), mm, charge)
    if result == -errno.ESRCH:
        raise UapiError(errno.EINVAL, "moved, but the process that paid has ended")
    check(result, "change process")


def ioas_noiommu_get_pa(ucmd: Ucmd) -> None:
    """The physical address behind an IOVA (IOMMU_IOAS_NOIOMMU_GET_PA): for devices without IOMMU.

    We have none, as a kernel without CONFIG_IOMMUFD_NOIOMMU.

    Errors: EOPNOTSUPP  always
    Source: oracle probe, section dispatch
    """
    raise UapiError(errno.EOPNOTSUPP, "no device without an IOMMU")
