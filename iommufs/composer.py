"""What a run sees at /dev and /sys: the machine's own entries with ours among them.

Words: `machine` is the machine's own directory, `ours` the one of our tree, `target` where the
composed one is put together; `at` a place below their tops.

Not here: the namespace in which that happens (namespace.py).
"""

import contextlib
import itertools
import os
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

from iommufs import syscalls

# Directories in which our entries stand beside the machine's; any other of ours replaces the
# machine's as a whole.
MERGED = {
    "dev": {""},
    "sys": {
        *("", "bus", "class", "class/misc", "dev", "devices", "devices/platform"),
        *("devices/virtual", "devices/virtual/misc", "kernel", "module"),
    },
}
# Directories of links to devices. Our PCI root covers the machine's of the same name, which moves
# to a name of its own; links to its devices are turned there.
LINKS = ("block", "class/*", "bus/*/devices", "dev/*")
MOVED = "machine-"
# Programs that ask what a node is get an answer of ours where a lookup is ours: not in /dev, where
# our node would be a mount. So it is a link to a second place, which no directory lists.
LOOKED_UP = {"iommu": "vfio/iommu"}
# Where nobody may make device nodes, the machine's /dev as a whole, in ours.
MACHINE = ".machine"


class Listings:
    """The entries of a directory and of those below it, each directory read once."""

    def __init__(self, top: str) -> None:
        self.top = top
        self._read: dict[str, dict[str, os.DirEntry]] = {}

    def entries(self, at: str) -> dict[str, os.DirEntry]:
        """Those of a directory, by name; none if there is no such directory."""
        if at not in self._read:
            self._read[at] = entries(self.path(at)) if self.has_directory(at) else {}
        return self._read[at]

    def has_directory(self, at: str) -> bool:
        """Whether there is one, and no link, at a place."""
        above, _, name = at.rpartition("/")
        entry = self.entries(above).get(name) if at else None
        return not at or (entry is not None and entry.is_dir(follow_symlinks=False))

    def path(self, at: str) -> str:
        return os.path.join(self.top, at)


class OurListings(Listings):
    """Those of a tree of ours, where each name in a path is a question to the server.

    So a path begins at the directory above, which is held open until close().
    """

    def __init__(self, top: str) -> None:
        super().__init__(top)
        self._opened: dict[str, int] = {}

    def path(self, at: str) -> str:
        if at not in self._opened:
            above, _, name = at.rpartition("/")
            there = f"{self.path(above)}/{name}" if at else self.top
            self._opened[at] = os.open(there, os.O_PATH | os.O_CLOEXEC)
        return f"/proc/self/fd/{self._opened[at]}"

    def close(self) -> None:
        for fd in self._opened.values():
            os.close(fd)
        self._opened.clear()


class Composer:
    """Fills a directory with the machine's entries and ours.

    moved   names in the machine's devices/ that ours cover, and their new names
    opened  directories to be filled entry by entry, relative to the top
    """

    def __init__(self, machine: Listings, ours: Listings, merged: set[str]) -> None:
        self.machine = machine
        self.ours = ours
        self.moved = dict(covered(machine.entries("devices"), ours.entries("devices")))
        self.opened = {at for at in merged if self._is_in_both(at)}
        for at in self._link_directories() if self.moved else ():
            if self._has_moved_link(at):
                self.opened.update(["", *_places(at)])

    def fill(self, target: str, at: str = "") -> None:
        """Put together the directory `at` (of the opened ones) in `target`."""
        machine, ours = self.machine.entries(at), self.ours.entries(at)
        for name in sorted(machine.keys() | ours.keys()):
            inner = f"{at}/{name}".lstrip("/")
            to = f"{target}/{name}"
            if inner in self.opened:
                os.mkdir(to, 0o755)
                self.fill(to, inner)
                continue
            if at == "devices" and name in self.moved:
                _show(machine[name], f"{target}/{self.moved[name]}")
            if inner in LOOKED_UP and os.path.lexists(self.ours.path("") + f"/{LOOKED_UP[inner]}"):
                os.symlink(LOOKED_UP[inner], to)
            elif name in ours:
                _show(ours[name], to)
            else:
                _show(machine[name], to, self.turn)

    def turn(self, link: str) -> str:
        """Where a link of the machine has to point now."""
        return turn(link, self.moved)

    def _is_in_both(self, at: str) -> bool:
        return self.machine.has_directory(at) and self.ours.has_directory(at)

    def _link_directories(self) -> Iterator[str]:
        """The machine's directories of links, where not covered by one of ours."""
        for pattern in LINKS:
            outer, star, inner = pattern.partition("*")
            for name in self.machine.entries(outer.rstrip("/")) if star else [""]:
                at = f"{outer}{name}{inner}"
                if self.machine.has_directory(at) and not self._is_covered(at):
                    yield at

    def _is_covered(self, at: str) -> bool:
        """Whether a directory of ours takes the place of `at` or of one above it."""
        return any(self._is_in_both(there) and there not in self.opened for there in _places(at))

    def _has_moved_link(self, at: str) -> bool:
        for entry in self.machine.entries(at).values():
            link = _target(entry)
            if link is not None and self.turn(link) != link:
                return True
        return False


def _places(at: str) -> Iterable[str]:
    """ "a", "a/b", "a/b/c" on the way to "a/b/c"."""
    return itertools.accumulate(at.split("/"), "{}/{}".format)


def turn(link: str, moved: Mapping[str, str]) -> str:
    """Where a link has to point when PCI roots have other names."""
    parts = link.split("/")
    for index, part in enumerate(parts[:-1]):
        if part == "devices" and parts[index + 1] in moved:
            parts[index + 1] = moved[parts[index + 1]]
            break
    return "/".join(parts)


def covered(machine: Collection[str], ours: Collection[str]) -> Iterator[tuple[str, str]]:
    """The PCI roots of the machine that ours take the place of, and their new names."""
    for name in ours:
        if name.startswith("pci") and name in machine:
            moved = MOVED + name
            while moved in machine:  # one run within another
                moved = MOVED + moved
            yield name, moved


def entries(path: str) -> dict[str, os.DirEntry]:
    """What is in a directory, by name; nothing if it is none."""
    try:
        with os.scandir(path) as found:
            return {entry.name: entry for entry in found}
    except (FileNotFoundError, NotADirectoryError):
        return {}


def _target(entry: os.DirEntry) -> str | None:
    """Where a link leads; None: it is none, or not there any more."""
    if entry.is_symlink():
        with contextlib.suppress(FileNotFoundError):
            return os.readlink(entry.path)
    return None


def _show(entry: os.DirEntry, target: str, turn: Callable[[str], str] = str) -> None:
    """Make `target` show the same file, directory or link, unless that is gone since it was listed.

    turn  changes where a link points
    """
    if entry.path == "/dev/ptmx":
        _make_ptmx(entry.stat(follow_symlinks=False), target)
    elif entry.is_symlink():
        link = _target(entry)
        if link is not None:
            os.symlink(turn(link), target)
    elif entry.is_dir(follow_symlinks=False):
        os.mkdir(target, 0o755)
        _bind(entry.path, target, os.rmdir)
    else:
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        _bind(entry.path, target, os.unlink)


def _bind(source: str, target: str, remove: Callable[[str], None]) -> None:
    try:
        syscalls.bind(source, target)
    except FileNotFoundError:
        remove(target)


def _make_ptmx(found: os.stat_result, target: str) -> None:
    """Linux looks for the pts/ beside the node itself (devpts_mntget()): a mount of it has none."""
    if stat.S_ISLNK(found.st_mode):
        os.symlink(os.readlink("/dev/ptmx"), target)
        return
    try:
        os.mknod(target, found.st_mode, found.st_rdev)
        os.chown(target, found.st_uid, found.st_gid)
    except PermissionError:  # in a user namespace
        _link_to_ptmx(target)


def _link_to_ptmx(target: str) -> None:
    """A link into the whole of the machine's /dev, where the node has its pts/ beside it."""
    directory = f"{os.path.dirname(target)}/{MACHINE}"
    os.mkdir(directory)
    syscalls.bind("/dev", directory)
    os.symlink(f"{MACHINE}/ptmx", target)
