"""A real mount in this process, with small open files of its own, and clients on it.

The server runs here; clients are processes of their own, as a server must never be its own client.
"""

import contextlib
import errno
import functools
import mmap
import os
import subprocess
import sys
import textwrap

import pytest
import trio

from iommufs import dispatch, jobs, server
from iommufs._native import ffi, lib
from iommufs.errors import UapiError
from iommufs.files import OpenFiles
from iommufs.fuse.nodes import DeviceNode, Dir, Link, TextFile, place

COUNT = 0x3B10  # how many files are open
ECHO = 0x3B11  # the payload's first word comes back in its second
WAIT = 0x3B12  # waits until the test says so
CRASH = 0x3B13
PREFETCHED = 0x3B14  # how many bytes of the payload had been read


class Machine:
    """What the test files share."""

    def __init__(self) -> None:
        self.n_open = 0
        self.go_on = trio.Event()
        self.waiting = trio.Event()
        self.written: list[tuple[int, bytes]] = []
        self.files = OpenFiles()
        self.released = trio.Event()

    async def closed(self) -> None:
        """Wait until nothing is open."""
        while self.n_open:
            self.released = trio.Event()
            with trio.fail_after(30):
                await self.released.wait()


class File:
    table = "test"

    def __init__(self, machine):
        self.machine = machine
        machine.n_open += 1

    async def read(self, offset, size):
        if offset >> 40 != 7:
            raise UapiError(errno.EINVAL)
        return b"region 7"[:size]

    async def write(self, offset, data):
        self.machine.written.append((offset, bytes(data)))
        return len(data)

    def poll(self):
        return 5

    def release(self):
        self.machine.n_open -= 1
        self.machine.released.set()


async def fake_ioctl(file, caller, cmd, arg, prefetched=b""):
    match cmd:
        case 0x3B10:
            return file.machine.n_open
        case 0x3B11:
            word = await caller.read(arg, 4)
            await caller.write(arg + 4, word)
            return 0
        case 0x3B12:
            await jobs.in_task()
            file.machine.waiting.set()
            await file.machine.go_on.wait()
            return 0
        case 0x3B13:
            raise RuntimeError("a bug")
        case 0x3B14:
            return len(prefetched)
    raise UapiError(errno.ENOTTY)


PRELUDE = """
import ctypes, errno, fcntl, mmap, os, signal, struct, sys, threading, time
M = sys.argv[1]
def dev(): return os.open(M + "/dev/a", os.O_RDWR)
def refused(function, *args):
    try: function(*args)
    except OSError as error: return errno.errorcode[error.errno]
    return None
libc = ctypes.CDLL(None, use_errno=True)
def stuck_page():
    "The address of a page whose first touch never ends."
    fd = libc.syscall(323, os.O_CLOEXEC)
    if fd < 0: sys.exit(77)
    page = mmap.mmap(-1, 8192, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    page[0:4096] = bytes(4096)
    at = ctypes.addressof(ctypes.c_char.from_buffer(page)) + 4096
    fcntl.ioctl(fd, 0xC018AA3F, bytearray(struct.pack("QQQ", 0xAA, 0, 0)))
    fcntl.ioctl(fd, 0xC020AA00, bytearray(struct.pack("QQQQ", at, 4096, 1, 0)))
    return at, page, fd
def raw_ioctl(fd, cmd, at): return libc.ioctl(fd, ctypes.c_ulong(cmd), ctypes.c_void_p(at))
def get_stuck(*call):
    "Let a thread make an ioctl; until it waits in it."
    thread = threading.Thread(target=raw_ioctl, args=call, daemon=True)
    thread.start()
    while thread.native_id is None or number_of_call(thread.native_id) != "16":
        time.sleep(0.01)
def number_of_call(tid):
    with open(f"/proc/self/task/{tid}/syscall") as file:
        return file.read().split()[0]
"""


class Mounted:
    """A served mount, and clients on it."""

    def __init__(self, path, machine):
        self.path = str(path)
        self.machine = machine

    def command(self, code):
        return [sys.executable, "-c", PRELUDE + textwrap.dedent(code), self.path]

    async def client(self, code):
        """Run a client to its end; its output."""
        with trio.fail_after(60):
            done = await trio.run_process(
                self.command(code), capture_stdout=True, stderr=subprocess.STDOUT, check=False
            )
        if done.returncode == 77:
            pytest.skip("userfaultfd is not permitted here")
        assert done.returncode == 0, done.stdout.decode()
        return done.stdout.decode().split()

    @contextlib.asynccontextmanager
    async def started(self, code):
        """A client that has printed its first line; killed at the end."""
        process = await trio.lowlevel.open_process(self.command(code), stdout=subprocess.PIPE)
        try:
            with trio.fail_after(60):
                if not await process.stdout.receive_some():
                    assert await process.wait() == 77
                    pytest.skip("userfaultfd is not permitted here")
            yield process
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.stdout.aclose()
                await process.wait()


def statistics():
    out = ffi.new("struct iofs_stats *")
    lib.iofs_statistics(out)
    return {name: getattr(out, name) for name, _ in ffi.typeof(out).item.fields}


@contextlib.asynccontextmanager
async def serving(path, monkeypatch):
    machine = Machine()
    memory = os.memfd_create("regions", os.MFD_CLOEXEC)
    os.ftruncate(memory, 9 << 40)
    machine.memory = mmap.mmap(memory, 4096, offset=1 << 40)
    address = ffi.cast("uintptr_t", ffi.from_buffer(machine.memory))
    mappings = [(1 << 40, 4096, int(address))]
    root = Dir()
    place(root, "dev/a", DeviceNode(0o600, (10, 1), lambda flags: File(machine)))
    regions = DeviceNode(0o600, (10, 2), lambda flags: File(machine), memory, mappings=mappings)
    place(root, "dev/b", regions)
    place(root, "sys/text", TextFile(lambda: b"hello\n"))
    place(root, "sys/link", Link("text"))
    monkeypatch.setattr(dispatch, "ioctl", fake_ioctl)
    ready = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            functools.partial(
                server.serve,
                root,
                machine.files,
                str(path),
                ready=ready.set,
                on_operations=lambda operations: setattr(machine, "operations", operations),
            )
        )
        await ready.wait()
        yield Mounted(path, machine)
        nursery.cancel_scope.cancel()
    os.close(memory)
    assert machine.n_open == 0
    with open("/proc/self/mounts") as mounts:
        assert str(path) not in mounts.read()
