"""A machine around one model, small enough to see through."""

import ctypes
import fcntl
import mmap
import os
import struct
import types
import weakref

import pytest

from iommufs.vfio import native, refused
from iommufs.vfio.model import DmaError
from tests.contract.vfio_client import VfioClient
from tests.devices.fake_native import FakeNative

PAGE = 4096


@types.coroutine
def _wait():
    yield


class FakeHost:
    """Client memory is a dict of pages, interrupts and stores are lists, tasks run when told to.

    slow        a DMA of a model in Python waits, once, until the next step()
    before_dma  called with the IOVA before a model in C reads there
    after_dma   … after it has written there
    """

    def __init__(self):
        self.pages = {}
        self.read_only = set()
        self.intx = False
        self.messages = []
        self.msi_on = False
        self.reports = []
        self.watches = []
        self.clearing = set()
        self.bars = {}
        self.slow = False
        self.before_dma = self.after_dma = lambda iova: None
        self.pauses = 0
        self._tasks = []
        self._natives = []

    # -- the contract

    async def dma_read(self, iova, length):
        if self.slow:
            await _wait()
        return self.read_now(iova, length)

    async def dma_write(self, iova, data):
        if self.slow:
            await _wait()
        self.write_now(iova, data)

    async def dma_read_spans(self, spans):
        return [await self._or_error(self.dma_read(*span)) for span in spans]

    async def dma_write_spans(self, spans):
        done = [await self._or_error(self.dma_write(*span)) for span in spans]
        if self.slow:
            await _wait()  # the client sees it already
        return [error for error in done if error is not None]

    async def _or_error(self, move):
        try:
            return await move
        except DmaError as error:
            return error

    async def give_way(self):
        self.pauses += 1

    def load_native(self, library, symbol, options):
        model = FakeNative(self, symbol, options)
        self._natives.append(weakref.ref(model))
        return model

    def set_intx(self, level):
        self.intx = level

    def msi(self, vector):
        self.messages.append(vector)

    def msi_enabled(self):
        return self.msi_on

    def bar(self, region):
        return memoryview(self.bars[region])

    def store(self, region, offset, size, value):
        assert size in (4, 8)
        before = int.from_bytes(self.bars[region][offset : offset + size], "little")
        self.bars[region][offset : offset + size] = value.to_bytes(size, "little")
        return before

    def watch(self, region, offset, size, *, clears=False):
        assert size in (4, 8)
        if clears:
            self.clearing.add((region, offset))
        self.watches.append((region, offset, size))

    def start(self, task):
        self._tasks.append(task())

    def report(self, event, **details):
        self.reports.append((event, details))

    # -- the test's side

    def plug(self, model):
        """Make the BARs of a model, open it."""
        for region, bar in model.describe().bars.items():
            self.bars[region] = bytearray(bar.size)
        model.open()
        return model

    def map(self, iova, data=bytes(PAGE), read_only=False):
        for at in range(0, len(data), PAGE):
            self.pages[(iova + at) // PAGE] = bytearray(data[at : at + PAGE])
            if read_only:
                self.read_only.add((iova + at) // PAGE)

    def memory(self, iova, length):
        return bytes(self._byte(iova + i)[0] for i in range(length))

    def load(self, region, offset, size):
        """What a client's mapping shows."""
        return int.from_bytes(self.bars[region][offset : offset + size], "little")

    def step(self):
        """Run every task until it ends or waits."""
        for task in list(self._tasks):
            try:
                task.send(None)
            except StopIteration:
                self._tasks.remove(task)

    def finish(self):
        while self._tasks:
            self.step()
        for model in self.natives():
            model.finish()

    @property
    def running(self):
        """How many tasks have not ended, and models in C have something to do."""
        return len(self._tasks) + sum(model.woken for model in self.natives())

    def natives(self):
        return [model for ref in self._natives if (model := ref())]

    def read_now(self, iova, length):
        self._check(iova, length, write=False)
        return bytes(self._byte(iova + i)[0] for i in range(length))

    def write_now(self, iova, data):
        self._check(iova, len(data), write=True)
        for i, byte in enumerate(data):
            page, offset = divmod(iova + i, PAGE)
            self.pages[page][offset] = byte

    def cancel(self):
        """What comes before a reset or a close."""
        for task in self._tasks:
            task.close()
        self._tasks.clear()

    def _byte(self, iova):
        page, offset = divmod(iova, PAGE)
        return self.pages[page][offset : offset + 1]

    def _check(self, iova, length, write):
        assert 0 <= iova < 1 << 64
        for page in range(iova // PAGE, (iova + length - 1) // PAGE + 1):
            if page not in self.pages:
                raise self._refused(max(iova, page * PAGE), "unmapped")
            if write and page in self.read_only:
                raise self._refused(max(iova, page * PAGE), "permission")

    def _refused(self, iova, reason):
        self.report("DMA refused", iova=hex(iova), reason=reason)
        return DmaError(iova, reason)


@pytest.fixture
def host():
    return FakeHost()


@pytest.fixture
def make_host():
    """For tests that need one for each example."""
    return FakeHost


@pytest.fixture
async def vfio(nursery):
    """Devices that are real but for the mount."""
    vfio = VfioClient(nursery)
    yield vfio
    vfio.close_all()
    native.drain()
    refused.drain()
    nursery.cancel_scope.cancel()


ONCE_STUCK = []  # who was stuck there comes back to them, maybe in the next test: never unmapped


@pytest.fixture
def stuck_pages():
    """Four pages of this process: touching them waits until the descriptor is closed."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(323, os.O_CLOEXEC | os.O_NONBLOCK)
    if fd < 0:
        pytest.skip("userfaultfd is not permitted here")
    pages = mmap.mmap(-1, 4 * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    ONCE_STUCK.append(pages)
    address = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    fcntl.ioctl(fd, 0xC018AA3F, bytearray(struct.pack("QQQ", 0xAA, 0, 0)))
    fcntl.ioctl(fd, 0xC020AA00, bytearray(struct.pack("QQQQ", address, 4 * PAGE, 1, 0)))
    yield fd, address
    os.close(fd)
