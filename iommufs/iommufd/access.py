"""Accesses: how devices without an IOMMU reach an IOAS, pinning what they use.

The native half is in native/access.c. A driver makes one, and is told to let go of what it has
pinned when that is unmapped, or when the access moves to another IOAS.
"""

import errno
from typing import Any, Protocol

from iommufs import jobs
from iommufs._native import ffi, lib
from iommufs.errors import UapiError, check
from iommufs.iommufd.ioas import Ioas
from iommufs.iommufd.objects import Object
from iommufs.limits import U64_MAX


class AccessDriver(Protocol):
    """Who works through an access."""

    def unmap(self, iova: int, length: int) -> None:
        """Unpin all that is pinned in the range; at the latest when this returns."""


class Access(Object):
    """An access. Its driver holds it until close(), and it holds the ctx and the IOAS.

    needs_pin_pages  the driver pins: then the IOAS is aligned to pages
    """

    def __init__(self, ctx: Any, driver: AccessDriver, needs_pin_pages: bool) -> None:
        super().__init__()
        self.needs_pin_pages = needs_pin_pages
        self.ioas: Ioas | None = None
        self._ctx = ctx
        self._driver = driver
        self._native = self._new()
        ctx.get()

    def _new(self) -> Any:
        out = ffi.new("struct iofs_access **")
        check(lib.iofs_access_new(self.needs_pin_pages, 0, out), "an access")
        return out[0]

    def destroy(self) -> None:
        self.detach()
        lib.iofs_access_put(self._native)
        self._native = ffi.NULL
        self._ctx.put()

    def close(self) -> None:
        """The driver is through with it."""
        self.put()
        self._ctx.objects.remove(self)

    def attach(self, ioas_id: int) -> None:
        """ENOENT: no such IOAS; EINVAL: attached already; EADDRINUSE: its areas are not aligned."""
        if self.ioas is not None:
            raise UapiError(errno.EINVAL, f"{self} is attached")
        ioas = self._ctx.objects.find(ioas_id, Ioas)
        self._join(self._native, ioas)

    def replace(self, ioas_id: int) -> None:
        """Move to another IOAS: ENOENT, also if it is in none; EADDRINUSE. Pins are dropped.

        Nothing has changed after an error: the new IOAS is joined before the old one is left.
        """
        if self.ioas is None:
            raise UapiError(errno.ENOENT, f"{self} is not attached")
        ioas = self._ctx.objects.find(ioas_id, Ioas)
        if ioas is self.ioas:
            return
        native = self._new()
        try:
            check(lib.iofs_access_attach(native, ioas.iopt), "attach")
        except UapiError:
            lib.iofs_access_put(native)
            raise
        self.detach()
        lib.iofs_access_put(self._native)
        self._native = native
        self._joined(ioas)

    def _join(self, native: Any, ioas: Ioas) -> None:
        check(lib.iofs_access_attach(native, ioas.iopt), "attach")
        self._joined(ioas)

    def _joined(self, ioas: Ioas) -> None:
        ioas.accesses.append(self._driver)
        ioas.get()
        self.ioas = ioas

    def detach(self) -> None:
        if self.ioas is None:
            return
        self._driver.unmap(0, U64_MAX)
        check(lib.iofs_access_detach(self._native), "the driver keeps pins")
        self.ioas.accesses.remove(self._driver)
        self.ioas.put()
        self.ioas = None

    def pin(self, iova: int, length: int, write: bool) -> None:
        """Errors: see iofs_access_pin()."""
        prot = lib.IOFS_WRITE if write else lib.IOFS_READ
        check(lib.iofs_access_pin(self._native, iova, length, prot), f"pin {iova:#x}")

    def unpin(self, iova: int, length: int) -> None:
        """Exactly what was pinned."""
        check(lib.iofs_access_unpin(self._native, iova, length), f"unpin {iova:#x}")

    def check_map(self, iova: int, length: int, mm: Any, address: int) -> None:
        """EBADE: what is pinned is not what a client has at an address; EFAULT: it has nothing."""
        result = lib.iofs_access_check_map(self._native, iova, length, mm, address)
        check(result, f"{iova:#x} is not {address:#x}")

    async def read(self, iova: int, length: int) -> bytes:
        """Errors: see iofs_access_rw()."""
        return await self._rw(iova, None, length)

    async def write(self, iova: int, data: bytes) -> None:
        await self._rw(iova, data, len(data))

    async def _rw(self, iova: int, data: bytes | None, length: int) -> bytes:
        if not length:
            raise UapiError(errno.EINVAL, "length 0")
        source = ffi.NULL if data is None else ffi.from_buffer(data)
        job = await jobs.finish(lib.iofs_job_access_rw(self._native, iova, source, length))
        try:
            check(lib.iofs_job_result(job), f"{iova:#x}")
            return bytes(ffi.buffer(lib.iofs_job_data(job), length)) if data is None else b""
        finally:
            lib.iofs_job_free(job)

    def nth_area(self, n: int) -> int | None:
        """Where the nth mapping begins; None: there is none."""
        out = ffi.new("struct iofs_range *")
        if self.ioas is None or not lib.iofs_iopt_nth_area(self.ioas.iopt, n, out):
            return None
        return out.start


class InternalAccess(Object):
    """One of iommufd's own. What it has pinned cannot be unmapped; clients see its id, held.

    EADDRINUSE, and the errors of a pin. Source: iommufd_access_create_internal()
    """

    def __init__(self, ioas: Ioas, iova: int, length: int) -> None:
        super().__init__()
        self._pinned = iova, length
        out = ffi.new("struct iofs_access **")
        check(lib.iofs_access_new(1, 1, out), "an access")
        self._native = out[0]
        try:
            check(lib.iofs_access_attach(self._native, ioas.iopt), "attach")
        except UapiError:
            lib.iofs_access_put(self._native)
            raise
        try:
            check(lib.iofs_access_pin(self._native, iova, length, lib.IOFS_READ), f"pin {iova:#x}")
        except UapiError:
            self._leave()
            raise

    def _leave(self) -> None:
        check(lib.iofs_access_detach(self._native), "detach")
        lib.iofs_access_put(self._native)

    def destroy(self) -> None:
        check(lib.iofs_access_unpin(self._native, *self._pinned), "unpin")
        self._leave()

    def close(self) -> None:
        """Whose it is, is through with it."""
        assert self._table is not None
        self.put()
        self._table.remove(self)
