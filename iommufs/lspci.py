"""What `lspci` printed of real functions: -xxxx for their config space, -vv for the sizes of BARs.

A dump may be of one function or of a whole machine, with or without what -vv adds. Files of rows
without a line that names a function, as topologies write them by hand, are dumps of one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from iommufs.pci_image import ConfigImage, parse_image

_FUNCTION = re.compile(r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}:[01][0-9a-f]\.[0-7]) \S.*", re.ASCII)
_REGION = re.compile(
    r"\t(?:Region (\d): )?(?:Memory|I/O ports) at ([0-9a-f]+|<\w+>) .*\[size=(\d+)([KMGT]?)\]\s*",
    re.ASCII,
)
_ROM = re.compile(r"\tExpansion ROM at .*\[size=(\d+)([KMGT]?)\]\s*", re.ASCII)
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_DENIED = "<access denied>"


@dataclass(frozen=True)
class Dump:
    """One function. bars: sizes by number, as far as they are told; rom: its size, 0 if untold."""

    image: ConfigImage
    bars: dict[int, int] = field(default_factory=dict)
    rom: int = 0


def parse(text: str, bdf: str) -> Dump:
    """The function "0000:01:00.0" of a dump, or the only one that is in it; ValueError."""
    functions = _split(text.splitlines())
    if len(functions) == 1:
        (lines,) = functions.values()
    elif bdf in functions:
        lines = functions[bdf]
    else:
        there = ", ".join(functions)
        raise ValueError(f"expected {bdf} among the functions in it: {there}")
    return _function(lines)


def _split(lines: Sequence[str]) -> dict[str, list[str]]:
    """The lines of each function, by address."""
    found: dict[str, list[str]] = {}
    current: list[str] = []
    for line in lines:
        if match := _FUNCTION.fullmatch(line):
            bdf = f"{match[1] or '0000'}:{match[2]}"
            if bdf in found:
                raise ValueError(f"{bdf} is in it twice")
            current = found[bdf] = []
        else:
            current.append(line)
    return found or {"": current}


def _function(lines: Sequence[str]) -> Dump:
    image = ConfigImage(parse_image(lines))
    if any(_DENIED in line for line in lines):
        raise ValueError("expected what lspci prints to root: it says <access denied>")
    at = {bar.address: number for number, bar in image.bars().items() if bar.address}
    bars, rom = {}, 0
    for line in lines:
        if match := _REGION.fullmatch(line):
            number = int(match[1]) if match[1] else at.get(_address(match[2]))
            if number is None:
                raise ValueError(f"expected the address of a BAR: {line.strip()}")
            bars[number] = int(match[3]) * _UNITS[match[4]]
        elif match := _ROM.fullmatch(line):
            rom = int(match[1]) * _UNITS[match[2]]
    return Dump(image, bars, rom)


def _address(text: str) -> int:
    return 0 if text.startswith("<") else int(text, 16)
