"""A user namespace of our own, for who has no right to mount: in there one has it.

Everybody keeps their ids: the user's own, or all that there are if the process may say so, as the
root of a container may.
"""

from __future__ import annotations

import os

from iommufs import syscalls
from iommufs.limits import CAP_SYS_ADMIN

_CAP_SETGID, _CAP_SETUID = 6, 7
# What distributions switch user namespaces off with: name, the value that does, another one.
_SWITCHES = (
    ("kernel.unprivileged_userns_clone", "0", "1"),
    ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
    ("user.max_user_namespaces", "0", "10000"),
)


def effective_capabilities() -> int:
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        return next(int(line[7:], 16) for line in file if line.startswith("CapEff:"))


def may_mount() -> bool:
    """Whether this process may mount where it is."""
    return bool(effective_capabilities() >> CAP_SYS_ADMIN & 1)


def remedy() -> str:
    """The one thing to do where enter(), or a mount in there, is refused."""
    for name, bad, good in _SWITCHES:
        try:
            with open(f"/proc/sys/{name.replace('.', '/')}", encoding="ascii") as file:
                value = file.read().strip()
        except OSError:
            continue
        if value == bad:
            return f"sysctl {name}={good}"
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        is_filtered = "\nSeccomp:\t2\n" in file.read()
    if is_filtered:
        return "start the container with --cap-add SYS_ADMIN"
    return "run as root (sudo)"


def enter() -> None:
    """Move this process, which has one thread, to a namespace that is its own; OSError."""
    ids = os.geteuid(), os.getegid()
    may_map = all(effective_capabilities() >> bit & 1 for bit in (_CAP_SETGID, _CAP_SETUID))
    if may_map and _enter_with_all_ids():
        return
    if not may_map:
        syscalls.unshare(syscalls.CLONE_NEWUSER)
    _write("/proc/self/setgroups", "deny")
    for name, number in zip(("uid_map", "gid_map"), ids, strict=True):
        _write(f"/proc/self/{name}", f"{number} {number} 1")


def _enter_with_all_ids() -> bool:
    """Enter; whether every id could be kept: a process outside has to say so."""
    maps = {name: _identity(f"/proc/self/{name}") for name in ("uid_map", "gid_map")}
    entered, put_entered = os.pipe2(os.O_CLOEXEC)
    me = os.getpid()
    helper = os.fork()
    if helper == 0:
        status = 1
        try:
            os.close(put_entered)
            os.read(entered, 1)
            for name, text in maps.items():
                _write(f"/proc/{me}/{name}", text)
            status = 0
        finally:
            os._exit(status)
    os.close(entered)
    try:
        syscalls.unshare(syscalls.CLONE_NEWUSER)
    finally:
        os.close(put_entered)
        _, status = os.waitpid(helper, 0)
    return status == 0


def _identity(path: str) -> str:
    with open(path, encoding="ascii") as file:
        ranges = [line.split() for line in file]
    return "".join(f"{first} {first} {count}\n" for first, _, count in ranges)


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
