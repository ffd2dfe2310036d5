"""The contract between a device model and everything above it: what a model author reads.

A model is the inside of one PCI function. It is told offsets inside its regions, never addresses;
bounds and width are checked before it is called, config space, interrupt delivery and DMA
translation are done for it. It describes itself once, then answers `read` and `write`, and reaches
the world through the `Host` handed to it:

    class Answer(Model):
        options = {"answer": "what every register reads as"}

        def __init__(self, host, options):
            self.host = host
            self.answer = options.get("answer", 42)

        def describe(self):
            return Description(vendor=0x1234, device=0x0042, class_code=0xff0000,
                               bars={0: Bar(size=4096)}, msi_vectors=1)

        def read(self, region, offset, size):
            return self.answer

Calls to a model are made one at a time, from one thread, and must not wait. What takes time (a DMA
engine, a timer) is an async function given to `host.start`; it ends with the model's reset or its
closing. An exception that leaves a model is reported against its device; the client sees EIO. So is
an answer of the wrong type or size, and a call that does not end (ModelStuck). docs/models.md shows
all this with a whole example.

Not here: files, ioctls, groups (iommufs/vfio/), page tables (native/).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

INTX = 0
MSI = 1
MSIX = 2


class DmaError(Exception):
    """The IOMMU, or bus mastering being off, refused a DMA; no byte was moved.

    iova    the first byte that was refused
    reason  "unmapped", "permission", "bus master off", "not attached", "memory gone" or (of ours)
            "out of memory"
    """

    def __init__(self, iova: int, reason: str) -> None:
        super().__init__(f"DMA at {iova:#x} refused: {reason}")
        self.iova = iova
        self.reason = reason


class ModelStuck(BaseException):
    """Ends a call to a model, or a step of its task, that has gone on for seconds."""


@dataclass(frozen=True)
class Bar:
    """One base address register.

    size      bytes, a power of two, at least 16 (memory) or 4 (I/O ports)
    mappable  a client may mmap it: stores then reach the model only through Host.watch
    mapped    (offset, length) of what may be mapped of it, whole pages, for a BAR some of whose
              registers must trap: clients are told so (sparse mmap); empty: all of it
    plain     reading it has no effect and gives what a mapping shows: Model.read is not asked, and
              reads need not wait for the model; for a mappable BAR
    """

    size: int
    mappable: bool = False
    io: bool = False
    bits64: bool = False
    prefetchable: bool = False
    mapped: tuple[tuple[int, int], ...] = ()
    plain: bool = False


@dataclass(frozen=True)
class Migration:
    """What a model that can be migrated can do besides being stopped, saved and loaded.

    pre_copy  it has something to save while it works (Model.save_early)
    p2p       stopped, it still answers its registers while its peers work
    """

    pre_copy: bool = False
    p2p: bool = False


@dataclass(frozen=True)
class Mediated:
    """That a device is no PCI function, but made up by a driver: there is no IOMMU behind it.

    parent  what the driver calls itself, and its one device: /sys/devices/virtual/PARENT/PARENT
    type    which of the driver's types it is, a suffix of its name; `name`: what that is called
    """

    parent: str
    type: str
    name: str


@dataclass(frozen=True)
class Description:
    """What a function is. Ids are those of PCI config space.

    config   bytes of config space that the fields do not say (vendor capabilities, PCIe, …), from
             offset 0, 256 or 4096 bytes long; empty: made from the fields alone
    writable config dwords (by offset) and the bits of them that the function lets be written,
             where that is not what the capability there would make one expect
    migration  it has stop, run, save and load; None: it cannot be migrated
    dma_logging  clients may ask which pages its DMA has written
    mediated     it is no PCI function: the model is told accesses of config space, too, as those of
                 region 7; `config` may be of any length
    """

    vendor: int
    device: int
    class_code: int
    revision: int = 0
    subsystem_vendor: int = 0
    subsystem_device: int = 0
    bars: Mapping[int, Bar] = field(default_factory=dict)
    rom: bytes = b""
    intx: bool = True
    msi_vectors: int = 0
    msix_vectors: int = 0
    msix_table: tuple[int, int] = (0, 0)  # BAR index, offset
    msix_pba: tuple[int, int] = (0, 0)
    config: bytes = b""
    writable: Mapping[int, int] = field(default_factory=dict)
    migration: Migration | None = None
    dma_logging: bool = False
    mediated: Mediated | None = None


class Native(Protocol):
    """A model in C. What it lacks of a Model is in C too: DMA, interrupts, stores to mappings."""

    def open(self) -> None: ...

    def close(self) -> None: ...

    def reset(self) -> None: ...

    def read(self, region: int, offset: int, size: int) -> int: ...

    def write(self, region: int, offset: int, size: int, value: int) -> None: ...


class Host(Protocol):
    """What a model may ask of the machine around it."""

    async def dma_read(self, iova: int, length: int) -> bytes:
        """Read `length` bytes of client memory; DmaError."""

    async def dma_write(self, iova: int, data: bytes) -> None:
        """Write client memory; DmaError."""

    async def dma_read_spans(self, spans: Sequence[tuple[int, int]]) -> list[bytes | DmaError]:
        """Read many (iova, length), at least one, in one go: the bytes, or the error, of each."""

    async def dma_write_spans(self, spans: Sequence[tuple[int, bytes]]) -> list[DmaError]:
        """Write many (iova, data), at least one, in one go and in this order.

        What is refused does not keep the others from being written. Returns the errors.
        """

    async def give_way(self) -> None:
        """Let the others go on, other functions' tasks among them."""

    def pin(self, iova: int, length: int, write: bool = False) -> None:
        """Keep client memory from being unmapped, whole pages; DmaError.

        For devices without an IOMMU, whose model lets go of it in Model.dma_unmap at the latest.
        """

    def unpin(self, iova: int, length: int) -> None:
        """Let go of exactly what was pinned once."""

    def set_intx(self, level: bool) -> None:
        """Drive the INTx line; delivered unless disabled, masked or not set up by the client."""

    def msi(self, vector: int) -> None:
        """Send message-signalled interrupt `vector` (MSI or MSI-X, whichever is on)."""

    def msi_enabled(self) -> bool:
        """True while MSI or MSI-X is switched on by the client."""

    def bar(self, region: int) -> memoryview:
        """The memory behind a mappable BAR: clients that map the BAR share it.

        Reading it is safe at any time; store through `store` only, so that watches know.
        """

    def store(self, region: int, offset: int, size: int, value: int) -> int:
        """Leave a value (size 4 or 8 bytes) in a mappable BAR's memory for clients to load.

        Returns what was there. If that is what a client stored, its event, which may be still to
        come, is older than this store.
        """

    def watch(self, region: int, offset: int, size: int, *, clears: bool = False) -> None:
        """Call Model.stores when a client's mapping changes this word (4 or 8 bytes) of a BAR.

        Storing the value that is there already cannot be seen. With `clears` the word is 0 again
        as soon as a store has been seen, so that each store of anything else is. Lasts until the
        client is gone.
        """

    def start(self, task: Callable[[], Awaitable[None]]) -> None:
        """Run an async function beside the model until it returns, or reset or close cancels it.

        A migration that stops the device cancels it too; what a stopped device is given is not run.
        """

    def wake(self) -> None:
        """Ask for power (PME): a client that let the device sleep with an eventfd is told."""

    def load_native(self, library: str | None, name: str, options: Sequence[str]) -> Native:
        """The model in C of this name, see NativeModel; ValueError."""

    def report(self, event: str, **details: Any) -> None:
        """Say something about this device in the log."""


class Model:
    """Base of all models: a function without registers. Override what the device has.

    options  the options that the model understands, each with a line of help; others are refused
             before the model is made. The first line of the class's docstring is the model's.
    """

    options: ClassVar[Mapping[str, str]] = {}

    def __init__(self, host: Host, options: Mapping[str, Any]) -> None:
        self.host = host

    def describe(self) -> Description:
        raise NotImplementedError

    def open(self) -> None:
        """A client has bound the device."""

    def close(self) -> None:
        """The client is gone; tasks are cancelled, mappings too."""

    def read(self, region: int, offset: int, size: int) -> int:
        """The value of `size` (1, 2, 4 or 8) bytes at `offset` of BAR `region`, little endian.

        Not asked of a BAR that is plain memory.
        """
        return 0

    def write(self, region: int, offset: int, size: int, value: int) -> None:
        """Store `value`, of `size` bytes, at `offset` of BAR `region`."""

    def stores(self, region: int, stores: Sequence[tuple[int, int, int]]) -> None:
        """What a client's mapping stored in watched words: (offset, size, value) of each.

        They were seen together: in which order they were made is not known. They come in the order
        in which the words were watched.
        """
        for offset, size, value in stores:
            self.write(region, offset, size, value)

    def reset(self) -> None:
        """Back to power-on state; tasks are cancelled before it is called."""

    # ---- migration, for those whose description has it

    def stop(self) -> None:
        """Stand still: no DMA, no interrupt until run(). Tasks are cancelled before it is called.

        No DMA is under way. Registers may still be written: what they start waits for run().
        """

    def run(self) -> None:
        """Go on: begin anew what stop() interrupted, and what the registers say is to be done."""

    def save(self, *, after_early: bool) -> bytes:
        """All that makes the device what it is, but for its config space; it is stopped.

        after_early  what save_early() gave comes before it, and may be left out here
        """
        raise NotImplementedError

    def load(self, data: bytes) -> None:
        """Become what was saved; the device is stopped. ValueError, nothing changed: refused."""
        raise NotImplementedError

    def save_early(self, *, first: bool) -> bytes:
        """While the device works: what can be saved already, later what of that has changed.

        first  a migration begins: nothing is saved yet
        Empty: nothing for now.
        """
        return b""

    def load_early(self, data: bytes) -> None:
        """What save_early() gave, in the same order, before load(). ValueError: refused."""
        raise ValueError("it saves nothing early")

    # ---- devices without an IOMMU

    def dma_unmap(self, iova: int, length: int) -> None:
        """Let go of pins in this range (devices without an IOMMU only)."""

    def make_vf(self, host: Host, index: int) -> Model | None:
        """The inside of virtual function `index`; `host` is its own. None: nothing is inside.

        Asked once, when the function is enabled for the first time. Vendor and device in its
        description do not count: they are the capability's. Its BARs are sized as described there.
        """
        return None


class NativeModel(Model):
    """Base of models whose inside is C (native/device.h): only what describes them is Python.

    library        path of a shared library; None: it is one of those that come with iommufs
    symbol         name of the struct iommufs_model in there
    native_options() what its create() gets, "key=value" each, from `options`: ValueError
    """

    library: ClassVar[str | None] = None
    symbol: ClassVar[str]

    def __init__(self, host: Host, options: Mapping[str, Any]) -> None:
        super().__init__(host, options)
        self.native = host.load_native(self.library, self.symbol, self.native_options(options))

    def native_options(self, options: Mapping[str, Any]) -> Sequence[str]:
        return [f"{key}={value}" for key, value in options.items()]

    def open(self) -> None:
        self.native.open()

    def close(self) -> None:
        self.native.close()

    def read(self, region: int, offset: int, size: int) -> int:
        return self.native.read(region, offset, size)

    def write(self, region: int, offset: int, size: int, value: int) -> None:
        self.native.write(region, offset, size, value)

    def reset(self) -> None:
        self.native.reset()
