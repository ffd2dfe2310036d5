"""A small machine on the command line: `--device edu,group=7,dma_mask=0xfff`.

A model, then keys with values: those of a [[function]] of a topology file, and the model's own
options. Where both have a key, it is the function's; `options.KEY` is always the model's. A value
is one of TOML, or a number with K, M, G or T behind it (times 1024, 1024², …), or else taken as a
string: `size=1G`, `reset_methods=["flr"]`, `serial="123"`. An address that is not given is the
lowest free device of bus 0.

Faults are those of topology_file.py, with the option in place of the file.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from iommufs import models, topology_file
from iommufs.topology import Topology, TopologyError

_SIZE = re.compile(r"(\d+)([KMGT])", re.ASCII)
_SHIFTS = {"K": 10, "M": 20, "G": 30, "T": 40}
_PAIRS = {"[": "]", "{": "}"}
_DEVICE = re.compile(r"(?:0000:)?00:([01][0-9a-f])\.[0-7]", re.ASCII)
# Device 0 of a bus is the host bridge's.
_DEVICES = range(1, 32)


def topology(config: str | None, devices: Sequence[str]) -> Topology:
    """The machine in a TOML file, or the default one, or one of these devices; TopologyError.

    With a file, the devices are added to what is in there.
    """
    if config == "":
        raise TopologyError("--config: expected a file, got ''")
    if not devices:
        return topology_file.default() if config is None else topology_file.load(Path(config))
    path = None if config is None else Path(config)
    content = topology_file.read(path) if path else {}
    functions = content.get("function", [])
    if not isinstance(functions, list):
        return topology_file.load(path)  # which says what is wrong
    labels = {}
    for text in devices:
        labels[len(functions)] = label = f"--device {text}"
        functions = [*functions, _function(text, label)]
    for i, label in labels.items():
        if "bdf" not in functions[i]:
            functions[i]["bdf"] = _free_address(functions, label)
    content["function"] = functions
    source = str(path) if path else "--device"
    return topology_file.parse(content, source, path.parent if path else Path(), labels)


def _free_address(functions: Sequence[Any], label: str) -> str:
    given = [f["bdf"] for f in functions if isinstance(f, dict) and isinstance(f.get("bdf"), str)]
    taken = {int(match[1], 16) for bdf in given if (match := _DEVICE.fullmatch(bdf))}
    for number in _DEVICES:
        if number not in taken:
            return f"0000:00:{number:02x}.0"
    raise TopologyError(f"{label}: bdf: expected one: no address on bus 0 is free")


def _function(text: str, label: str) -> dict[str, Any]:
    """What a [[function]] with the same meaning says."""
    model, *rest = _split(text)
    try:
        options = models.find(model).options
    except models.ModelError as error:
        raise TopologyError(f"{label}: model: {error}") from error
    function: dict[str, Any] = {"model": model, "options": {}}
    known = [key for key in topology_file.FUNCTION_KEYS if key not in ("model", "options")]
    for part in rest:
        key, equals, value = (word.strip() for word in part.partition("="))
        if not equals:
            raise TopologyError(f"{label}: expected KEY=VALUE, got {part!r}")
        is_option = key.startswith("options.") or key not in known
        name = key.removeprefix("options.")
        if is_option and name not in options:
            there = ", ".join([*known, *options])
            raise TopologyError(f"{label}: {key}: no such key; there is: {there}")
        target = function["options"] if is_option else function
        if name in target:
            raise TopologyError(f"{label}: {key}: is there twice")
        target[name] = _value(value)
    return function


def _split(text: str) -> Iterator[str]:
    """At the commas that are not inside of brackets or quotes."""
    part, closing, quote = "", [], ""
    for character in text:
        if character == "," and not closing and not quote:
            yield part
            part = ""
            continue
        part += character
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in _PAIRS:
            closing.append(_PAIRS[character])
        elif closing and character == closing[-1]:
            closing.pop()
    yield part


def _value(text: str) -> Any:
    if match := _SIZE.fullmatch(text):
        return int(match[1]) << _SHIFTS[match[2]]
    try:
        found: Mapping[str, Any] = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    value = found["value"]
    # TOML's dates, nan and inf are words here.
    is_plain = isinstance(value, str | int | list | dict) and len(found) == 1
    return value if is_plain else text
