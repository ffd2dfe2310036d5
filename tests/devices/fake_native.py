"""A model in C in a machine that does nothing by itself: the contract of native/device.h in ctypes.

The model is compiled into a library of its own and called as the real machine calls it, but by the
test, in its thread: nothing happens between two lines of a test.
"""

import ctypes
import functools
import subprocess
from ctypes import CFUNCTYPE, POINTER, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p
from pathlib import Path

from iommufs.vfio.model import DmaError

ROOT = Path(__file__).parents[2]
NATIVE = ROOT / "native"
BUILD = ROOT / "build" / "fake"
FLAGS = ["-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-pthread"]
ECANCELED, EFAULT = 125, 14
ABI = 1


class Store(ctypes.Structure):
    _fields_ = [("offset", c_uint64), ("value", c_uint64), ("bar", c_uint), ("size", c_uint)]


def _pointers(name, **types):
    return type(name, (ctypes.Structure,), {"_fields_": list(types.items())})


Calls = _pointers(
    "Calls",
    dma_read=CFUNCTYPE(c_int, c_void_p, c_uint64, c_void_p, c_size_t),
    dma_write=CFUNCTYPE(c_int, c_void_p, c_uint64, c_void_p, c_size_t),
    store=CFUNCTYPE(None, c_void_p, c_uint, c_uint64, c_uint, c_uint64),
    load=CFUNCTYPE(c_uint64, c_void_p, c_uint, c_uint64, c_uint),
    exchange=CFUNCTYPE(c_uint64, c_void_p, c_uint, c_uint64, c_uint, c_uint64),
    watch=CFUNCTYPE(c_int, c_void_p, c_uint, c_uint64, c_uint),
    message=CFUNCTYPE(None, c_void_p, c_uint),
    line=CFUNCTYPE(None, c_void_p, c_int),
    messages_on=CFUNCTYPE(c_int, c_void_p),
    lock=CFUNCTYPE(None, c_void_p),
    unlock=CFUNCTYPE(None, c_void_p),
    wake=CFUNCTYPE(None, c_void_p),
    ended=CFUNCTYPE(c_int, c_void_p),
    report=CFUNCTYPE(None, c_void_p, c_char_p),
)
Device = _pointers("Device", calls=POINTER(Calls))
Model = _pointers(
    "Model",
    abi=ctypes.c_uint32,
    create=CFUNCTYPE(c_void_p, POINTER(c_char_p), c_char_p, c_size_t),
    destroy=CFUNCTYPE(None, c_void_p),
    start=CFUNCTYPE(c_void_p, c_void_p, POINTER(Device)),
    end=CFUNCTYPE(None, c_void_p),
    read=CFUNCTYPE(c_uint64, c_void_p, c_uint, c_uint64, c_uint),
    write=CFUNCTYPE(None, c_void_p, c_uint, c_uint64, c_uint, c_uint64),
    stores=CFUNCTYPE(None, c_void_p, POINTER(Store), c_size_t),
    poll=CFUNCTYPE(c_int, c_void_p),
)


@functools.cache
def compiled(symbol):
    """The struct iommufs_model of native/SYMBOL*.c."""
    sources = [*NATIVE.glob(f"{symbol}*.c"), NATIVE / "alloc.c", NATIVE / "slab.c"]
    sources = [path for path in sources if not path.stem.endswith("_test")]
    inputs = [*sources, *NATIVE.glob("*.h"), Path(__file__)]
    library = BUILD / f"{symbol}.so"
    if not library.exists() or library.stat().st_mtime < max(p.stat().st_mtime for p in inputs):
        BUILD.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cc", *FLAGS, "-o", library, *sources], check=True)
    model = Model.in_dll(ctypes.CDLL(str(library)), f"{symbol}_model")
    assert model.abi == ABI
    return model


class _Word:
    """A watched one, as life_scan() of native/device_life.c sees it."""

    def __init__(self, seen):
        self.seen, self.missed = seen, None


class FakeNative:
    """vfio.native.NativeDevice, on a FakeHost."""

    def __init__(self, host, symbol, options):
        self._host, self._model = host, compiled(symbol)
        self._array = (c_char_p * (len(options) + 1))(*(option.encode() for option in options))
        error = ctypes.create_string_buffer(256)
        self._instance = self._model.create(self._array, error, len(error))
        if not self._instance:
            raise ValueError(error.value.decode())
        self._state = None
        self.words = {}
        self.woken = False
        self._calls = Calls(**{
            name: kind(functools.partial(self._call, getattr(self, f"_{name}")))
            for name, kind in Calls._fields_
        })  # fmt: skip
        self._device = Device(ctypes.pointer(self._calls))

    def __del__(self):
        if getattr(self, "_instance", None):
            self.close()
            self._model.destroy(self._instance)

    # -- the machine's side

    def open(self):
        self.close()
        self._state = self._model.start(self._instance, ctypes.pointer(self._device))
        assert self._state
        self.woken = True

    def close(self):
        if self._state:
            self._model.end(self._state)
        self._state = None
        self.words = {}

    def reset(self):
        if self._state:
            self.open()

    def read(self, bar, offset, size):
        self.scan()
        return self._model.read(self._state, bar, offset, size)

    def write(self, bar, offset, size, value):
        self.scan()
        self._model.write(self._state, bar, offset, size, value)
        self.woken = True

    def scan(self):
        """Report what a client's mapping has stored."""
        found = []
        for (bar, offset, size), word in self.words.items():
            value = self._memory(bar, offset, size) if word.missed is None else word.missed
            if word.missed is None and value == word.seen:
                continue
            if word.missed is None:
                word.seen = value
            word.missed = None
            found.append(Store(offset, value, bar, size))
        if found:
            self._model.stores(self._state, (Store * len(found))(*found), len(found))
            self.woken = True

    def finish(self):
        """The thread, until it would rest."""
        busy = True
        while self._state and (busy or self.woken):
            self.scan()
            self.woken = False
            busy = self._model.poll(self._state)

    # -- what the model is given

    def _call(self, method, _, *args):
        return method(*args)

    def _memory(self, bar, offset, size):
        return int.from_bytes(self._host.bars[bar][offset : offset + size], "little")

    def _exchange(self, bar, offset, size, value):
        """Nothing is missed."""
        before = self._memory(bar, offset, size)
        self._host.bars[bar][offset : offset + size] = value.to_bytes(size, "little")
        if word := self.words.get((bar, offset, size)):
            word.seen = value
        return before

    def _store(self, bar, offset, size, value):
        word = self.words.get((bar, offset, size))
        seen = word and word.seen
        before = self._exchange(bar, offset, size, value)
        if word and before != seen:
            word.missed = before

    def _load(self, bar, offset, size):
        return self._memory(bar, offset, size)

    def _watch(self, bar, offset, size):
        self.words[bar, offset, size] = _Word(self._memory(bar, offset, size))
        return 0

    def _dma_read(self, iova, buf, length):
        self._host.before_dma(iova)
        try:
            data = self._host.read_now(iova, length)
        except DmaError:
            return -EFAULT
        ctypes.memmove(buf, data, length)
        return 0

    def _dma_write(self, iova, buf, length):
        try:
            self._host.write_now(iova, ctypes.string_at(buf, length))
        except DmaError:
            return -EFAULT
        self._host.after_dma(iova)
        return 0

    def _message(self, vector):
        self._host.messages.append(vector)

    def _line(self, level):
        self._host.intx = bool(level)

    def _messages_on(self):
        return self._host.msi_on

    def _lock(self):
        pass

    def _unlock(self):
        pass

    def _wake(self):
        self.woken = True

    def _ended(self):
        return self._state is None and bool(self.words)

    def _report(self, text):
        self._host.reports.append((text.decode(), {}))
