"""`iommufs run`: a program, with our nodes in place of the machine's, and a server of its own.

Three processes. The *front* is the one that the user's shell started; it passes signals on and ends
with the client's status. Its child, the *server*, holds the FUSE tree. The server's child becomes
the *client* by executing the command. So the server is an ancestor of all that the run starts,
which is what Yama's ptrace_scope=1 asks for, and it adopts whatever is orphaned: it ends with the
last of them, the front already with the client.

    shell ── front ── server ── client ── …       client and front: the shell's job
                                                  server: a session of its own, no terminal

Messages: server → front `client PID`, `stopped SIGNAL`, `exited STATUS ALONE`, `failed WHY`;
`listener DEVICE` with the same listener and its ledger (standin.py); server → client `ready`, or
`failed` when the front has been told why; client → server `failed WHY`, or `listener` with the
listener of the filter for ioctls that return descriptors, or `unfiltered WHY`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import NoReturn

from iommufs import connect, namespace, standin, syscalls

# What env(1), timeout(1), … end with when they themselves fail, not the command.
FAILED, NOT_EXECUTABLE, NOT_FOUND = 125, 126, 127

# A job's stop signals act on the front as on the client; the rest are faults of its own.
_UNWATCHED = {
    *(signal.SIGKILL, signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU),
    *(signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGSYS),
}
WATCHED = signal.valid_signals() - _UNWATCHED
FORWARDED = WATCHED - {signal.SIGCHLD, signal.SIGIO}
SI_USER, SI_QUEUE, SI_TKILL = 0, -1, -6

# Runs in the server process, with the sockets to the front and to the client and the client's pid;
# serves namespace.TREE, speaks the messages above; returns its exit status (run_server.py).
RunServer = Callable[[socket.socket, socket.socket, int], int]


# Moves the server process to a namespace with a directory namespace.TREE; returns descriptors that
# it keeps. OSError, ConnectError.
Enter = Callable[[], list[int]]


def enter_server() -> list[int]:
    namespace.enter_server()
    return []


class LaunchError(Exception):
    """The run cannot start; its text is the one line for the user."""


def say(text: str) -> None:
    """One line on stderr, if that is open: print() would take stdout instead."""
    if sys.stderr is not None:
        print(f"iommufs: {text}", file=sys.stderr, flush=True)


def not_whole(error: ImportError) -> str:
    """The one line for who lacks a package, a library of C or our own extension."""
    return f"the installation is not whole: {' '.join(str(error).split())}"


def launch(command: list[str], run_server: RunServer, enter: Enter = enter_server) -> int:
    """Run a command to its end; returns its exit status, 128 + signal if it was killed by one.

    LaunchError. Closes stdin, stdout and all inherited files of this process.
    """
    check_machine()
    old_mask = signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
    child_action = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # an ignored one loses statuses
    syscalls.become_subreaper()  # of a client whose server was killed
    front, server = _socketpair()
    pid = os.fork()
    if pid == 0:
        front.close()
        exit_code = FAILED
        try:
            client = Client(command, old_mask, child_action)
            exit_code = _start_client(server, client, run_server, enter)
        finally:
            os._exit(exit_code)
    server.close()
    _close_files_except(front.fileno())
    with front:
        return Front(front, pid).run()


def check_machine() -> None:
    """Whether a tree can be mounted here; LaunchError says what is missing and what helps."""
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        raise LaunchError(
            "/dev/fuse is missing: load the module (modprobe fuse), or start the container "
            "with --device /dev/fuse"
        ) from None
    except PermissionError:
        raise LaunchError(
            "no access to /dev/fuse: run as root (sudo), or start the container with "
            "--device /dev/fuse"
        ) from None
    except OSError as error:
        raise LaunchError(f"/dev/fuse cannot be opened: {error.strerror}") from None


def _socketpair() -> tuple[socket.socket, socket.socket]:
    """A pair that keeps off 0 to 2, which may be closed and must look so to the client."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    fds = [fcntl.fcntl(end.fileno(), fcntl.F_DUPFD_CLOEXEC, 10) for end in ends]
    for end in ends:
        end.close()
    return socket.socket(fileno=fds[0]), socket.socket(fileno=fds[1])


def _close_files_except(*kept: int) -> None:
    """Let go of the user's files, whose last close somebody may wait for; keep stderr."""
    for fd in [int(name) for name in os.listdir("/proc/self/fd")]:
        if fd > 2 and fd not in kept:
            with contextlib.suppress(OSError):  # the one that listed the directory is closed
                os.close(fd)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for fd in {0, 1} - {null}:
        os.dup2(null, fd, inheritable=False)
    if null > 1:
        os.close(null)


# ---- the front -----------------------------------------------------------------------------------


class Front:
    """The process that stands for the client in the eyes of its parent."""

    def __init__(self, link: socket.socket, server: int) -> None:
        self.link = link
        self.server: int | None = server
        self.client: int | None = None
        self.status: int | None = None
        self.alone = False  # no process of the run outlived the client
        self.failure = ""
        self.listener: standin.Listener | None = None
        link.setblocking(False)
        # A message raises SIGIO, so that one sigwaitinfo() waits for everything.
        fcntl.fcntl(link, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(link, fcntl.F_SETFL, os.O_NONBLOCK | os.O_ASYNC)

    def run(self) -> int:
        while not self._is_over():
            self._wait()
        if self.server is not None and self.listener is not None:
            standin.start(self.listener, self.server)  # others of the run live on
        if self.failure:
            raise LaunchError(self.failure)
        if self.status is None:
            raise LaunchError("the server ended before the command began")
        code = os.waitstatus_to_exitcode(self.status)
        return code if code >= 0 else 128 - code

    def _is_over(self) -> bool:
        self._take_messages()
        self._reap()
        if self.server is not None:
            return self.status is not None and not self.alone
        return self.status is not None or not self._has_child()

    def _has_child(self) -> bool:
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return False
        return True

    def _wait(self) -> None:
        info = signal.sigwaitinfo(WATCHED)
        # What the terminal sends, it sends to the client as well.
        if info.si_signo in FORWARDED and info.si_code in (SI_USER, SI_QUEUE, SI_TKILL):
            self._signal_client(info.si_signo)

    def _signal_client(self, number: int) -> None:
        if self.client is not None and self.status is None:
            os.kill(self.client, number)

    def _take_messages(self) -> None:
        while True:
            try:
                message, fds, _, _ = socket.recv_fds(self.link, 4096, 2, socket.MSG_CMSG_CLOEXEC)
            except (BlockingIOError, ConnectionResetError):
                return
            if not message:
                return
            word, _, rest = os.fsdecode(message).partition(" ")
            if word == "client":
                self.client = int(rest)
            elif word == "listener":
                self.listener = standin.Listener(fds[0], standin.Ledger(fds[1]), rest)
            elif word == "stopped":
                self._stop(int(rest))
            elif word == "exited":
                self.status, self.alone = (int(number) for number in rest.split())
            else:
                self.failure = rest

    def _reap(self) -> None:
        """Collect the server, and the client if the server's death made it our child."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.server:
                self._take_messages()
                self.server = None
                if status and self.listener is not None:
                    standin.start(self.listener, None)
            elif pid == self.client and self.status is None:
                self.status = status

    def _stop(self, number: int) -> None:
        """Stop as the client did, unless the terminal has stopped us both."""
        if number == signal.SIGSTOP or os.getpgid(self.client) != os.getpgrp():
            os.kill(os.getpid(), signal.SIGSTOP)
            os.kill(self.client, signal.SIGCONT)


# ---- the server ----------------------------------------------------------------------------------


def _start_client(front: socket.socket, client: Client, run_server: RunServer, enter: Enter) -> int:
    try:
        syscalls.become_subreaper()
        kept = enter()
        mine, theirs = _socketpair()
        pid = os.fork()
    except OSError as error:
        front.send(f"failed the mount namespace: {error.strerror or error}".encode())
        return FAILED
    except connect.ConnectError as error:
        front.send(os.fsencode(f"failed {error}"))
        return FAILED
    if pid == 0:
        try:
            for end in (front, mine):
                end.close()
            client.run(theirs)
        finally:
            os._exit(FAILED)
    theirs.close()
    front.send(f"client {pid}".encode())
    _leave_the_job()
    _close_files_except(front.fileno(), mine.fileno(), *kept)
    signal.pthread_sigmask(signal.SIG_SETMASK, client.mask)
    gc.disable()  # while all is being made there is nothing to collect (run_server.py)
    try:
        return run_server(front, mine, pid)
    except ImportError as error:
        give_up(front, mine, not_whole(error))
        return FAILED


def _leave_the_job() -> None:
    """Signals of the terminal, and those to the group, are the client's.

    A session shares the processors as one with the others (sched_autogroup, sched(7)). With one of
    our own, client and server would take long turns on a machine that has much to do.
    """
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:  # no terminal: a group will do
        os.setpgid(0, 0)
    else:  # in its session the client's group would never be an orphaned one
        os.setsid()


def give_up(front: socket.socket, link: socket.socket, why: str) -> None:
    """The server's word to both that there will be no run."""
    for end, message in (front, f"failed {why}"), (link, "failed"):
        with contextlib.suppress(OSError):  # killed meanwhile
            end.send(os.fsencode(message))


# ---- the client ----------------------------------------------------------------------------------


def _environment() -> dict[bytes, bytes]:
    """The one we were started with: Python may have set LC_CTYPE in its own (PEP 538)."""
    with open("/proc/self/environ", "rb") as file:
        words = file.read().split(b"\0")
    pairs = (word.partition(b"=") for word in words if b"=" in word)
    return {name: value for name, _, value in pairs}


class Client:
    """The process that becomes the command."""

    def __init__(self, command: list[str], mask: set[int], child_action: object) -> None:
        self.command = command
        self.environment = _environment()
        self.mask = mask
        self.child_action = child_action

    def run(self, link: socket.socket) -> NoReturn:
        """Wait for the tree, enter the namespace, become the command."""
        from iommufs import seccomp  # while the server is busy

        word = link.recv(16)
        if word != b"ready":
            if not word:
                say("the server ended before the command began")
            os._exit(FAILED)  # or else the server has said why
        try:
            namespace.enter_client()
        except OSError as error:
            link.send(f"failed the mount namespace: {error.strerror or error}".encode())
            os._exit(FAILED)
        self._put_on_filter(link, seccomp.install_filter)
        self._restore_signals()
        try:
            self._execute()
        except OSError as error:
            why = error.strerror
            if error.errno == errno.ENOENT and self._find():
                why = "its interpreter is not there"
            say(f"{self.command[0]}: {why}")
            not_found = isinstance(error, FileNotFoundError | NotADirectoryError)
            os._exit(NOT_FOUND if not_found else NOT_EXECUTABLE)

    def _execute(self) -> NoReturn:
        """As execvp(3) does, a file that no loader knows going to the shell."""
        if not self.command[0]:  # which Python takes for a mistake in the program
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        try:
            os.execvpe(self.command[0], self.command, self.environment)
        except OSError as error:
            if error.errno != errno.ENOEXEC:
                raise
            script = self._find() or self.command[0]
            os.execve("/bin/sh", ["/bin/sh", script, *self.command[1:]], self.environment)

    def _find(self) -> str | None:
        """The file of the command; None: there is none that may be executed."""
        import shutil

        return shutil.which(self.command[0], path=self.environment.get(b"PATH"))

    def _put_on_filter(self, link: socket.socket, install: Callable[[], int]) -> None:
        """After the mounts, so that nothing of ours runs under it."""
        try:
            listener = install()
        except OSError as error:
            link.send(f"unfiltered {error.strerror}".encode())
        else:
            socket.send_fds(link, [b"listener"], [listener])
            os.close(listener)

    def _restore_signals(self) -> None:
        """As the front found them, as far as Python lets us know."""
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGCHLD, self.child_action)
        signal.pthread_sigmask(signal.SIG_SETMASK, self.mask)
