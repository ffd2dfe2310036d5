"""What an mmap() of a node maps: its backing file, or where that may not be, its page cache.

A server with the right to it passes the backing file through. For others a client's mapping is one
of the node's page cache. At an open of the node we map that too, in place of the memory that we
have mapped already, so whoever holds a pointer into it sees what clients see. The pages come from
the backing file and go back to it (native/keeper.c).
"""

from __future__ import annotations

import os

import trio

from iommufs import logs
from iommufs._native import ffi, lib
from iommufs.errors import UapiError, check
from iommufs.fuse.nodes import DeviceNode, Node

log = logs.get(__name__)


class Backings:
    """The nodes of one mount that can be mapped.

    aliases  more names of such nodes, in the directory that only we can look into
    """

    def __init__(self, directory: str) -> None:
        """`directory`: where it is mounted; there only to be asked by a thread that may wait."""
        self.aliases: dict[str, Node] = {}
        self._directory = directory
        self._told: set[int] = set()  # inodes that the transport knows
        self._mapped: dict[int, int] = {}  # by backing file: the inode whose pages we have mapped
        self._lock = trio.Lock()

    async def prepare(self, inode: int, node: DeviceNode) -> None:
        """Before an open of a node is answered. Serves requests meanwhile."""
        if node.backing_fd is None:
            return
        try:
            if not lib.iofs_transport_has_page_cache():
                self._pass_through(inode, node.backing_fd)
            elif node.mappings:
                async with self._lock:
                    await self._map_pages(inode, node, node.backing_fd)
        except UapiError as error:
            log.warning("BARs cannot be mapped", reason=str(error))

    def drop(self, inode: int) -> None:
        """A node that is no more."""
        if inode in self._told and not lib.iofs_transport_has_page_cache():
            self._told.remove(inode)
            lib.iofs_transport_drop_backing(inode)

    def _pass_through(self, inode: int, backing: int) -> None:
        if inode not in self._told:
            self._told.add(inode)
            check(lib.iofs_transport_set_backing(inode, backing), "a backing file")

    async def _map_pages(self, inode: int, node: DeviceNode, backing: int) -> None:
        if self._mapped.get(backing) == inode:
            return
        if inode not in self._told:
            parts = [(offset, length) for offset, length, _ in node.mappings]
            memory = ffi.new("uint64_t[][2]", parts)
            check(lib.iofs_transport_share(inode, backing, memory, len(parts)), "a node's pages")
            self._told.add(inode)
        alias = f"node-{inode}"
        self.aliases[alias] = node
        # By O_NOATIME the keeper knows it. An open that is new drops what pages the node still had
        # from an earlier time.
        fd = await trio.to_thread.run_sync(
            *(lib.iofs_transport_open, os.fsencode(f"{self._directory}/{alias}")),
            os.O_RDWR | os.O_NOATIME,
            abandon_on_cancel=True,
        )
        check(fd, "a descriptor for our own pages")
        try:
            for offset, length, address in node.mappings:
                at = ffi.cast("void *", address)
                check(lib.iofs_transport_remap(at, length, fd, offset), "mapping a BAR")
        finally:
            os.close(fd)
        self._mapped[backing] = inode
