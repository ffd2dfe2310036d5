"""The memory behind BARs: what clients map, and their stores on the way to the model."""

import gc
import mmap
import os
import subprocess
import sys
import weakref

import pytest
import trio

from iommufs._native import lib
from iommufs.vfio import watch
from iommufs.vfio.bars import BarMemory
from iommufs.vfio.config import ConfigSpace
from iommufs.vfio.irqs import Irqs
from iommufs.vfio.model import Bar

BARS = {0: Bar(4096, mappable=True), 2: Bar(65536, mappable=True), 4: Bar(4096)}


def client_mapping(bars, region, length=4096):
    """A mapping as a client gets it: of the device's file, at the region's offset."""
    return mmap.mmap(bars.fd, length, offset=region << 40)


@pytest.fixture
def bars():
    return BarMemory(BARS)


def test_each_region_lies_at_its_offset(bars):
    bars.view(0)[:4] = b"zero"
    bars.view(2)[-4:] = b"two!"
    assert client_mapping(bars, 0)[:4] == b"zero"
    assert client_mapping(bars, 2, 65536)[-4:] == b"two!"


def test_a_view_has_the_size_of_the_bar(bars):
    assert [len(bars.view(region)) for region in (0, 2)] == [4096, 65536]


@pytest.mark.parametrize(("size", "value"), [(4, 0x12345678), (8, 0x123456789ABCDEF0)])
def test_what_the_model_stores_the_client_loads(bars, size, value):
    bars.store(2, 16, size, value)
    assert client_mapping(bars, 2)[16 : 16 + size] == value.to_bytes(size, "little")


@pytest.fixture
async def watched(make_function):
    """A function with two watched words, a client's mapping, what tells of a call of write()."""
    function = make_function()
    function.open()
    function.irqs = Irqs(function, function.spawn)
    function.config = ConfigSpace(function, function.irqs)
    function.host.store(0, 8, 8, 5)
    for offset, size in ((0, 4), (8, 8)):
        function.host.watch(0, offset, size)
    written = trio.Event()
    function.model.write = lambda *call: (function.model.calls.append(call), written.set())
    yield function, client_mapping(function.bars, 0), written
    function.irqs = function.config = None
    function.close()


async def test_a_store_of_the_client_reaches_the_model(watched, nursery):
    function, memory, written = watched
    nursery.start_soon(watch.pump)
    function.model.calls.clear()
    memory[0:4] = b"\x01\x02\x03\x04"
    with trio.fail_after(20):
        await written.wait()
    assert function.model.calls == [(0, 0, 4, 0x04030201)]
    nursery.cancel_scope.cancel()


async def test_a_store_of_the_model_does_not(watched, nursery):
    function, memory, written = watched
    nursery.start_soon(watch.pump)
    function.model.calls.clear()
    function.host.store(0, 0, 4, 7)
    memory[8:16] = bytes(8)  # comes after it, so the first would have come by then
    with trio.fail_after(20):
        await written.wait()
    assert function.model.calls == [(0, 8, 8, 0)]
    assert memory[0:4] == b"\x07\0\0\0"
    nursery.cancel_scope.cancel()


async def test_a_store_after_the_client_is_gone_is_nobodys(watched):
    function, memory, written = watched
    function.irqs = function.config = None
    function.close()
    function.model.calls.clear()
    memory[0:4] = b"late"
    watch.drain(100)
    assert not written.is_set()
    assert function.model.calls == []


async def test_a_store_without_memory_decoding_is_not_heard(watched):
    function, memory, _ = watched
    function.config.write(4, b"\x00\x00")
    function.model.calls.clear()
    memory[0:4] = b"deaf"
    with trio.fail_after(20):
        await trio.lowlevel.wait_readable(lib.iofs_watch_fd())
    watch.drain(100)
    assert function.model.calls == []


def test_a_function_that_was_watched_can_go(make_function):
    function = make_function()
    function.open()
    function.host.watch(0, 0, 4)
    function.close()
    fd, gone = function.bars.fd, weakref.ref(function)
    del function
    gc.collect()
    assert gone() is None
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


@pytest.mark.parametrize("end", ["del bars; gc.collect(); time.sleep(0.05)", ""])
def test_the_poller_never_reads_what_is_gone(end):
    program = (
        "import gc, time\n"
        "from iommufs.vfio.bars import BarMemory\n"
        "from iommufs.vfio.model import Bar\n"
        "bars = BarMemory({0: Bar(1 << 20, mappable=True)})\n"
        "bars.watch(0, 0x98, 4, 0, False)\n"
    )
    result = subprocess.run([sys.executable, "-c", program + end], capture_output=True, check=False)
    assert (result.returncode, result.stderr) == (0, b"")
