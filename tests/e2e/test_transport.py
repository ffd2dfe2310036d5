"""The transport and the operations on a real mount, with small open files of our own.

The server runs here; clients are processes of their own, as a server must never be its own client.
"""

import contextlib
import errno
import functools
import mmap
import os
import signal
import subprocess
import sys
import textwrap
import threading

import pytest
import trio

from iommufs import dispatch, jobs, server
from iommufs._native import ffi, lib
from iommufs.caller import Caller
from iommufs.errors import UapiError
from iommufs.files import OpenFiles
from iommufs.fuse.nodes import DeviceNode, Dir, Link, TextFile, place

pytestmark = pytest.mark.mount

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
            file.machine.waiting.set()
            await jobs.in_task()
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
    return bytes(ffi.buffer(out))


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


@pytest.fixture(params=["custom io", "pipe", "keeper"], autouse=True)
def hand_over(request):
    """The ways in which libfuse comes by its requests (native/session.c, native/keeper.c)."""
    lib.iofs_transport_without_custom_io(request.param == "pipe")
    lib.iofs_transport_without_passthrough(request.param == "keeper")
    yield
    lib.iofs_transport_without_custom_io(0)
    lib.iofs_transport_without_passthrough(0)


@pytest.fixture
async def mounted(tmp_path, monkeypatch):
    async with serving(tmp_path, monkeypatch) as mounted:
        yield mounted


async def test_names_links_and_attributes(mounted):
    out = await mounted.client("""
        print(*sorted(os.listdir(M)), *os.listdir(M + "/dev"), os.readlink(M + "/sys/link"))
        print(open(M + "/sys/link").read(), refused(os.stat, M + "/nothing"))
        print(refused(open, M + "/sys/text", "wb"), oct(os.stat(M + "/dev/a").st_mode & 0o7777))
        print(refused(os.mkdir, M + "/x"), refused(os.unlink, M + "/sys/text"))
    """)
    assert out[:5] == ["dev", "sys", "a", "b", "text"]
    assert out[5:9] == ["hello", "ENOENT", "EACCES", "0o600"]
    assert out[9:] == ["EPERM", "EPERM"]


async def test_a_stream_has_no_position(mounted):
    assert await mounted.client("""
        print(refused(os.lseek, dev(), 0, 0), refused(os.pread, dev(), 4, 0))
    """) == ["ESPIPE", "ESPIPE"]


async def test_close_is_over_before_a_later_ioctl(mounted):
    """RELEASE comes in the background, but what follows it must not overtake it."""
    assert set(
        await mounted.client(f"""
        keep = dev()
        for _ in range(300):
            os.close(dev())
            print(fcntl.ioctl(keep, {COUNT}, 0))
    """)
    ) == {"1"}


async def test_payload_is_read_up_to_the_first_unreadable_page(mounted):
    assert await mounted.client(f"""
        f = dev()
        page = mmap.mmap(-1, 8192)
        at = ctypes.addressof(ctypes.c_char.from_buffer(page))
        libc.munmap(ctypes.c_void_p(at + 4096), ctypes.c_size_t(4096))
        print(*(raw_ioctl(f, {PREFETCHED}, a) for a in (at, at + 4096 - 12, at + 4096, 0)))
        sys.stdout.flush()
        os._exit(0)
    """) == ["128", "12", "0", "0"]


async def test_client_memory_goes_both_ways(mounted):
    assert await mounted.client(f"""
        b = bytearray(struct.pack("II", 0xdead, 0))
        fcntl.ioctl(dev(), {ECHO}, b)
        print(hex(struct.unpack("II", b)[1]))
    """) == ["0xdead"]


async def test_stores_to_a_mapping_are_seen_both_ways_and_accesses_reach_the_model(mounted):
    mounted.machine.memory[256:270] = b"from the model"
    assert await mounted.client("""
        f = os.open(M + "/dev/b", os.O_RDWR)
        m = mmap.mmap(f, 4096, offset=1 << 40)
        m[0:4] = b"WXYZ"
        print(m[256:270].decode().replace(" ", "_"))
        print(os.pwrite(f, b"12345678", (2 << 40) + 8), os.pread(f, 4, 7 << 40).decode(),
              refused(os.pread, f, 4, 6 << 40))
    """) == ["from_the_model", "8", "regi", "EINVAL"]
    assert mounted.machine.memory[0:4] == b"WXYZ"
    assert mounted.machine.written == [((2 << 40) + 8, b"12345678")]


@pytest.mark.logs("an ioctl failed")
async def test_an_unexpected_exception_is_eio_and_the_server_goes_on(mounted):
    assert await mounted.client(f"""
        f = dev()
        print(refused(fcntl.ioctl, f, {CRASH}, 0), fcntl.ioctl(f, {COUNT}, 0))
    """) == ["EIO", "1"]


async def heard_of_a_signal():
    """Wait until FUSE has said that a caller was signalled, which survives it."""
    n_signalled = ffi.new("size_t *")
    with trio.fail_after(30):
        while not n_signalled[0]:
            assert lib.iofs_transport_next_dying(n_signalled) == 0
            await trio.sleep(0.01)


async def test_a_caller_that_is_signalled_waits_on(mounted):
    """As on Linux, where none of these calls ends for a signal that its caller survives."""
    async with mounted.started(f"""
        signal.signal(signal.SIGUSR1, lambda *_: os._exit(5))
        f = dev()
        print("ready", flush=True)
        raw_ioctl(f, {WAIT}, 0)
        os._exit(6 if ctypes.get_errno() == errno.EINTR else 7)
    """) as client:
        await mounted.machine.waiting.wait()
        client.send_signal(signal.SIGUSR1)
        await heard_of_a_signal()
        assert client.poll() is None
        mounted.machine.go_on.set()
        with trio.fail_after(30):
            assert await client.wait() == 5


@pytest.mark.parametrize(
    ("name", "survives"), [("SIGTERM", False), ("SIGKILL", False), ("SIGKILL", True)]
)
async def test_a_caller_that_is_killed_is_let_go(mounted, name, survives):
    """Also if it has another signal to survive, after which FUSE tells of none."""
    async with mounted.started(f"""
        signal.signal(signal.SIGUSR1, lambda *_: None)
        f = dev()
        print("ready", flush=True)
        fcntl.ioctl(f, {WAIT}, 0)
    """) as client:
        await mounted.machine.waiting.wait()
        number = getattr(signal, name)
        if survives:
            client.send_signal(signal.SIGUSR1)
            await heard_of_a_signal()
        client.send_signal(number)
        with trio.fail_after(30):
            assert await client.wait() == -number


@pytest.mark.parametrize("where", ["payload", "handler"])
async def test_a_client_stuck_in_its_own_memory_stops_nobody_and_dies(mounted, where):
    """A page that never comes, under the payload or only under what the handler touches."""
    offset = 0 if where == "payload" else -4
    async with mounted.started(f"""
        at, page, fd = stuck_page()
        f = dev()
        thread = threading.Thread(target=raw_ioctl, args=(f, {ECHO}, at + {offset}), daemon=True)
        thread.start()
        def waits_for_us():
            with open(f"/proc/self/task/{{thread.native_id}}/syscall") as file:
                return file.read().split()[0] == "16"
        while thread.native_id is None or not waits_for_us():
            time.sleep(0.01)
        print("stuck", flush=True)
        time.sleep(1000)
    """) as stuck:
        assert (await mounted.client(f"print(fcntl.ioctl(dev(), {COUNT}, 0))")) == ["2"]
        stuck.kill()
        with trio.fail_after(30):
            await stuck.wait()
    await mounted.machine.closed()


async def test_a_client_with_more_stuck_threads_than_readers_stops_nobody(mounted):
    """A reader for each of them up to a bound; the last one never goes into a client's memory."""
    async with mounted.started(f"""
        at, page, fd = stuck_page()
        f, n = dev(), 300
        threading.stack_size(65536)
        threads = [
            threading.Thread(target=raw_ioctl, args=(f, {ECHO}, at), daemon=True) for _ in range(n)
        ]
        for thread in threads:
            thread.start()
        def waits_for_us(thread):
            with open(f"/proc/self/task/{{thread.native_id}}/wchan") as file:
                return "request_wait_answer" in file.read()
        while not all(waits_for_us(thread) for thread in threads):
            time.sleep(0.01)
        print("stuck", flush=True)
        time.sleep(1000)
    """) as stuck:
        with trio.fail_after(30):
            assert (await mounted.client(f"print(fcntl.ioctl(dev(), {COUNT}, 0))")) == ["2"]
        stuck.kill()
        with trio.fail_after(30):
            await stuck.wait()
    await mounted.machine.closed()


async def test_killed_clients_leave_nothing(mounted):
    await mounted.client("os.close(dev())")  # the kernel has introduced itself by then
    await mounted.machine.closed()
    before = statistics()
    for _ in range(5):
        async with mounted.started(f"""
            f, g = dev(), dev()
            threading.Thread(target=lambda: fcntl.ioctl(f, {WAIT}, 0), daemon=True).start()
            print("ready", flush=True)
            time.sleep(1000)
        """):
            pass
    await mounted.machine.closed()
    with trio.fail_after(30):
        while statistics() != before:  # the last RELEASE is being answered
            await trio.sleep(0.001)
    assert len(mounted.machine.files) == 0


async def test_when_the_server_goes_clients_are_told_at_once(tmp_path, monkeypatch):
    async with contextlib.AsyncExitStack() as stack:
        async with serving(tmp_path, monkeypatch) as mounted:
            client = await stack.enter_async_context(
                mounted.started(f"""
                f = dev()
                print("ready", flush=True)
                print(refused(fcntl.ioctl, f, {WAIT}, 0), flush=True)
                print(refused(fcntl.ioctl, f, {COUNT}, 0), flush=True)
            """)
            )
            await mounted.machine.waiting.wait()
        out = b""
        with trio.fail_after(30):
            async for part in client.stdout:
                out += part
            assert await client.wait() == 0
    assert set(out.decode().split()) <= {"ENOTCONN", "ECONNABORTED"}


async def test_a_published_file_opens_once_and_is_the_very_one(mounted):
    """As an ioctl that returns an fd uses it: opened by a thread of this process."""
    operations = mounted.machine.operations
    made = File(mounted.machine)
    path = os.fsencode(f"{mounted.path}/{operations.publish('token', made)}")
    fd = await trio.to_thread.run_sync(lib.iofs_transport_open, path, os.O_RDWR)
    assert fd >= 0
    here = Caller(threading.get_native_id())
    assert mounted.machine.files.resolve(here, fd) is made
    assert await trio.to_thread.run_sync(lib.iofs_transport_open, path, os.O_RDWR) == -errno.ENOENT
    os.close(fd)  # the transport answers FLUSH; were it us, this would hang
    await mounted.machine.closed()


async def test_which_file_a_descriptor_of_a_client_is(mounted):
    async with mounted.started("""
        os.dup2(dev(), 50)
        os.dup2(dev(), 51)
        os.dup2(os.open("/dev/null", os.O_RDWR), 52)
        print("open", flush=True)
        time.sleep(1000)
    """) as client:
        files, caller = mounted.machine.files, Caller(client.pid)
        first, second = files.resolve(caller, 50), files.resolve(caller, 51)
        assert isinstance(first, File)
        assert isinstance(second, File)
        assert first is not second
        assert files.resolve(caller, 52) is None
        with pytest.raises(UapiError) as refused:
            files.resolve(caller, 99)
        assert refused.value.errno == errno.EBADF
    await mounted.machine.closed()


KILLED_SERVER = """
import os, signal, sys, threading, trio
from iommufs import server
from iommufs._native import lib
from iommufs.files import OpenFiles
from iommufs.fuse.nodes import DeviceNode, Dir, place
def never(flags):
    os.kill(os.getpid(), signal.SIGKILL)
root = Dir()
place(root, "a", DeviceNode(0o600, (10, 1), never))
path = sys.argv[1]
def open_it():
    lib.iofs_transport_open(os.fsencode(path + "/a"), os.O_RDWR)
def ready():
    threading.Thread(target=open_it).start()
trio.run(lambda: server.serve(root, OpenFiles(), path, ready=ready))
"""


async def test_a_server_killed_while_it_waits_for_itself_dies(tmp_path):
    """What waits is the thread of native/side.c: the device closes without it."""
    command = [sys.executable, "-c", KILLED_SERVER, str(tmp_path)]
    try:
        with trio.fail_after(30):
            done = await trio.run_process(command, check=False)
        assert done.returncode == -signal.SIGKILL
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)
