"""Mounting as fusermount3 does it for users who may not mount: it is setuid root.

Unlike a mount of a run's, which is in a user namespace of its own, such a one is seen by all
processes of the user, and by nobody else's.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess

from iommufs import logs

log = logs.get(__name__)

PROGRAM = "fusermount3"
# The kernel's default is more than native/keeper.c takes in one piece.
_OPTIONS = "fsname=iommufs,subtype=iommufs,default_permissions,max_read=131072"


class FusermountError(Exception):
    """It refused; the text says why."""


def mount(path: str) -> int:
    """Mount on a directory; an open /dev/fuse. FusermountError."""
    program = shutil.which(PROGRAM)
    if program is None:
        raise FusermountError(f"{PROGRAM} is missing: apt-get install fuse3, or run as root")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        done = subprocess.run(
            [program, "-o", _OPTIONS, "--", path],
            env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        theirs.close()
        fds = socket.recv_fds(ours, 1, 1, socket.MSG_CMSG_CLOEXEC)[1] if not done.returncode else []
    if not fds:
        raise FusermountError(_said(program, done))
    return fds[0]


def unmount(path: str) -> None:
    """Take the mount, whose server is gone, away if it is there still."""
    done = subprocess.run(
        [PROGRAM, "-u", "-z", "--", path],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode and _is_left(path):
        reason = _said(PROGRAM, done)
        log.error("the mount is left: umount it as root", path=path, reason=reason)


def _said(program: str, done: subprocess.CompletedProcess[str]) -> str:
    """Why it refused, in one line."""
    said = " ".join(done.stderr.split()).removeprefix(f"{program}: ")
    return said or f"{PROGRAM} ended with status {done.returncode}"


def _is_left(path: str) -> bool:
    try:
        os.lstat(path)
    except OSError as error:
        return error.errno == errno.ENOTCONN
    return False
