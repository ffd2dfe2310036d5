"""The transport and the operations on a real mount, with small open files of our own."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading

import pytest
import trio

from iommufs._native import ffi, lib
from iommufs.caller import Caller
from iommufs.errors import UapiError
from tests.e2e.mounted import COUNT, CRASH, ECHO, PREFETCHED, WAIT, File, serving, statistics

pytestmark = pytest.mark.mount


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
        get_stuck(dev(), {ECHO}, at + {offset})
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
