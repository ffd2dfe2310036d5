"""Ioctls that a reader of the transport carries out in Python, on its own thread."""

import contextlib
import os
import signal
import subprocess
import threading
from collections import Counter

import pytest
import trio

from iommufs import baton, dispatch, fast, jobs
from iommufs.errors import UapiError
from iommufs.vfio import guard
from tests.contract.mount_client import MountServer
from tests.e2e import mounted as on_mount
from tests.e2e.mounted import COUNT, ECHO, WAIT, serving, statistics

pytestmark = pytest.mark.mount

THREADS = 0x3B20  # which thread runs it: before a wait for memory, and when it is in a task
LEND = 0x3B21  # what only trio's thread may do
FAIL = 0x3B22  # likewise, and it fails
MODEL = 0x3B23  # a model that does not come to an end


def is_trios():
    return threading.get_ident() == threading.main_thread().ident


def fail():
    raise UapiError(71, f"trio's thread: {is_trios()}")


def endless():
    while True:
        pass


async def visited(file, caller, cmd, arg, prefetched=b""):
    seen = file.machine.seen
    match cmd:
        case 0x3B20:
            seen["begins on a reader"] += not is_trios()
            await caller.read(arg, 8)
            await jobs.in_task()
            await trio.lowlevel.checkpoint()
            seen["ends in a task"] += is_trios()
            return 0
        case 0x3B21:
            event = trio.Event()
            baton.in_loop(event.set)
            return baton.in_loop(is_trios) and event.is_set()
        case 0x3B22:
            baton.in_loop(fail)
        case 0x3B23:
            guard.guarded("a device", Counter(), "reset", endless)
    return await on_mount.fake_ioctl(file, caller, cmd, arg, prefetched)


@pytest.fixture
async def mounted(tmp_path, monkeypatch):
    async with serving(tmp_path, monkeypatch) as mounted:
        mounted.machine.seen = Counter()
        monkeypatch.setattr(dispatch, "ioctl", visited)
        yield mounted


async def test_a_handler_begins_on_a_reader_and_ends_in_a_task_if_it_needs_one(mounted):
    before = fast.counts()
    await mounted.client(f"""
        f, b = dev(), bytearray(8)
        for _ in range(100):
            assert fcntl.ioctl(f, {THREADS}, b) == 0
    """)
    counts = fast.counts()
    by_python = counts["ioctls_by_python"] - before["ioctls_by_python"]
    handed_over = counts["ioctls_handed_over"] - before["ioctls_handed_over"]
    assert (by_python, mounted.machine.seen["ends in a task"]) == (100, 100)
    assert mounted.machine.seen["begins on a reader"] == by_python - handed_over > 0


async def test_what_only_trios_thread_may_do_is_done_there_meanwhile(mounted):
    assert await mounted.client(f"""
        f = dev()
        print({{fcntl.ioctl(f, {LEND}, 0) for _ in range(100)}}, refused(fcntl.ioctl, f, {FAIL}, 0))
    """) == ["{1}", "EPROTO"]


@pytest.mark.logs("a device model failed")
async def test_a_model_that_does_not_come_to_an_end_is_struck(mounted, monkeypatch):
    monkeypatch.setattr(guard, "STRIKE_SECONDS", 0.05)
    monkeypatch.setattr(guard._clock, "_runs", False)
    assert await mounted.client(f"""
        f = dev()
        print(refused(fcntl.ioctl, f, {MODEL}, 0), fcntl.ioctl(f, {COUNT}, 0))
    """) == ["EIO", "1"]


async def test_many_threads_at_once(mounted):
    """Each gets its own answer, whichever way it goes."""
    assert await mounted.client(f"""
        f, n_right = dev(), []
        def work(number):
            for i in range(200):
                b = bytearray(struct.pack("II", number << 16 | i, 0))
                fcntl.ioctl(f, {ECHO}, b)
                if i % 10 == 0:
                    fcntl.ioctl(f, {THREADS}, bytearray(8))
                n_right.append(struct.unpack("II", b) == (number << 16 | i, number << 16 | i))
        threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        print(len(n_right), all(n_right))
    """) == ["3200", "True"]


# A thread whose handler is in a page that does not come, not even when the process is killed: a
# child keeps the userfaultfd. Prints the child.
STUCK = f"""
    at, page, fd = stuck_page()
    keeper = os.fork()
    if keeper == 0:
        time.sleep(1000)
        os._exit(0)
    get_stuck(dev(), {ECHO}, at - 4)
    print(keeper, flush=True)
    time.sleep(1000)
"""


@contextlib.asynccontextmanager
async def stuck(mounted):
    """A client whose handler is stuck, and the process that keeps it so; both are killed."""
    process = await trio.lowlevel.open_process(mounted.command(STUCK), stdout=subprocess.PIPE)
    keeper = 0
    try:
        with trio.fail_after(60):
            line = await process.stdout.receive_some()
            if not line:
                assert await process.wait() == 77
                pytest.skip("userfaultfd is not permitted here")
        keeper = int(line)
        yield process, keeper
    finally:
        for pid in (process.pid, keeper) if keeper else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with trio.CancelScope(shield=True):
            await process.stdout.aclose()
            await process.wait()


async def comes_to(wanted):
    """A thread that was stuck has gone on, and cleaned up."""
    with trio.move_on_after(30):
        while statistics() != wanted:
            await trio.sleep(0.001)
    assert statistics() == wanted


async def test_a_caller_is_killed_while_its_handler_is_in_memory_that_never_answers(mounted):
    """It is let go, and nobody else notices; the job goes when the memory does."""
    await mounted.client("os.close(dev())")  # the kernel has introduced itself by then
    await mounted.machine.closed()
    before = statistics()
    async with stuck(mounted) as (client, keeper):
        for _ in range(20):
            assert await mounted.client(f"""
                f = dev()
                b = bytearray(struct.pack("II", 0xdead, 0))
                fcntl.ioctl(f, {ECHO}, b)
                print(struct.unpack("II", b)[1], fcntl.ioctl(f, {COUNT}, 0))
            """) == [str(0xDEAD), "2"]
        client.kill()
        with trio.fail_after(30):
            await client.wait()
        await mounted.machine.closed()
        assert statistics() != before  # a job that its reader is in
        os.kill(keeper, signal.SIGKILL)
        await comes_to(before)


async def test_the_server_ends_while_a_handler_is_in_memory_that_never_answers(
    tmp_path, monkeypatch
):
    before = statistics()
    async with contextlib.AsyncExitStack() as stack:
        async with serving(tmp_path, monkeypatch) as mounted:
            client, keeper = await stack.enter_async_context(stuck(mounted))
            assert await mounted.client(f"print(fcntl.ioctl(dev(), {COUNT}, 0))") == ["2"]
        assert statistics() != before
        client.kill()
        os.kill(keeper, signal.SIGKILL)
        await comes_to(before)


async def test_the_server_ends_while_calls_are_under_way(tmp_path, monkeypatch):
    before = statistics()
    async with contextlib.AsyncExitStack() as stack:
        async with serving(tmp_path, monkeypatch) as mounted:
            mounted.machine.seen = Counter()
            monkeypatch.setattr(dispatch, "ioctl", visited)
            client = await stack.enter_async_context(
                mounted.started(f"""
                f = dev()
                def work(command):
                    while not refused(fcntl.ioctl, f, command, bytearray(8)):
                        pass
                    ended = refused(fcntl.ioctl, f, command, bytearray(8))
                    os.write(1, ended.encode() + b" ")  # at once: others write too
                commands = [{ECHO}, {ECHO}, {THREADS}, {LEND}, {WAIT}]
                for _ in range(100):
                    fcntl.ioctl(f, {ECHO}, bytearray(8))
                threads = [threading.Thread(target=work, args=(c,)) for c in commands]
                for thread in threads: thread.start()
                print("ready", flush=True)
                for thread in threads: thread.join()
            """)
            )
            await mounted.machine.waiting.wait()
        out = b""
        with trio.fail_after(30):
            async for part in client.stdout:
                out += part
            assert await client.wait() == 0
    assert set(out.decode().split()) <= {"ready", "ENOTCONN", "ECONNABORTED"}
    assert statistics() == before


CALLS = """
    import threading
    iommu = os.open(M + "/dev/iommu", os.O_RDWR)
    def work():
        while True:
            alloc = bytearray(struct.pack("III", 12, 0, 0))
            fcntl.ioctl(iommu, 0x3B81, alloc)
            fcntl.ioctl(iommu, 0x3B80, struct.pack("II", 8, struct.unpack("III", alloc)[2]))
    threading.excepthook = lambda _: os._exit(0)
    for _ in range(4): threading.Thread(target=work).start()
    time.sleep(0.01)
    print("busy", flush=True)
"""


@pytest.mark.parametrize("n", range(3))
def test_a_process_that_serves_ends_while_calls_are_under_way(tmp_path, n):
    """Python ends with readers that were in it a moment before."""
    server = MountServer(tmp_path)
    command = on_mount.Mounted(tmp_path, None).command(CALLS)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as client:
        assert client.stdout.readline() == b"busy\n"
        server.end()
        assert client.wait() == 0
