"""Who answers the filter of a run when its server is dead: calls on other files must go on.

A call that the filter notices waits for whoever holds the listener; with nobody there it fails
with ENOSYS, on whatever file. So the front holds the listener as well. When the server has been
killed, a process of its own takes over until no process is left under the filter: it lets the
kernel carry on with everything. Calls on our files then end as FUSE ends them, ENOTCONN; FUSE is
not asked about an mmap(), so that one is refused here.

What the server had taken and not answered nobody else is told of. The ledger says which that can
be: Linux counts notices up one by one from a number that only they tell (seccomp_next_notify_id()).

Not here: the answers of a living server (fdreturn.py).
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import select
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

# The server may be killed between taking a notice and noting so; those before the one that it took
# belong to callers that were killed, if they were not answered.
_UNNOTED = 256
_ID_END = 1 << 64
_OLDEST, _LATEST = 0, 1


class Ledger:
    """Which notices have been taken and not answered, in memory that outlives the server.

    fd     the memory
    words  the same, as native/notifier.c writes it (iofs_notifier_start)
    """

    def __init__(self, fd: int | None = None) -> None:
        if fd is None:
            fd = os.memfd_create("iommufs-notices", os.MFD_CLOEXEC)
            os.ftruncate(fd, mmap.PAGESIZE)
        self.fd = fd
        self.words = memoryview(mmap.mmap(fd, mmap.PAGESIZE)).cast("Q")

    def unanswered(self) -> list[int]:
        """All that may be, as another process sees it."""
        latest = self.words[_LATEST]
        if not latest:
            return []
        first = self.words[_OLDEST] or latest
        n = (latest - first) % _ID_END + _UNNOTED
        return [(first + i) % _ID_END for i in range(n)]


@dataclass(frozen=True)
class Listener:
    """The listener of a filter, and what is known of it.

    device  "major:minor" of our mount, as mountinfo has it
    """

    fd: int
    ledger: Ledger
    device: str

    def close(self) -> None:
        os.close(self.fd)
        os.close(self.ledger.fd)


# Gives the listener when it is there; None: there will be none.
TakeListener = Callable[[], Awaitable[Listener | None]]


def mounted_device(path: str) -> str:
    """The device number of what is mounted at a path of our namespace; nobody is asked for it."""
    with open("/proc/self/mountinfo", "rb") as file:
        lines = [line.split() for line in file]
    return next(line[2].decode() for line in reversed(lines) if line[4] == os.fsencode(path))


def start(listener: Listener, server: int | None) -> None:
    """Start the process that takes over when this child of ours is dead; None: it is already.

    The process holds nothing of ours and ends with the last one under the filter.
    """
    if os.fork():
        return
    try:
        os.setsid()
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        _keep_only(listener.fd, listener.ledger.fd)
        if _wait_for_end(listener.fd, server):
            _answer_all(listener)
    finally:
        os._exit(0)


def _keep_only(*kept: int) -> None:
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in kept:
            with contextlib.suppress(OSError):  # the one that listed the directory is closed
                os.close(int(name))
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for fd in range(3):
        os.dup2(null, fd, inheritable=False)
    os.close(null)


def _wait_for_end(listener: int, server: int | None) -> bool:
    """Wait for the server's death; False: the last process under the filter was earlier."""
    if server is None:
        return True
    try:
        pidfd = os.pidfd_open(server)
    except ProcessLookupError:
        return True
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.register(listener, 0)
    events = dict(poll.poll())
    return listener not in events


def _answer_all(listener: Listener) -> None:
    from iommufs._native import ffi, lib

    for notice in listener.ledger.unanswered():
        lib.iofs_notice_continue(listener.fd, notice)
    poll = select.poll()
    poll.register(listener.fd, select.POLLIN)
    taken = ffi.new("struct iofs_notice *")
    while not poll.poll()[0][1] & select.POLLHUP:
        if lib.iofs_notice_receive(listener.fd, taken) <= 0:
            continue
        if taken.call == lib.IOFS_NOTICE_MMAP and _is_on(listener.device, taken):
            lib.iofs_notice_answer(listener.fd, taken.id, -errno.ENOTCONN)
        else:
            lib.iofs_notice_continue(listener.fd, taken.id)


def _is_on(device: str, notice: Any) -> bool:
    """Whether the notice is about a file of a mount; nobody is asked about the file."""
    try:
        with open(f"/proc/{notice.tid}/fdinfo/{notice.fd}", "rb") as file:
            mount = next(line.split()[1] for line in file if line.startswith(b"mnt_id:"))
        with open(f"/proc/{notice.tid}/mountinfo", "rb") as file:
            found = next(line.split()[2] for line in file if line.split()[0] == mount)
    except (OSError, StopIteration):  # gone, or mounted nowhere
        return False
    return found == device.encode()
