"""The server process of a run: serves the tree until the last process of the run has ended."""

import contextlib
import gc
import os
import signal
import socket
from collections.abc import Awaitable, Callable

import trio

from iommufs import logs, namespace, standin
from iommufs.connect import Host
from iommufs.launcher import FAILED, give_up

log = logs.get(__name__)

# Serves the tree at a directory; calls the second argument when the tree can be used; the third
# gives, later, the listener of the client's filter, or None.
Serve = Callable[[str, Callable[[], None], standin.TakeListener], Awaitable[None]]


class RunServer:
    """The server between its front and its client; see launcher.py for their messages."""

    def __init__(
        self,
        front: socket.socket,
        link: socket.socket,
        client: int,
        serve: Serve,
        host: Host | None = None,
    ) -> None:
        """`host`: lets others share the server, which then outlives the last of those, too."""
        self.host = host
        self.front = front
        self.link = link
        self.client: int | None = client
        self.serve = serve
        self.is_ready = False
        self.is_unmounted = False

    def run(self) -> int:
        """Returns the exit status of the server."""
        try:
            trio.run(self._main)
        except Exception as error:
            return self._report(error)
        return FAILED if self.is_unmounted else 0

    def _report(self, error: Exception) -> int:
        while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        if self.is_ready:
            log.error("the server failed", exc_info=error)
        else:
            log.debug("the server did not start", exc_info=error)
            text = str(error) or type(error).__name__
            give_up(self.front, self.link, " ".join(text.split()))
        return FAILED

    async def _main(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_front)
            nursery.start_soon(self._serve, nursery.cancel_scope)
            await self._reap()
            if self.host is not None:
                await self.host.wait_until_alone()
            nursery.cancel_scope.cancel()

    async def _serve(self, scope: trio.CancelScope) -> None:
        """Until cancelled, or the mount is gone: then we go too, and the front stands in for us."""
        await self.serve(namespace.TREE, self._ready, self._take_listener)
        log.error("the tree is gone: calls on its files fail from now on")
        self.is_unmounted = True
        scope.cancel()

    def _ready(self) -> None:
        self.is_ready = True
        gc.freeze()  # what is there now stays: it is looked through no more
        gc.enable()
        with contextlib.suppress(OSError):  # killed meanwhile: it is reaped
            self.link.send(b"ready")

    async def _take_listener(self) -> standin.Listener | None:
        """The listener of the client's filter, when it comes; None if there will be none."""
        await trio.lowlevel.wait_readable(self.link)
        message, fds, _, _ = socket.recv_fds(self.link, 4096, 1, socket.MSG_CMSG_CLOEXEC)
        word, _, why = message.decode().partition(" ")
        if word == "failed":
            self._tell_front(message.decode())
        elif word == "unfiltered":
            log.warning(
                "ioctls that return file descriptors will fail with EOPNOTSUPP: the seccomp filter "
                "cannot be installed",
                reason=why,
            )
        if not fds:
            return None
        device = standin.mounted_device(namespace.TREE)
        listener = standin.Listener(fds[0], standin.Ledger(), device)
        with contextlib.suppress(OSError):  # a front that was killed stands in for nobody
            message = f"listener {device}".encode()
            socket.send_fds(self.front, [message], [listener.fd, listener.ledger.fd])
        return listener

    async def _watch_front(self) -> None:
        """A front that was killed: the user means the client."""
        await trio.socket.from_stdlib_socket(self.front).recv(1)
        if self.client is not None:
            os.kill(self.client, signal.SIGKILL)

    async def _reap(self) -> None:
        """Collect our children, born or adopted, until there are none."""
        with trio.open_signal_receiver(signal.SIGCHLD) as signals:
            while self._reap_those_ended():
                await anext(signals)

    def _reap_those_ended(self) -> bool:
        """Whether there are children left."""
        status = None
        left = True
        while left:
            try:
                pid, found = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
            except ChildProcessError:
                left = False
                break
            if pid == 0:
                break
            if pid == self.client and os.WIFSTOPPED(found):
                self._tell_front(f"stopped {os.WSTOPSIG(found)}")
            elif pid == self.client:
                self.client, status = None, found
        if status is not None:
            has_guests = self.host is not None and self.host.has_guests
            self._client_ended(status, alone=not left and not has_guests)
        return left

    def _client_ended(self, status: int, alone: bool) -> None:
        self._tell_front(f"exited {status} {int(alone)}")
        if not alone:  # the user's files are not ours any longer
            null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            os.dup2(null, 2, inheritable=False)
            os.close(null)

    def _tell_front(self, message: str) -> None:
        with contextlib.suppress(OSError):  # killed: nobody waits for it
            self.front.send(os.fsencode(message))
