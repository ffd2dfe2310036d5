"""pyfuse3's operations over a tree of nodes: names, attributes, contents, open files.

Every handler runs without waiting unless the open file behind it waits, so requests are finished
in the order in which they came; the release of a file is done before a later open begins.

Not here: ioctls (ioctl.py), what the nodes mean (nodes.py and whoever built the tree).
"""

from __future__ import annotations

import errno
import functools
import os
import stat
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pyfuse3

from iommufs import logs
from iommufs._native import lib
from iommufs.errors import UapiError
from iommufs.files import OpenFiles
from iommufs.fuse.attributes import OpenAttribute, OpenBinary, PlainFile, check_access
from iommufs.fuse.backing import Backings
from iommufs.fuse.nodes import (
    BinaryFile,
    DeviceNode,
    Dir,
    Link,
    Node,
    TextFile,
    has_positions,
)

log = logs.get(__name__)

# Added to the number of a device node: the inode that has its look and cannot be opened. The kernel
# keeps an inode's type, and opens no file of ours that is not a regular one; attributes that are
# asked for by a path come from this one. Its st_ino is the node's (native/transport.c).
LOOK, ATTRIBUTE = lib.IOFS_LOOK, lib.IOFS_ATTRIBUTE
# Of so many nodes, those that are gone and that the kernel never asked for again are dropped.
SWEEP = 1024

# One directory whose files are made by us, for us: see Operations.publish.
ANONYMOUS = ".files"
READ_WRITE = 0o600


def _handler(function: Callable) -> Callable:
    """Turn what a handler raises into the errno of its request: pyfuse3 sees nothing else."""

    @functools.wraps(function)
    async def handler(*args: Any) -> Any:
        try:
            return await function(*args)
        except UapiError as error:
            raise pyfuse3.FUSEError(error.errno) from None
        except pyfuse3.FUSEError:
            raise
        except Exception:
            log.exception("a file operation failed", operation=function.__name__)
            raise pyfuse3.FUSEError(errno.EIO) from None

    return handler


def _is_ours(ctx: Any) -> bool:
    """Whether a request comes from a thread of this process."""
    return os.path.exists(f"/proc/self/task/{ctx.pid}")


class Operations(pyfuse3.Operations):
    """Serves one tree; `files` holds what is open of it, by fh.

    shows_devices  whether device nodes look like ones, not like regular files; for clients whose
                   fstat() is answered as well (looks.py)
    """

    shows_devices = False
    enable_writeback_cache = False

    def __init__(self, root: Dir, files: OpenFiles, mount: str = "") -> None:
        """`mount`: where it is served; there only to be asked by a thread that may wait for us."""
        super().__init__()
        self._files = files
        self._backings = Backings(f"{mount}/{ANONYMOUS}")
        self._nodes: dict[int, Node] = {pyfuse3.ROOT_INODE: root}
        self._last_number = pyfuse3.ROOT_INODE
        self._numbers: dict[Node, int] = {root: pyfuse3.ROOT_INODE}
        self._parents: dict[int, int] = {}  # of directories, by number
        self._lookups: Counter[int] = Counter()  # how often the kernel has been told of a number
        self._published: dict[str, Any] = {}
        self._names: dict[str, str] = {}  # by token, of published files that are a node each
        self._free_names: list[str] = []
        self._anonymous_numbers: dict[int, int] = {}  # by fh, of what publish() passed on
        self._anonymous = Dir(mode=0o700)
        self._number(self._anonymous)
        self._root = root
        self._owner = os.geteuid(), os.getegid()
        self._made_ns = time.time_ns()  # all of it at once, as far as clients see

    def _number(self, node: Node) -> int:
        number = self._numbers.get(node)
        if number is None:
            self._last_number += 1
            number = self._last_number
            if isinstance(node, TextFile) and node.write is not None:
                number |= ATTRIBUTE
            self._numbers[node] = number
            self._nodes[number] = node
            if self._last_number % SWEEP == 0:
                self._sweep()
        return number

    def _forget(self, number: int | None) -> None:
        """A node that can be reached no more; its number is never another's."""
        if number is not None:
            del self._numbers[self._nodes.pop(number)]
            self._parents.pop(number, None)

    def _sweep(self) -> None:
        for number, node in list(self._nodes.items()):
            if node.gone and not self._lookups[number]:
                self._drop(number)

    def _drop(self, number: int) -> None:
        """A node that is gone, and of which the kernel has forgotten."""
        self._backings.drop(number)
        self._forget(number)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """The kernel has no use for these any more, so many times."""
        for inode, count in inode_list:
            number = inode & ~LOOK
            self._lookups[number] -= count
            if self._lookups[number] <= 0:
                del self._lookups[number]
                if number in self._nodes and self._nodes[number].gone:
                    self._drop(number)

    def _node(self, number: int) -> Node:
        try:
            return self._nodes[number & ~LOOK]
        except KeyError:
            raise UapiError(errno.ESTALE, f"inode {number} is gone") from None

    def device_of(self, number: int) -> DeviceNode | None:
        """The device node with a number, which may be another's or nobody's."""
        node = self._nodes.get(number)
        return node if isinstance(node, DeviceNode) else None

    def publish(self, token: str, open_file: Any) -> str:
        """The path, below the mount, whose next open gives exactly `open_file`.

        For files that an ioctl makes; only this process may open it, once. All files with one
        backing are the same file. The kernel remembers a name, and with it a file that is closed,
        until the name is another's: what has been opened leaves its own to the next.
        """
        self._published[token] = open_file
        backing = getattr(open_file, "backing_fd", None)
        if backing is None:
            take = functools.partial(self._take, token)
            size = getattr(open_file, "length", 0)
            node = DeviceNode(READ_WRITE, (0, 0), take, size=size)
            name = self._names[token] = self._free_names.pop() if self._free_names else token
            self._anonymous.entries[name] = node
            return f"{ANONYMOUS}/{name}"
        # One node that stays: the kernel is told of a backing once, and its mappings are one.
        name = f"backed-by-{backing}"
        if name not in self._anonymous.entries:
            take = functools.partial(self._take_backed, backing)
            mappings = getattr(open_file, "mappings", ())
            node = DeviceNode(READ_WRITE, (0, 0), take, backing, mappings=mappings)
            self._anonymous.entries[name] = node
        return f"{ANONYMOUS}/{name}"

    def withdraw(self, token: str, open_file: Any) -> bool:
        """Take a published file back; whether it was there still: not opened."""
        backing = getattr(open_file, "backing_fd", None)
        if backing is not None:
            tokens = self._backed_by(backing)
            return bool(tokens and self._published.pop(tokens[0]))
        if token not in self._published:
            return False
        node = self._anonymous.entries.pop(self._names.pop(token))  # somebody may still look for it
        self._forget(self._numbers.get(node))
        del self._published[token]
        return True

    def _take(self, token: str, flags: int) -> Any:
        """ENXIO: it is open already, and cannot be opened again (no_open())."""
        if token not in self._published:
            raise UapiError(errno.ENXIO, "a file without a name")
        name = self._names.pop(token)
        del self._anonymous.entries[name]
        self._free_names.append(name)
        return self._published.pop(token)

    def _backed_by(self, backing: int) -> list[str]:
        """Tokens of files that are the same: any of them will do."""
        files = self._published.items()
        return [token for token, file in files if getattr(file, "backing_fd", None) == backing]

    def _take_backed(self, backing: int, flags: int) -> Any:
        """ENXIO, as above."""
        tokens = self._backed_by(backing)
        if not tokens:
            raise UapiError(errno.ENXIO, "no such file is published")
        return self._published.pop(tokens[0])

    def _is_anonymous(self, node: Node) -> bool:
        return any(node is there for there in self._anonymous.entries.values())

    # ---- names and attributes

    def _attributes(self, number: int) -> pyfuse3.EntryAttributes:
        node = self._node(number)
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = number
        entry.generation = 0
        entry.attr_timeout = entry.entry_timeout = 0
        entry.st_nlink = 1
        entry.st_blksize = 4096
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = self._made_ns
        entry.st_uid, entry.st_gid = self._owner
        match node:
            case Dir():
                entry.st_mode = stat.S_IFDIR | node.mode
                entry.st_nlink = node.n_links
            case Link():
                entry.st_mode = stat.S_IFLNK | 0o777
                entry.st_size = node.size
            case TextFile() | BinaryFile():
                entry.st_mode = stat.S_IFREG | node.mode
                entry.st_size = node.size
            case DeviceNode():
                is_look = number & LOOK
                entry.st_mode = (stat.S_IFCHR if is_look else stat.S_IFREG) | node.mode
                entry.st_rdev = os.makedev(*node.rdev)
                entry.st_size = 0 if is_look else node.size
                if node.backing_fd is not None and not is_look:
                    # Programs that ask how much of a regular file they may map get an answer.
                    entry.st_size = os.fstat(node.backing_fd).st_size
        return entry

    @_handler
    async def getattr(self, inode: int, ctx: Any) -> pyfuse3.EntryAttributes:
        return self._attributes(inode)

    @_handler
    async def setattr(
        self, inode: int, attr: Any, fields: Any, fh: int | None, ctx: Any
    ) -> pyfuse3.EntryAttributes:
        # open(O_TRUNC) of a device or an attribute does nothing; the rest is not for clients.
        if fields.update_mode or fields.update_uid or fields.update_gid:
            raise UapiError(errno.EPERM, "modes and owners are fixed")
        # open(O_TRUNC) names no file.
        if fields.update_size and fh is not None and isinstance(self._node(inode), DeviceNode):
            raise UapiError(errno.EINVAL, "a device has no length")
        return self._attributes(inode)

    @_handler
    async def lookup(self, parent: int, name: bytes, ctx: Any) -> pyfuse3.EntryAttributes:
        if parent == pyfuse3.ROOT_INODE and name == ANONYMOUS.encode() and _is_ours(ctx):
            self._lookups[self._numbers[self._anonymous]] += 1
            return self._attributes(self._numbers[self._anonymous])
        directory, text = self._directory(parent), os.fsdecode(name)
        node = directory.find(text)
        if directory is self._anonymous:
            node = self._backings.aliases.get(text, node)
        if node is None:
            raise UapiError(errno.ENOENT)
        number = self._number(node)
        self._lookups[number] += 1
        if isinstance(node, Dir):
            self._parents[number] = parent
        if self._has_look(node) and lib.iofs_client_looks_at_path(ctx.pid):
            number |= LOOK
        return self._attributes(number)

    def _has_look(self, node: Node) -> bool:
        return self.shows_devices and isinstance(node, DeviceNode)

    def _directory(self, number: int) -> Dir:
        node = self._node(number)
        if not isinstance(node, Dir):
            raise UapiError(errno.ENOTDIR)
        return node

    @_handler
    async def readlink(self, inode: int, ctx: Any) -> bytes:
        node = self._node(inode)
        if not isinstance(node, Link):
            raise UapiError(errno.EINVAL)
        return os.fsencode(node.target)

    @_handler
    async def opendir(self, inode: int, ctx: Any) -> int:
        self._directory(inode)
        return inode

    @_handler
    async def readdir(self, fh: int, start: int, token: Any) -> None:
        directory = self._directory(fh)
        above = self._directory(self._parents.get(fh, fh))  # of what is mounted, itself
        names: list[tuple[str, Node]] = [(".", directory), ("..", above), *directory.listing()]
        for position, (name, node) in enumerate(names[start:], start + 1):
            number = self._number(node)
            look = LOOK if self._has_look(node) else 0
            attributes = self._attributes(number | look)
            if not pyfuse3.readdir_reply(token, os.fsencode(name), attributes, position):
                break
            if position > 2:  # the kernel takes no dots to itself, and the transport no looks
                self._lookups[number] += not look
            if position > 2 and isinstance(node, Dir):
                self._parents[number] = fh

    @_handler
    async def releasedir(self, fh: int) -> None:
        pass

    @_handler
    async def statfs(self, ctx: Any) -> pyfuse3.StatvfsData:
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = 4096
        data.f_namemax = 255
        return data

    # ---- names come with the tree: nobody makes, removes or renames one, as in sysfs

    @_handler
    async def create(self, *args: Any) -> Any:
        raise UapiError(errno.EACCES, "no new files")

    @_handler
    async def mkdir(self, *args: Any) -> Any:
        raise UapiError(errno.EPERM, "names are fixed")

    mknod = symlink = link = rename = unlink = rmdir = mkdir

    # ---- open files

    @_handler
    async def open(self, inode: int, flags: int, ctx: Any) -> pyfuse3.FileInfo:
        node = self._node(inode)
        passed_on = False
        match node:
            case DeviceNode():
                passed_on = self._is_anonymous(node)
                if flags & os.O_ACCMODE == os.O_RDONLY and lib.iofs_client_is_in_ioctl(ctx.pid):
                    raise UapiError(errno.ENOTTY, "a device has no file attributes")
                if passed_on and not _is_ours(ctx):
                    raise UapiError(errno.ENXIO, "a file without a name")
                if not passed_on:
                    await self._files.calls_over()
                await self._files.settle()
                open_file = node.open(flags)
                await self._backings.prepare(inode, node)
            case TextFile():
                check_access(node, flags)
                open_file = PlainFile(OpenAttribute(node))
            case BinaryFile():
                check_access(node, flags)
                open_file = PlainFile(OpenBinary(node))
            case _:
                raise UapiError(errno.EISDIR)
        # A device with regions has positions; what has none is a stream. lseek() would not know it
        # from a file with positions, so a node is one, too, where nobody else refuses lseek().
        stream = isinstance(node, DeviceNode) and not has_positions(node, open_file)
        stream = stream and not (self.shows_devices and any(node.rdev))
        fh = self._files.add(open_file)
        if passed_on and node.backing_fd is None:
            self._anonymous_numbers[fh] = inode
        return pyfuse3.FileInfo(fh=fh, direct_io=True, keep_cache=False, nonseekable=stream)

    @_handler
    async def read(self, fh: int, offset: int, size: int) -> bytes:
        return await self._files[fh].read(offset, size)

    @_handler
    async def write(self, fh: int, offset: int, data: bytes) -> int:
        return await self._files[fh].write(offset, data)

    @_handler
    async def poll(self, inode: int, fh: int, handle: Any, ctx: Any) -> int:
        open_file = self._files[fh]
        if handle is not None and hasattr(open_file, "watch_poll"):
            open_file.watch_poll(handle.notify)
        return open_file.poll()

    @_handler
    async def release(self, fh: int) -> None:
        self._files.close(fh)
        await self._files.settle()
        self._forget(self._anonymous_numbers.pop(fh, None))

    @_handler
    async def fsync(self, fh: int, datasync: bool) -> None:
        raise UapiError(errno.EINVAL, "as every file without storage")
