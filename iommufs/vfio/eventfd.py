"""Eventfds of clients: how an interrupt reaches them, and how they call back.

Ours is a duplicate of the client's descriptor, so its status flags are the client's too and must
not be touched. Nothing here may wait, whatever the client does with its end.
"""

import contextlib
import errno
import os
import select
from collections.abc import Callable

import trio

from iommufs._native import lib
from iommufs.caller import Caller
from iommufs.errors import UapiError, check


class EventFd:
    """A duplicate of one eventfd of a client, owned by whoever made it."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def signal(self) -> None:
        """Add one; a counter that is full stays full, as in eventfd_signal()."""
        check(lib.iofs_eventfd_signal(self.fd), "an eventfd of the client")

    async def events(self, event: Callable[[], None]) -> None:
        """Call `event` whenever the client adds something, for ever; what it added is taken.

        What was there before is one event and is left there (vfio_virqfd_enable()).
        """
        # Cancelled before the first wait: the descriptor may be closed, or another's, by now.
        await trio.lowlevel.checkpoint_if_cancelled()
        with select.epoll() as writes:  # edges: a counter that is left alone is no news
            writes.register(self.fd, select.EPOLLIN | select.EPOLLET)
            if writes.poll(0):
                event()
            while True:
                await trio.lowlevel.wait_readable(writes.fileno())
                if writes.poll(0):
                    # The client may have taken it back: reading must not wait for the next one.
                    with contextlib.suppress(BlockingIOError):
                        os.preadv(self.fd, [bytearray(8)], -1, os.RWF_NOWAIT)
                        event()

    def close(self) -> None:
        os.close(self.fd)


def take(caller: Caller, fd: int) -> EventFd:
    """The eventfd that is `fd` in the client; EBADF, EINVAL for another kind of file."""
    duplicate = caller.get_fd(fd)
    try:
        kind = os.readlink(f"/proc/self/fd/{duplicate}")
    except OSError:
        os.close(duplicate)
        raise
    if kind != "anon_inode:[eventfd]":
        os.close(duplicate)
        raise UapiError(errno.EINVAL, f"fd {fd} is {kind}, not an eventfd")
    return EventFd(duplicate)
