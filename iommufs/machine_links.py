"""Links of the machine in directories of our tree whose links come and go."""

import os
from collections.abc import Collection, Mapping

from iommufs import composer
from iommufs.fuse.nodes import Dir, Link, Node, lookup

# In our tree they have the machine's links beside our own.
NUMBERS = ("dev/char", "sys/dev/char")


def add_machine_links(root: Dir) -> None:
    """Let our tree have the machine's links in NUMBERS beside its own."""
    devices = lookup(root, "sys/devices")
    assert isinstance(devices, Dir), "sys/devices is a directory"
    moved = dict(composer.covered(composer.entries("/sys/devices"), devices.entries))
    for path in NUMBERS:
        directory = lookup(root, path)
        assert isinstance(directory, Dir), f"{path} is a directory"
        directory.more = MachineLinks(f"/{path}", moved)


class MachineLinks:
    """The links in a directory of the machine, as they are whenever our tree is asked for them.

    moved  PCI roots that links into /sys/devices do not find under their name, and their new ones
    """

    def __init__(self, directory: str, moved: Mapping[str, str]) -> None:
        self._directory = directory
        self._moved = moved
        self._made: dict[str, Link] = {}

    def find(self, name: str) -> Node | None:
        try:
            target = composer.turn(os.readlink(f"{self._directory}/{name}"), self._moved)
        except OSError:
            self._made.pop(name, None)
            return None
        if name not in self._made or self._made[name].target != target:
            self._made[name] = Link(target)
        return self._made[name]

    def names(self) -> Collection[str]:
        return composer.entries(self._directory)
