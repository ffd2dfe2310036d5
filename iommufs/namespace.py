"""The mount namespace of a run: the machine's /dev and /sys with our files among them.

Nothing is ever created in the machine's own /dev, /sys or anywhere on its disks: new directories
are a tmpfs that exists in the private namespace only, and what they show is mounted there. All of
it goes with the last process of the run, however that ends.

Words: `machine` is the machine's own directory, `ours` the one of our tree, `target` where the
composed one is put together.
"""

import errno
import os
import stat
from collections.abc import Collection, Iterator, Mapping

from iommufs import syscalls, user_namespace
from iommufs.fuse.nodes import Dir, Link, Node, lookup

# Where the pieces are put together: a directory that every Linux has and the server does not need.
# It is covered in private namespaces only, and no longer when the client starts.
HUB = "/proc/fs"
TREE = f"{HUB}/tree"

# Directories in which our entries stand beside the machine's; any other of ours replaces the
# machine's as a whole.
MERGED = {
    "dev": {""},
    "sys": {
        *("", "bus", "class", "class/misc", "dev", "devices", "devices/platform"),
        *("devices/virtual", "devices/virtual/misc", "kernel", "module"),
    },
}
# Directories of links that come and go: in our tree they have the machine's too (MachineLinks).
NUMBERS = ("dev/char", "sys/dev/char")
# Directories of links to devices. Our PCI root covers the machine's of the same name, which moves
# to a name of its own; links to its devices are turned there.
LINKS = ("block", "class/*", "bus/*/devices", "dev/*")
MOVED = "machine-"
# Programs that ask what a node is get an answer of ours where a lookup is ours: not in /dev, where
# our node would be a mount. So it is a link to a second place, which no directory lists.
LOOKED_UP = {"iommu": "vfio/iommu"}
# Where nobody may make device nodes, the machine's /dev as a whole, in ours.
MACHINE = ".machine"


# How user namespaces are refused: by a filter or a policy, by a limit.
_REFUSALS = (errno.EPERM, errno.EACCES, errno.ENOSPC, errno.EUSERS)


def enter_server() -> None:
    """Move this process to a namespace of its own with an empty directory TREE; OSError.

    Who may not mount gets a user namespace as well.
    """
    is_root = user_namespace.may_mount()
    try:
        if not is_root:
            user_namespace.enter()
        _cover_hub()
    except OSError as error:
        if is_root or error.errno not in _REFUSALS:
            raise
        remedy = user_namespace.remedy()
        raise OSError(error.errno, f"not root, and no user namespace here: {remedy}") from None


def join_server(user: int, tree: int) -> None:
    """Likewise, with the tree of another server, a copy of its mount; OSError.

    user  the user namespace of that server
    """
    theirs, ours = os.stat(user), os.stat("/proc/self/ns/user")
    if theirs.st_ino != ours.st_ino:
        syscalls.set_namespace(user, syscalls.CLONE_NEWUSER)
    _cover_hub()
    syscalls.put_mount(tree, TREE)


def _cover_hub() -> None:
    syscalls.unshare(syscalls.CLONE_NEWNS)
    # What the machine mounts later is seen in here; nothing from here is seen outside.
    try:
        syscalls.mount("", "/", flags=syscalls.MS_REC | syscalls.MS_SLAVE)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        hint = "/ is no mount point, as in a plain chroot: bind it on itself before chroot(8)"
        raise OSError(errno.EINVAL, hint) from None
    flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
    syscalls.mount("iommufs", HUB, "tmpfs", flags, "mode=755,size=64k")
    os.mkdir(TREE)


def enter_client() -> None:
    """Move this process on to the client's namespace: /dev and /sys composed, HUB gone."""
    syscalls.unshare(syscalls.CLONE_NEWNS)
    here = os.getcwd()
    umask = os.umask(0)
    for name, merged in MERGED.items():
        if os.path.isdir(f"{TREE}/{name}"):
            _compose(name, merged)
    os.umask(umask)
    syscalls.unmount(HUB)
    os.chdir(here)  # which may be a directory that is covered now


def _compose(name: str, merged: set[str]) -> None:
    target = f"{HUB}/{name}"
    os.mkdir(target)
    syscalls.mount("iommufs", target, "tmpfs", syscalls.MS_NOSUID, "mode=755")
    composer = Composer(f"/{name}", f"{TREE}/{name}", merged)
    composer.fill(target)
    if name == "sys":  # sysfs lets nobody make files either
        flags = syscalls.MS_REMOUNT | syscalls.MS_BIND | syscalls.MS_RDONLY | syscalls.MS_NOSUID
        syscalls.mount("", target, flags=flags)
    syscalls.mount(target, f"/{name}", flags=syscalls.MS_MOVE)


class Composer:
    """Fills a directory with the machine's entries and ours.

    moved   names in the machine's devices/ that ours cover, and their new names
    opened  directories to be filled entry by entry, relative to the top
    """

    def __init__(self, machine: str, ours: str, merged: set[str]) -> None:
        self.machine = machine
        self.ours = ours
        names = _entries(f"{machine}/devices"), _entries(f"{ours}/devices")
        self.moved = dict(_covered(*names))
        self.opened = {at for at in merged if self._is_in_both(at)}
        for at in self._link_directories() if self.moved else ():
            if self._has_moved_link(at):
                self.opened.add(at)
                while at := os.path.dirname(at):
                    self.opened.add(at)

    def fill(self, target: str, at: str = "") -> None:
        """Put together the directory `at` (of the opened ones) in `target`."""
        machine, ours = (_entries(os.path.join(top, at)) for top in (self.machine, self.ours))
        for name in sorted(machine.keys() | ours.keys()):
            inner = f"{at}/{name}".lstrip("/")
            to = f"{target}/{name}"
            if inner in self.opened:
                os.mkdir(to, 0o755)
                self.fill(to, inner)
                continue
            if at == "devices" and name in self.moved:
                _show(machine[name], f"{target}/{self.moved[name]}")
            if inner in LOOKED_UP and os.path.lexists(f"{self.ours}/{LOOKED_UP[inner]}"):
                os.symlink(LOOKED_UP[inner], to)
            elif name in ours:
                _show(ours[name], to)
            elif machine[name].is_symlink():
                os.symlink(self.turn(os.readlink(machine[name].path)), to)
            else:
                _show(machine[name], to)

    def turn(self, link: str) -> str:
        """Where a link of the machine has to point now."""
        return _turn(link, self.moved)

    def _is_in_both(self, at: str) -> bool:
        return all(_is_directory(os.path.join(top, at)) for top in (self.machine, self.ours))

    def _link_directories(self) -> Iterator[str]:
        """The machine's directories of links, where not covered by one of ours."""
        for pattern in LINKS:
            outer, star, inner = pattern.partition("*")
            names = _entries(os.path.join(self.machine, outer)) if star else [""]
            for name in names:
                at = f"{outer}{name}{inner}"
                path = os.path.join(self.machine, at)
                if _is_directory(path) and not self._is_covered(at):
                    yield at

    def _is_covered(self, at: str) -> bool:
        """Whether a directory of ours takes the place of `at` or of one above it."""
        while at:
            if self._is_in_both(at) and at not in self.opened:
                return True
            at = os.path.dirname(at)
        return False

    def _has_moved_link(self, at: str) -> bool:
        for entry in _entries(os.path.join(self.machine, at)).values():
            if entry.is_symlink():
                link = os.readlink(entry.path)
                if self.turn(link) != link:
                    return True
        return False


def add_machine_links(root: Dir) -> None:
    """Let our tree have the machine's links in NUMBERS beside its own."""
    devices = lookup(root, "sys/devices")
    assert isinstance(devices, Dir), "sys/devices is a directory"
    moved = dict(_covered(_entries("/sys/devices"), devices.entries))
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
            target = _turn(os.readlink(f"{self._directory}/{name}"), self._moved)
        except OSError:
            self._made.pop(name, None)
            return None
        if name not in self._made or self._made[name].target != target:
            self._made[name] = Link(target)
        return self._made[name]

    def names(self) -> Collection[str]:
        return _entries(self._directory)


def _turn(link: str, moved: Mapping[str, str]) -> str:
    parts = link.split("/")
    for index, part in enumerate(parts[:-1]):
        if part == "devices" and parts[index + 1] in moved:
            parts[index + 1] = moved[parts[index + 1]]
            break
    return "/".join(parts)


def _covered(machine: Collection[str], ours: Collection[str]) -> Iterator[tuple[str, str]]:
    """The PCI roots of the machine that ours take the place of, and their new names."""
    for name in ours:
        if name.startswith("pci") and name in machine:
            moved = MOVED + name
            while moved in machine:  # one run within another
                moved = MOVED + moved
            yield name, moved


def _is_directory(path: str) -> bool:
    return os.path.isdir(path) and not os.path.islink(path)


def _entries(path: str) -> dict[str, os.DirEntry]:
    try:
        with os.scandir(path) as entries:
            return {entry.name: entry for entry in entries}
    except (FileNotFoundError, NotADirectoryError):
        return {}


def _show(entry: os.DirEntry, target: str) -> None:
    """Make `target` show the same file, directory or link."""
    if entry.path == "/dev/ptmx":
        _make_ptmx(entry.stat(follow_symlinks=False), target)
        return
    if entry.is_symlink():
        os.symlink(os.readlink(entry.path), target)
        return
    if entry.is_dir(follow_symlinks=False):
        os.mkdir(target, 0o755)
    else:
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    syscalls.bind(entry.path, target)


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
