"""What the oracle said of config space (tests/data/config_bits.txt)."""

import re
from pathlib import Path

from iommufs import topology_file
from iommufs.devices import MODELS
from iommufs.vfio import capabilities as caps
from iommufs.vfio.model import Bar, Description

FACTS = Path(__file__).parent.parent / "data" / "config_bits.txt"
WINDOW = 0x1C0  # beyond it there are no facts: plain memory
TOPOLOGY = topology_file.default()


class _NoHost:
    """For models that are asked for nothing but their description."""

    def load_native(self, library, name, options):
        return None


class Facts:
    """What the oracle said of one function."""

    def __init__(self, address, size):
        self.address = address
        self.size = size
        self.regions = {}
        self.image = bytearray(size)
        self.opened = {}
        self.plain = set()
        self.writes = {}

    def after_opening(self):
        """What a client reads then."""
        image = bytearray(self.image)
        for offset, row in self.opened.items():
            image[offset : offset + 16] = row
        return bytes(image)

    def changes(self, width, offset):
        """What ones, then zeros change, as {offset: value} each."""
        covered = range(offset, offset + width)
        if self.plain.issuperset(covered):
            return dict.fromkeys(covered, 0xFF), dict.fromkeys(covered, 0)
        return self.writes.get((width, offset), ({}, {}))

    def description(self):
        bars, index = {}, 0
        while index < 6:
            value = caps.u32(self.image, 0x10 + 4 * index)
            if size := self.regions.get(index):
                bars[index] = Bar(
                    size,
                    mappable=size >= 4096,
                    io=bool(value & 1),
                    bits64=value & 7 == 4,
                    prefetchable=value & 9 == 8,
                )
                index += bars[index].bits64
            index += 1
        return Description(
            vendor=caps.u16(self.image, 0),
            device=caps.u16(self.image, 2),
            class_code=caps.u32(self.image, 8) >> 8,
            revision=self.image[8],
            bars=bars,
            rom=b"\xff" * self.regions.get(6, 0),
            intx=self.image[0x3D] != 0,
            config=bytes(self.image),
            writable=self._writable(),
        )

    def _writable(self):
        """The topology says it of an inert function, a model says it itself."""
        function = TOPOLOGY.function(self.address)
        if function.model == "inert":
            return function.writable
        return MODELS[function.model](_NoHost(), function.options).describe().writable


def changed(text):
    return {int(o, 16): int(v, 16) for o, v in re.findall(r"([0-9a-f]+):([0-9a-f]+)", text)}


def read_facts():
    functions = []
    for line in FACTS.read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        kind, rest = line.split(" ", 1)
        if kind == "==":
            address, size = rest.split()
            functions.append(facts := Facts(address, int(size)))
        elif kind == "region":
            index, size = rest.split()
            facts.regions[int(index)] = int(size, 16)
        elif kind in ("raw", "open"):
            offset, row = rest.split(":")
            row = bytes.fromhex(row)
            if kind == "raw":
                facts.image[int(offset, 16) : int(offset, 16) + 16] = row
            else:
                facts.opened[int(offset, 16)] = row
        elif kind == "plain":
            first, last = (int(word, 16) for word in rest.split())
            facts.plain.update(range(first, last + 1))
        else:
            offset, ones, zeros = re.fullmatch(r"(\w+) ff(.*) 00(.*)", rest).groups()
            facts.writes[int(kind), int(offset, 16)] = changed(ones), changed(zeros)
    return functions


ALL = read_facts()
