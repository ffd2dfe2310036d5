"""Run a command as somebody who is not root, in a world where that somebody may open /dev/fuse.

    python unprivileged.py user CMD…       uid 1, no capabilities
    python unprivileged.py container CMD…  root without CAP_SYS_ADMIN, as in an ordinary container
    python unprivileged.py namespace CMD…  root of a user namespace, uid 1 outside

Needs root. All of it is in a mount namespace of its own: a /dev/fuse for everybody, and the
programs that tests need where an ancestor of theirs is for root only.
"""

import ctypes
import os
import sys
from pathlib import Path

from iommufs import syscalls

ID = 1  # daemon: fusermount3 wants a user that has a name
CONTAINER = (  # capabilities that docker and podman give their containers
    *(0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31),
)
PR_CAPBSET_DROP, PR_SET_DUMPABLE = 24, 4
NEEDED = (sys.base_prefix, str(Path(__file__).parents[2]), sys.prefix)


def make_world():
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount("", "/", flags=syscalls.MS_REC | syscalls.MS_SLAVE)
    syscalls.mount("none", "/mnt", "tmpfs", 0, "mode=755")
    os.mknod("/mnt/fuse", 0o020666, os.makedev(10, 229))
    os.chmod("/mnt/fuse", 0o666)
    syscalls.bind("/mnt/fuse", "/dev/fuse")
    covered = {path: closed for path in NEEDED if (closed := first_closed_above(path))}
    for number, path in enumerate(covered):
        os.mkdir(f"/mnt/{number}")
        syscalls.bind(path, f"/mnt/{number}")
    for closed in set(covered.values()):
        syscalls.mount("none", closed, "tmpfs", 0, "mode=755")
    umask = os.umask(0o022)
    for number, path in enumerate(covered):
        os.makedirs(path, exist_ok=True)  # one may be below another
        syscalls.bind(f"/mnt/{number}", path)
    os.umask(umask)


def first_closed_above(path):
    """The topmost directory above a path that is for root only, if there is any."""
    above = reversed(Path(path).parents)
    return next((str(place) for place in above if not place.stat().st_mode & 1), None)


def give_up_rights(kind):
    libc = ctypes.CDLL(None)
    if kind == "container":
        for capability in set(range(64)) - set(CONTAINER):
            libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
        return
    os.setgroups([])
    os.setresgid(ID, ID, ID)
    os.setresuid(ID, ID, ID)
    libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)  # else what is in /proc/self is root's
    if kind == "namespace":
        syscalls.unshare(syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWNS)
        for name, text in ("setgroups", "deny"), ("uid_map", f"0 {ID} 1"), ("gid_map", f"0 {ID} 1"):
            Path(f"/proc/self/{name}").write_text(text)


if __name__ == "__main__":
    kind, *command = sys.argv[1:]
    make_world()
    give_up_rights(kind)
    os.execvp(command[0], command)
