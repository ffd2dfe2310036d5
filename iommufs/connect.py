"""Runs that share a server: `run --name NAME` or `mount --name NAME`, and `run --connect NAME`.

A run that connects has a front and a client like any other. What is its server in other runs, the
*guest*, has no tree of its own: it gets a copy of the mount of the named server, the *host*, and
passes it the listener of its client's filter. Their connection is a socket that both keep for the
length of the guest's run: the host serves until its own programs and all guests have ended.

    host → guest   `tree`, with the user namespace and the mount
    guest → host   `listener`, with the listener and its ledger

The name is that of an abstract socket, so nothing is left of it, however the host ends. Each side
asks the kernel who the other is: only the same user is let in.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from iommufs import namespace, standin, syscalls

if TYPE_CHECKING:
    from iommufs.fdreturn import FdReturner

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_CREDENTIALS = struct.Struct("=iII")  # pid, uid, gid
_BACKLOG = 64


class ConnectError(Exception):
    """The text is one line for the user."""


def check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ConnectError(
            f"{name!r} is no name: expected letters, digits, dots, dashes, 64 at most"
        )


def _address(name: str) -> bytes:
    return f"\0iommufs/{os.geteuid()}/{name}".encode()


def _peer(connection: socket.socket) -> tuple[int, int]:
    """The process and the user at the other end."""
    words = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(words)
    return pid, uid


class Host:
    """The named server's end."""

    def __init__(self, name: str) -> None:
        """Takes the name, so that nobody else gets it; ConnectError."""
        check_name(name)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        self._n_guests = 0
        self._changed: Callable[[], None] = lambda: None
        try:
            self._socket.bind(_address(name))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise ConnectError(f"there is a server of the name {name} already") from None

    @property
    def has_guests(self) -> bool:
        return self._n_guests > 0

    async def wait_until_alone(self) -> None:
        """Wait until there are no guests; from then on nobody can connect."""
        import trio

        while self._n_guests:
            changed = trio.Event()
            self._changed = changed.set
            await changed.wait()
        self._socket.close()

    async def serve(self, tree: str, returner: FdReturner) -> None:
        """Let guests in, until cancelled. `tree`: where we are mounted."""
        import trio

        self._socket.listen(_BACKLOG)
        self._socket.setblocking(False)
        async with trio.open_nursery() as nursery:
            while True:
                await trio.lowlevel.wait_readable(self._socket)
                try:
                    connection, _ = self._socket.accept()
                except (BlockingIOError, ConnectionAbortedError):
                    continue
                nursery.start_soon(self._serve_guest, connection, tree, returner)

    async def _serve_guest(
        self, connection: socket.socket, tree: str, returner: FdReturner
    ) -> None:
        pid, uid = _peer(connection)
        with connection:
            if uid != os.geteuid() or not pid:
                return
            with self._counted(), _among(returner.others, pid):
                await self._exchange(connection, tree, returner)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._n_guests += 1
        try:
            yield
        finally:
            self._n_guests -= 1
            self._changed()

    async def _exchange(self, connection: socket.socket, tree: str, returner: FdReturner) -> None:
        import trio

        connection.setblocking(False)
        given = [os.open("/proc/self/ns/user", os.O_RDONLY | os.O_CLOEXEC)]
        try:
            given.append(syscalls.clone_mount(tree))
            socket.send_fds(connection, [b"tree"], given)
        except OSError:
            return  # gone again
        finally:
            for fd in given:
                os.close(fd)
        async with trio.open_nursery() as nursery:
            while True:
                await trio.lowlevel.wait_readable(connection)
                try:
                    message, fds, _, _ = socket.recv_fds(connection, 64, 2, socket.MSG_CMSG_CLOEXEC)
                except OSError:
                    message, fds = b"", []
                if message == b"listener" and len(fds) == 2:
                    ledger = standin.Ledger(fds[1])
                    listener = standin.Listener(fds[0], ledger, standin.mounted_device(tree))
                    nursery.start_soon(returner.run, listener)
                elif not message:
                    break
            nursery.cancel_scope.cancel()


@contextmanager
def _among(pids: set[int], pid: int) -> Iterator[None]:
    pids.add(pid)
    try:
        yield
    finally:
        pids.discard(pid)


class Guest:
    """The end of a run that has no server of its own."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._connection: socket.socket | None = None

    def enter(self) -> list[int]:
        """Connect, and move this process to where the tree is; the descriptors to be kept.

        ConnectError, OSError.
        """
        check_name(self._name)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        try:
            connection.connect(_address(self._name))
        except OSError:
            raise ConnectError(
                f"no server of the name {self._name}: start one with `iommufs run --name "
                f"{self._name}` or `iommufs mount --name {self._name}`"
            ) from None
        if _peer(connection)[1] != os.geteuid():
            raise ConnectError(f"the server of the name {self._name} is another user's")
        message, fds, _, _ = socket.recv_fds(connection, 64, 2, socket.MSG_CMSG_CLOEXEC)
        if message != b"tree" or len(fds) != 2:
            raise ConnectError(f"the server of the name {self._name} has ended")
        namespace.join_server(*fds)
        for fd in fds:
            os.close(fd)
        self._connection = connection
        return [connection.fileno()]

    async def serve(
        self, tree: str, ready: Callable[[], None], take_listener: standin.TakeListener
    ) -> None:
        """What a server does in other runs (run_server.Serve)."""
        import trio

        connection = self._connection
        assert connection is not None, "entered"
        ready()
        listener = await take_listener()
        try:
            if listener is not None:
                fds = [listener.fd, listener.ledger.fd]
                socket.send_fds(connection, [b"listener"], fds)
            connection.setblocking(False)
            await trio.lowlevel.wait_readable(connection)
        except OSError:
            pass
        # The host never says anything more: it is gone.
        if listener is not None:
            standin.start(listener, None)
        await trio.sleep_forever()
