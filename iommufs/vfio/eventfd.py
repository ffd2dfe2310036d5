"""Eventfds of clients: how an interrupt reaches them, and how they call back.

Ours is a duplicate of the client's descriptor, so its status flags are the client's too and must
not be touched. Nothing here may wait, whatever the client does with its end.
"""

import contextlib
import errno
import functools
import os
import select
from collections.abc import Awaitable, Callable

import trio

from iommufs import logs
from iommufs._native import lib
from iommufs.caller import Caller
from iommufs.errors import UapiError, check

log = logs.get(__name__)


@functools.cache
def _tell_of_paths() -> None:
    log.warning("writes to an eventfd that a client has tied more than 500 times are not seen")


class EventFd:
    """A duplicate of one eventfd of a client, owned by whoever made it."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def signal(self) -> None:
        """Add one; a counter that is full stays full, as in eventfd_signal()."""
        check(lib.iofs_eventfd_signal(self.fd), "an eventfd of the client")

    def events(self, event: Callable[[], None]) -> Callable[[], Awaitable[None]]:
        """A task that calls `event` whenever the client adds something; what it added is taken.

        What was there before is one event and is left there (vfio_virqfd_enable()). ENOMEM.
        """
        try:
            writes = select.epoll()  # edges: a counter that is left alone is no news
            writes.register(self.fd, select.EPOLLIN | select.EPOLLET)
        except OSError as error:  # the server's own descriptors have run out
            raise UapiError(errno.ENOMEM, f"nothing to wait with: {error}") from error
        return functools.partial(self._take_events, writes, event)

    async def _take_events(self, writes: select.epoll, event: Callable[[], None]) -> None:
        # Cancelled before the first wait: the descriptor may be closed, or another's, by now.
        with writes:
            await trio.lowlevel.checkpoint_if_cancelled()
            if writes.poll(0):
                event()
            while True:
                try:
                    await trio.lowlevel.wait_readable(writes.fileno())
                except OSError:  # EINVAL of reverse_path_check(): more than 500 ways to wake us
                    _tell_of_paths()
                    return
                # The client may have taken it back: reading must not wait for the next one.
                if writes.poll(0) and self.take_count():
                    event()

    def take_count(self) -> bool:
        """Read the counter if it is not 0; whether it was not."""
        with contextlib.suppress(BlockingIOError):
            os.preadv(self.fd, [bytearray(8)], -1, os.RWF_NOWAIT)
            return True
        return False

    def close(self) -> None:
        os.close(self.fd)


def take(caller: Caller, fd: int) -> EventFd:
    """The eventfd that is `fd` in the client; EBADF, EINVAL for another kind of file."""
    duplicate = caller.get_fd(fd)
    try:
        kind = os.readlink(f"/proc/self/fd/{duplicate}")
    except OSError:
        lib.iofs_client_close(duplicate)
        raise
    if kind != "anon_inode:[eventfd]":
        lib.iofs_client_close(duplicate)
        raise UapiError(errno.EINVAL, f"fd {fd} is {kind}, not an eventfd")
    return EventFd(duplicate)
