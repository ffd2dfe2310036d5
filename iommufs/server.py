"""One mount from start to end: transport, pyfuse3's loop and the ioctl pump around a machine."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import trio

import iommufs._native
from iommufs import fast, fusermount, logs, user_namespace
from iommufs._native import lib
from iommufs.files import OpenFiles
from iommufs.fuse.ioctl import IoctlPump
from iommufs.fuse.nodes import Dir

# pyfuse3's module must find our fuse_session_mount() before libfuse's (native/session.c).
ctypes.CDLL(iommufs._native.__file__, mode=os.RTLD_GLOBAL | os.RTLD_NOW)

import pyfuse3  # noqa: E402

from iommufs.fuse.operations import Operations  # noqa: E402

log = logs.get(__name__)


class MountError(Exception):
    """The tree could not be mounted; the text says what to change."""


def mount(path: str) -> Callable[[], None]:
    """Mount the transport on an empty directory; what takes it away again. MountError."""
    if not user_namespace.may_mount():
        return _mount_as_user(path)
    result = lib.iofs_transport_mount(os.fsencode(path))
    if result == 0:
        return lib.iofs_transport_unmount
    hints = {
        errno.ENOENT: f"no /dev/fuse, or no directory {path}: load the fuse module",
        errno.EPERM: "mounting needs CAP_SYS_ADMIN: run as root",
        errno.EACCES: "no access to /dev/fuse: run as root",
        errno.ENOTDIR: f"{path} is not a directory",
    }
    reason = hints.get(-result, os.strerror(-result))
    raise MountError(f"cannot mount on {path}: {reason}")


def _mount_as_user(path: str) -> Callable[[], None]:
    try:
        device = fusermount.mount(path)
    except fusermount.FusermountError as error:
        raise MountError(f"cannot mount on {path}: {error}") from None

    def unmount() -> None:
        lib.iofs_transport_unmount()
        fusermount.unmount(path)

    result = lib.iofs_transport_adopt(os.fsencode(path), device)
    if result < 0:
        fusermount.unmount(path)
        raise MountError(f"cannot serve {path}: {os.strerror(-result)}")
    return unmount


def raise_descriptor_limit() -> None:
    """Each function, each eventfd and each source of memory of a client is a descriptor of ours."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def serve(
    root: Dir,
    files: OpenFiles,
    path: str,
    *,
    ready: Callable[[], None] = lambda: None,
    tasks: Sequence[Callable[[], Awaitable[Any]]] = (),
    on_operations: Callable[[Operations], None] = lambda operations: None,
) -> None:
    """Serve a tree on `path` until cancelled or unmounted by someone else.

    ready          called once when the mount answers
    tasks          run beside it and end with it
    on_operations  gets the operations before anything is served
    """
    raise_descriptor_limit()
    fast.enable(os.environ.get("IOMMUFS_FAST") != "0")
    unmount = mount(path)
    try:
        operations = Operations(root, files, path)
        on_operations(operations)
        pyfuse3.init(operations, path, set())
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(IoctlPump(files).run)
                for task in tasks:
                    nursery.start_soon(task)
                ready()
                await pyfuse3.main()
                nursery.cancel_scope.cancel()
        finally:
            lib.iofs_transport_unmount()
            pyfuse3.close(unmount=False)
            log.info("requests", **fast.counts())
    finally:
        unmount()
        for open_file in files.remove_all():
            open_file.release()


__all__ = ["MountError", "mount", "raise_descriptor_limit", "serve"]
