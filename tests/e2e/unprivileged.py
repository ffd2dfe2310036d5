"""Run a command as somebody who is not root, in a world where that somebody may open /dev/fuse.

    python unprivileged.py user CMD…       uid 1, no capabilities
    python unprivileged.py container CMD…  root without CAP_SYS_ADMIN, as in an ordinary container
    python unprivileged.py namespace CMD…  root of a user namespace, uid 1 outside

Needs root. All of it is in a mount namespace of its own: a /dev/fuse for everybody, and the
programs that tests need where an ancestor of theirs is for root only.
"""

import ctypes
import os
import struct
import sys
from pathlib import Path

from iommufs import syscalls

ID = 1  # daemon: fusermount3 wants a user that has a name
CONTAINER = (  # capabilities that docker and podman give their containers
    *(0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31),
)
PR_CAPBSET_DROP, PR_SET_DUMPABLE = 24, 4
MOUNT_SETATTR, MOUNT_ATTR_IDMAP, AT_EMPTY_PATH = 442, 1 << 20, 1 << 12
NEEDED = (sys.base_prefix, str(Path(__file__).parents[2]), sys.prefix)


def make_world():
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount("", "/", flags=syscalls.MS_REC | syscalls.MS_SLAVE)
    syscalls.mount("none", "/mnt", "tmpfs", 0, "mode=755")
    os.mknod("/mnt/fuse", 0o020666, os.makedev(10, 229))
    os.chmod("/mnt/fuse", 0o666)
    syscalls.bind("/mnt/fuse", "/dev/fuse")
    covered = {path: closed for path in NEEDED if (closed := first_closed(path))}
    for number, path in enumerate(covered):
        os.mkdir(f"/mnt/{number}")
        put_as_theirs(path, f"/mnt/{number}")
    umask = os.umask(0o022)
    for closed in set(covered.values()):
        syscalls.mount("none", closed, "tmpfs", 0, "mode=755")
    for number, path in enumerate(covered):
        os.makedirs(path, exist_ok=True)  # one may be below another
        syscalls.bind(f"/mnt/{number}", path)
    os.umask(umask)


def first_closed(path):
    """The topmost directory on the way to a path, or itself, that is for root only, if any is."""
    way = [*reversed(Path(path).parents), Path(path)]
    return next((str(place) for place in way if not place.stat().st_mode & 1), None)


def put_as_theirs(path, where):
    """Bind a directory as if what is root's in it were the user's: a clone under umask 077 is."""
    ready, say = os.pipe()
    over, end = os.pipe()
    pid = os.fork()
    if pid == 0:
        syscalls.unshare(syscalls.CLONE_NEWUSER)
        os.close(end)
        os.write(say, b"!")
        os.read(over, 1)
        os._exit(0)
    os.read(ready, 1)
    for name in "uid_map", "gid_map":
        Path(f"/proc/{pid}/{name}").write_text(f"0 {ID} 1")
    tree = syscalls.clone_mount(path)
    with open(f"/proc/{pid}/ns/user") as users:
        attributes = struct.pack("QQQQ", MOUNT_ATTR_IDMAP, 0, 0, users.fileno())
        # Refused by some file systems; there the clone must be for everybody to read.
        words = (tree, b"", AT_EMPTY_PATH, attributes, len(attributes))
        ctypes.CDLL(None).syscall(MOUNT_SETATTR, *words)
    syscalls.put_mount(tree, where)
    for fd in tree, ready, say, over, end:
        os.close(fd)
    os.waitpid(pid, 0)


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
