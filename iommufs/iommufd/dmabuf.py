"""Stand-ins for dma-bufs: memory of a device that a client can map by descriptor, for DMA.

The exporter may withdraw the memory: then DMA does not reach what was mapped of it, now and later.
Exporters are a test operation (below) and the BARs of VFIO devices (vfio/bar_dmabuf.py).
"""

import errno
import itertools
import os
import select
from typing import Any

from iommufs._native import lib
from iommufs.caller import Caller
from iommufs.errors import UapiError
from iommufs.iommufd import ctx as contexts
from iommufs.iommufd.ioas import Ioas
from iommufs.limits import MAX_DMABUF_LENGTH, PAGE_SIZE
from iommufs.ucmd import Ucmd

_names = itertools.count(1)
_open: set["Dmabuf"] = set()


class Dmabuf:
    """The open file of a dma-buf. Its memory lives on in what is mapped of it.

    memory_fd  a memory file of ours, and `base`, where in it the dma-buf begins; -1: it is closed
    name       what the native core knows it by
    n_ranges   iommufd maps only what is in one piece
    """

    table = None

    def __init__(self, length: int, memory_fd: int, base: int = 0) -> None:
        self.name = next(_names)
        self.length = length
        self.n_ranges = 1
        self.revoked = False
        self.memory_fd = memory_fd
        self.base = base
        _open.add(self)

    def revoke(self) -> None:
        """Withdraw the memory from all devices."""
        self.revoked = True
        for ctx in contexts.live():
            for ioas in ctx.objects.of_type(Ioas):
                lib.iofs_iopt_revoke(ioas.iopt, self.name)

    def restore(self) -> None:
        """It may be mapped again."""
        self.revoked = False

    async def read(self, offset: int, size: int) -> bytes:
        raise UapiError(errno.EINVAL, "a dma-buf is not read")

    async def write(self, offset: int, data: bytes) -> int:
        raise UapiError(errno.EINVAL, "a dma-buf is not written")

    def check_mmap(self, caller: Caller, fd: int, length: int, prot: int, offset: int) -> None:
        raise UapiError(errno.EINVAL, "its exporter maps it to nobody")

    def llseek(self, offset: int, whence: int) -> int:
        """How large it is; it has no other position than 0 (dma_buf_llseek()). EINVAL."""
        if whence not in (os.SEEK_SET, os.SEEK_END) or offset:
            raise UapiError(errno.EINVAL, "a dma-buf tells its length")
        return self.length if whence == os.SEEK_END else 0

    def poll(self) -> int:
        return select.POLLIN | select.POLLOUT

    def release(self) -> None:
        """May be called twice: by who made a file that the client never got, and by its close."""
        if self.memory_fd >= 0:
            os.close(self.memory_fd)
            self.memory_fd = -1
            _open.discard(self)


def find_dmabuf(ctx: Any, caller: Caller, fd: int) -> Dmabuf | None:
    """The dma-buf behind a client's descriptor, None if it is no such thing; EBADF."""
    # Nearly always there is none at all, and nothing to look up.
    file = ctx.files.resolve(caller, fd) if _open and ctx.files is not None else None
    return file if isinstance(file, Dmabuf) and file.memory_fd >= 0 else None


async def dmabuf_get(ucmd: Ucmd) -> int:
    """Make a dma-buf of memory that belongs to nobody (test operation DMABUF_GET).

    Returns its descriptor, as the kernel's tests expect; Linux 7.3 returns 0 by mistake.
    Errors: EINVAL  length 0 or over 2 MiB, in whole pages      EMFILE  the caller has no more fds
            EOPNOTSUPP  no fd can be given to the caller
    Source: iommufd_test_dmabuf_get()
    """
    length = -(-ucmd.cmd.dmabuf_get.length // PAGE_SIZE) * PAGE_SIZE
    if not 0 < length <= MAX_DMABUF_LENGTH:
        raise UapiError(errno.EINVAL, f"{length} bytes")
    memory_fd = os.memfd_create("dmabuf", os.MFD_CLOEXEC)
    os.ftruncate(memory_fd, length)
    return await ucmd.install_fd(Dmabuf(length, memory_fd))


def dmabuf_revoke(ucmd: Ucmd) -> None:
    """Withdraw the memory of a dma-buf, or let it be mapped again (test operation DMABUF_REVOKE).

    Errors: EBADF  no such fd       EINVAL  it is no dma-buf of DMABUF_GET
    Source: iommufd_test_dmabuf_revoke()
    """
    cmd = ucmd.cmd.dmabuf_revoke
    dmabuf = find_dmabuf(ucmd.file, ucmd.caller, cmd.dmabuf_fd)
    if dmabuf is None:
        raise UapiError(errno.EINVAL, f"fd {cmd.dmabuf_fd} is no dma-buf")
    if cmd.revoked:
        dmabuf.revoke()
    else:
        dmabuf.restore()
