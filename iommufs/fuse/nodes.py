"""The nodes of a file tree, as plain data: what /sys and /dev are built from.

A tree is made once and served by the FUSE operations, which know nothing of what it means; the
contents behind it live in the objects that the functions of a node ask. Names are those of one
directory entry, link targets are kept as they are.

Not here: inode numbers, open files, anything of pyfuse3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

# What stat() shows as the size of a text attribute: one page, as in sysfs.
ATTRIBUTE_SIZE = 4096


@dataclass(eq=False)
class Dir:
    """A directory; entries may be added as long as it is not served."""

    entries: dict[str, Node] = field(default_factory=dict)
    mode: int = 0o755


@dataclass(eq=False)
class Link:
    """A symbolic link."""

    target: str


@dataclass(eq=False)
class TextFile:
    """A small file: a read at offset 0 asks `read` for the whole content, as the first one does.

    read   the content; UapiError is the errno of the reader. None: EIO
    write  takes what one write() brought; UapiError is its errno. None: EIO
    mode   what it gives to nobody, root does not get either
    size   what stat() shows
    """

    read: Callable[[], bytes] | None
    write: Callable[[bytes], None] | None = None
    mode: int = 0o444
    size: int = ATTRIBUTE_SIZE


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


@dataclass(eq=False)
class DeviceNode:
    """A character device.

    rdev        (major, minor), as the tree in /sys names it
    open        (flags of open(2)) -> the open file that answers ioctl, read, write, poll, close;
                UapiError is the errno
    backing_fd  what an mmap() of an open file of this node maps; None: nothing
    size        what stat() says of one without
    """

    mode: int
    rdev: tuple[int, int]
    open: Callable[[int], Any]
    backing_fd: int | None = None
    size: int = 0


Node = Dir | Link | TextFile | BinaryFile | DeviceNode


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


def walk(top: Dir, path: str = "") -> Iterator[tuple[str, Node]]:
    """Every node below `top` with its path, directories before their entries, names in order."""
    for name, node in sorted(top.entries.items()):
        here = f"{path}/{name}" if path else name
        yield here, node
        if isinstance(node, Dir):
            yield from walk(node, here)
