"""`testdev`: QEMU's PCI device for tests of low-level I/O, 1b36:0005 (docs/testdev.md).

Where the published datasheet leaves something open, the model does what QEMU 11.1 was seen to do
in the oracle guest (oracle probe of 04:02.0).

Not here: config space, and the eventfds of the tests: a write that QEMU hands to one of them is
not counted, and that is all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from iommufs.vfio.model import Bar, Description, Host, Model

MEMORY_SIZE, PORTS_SIZE = 4096, 256
MEMORY, PORTS = 0, 1  # BARs; each has the same tests
TEST_OFFSET = {MEMORY: 2048, PORTS: 128}

# The header, in both BARs.
TEST = 0x00
WIDTH = 0x01
OFFSET = 0x04
DATA = 0x08
COUNT = 0x0C
NAME = 0x10

KINDS = ("no-eventfd", "wildcard-eventfd", "datamatch-eventfd")
MATCH, WILDCARD_DATA = 0xFA, 0xCE

# Dwords of the header, as far as the longest name goes.
HEADER_WORDS = range(0, 0x30, 4)


@dataclass(frozen=True)
class IoTest:
    """One test: a byte of its BAR, and which writes of it count."""

    number: int
    bar: int

    @property
    def name(self) -> str:
        return f"{'mmio' if self.bar == MEMORY else 'portio'}-{KINDS[self.number % len(KINDS)]}"

    @property
    def offset(self) -> int:
        return TEST_OFFSET[self.bar] + self.number

    @property
    def wildcard(self) -> bool:
        return self.number % len(KINDS) == 1

    @property
    def data(self) -> int:
        return WILDCARD_DATA if self.wildcard else MATCH

    def takes(self, bar: int, offset: int, value: int) -> bool:
        """Whether an eventfd takes a write of one byte away, so that it is not counted."""
        has_eventfd = self.number % len(KINDS) != 0
        here = bar == self.bar and offset == self.offset
        return has_eventfd and here and (self.wildcard or value == MATCH)

    def counts(self, offset: int, value: int) -> bool:
        """The BAR does not matter, as seen with QEMU."""
        return offset == self.offset and (self.wildcard or value == MATCH)

    def header(self, count: int) -> bytes:
        fields = bytearray(NAME)
        fields[TEST] = self.number
        fields[WIDTH] = 1
        fields[OFFSET : OFFSET + 4] = self.offset.to_bytes(4, "little")
        fields[DATA] = self.data
        fields[COUNT : COUNT + 4] = count.to_bytes(4, "little")
        return bytes(fields) + self.name.encode()


class Testdev(Model):
    """QEMU's PCI device for tests of low-level I/O."""

    options: ClassVar[Mapping[str, str]] = {
        "membar": "size of BAR 2, a memory BAR with nothing behind it (default 0: there is none)"
    }

    def __init__(self, host: Host, options: Mapping[str, Any]) -> None:
        super().__init__(host, options)
        membar = options.get("membar", 0)
        if type(membar) is not int or (membar and (membar < 16 or membar & membar - 1)):
            raise ValueError(f"membar must be 0 or a power of two of at least 16, not {membar!r}")
        self._membar = membar
        self._test: IoTest | None = None
        self._count = 0

    def describe(self) -> Description:
        bars = {
            MEMORY: Bar(size=MEMORY_SIZE, mappable=True),
            PORTS: Bar(size=PORTS_SIZE, io=True),
        }
        if self._membar:
            bars[2] = Bar(size=self._membar, mappable=True, bits64=True, prefetchable=True)
        return Description(
            vendor=0x1B36,
            device=0x0005,
            class_code=0x00FF00,
            subsystem_vendor=0x1AF4,
            subsystem_device=0x1100,
            bars=bars,
            intx=False,
        )

    def open(self) -> None:
        self._publish()
        for word in HEADER_WORDS:
            self.host.watch(MEMORY, word, 4)
        # After the word that starts a test, so that what is stored after it is taken after it.
        self.host.watch(MEMORY, TEST_OFFSET[MEMORY], 4, clears=True)

    def close(self) -> None:
        if self._membar:
            self.host.bar(2)[:] = bytes(self._membar)  # what a mapping left there

    def reset(self) -> None:
        self._start(None)

    def read(self, region: int, offset: int, size: int) -> int:
        if region not in (MEMORY, PORTS):
            return 0
        return int.from_bytes(self._header()[offset : offset + size], "little")

    def write(self, region: int, offset: int, size: int, value: int) -> None:
        if region not in (MEMORY, PORTS):
            return
        if size > 1 or not (self._test and self._test.takes(region, offset, value)):
            for at, byte in enumerate(value.to_bytes(size, "little"), offset):
                self._write_byte(region, at, byte)
        self._publish()

    def _write_byte(self, region: int, offset: int, value: int) -> None:
        if offset == TEST:
            number = value + (len(KINDS) if region == PORTS else 0)
            self._start(IoTest(number, region) if value < len(KINDS) else None)
        elif self._test and self._test.counts(offset, value):
            self._count = self._count + 1 & 0xFFFFFFFF

    def _start(self, test: IoTest | None) -> None:
        self._test = test
        self._count = 0
        self._publish()

    def _header(self) -> bytes:
        return self._test.header(self._count) if self._test else b""

    def _publish(self) -> None:
        """What loads of a mapping see."""
        header = self._header().ljust(HEADER_WORDS.stop, b"\0")
        for word in HEADER_WORDS:
            self.host.store(MEMORY, word, 4, int.from_bytes(header[word : word + 4], "little"))
