"""Test operations on accesses: a device without an IOMMU whose every move the client makes.

An access is a file; the operations name it by its descriptor. What it pins is an item with a
number, and is gone when the IOVAs are unmapped.
"""

import errno
from typing import Any

from iommufs import uapi
from iommufs.errors import UapiError
from iommufs.iommufd.access import Access
from iommufs.limits import DEFAULT_POLLMASK, MAX_ACCESS_LENGTH
from iommufs.ucmd import Ucmd

_SYZ = uapi.MOCK_FLAGS_ACCESS_SYZ
_RW_FLAGS = uapi.MOCK_ACCESS_RW_WRITE | uapi.MOCK_ACCESS_RW_SLOW_PATH | _SYZ


class AccessFile:
    """The open file of an access, and its driver.

    items  what is pinned: (iova, length) by number
    """

    table = None

    def __init__(self) -> None:
        self.access: Access | None = None
        self.items: dict[int, tuple[int, int]] = {}
        self.next_item = 0

    def unmap(self, iova: int, length: int) -> None:
        for number, (start, size) in list(self.items.items()):
            if start < iova + length and iova < start + size:
                self.drop(number)

    def drop(self, number: int) -> None:
        """ENOENT: no such item."""
        if number not in self.items:
            raise UapiError(errno.ENOENT, f"no item {number}")
        self.access.unpin(*self.items.pop(number))

    async def read(self, offset: int, size: int) -> bytes:
        raise UapiError(errno.EINVAL, "an access is not read")

    async def write(self, offset: int, data: bytes) -> int:
        raise UapiError(errno.EINVAL, "an access is not written")

    def poll(self) -> int:
        return DEFAULT_POLLMASK

    def release(self) -> None:
        """May be called twice: by who made a file that the client never got, and by its close."""
        if self.access is not None:
            access, self.access = self.access, None
            self.unmap_all(access)
            access.close()

    def unmap_all(self, access: Access) -> None:
        for iova, length in self.items.values():
            access.unpin(iova, length)
        self.items.clear()


def _file_of(ucmd: Ucmd, id_: int) -> AccessFile:
    fd = id_ - 2**32 if id_ >= 2**31 else id_  # the field is unsigned
    try:
        file = ucmd.file.files.resolve(ucmd.caller, fd)
    except UapiError as error:
        raise UapiError(errno.EBADFD, error.why) from error
    if not isinstance(file, AccessFile) or file.access is None:
        raise UapiError(errno.EBADFD, f"fd {fd} is no access")
    return file


async def create_access(ucmd: Ucmd) -> None:
    """Make an access to an IOAS and open its file (CREATE_ACCESS).

    In:     id  the IOAS
    Errors: EOPNOTSUPP  unknown flag; no fd can be given to the caller
            ENOENT      no such IOAS    EADDRINUSE  its areas are not aligned to pages
            ENOMEM      no fd is left
    Source: iommufd_test_create_access()
    """
    cmd, ctx = ucmd.cmd, ucmd.file
    flags = cmd.create_access.flags
    if flags & ~uapi.MOCK_FLAGS_ACCESS_CREATE_NEEDS_PIN_PAGES:
        raise UapiError(errno.EOPNOTSUPP, f"flags {flags:#x}")
    file = AccessFile()
    with ctx.objects.new(Access(ctx, file, bool(flags))) as access:
        access.attach(cmd.id)
        access.get()
        try:
            await _respond(ucmd, file)
        except BaseException:
            access.put()
            raise
        file.access = access


async def _respond(ucmd: Ucmd, file: AccessFile) -> None:
    """As Ucmd.respond_with_fd(), for a field of the union."""
    try:
        reserved = await ucmd.caller.reserve_fd(file)
    except UapiError as error:
        if error.errno != errno.EMFILE:
            raise
        raise UapiError(errno.ENOMEM, error.why) from error
    out = ucmd.cmd.create_access
    with reserved as fd:
        out.out_access_fd = fd.number
        await ucmd.respond()
        if fd.install() != out.out_access_fd:
            out.out_access_fd = fd.number
            await ucmd.respond()


def access_replace_ioas(ucmd: Ucmd) -> None:
    """Move an access to another IOAS (ACCESS_REPLACE_IOAS): EBADFD, ENOENT, EADDRINUSE."""
    _file_of(ucmd, ucmd.cmd.id).access.replace(ucmd.cmd.access_replace_ioas.ioas_id)


async def access_pages(ucmd: Ucmd) -> None:
    """Pin through an access (ACCESS_PAGES).

    In:     uptr  unless it is 0: where the client has the same pages
    Errors: ENOMEM  more than 16 MiB                EOPNOTSUPP  unknown flag; it does not pin
            EBADFD  id is not an access's fd        EBADE       uptr leads to other pages
            others are those of Access.pin()
    Source: iommufd_test_access_pages()
    """
    cmd = ucmd.cmd.access_pages
    if cmd.length > MAX_ACCESS_LENGTH:
        raise UapiError(errno.ENOMEM, f"{cmd.length:#x} bytes")
    if cmd.flags & ~(uapi.MOCK_FLAGS_ACCESS_WRITE | _SYZ):
        raise UapiError(errno.EOPNOTSUPP, f"flags {cmd.flags:#x}")
    file = _file_of(ucmd, ucmd.cmd.id)
    access = file.access
    if not access.needs_pin_pages:
        raise UapiError(errno.EOPNOTSUPP, f"{access} does not pin")
    iova, length = _iova(access, cmd), cmd.length
    access.pin(iova, length, bool(cmd.flags & uapi.MOCK_FLAGS_ACCESS_WRITE))
    number = file.next_item
    file.next_item += 1
    file.items[number] = iova, length
    try:
        if cmd.uptr:
            mm, _ = await ucmd.file.source(ucmd.caller)
            access.check_map(iova, length, mm, cmd.uptr)
        cmd.out_access_pages_id = number
        await ucmd.respond()
    except BaseException:
        if number in file.items:  # else it was unmapped meanwhile
            file.drop(number)
        raise


def _iova(access: Access, cmd: Any) -> int:
    """With flag SYZ it is the number of a mapping, in the lower half, and an offset there."""
    if not cmd.flags & _SYZ:
        return cmd.iova
    start = access.nth_area(cmd.iova & 0xFFFFFFFF)
    return start + (cmd.iova >> 32) if start is not None else 0


def destroy_access_pages(ucmd: Ucmd) -> None:
    """Unpin what ACCESS_PAGES pinned (DESTROY_ACCESS_PAGES): EBADFD, ENOENT."""
    _file_of(ucmd, ucmd.cmd.id).drop(ucmd.cmd.destroy_access_pages.access_pages_id)


async def access_rw(ucmd: Ucmd) -> None:
    """Copy between an IOAS and the client's uptr, through an access (ACCESS_RW).

    Errors: ENOMEM  more than 16 MiB            EOPNOTSUPP  unknown flag
            EBADFD  id is not an access's fd    EFAULT      uptr; others are those of Access.read()
    Source: iommufd_test_access_rw()
    """
    cmd = ucmd.cmd.access_rw
    if cmd.length > MAX_ACCESS_LENGTH:
        raise UapiError(errno.ENOMEM, f"{cmd.length:#x} bytes")
    if cmd.flags & ~_RW_FLAGS:
        raise UapiError(errno.EOPNOTSUPP, f"flags {cmd.flags:#x}")
    access = _file_of(ucmd, ucmd.cmd.id).access
    if cmd.flags & uapi.MOCK_ACCESS_RW_WRITE:
        data = await ucmd.caller.read(cmd.uptr, cmd.length)
        await access.write(_iova(access, cmd), data)
    else:
        data = await access.read(_iova(access, cmd), cmd.length)
        await ucmd.caller.write(cmd.uptr, data)
