"""The mount namespace of a run: the machine's /dev and /sys with our files among them.

Nothing is ever created in the machine's own /dev, /sys or anywhere on its disks: new directories
are a tmpfs that exists in the private namespace only, and what they show is mounted there. All of
it goes with the last process of the run, however that ends.

Not here: what is shown where (composer.py).
"""

import contextlib
import errno
import os

from iommufs import syscalls, user_namespace
from iommufs.composer import MERGED, Composer, Listings, OurListings

# Where the pieces are put together: a directory that every Linux has and the server does not need.
# It is covered in private namespaces only, and no longer when the client starts.
HUB = "/proc/fs"
TREE = f"{HUB}/tree"

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
    here = _covered_directory()
    umask = os.umask(0)
    for name, merged in MERGED.items():
        if os.path.isdir(f"{TREE}/{name}"):
            _compose(name, merged)
    os.umask(umask)
    syscalls.unmount(HUB)
    if here is not None:
        with contextlib.suppress(OSError):  # not in there any more, or out of our reach
            os.chdir(here)


def _covered_directory() -> str | None:
    """The working directory, if another one will be at its path."""
    try:
        here = os.getcwd()
    except OSError:  # it was removed
        return None
    return here if here.split("/")[1] in MERGED else None


def _compose(name: str, merged: set[str]) -> None:
    target = f"{HUB}/{name}"
    os.mkdir(target)
    syscalls.mount("iommufs", target, "tmpfs", syscalls.MS_NOSUID, "mode=755")
    ours = OurListings(f"{TREE}/{name}")
    Composer(Listings(f"/{name}"), ours, merged).fill(target)
    ours.close()
    if name == "sys":  # sysfs lets nobody make files either
        flags = syscalls.MS_REMOUNT | syscalls.MS_BIND | syscalls.MS_RDONLY | syscalls.MS_NOSUID
        syscalls.mount("", target, flags=flags)
    syscalls.mount(target, f"/{name}", flags=syscalls.MS_MOVE)
