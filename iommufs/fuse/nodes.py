"""The nodes of a file tree, as plain data: what /sys and /dev are built from.

A tree is served by the FUSE operations, which know nothing of what it means; the contents behind
it live in the objects that the functions of a node ask. Nodes may come and go while it is served:
one that is gone is no other's, and what is open of it fails with ENODEV. Names are those of one
directory entry, link targets are kept as they are.

Not here: inode numbers, open files, anything of pyfuse3.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

# What stat() shows as the size of a text attribute: one page, as in sysfs.
ATTRIBUTE_SIZE = 4096


class More(Protocol):
    """Entries of somebody else, asked for anew each time."""

    def find(self, name: str) -> Node | None: ...
    def names(self) -> Collection[str]: ...


@dataclass(eq=False)
class Dir:
    """A directory. `more`: entries that stand beside its own, which win."""

    entries: dict[str, Node] = field(default_factory=dict)
    mode: int = 0o755
    gone: bool = False
    more: More | None = None

    def find(self, name: str) -> Node | None:
        """The entry of a name; None: there is none."""
        if self.more is not None and name not in self.entries:
            return self.more.find(name)
        return self.entries.get(name)

    def listing(self) -> list[tuple[str, Node]]:
        """All entries, in the order of their names."""
        names = set(self.entries)
        if self.more is not None:
            names |= set(self.more.names())
        found = ((name, self.find(name)) for name in sorted(names))
        return [(name, node) for name, node in found if node is not None]

    @property
    def n_links(self) -> int:
        """Its own name, its dot, and the two dots of each directory in it."""
        return 2 + sum(isinstance(node, Dir) for node in self.entries.values())


@dataclass(eq=False)
class Unlisted:
    """Entries that are found by name only."""

    entries: dict[str, Node]

    def find(self, name: str) -> Node | None:
        return self.entries.get(name)

    def names(self) -> Collection[str]:
        return ()


@dataclass(eq=False)
class Link:
    """A symbolic link. `size`: what lstat() says, where sysfs says 0."""

    target: str
    size: int = 0
    gone: bool = False


@dataclass(eq=False)
class TextFile:
    """A small file: a read at offset 0 asks `read` for the whole content, as the first one does.

    read   the content; UapiError is the errno of the reader. None: EIO
    write  takes what one write() brought, may wait; UapiError is its errno. None: EIO
    mode   what it gives to nobody, root does not get either
    size   what stat() shows
    """

    read: Callable[[], bytes] | None
    write: Callable[[bytes], Awaitable[None] | None] | None = None
    mode: int = 0o444
    size: int = ATTRIBUTE_SIZE
    gone: bool = False


@dataclass(eq=False)
class BinaryFile:
    """A file read and written at offsets, such as `config` and `resource0` of a PCI function.

    read   (offset, length) -> bytes, short at the end; UapiError is the errno
    write  (offset, data) -> bytes taken; UapiError is the errno. None: EIO
    """

    read: Callable[[int, int], bytes] | None
    write: Callable[[int, bytes], int] | None = None
    mode: int = 0o444
    size: int = ATTRIBUTE_SIZE
    gone: bool = False


@dataclass(eq=False)
class DeviceNode:
    """A character device.

    rdev        (major, minor), as the tree in /sys names it
    open        (flags of open(2)) -> the open file that answers ioctl, read, write, poll, close;
                UapiError is the errno
    backing_fd  what an mmap() of an open file of this node maps; None: nothing
    size        what stat() says of one without
    mappings    (offset, length, address) of every part of it that this process has mapped
    """

    mode: int
    rdev: tuple[int, int]
    open: Callable[[int], Any]
    backing_fd: int | None = None
    size: int = 0
    gone: bool = False
    mappings: Sequence[tuple[int, int, int]] = ()


Node = Dir | Link | TextFile | BinaryFile | DeviceNode


def has_positions(node: DeviceNode, open_file: Any) -> bool:
    """Whether it is read and written at places; else it is a stream."""
    return node.backing_fd is not None or getattr(open_file, "has_positions", False)


def lookup(top: Dir, path: str) -> Node:
    """The node at a relative path without dots, links not followed; KeyError."""
    node: Node = top
    for name in path.split("/"):
        if not isinstance(node, Dir):
            raise KeyError(path)
        node = node.entries[name]
    return node


def place(top: Dir, path: str, node: Node) -> None:
    """Put a node at a relative path, with the directories above it; nothing may be there yet."""
    *above, name = path.split("/")
    for part in above:
        below = top.entries.setdefault(part, Dir())
        assert isinstance(below, Dir), f"{part} of {path} is no directory"
        top = below
    assert name not in top.entries, f"{path} is there already"
    top.entries[name] = node


def remove(top: Dir, path: str) -> None:
    """Take away the node at a relative path, with all that is below it; KeyError."""
    above, _, name = path.rpartition("/")
    directory = lookup(top, above) if above else top
    assert isinstance(directory, Dir), f"{above} is no directory"
    node = directory.entries.pop(name)
    node.gone = True
    if isinstance(node, Dir):
        for _, below in walk(node):
            below.gone = True
        node.entries.clear()


def walk(top: Dir, path: str = "") -> Iterator[tuple[str, Node]]:
    """Every node below `top` with its path, directories before their entries, names in order."""
    for name, node in sorted(top.entries.items()):
        here = f"{path}/{name}" if path else name
        yield here, node
        if isinstance(node, Dir):
            yield from walk(node, here)
