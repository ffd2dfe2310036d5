"""The machine as a TOML file: PCI functions, their groups and resets, the IOMMU.

    [[mediated]]                      # a device without an IOMMU
    uuid = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001"
    model = "serial"

    [iommu]
    kind = "vtd"
    reserved = [{ start = 0x1000, last = 0x1fff, type = "direct" }]   # by firmware, for all

    [iommufd]
    test = false                      # the ioctl of CONFIG_IOMMUFD_TEST

    [[function]]
    bdf = "0000:00:06.0"
    model = "edu"                     # default "inert"
    group = 5                         # default: the lowest free number
    driver = "vfio-pci"               # the default; "" for none. vfio-pci gives it a cdev
    config = "default/edu.hex"        # image of its config space, beside this file
    bars = { 0 = 0x100000 }           # sizes; an inert function's only, models know their own
    contents = { 0 = "default/x.hex" } # what is in them; likewise
    writable = { 0x44 = 0x1e03 }      # dwords of config space with unusual writable bits; likewise
    reset_methods = ["flr", "bus"]    # as in /sys/…/reset_method, default none
    reset_scope = "bus"               # whom a hot reset takes along: bus, slot or none
    options = { dma_mask = 0xfff }    # what the model understands

An image is text as `lspci -xxxx` prints it (lspci.py), rows of zeros may be left out; it has 4096
bytes if any row is beyond 0xff. Which bridge leads to a bus is read from the images of the bridges.
cdevs are vfio0, vfio1, … in the order of the file.

Every fault of a file is a TopologyError of one line that names the file, the key and what was
expected. Model names, options and IOMMU kinds are checked where they are used (machine.py).
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from iommufs import lspci
from iommufs.pci_image import ConfigImage, parse_rows
from iommufs.topology import Function, Reserved, Topology, TopologyError
from iommufs.topology_keys import VFIO_DRIVER, FileKeys, FunctionKeys
from iommufs.topology_mediated import resolve

ROOT_BUS = 0
ROM = "rom"

_BDF = re.compile(r"(?:([0-9a-f]{4}):)?([0-9a-f]{2}):([01][0-9a-f])\.([0-7])", re.ASCII)


# What a [[function]] may say.
FUNCTION_KEYS = FunctionKeys.__struct_fields__


def default() -> Topology:
    """The machine that is there without a file."""
    with resources.as_file(resources.files("iommufs") / "topologies") as directory:
        return load(directory / "default.toml")


def load(path: Path) -> Topology:
    """Read a topology; TopologyError."""
    return parse(read(path), str(path), path.parent)


def read(path: Path) -> dict[str, Any]:
    """What parse() takes, from a file; TopologyError."""
    try:
        return tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        raise TopologyError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise TopologyError(f"{path}: not a text in UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise TopologyError(f"{path}: not TOML: {error}") from None


def parse(
    content: dict[str, Any], source: str, directory: Path, labels: Mapping[int, str] | None = None
) -> Topology:
    """The topology in decoded TOML.

    source     what errors call it
    directory  where images lie
    labels     what errors call single functions, where that is not their place in the source
    """
    names = _Names(source, labels or {})
    try:
        file = msgspec.convert(content, FileKeys)
    except msgspec.ValidationError as error:
        raise TopologyError(_in_one_line(str(error), names)) from None
    return _Resolver(file, names, directory).topology()


class _Names:
    """What errors call the parts of a topology."""

    def __init__(self, source: str, labels: Mapping[int, str]) -> None:
        self.source = source
        self._labels = labels

    def function(self, i: int) -> str:
        return self._labels.get(i, f"{self.source}: function[{i}]")

    def key(self, i: int, key: str) -> str:
        """A key of a function."""
        return f"{self.function(i)}{': ' if i in self._labels else '.'}{key}"

    def place(self, path: str) -> str:
        """Where "function[2].group" is."""
        match = re.fullmatch(r"function\[(\d+)\](?:\.(.*))?", path)
        if match and int(match[1]) in self._labels:
            i = int(match[1])
            return self.key(i, match[2]) if match[2] else self.function(i)
        return f"{self.source}: {path}" if path else self.source


def _in_one_line(error: str, names: _Names) -> str:
    """msgspec's "Expected `int`, got `str` - at `$.function[2].group`", the key first."""
    what, _, where = error.partition(" - at ")
    place = names.place(where.strip("`").removeprefix("$").removeprefix("."))
    what = what.replace("`", "").replace("Object ", "").replace(" | null", "")  # not in TOML
    return f"{place}: {what[0].lower()}{what[1:]}"


class _Resolver:
    """Turns what a file says into a Topology, or into the first fault."""

    def __init__(self, file: FileKeys, names: _Names, directory: Path) -> None:
        self._file = file
        self._names = names
        self._directory = directory
        self._bdfs: list[str] = []
        self._images: dict[str, ConfigImage | None] = {}
        self._dumps: list[lspci.Dump | None] = []

    def topology(self) -> Topology:
        self._check_reserved()
        for i, config in enumerate(self._file.function):
            bdf = self._bdf(i, config)
            self._bdfs.append(bdf)
            dump = self._dump(i, "config", config.config, config.config_bdf or bdf)
            self._dumps.append(dump)
            self._images[bdf] = dump.image if dump else None
        groups = self._group_numbers()
        cdev = 0
        functions = []
        for i, config in enumerate(self._file.function):
            has_cdev = config.driver == VFIO_DRIVER
            functions.append(self._function(i, config, groups[i], cdev if has_cdev else None))
            cdev += has_cdev
        by_group = {
            number: tuple(f for f in functions if f.group == number)
            for number in sorted(set(groups))
        }
        iommu = self._file.iommu
        return Topology(
            source=self._names.source,
            functions=tuple(functions),
            groups=by_group,
            iommu_kind=iommu.kind,
            iommu_options=iommu.options,
            reserved=tuple(Reserved(r.start, r.last, r.type) for r in iommu.reserved),
            test=self._file.iommufd.test,
            mediated=tuple(resolve(self._file.mediated, set(groups), self._names.source)),
        )

    def _fail(self, key: str, expected: str) -> TopologyError:
        return TopologyError(f"{self._names.source}: {key}: {expected}")

    def _fail_at(self, i: int, key: str, expected: str) -> TopologyError:
        return TopologyError(f"{self._names.key(i, key)}: {expected}")

    def _check_reserved(self) -> None:
        for i, reserved in enumerate(self._file.iommu.reserved):
            if not 0 <= reserved.start <= reserved.last < 1 << 64:
                raise self._fail(f"iommu.reserved[{i}]", "expected 0 <= start <= last < 2**64")

    def _bdf(self, i: int, config: FunctionKeys) -> str:
        match = _BDF.fullmatch(config.bdf)
        if not match:
            raise self._fail_at(
                i, "bdf", f"expected domain:bus:device.function in hex, got {config.bdf!r}"
            )
        bdf = f"{match[1] or '0000'}:{match[2]}:{match[3]}.{match[4]}"
        if bdf in self._images:
            raise self._fail_at(i, "bdf", f"{bdf} is there already")
        return bdf

    def _dump(self, i: int, key: str, name: str | None, bdf: str) -> lspci.Dump | None:
        if name is None:
            return None
        path = self._directory / name
        try:
            return lspci.parse(path.read_text("utf-8"), _full(bdf))
        except OSError as error:
            raise self._fail_at(i, key, f"{path}: {error.strerror}") from None
        except ValueError as error:
            raise self._fail_at(i, key, f"{path}: {error}") from None

    def _group_numbers(self) -> list[int]:
        taken = set()
        for i, config in enumerate(self._file.function):
            if config.group is not None:
                if not 0 <= config.group < 1 << 31:
                    raise self._fail_at(i, "group", "expected a number from 0 to 2**31 - 1")
                taken.add(config.group)
        numbers = []
        for config in self._file.function:
            number = config.group
            if number is None:
                number = next(n for n in range(len(taken) + 1) if n not in taken)
                taken.add(number)
            numbers.append(number)
        return numbers

    def _function(self, i: int, config: FunctionKeys, group: int, cdev: int | None) -> Function:
        bdf = self._bdfs[i]
        image = self._images[bdf]
        if image is None and config.model == "inert":
            raise self._fail_at(i, "config", "expected the image of a function without a model")
        if image is not None and image.is_bridge and cdev is not None:
            raise self._fail_at(i, "driver", f"expected another than {VFIO_DRIVER} for a bridge")
        if config.bars and config.model != "inert":
            raise self._fail_at(i, "bars", f"expected none: {config.model} knows its own")
        bars = self._sizes(i, "bars", config.bars, image)
        rom = config.rom
        dump = self._dumps[i]
        if dump and config.model == "inert":
            told = {str(number): size for number, size in dump.bars.items()}
            bars = self._sizes(i, "config", told, image) | bars
            rom = rom or dump.rom
        writable = self._writable(i, config.writable, image)
        self._check_rom(i, rom)
        contents = self._contents(i, config, bars, rom)
        self._check_msix(i, image, bars, config)
        vf_dump = self._dump(i, "vf_config", config.vf_config, config.config_bdf or bdf)
        irq = config.irq
        if irq is None:
            irq = image.interrupt_line if image is not None and image.interrupt_pin else 0
        return Function(
            label=self._names.function(i),
            bdf=bdf,
            model=config.model,
            options=config.options,
            group=group,
            driver=config.driver,
            image=image,
            bars=bars,
            writable=writable,
            vf_bars=self._sizes(i, "vf_bars", config.vf_bars, None),
            vf_image=vf_dump.image if vf_dump else None,
            rom=rom,
            contents={int(key): rows for key, rows in contents.items() if key != ROM},
            rom_contents=contents.get(ROM, {}),
            reset_methods=config.reset_methods,
            hot_reset=self._hot_reset(i, config),
            cdev=cdev,
            parent=self._parent(i),
            irq=irq,
            dma_mask_bits=config.dma_mask_bits,
            vga=config.vga,
        )

    def _sizes(
        self, i: int, key: str, sizes: dict[str, int], image: ConfigImage | None
    ) -> dict[int, int]:
        present = set(image.bars() if image is not None else range(6))
        found = {}
        for name, size in sizes.items():
            if not (name.isascii() and name.isdecimal() and int(name) in present):
                there = ", ".join(map(str, sorted(present)))
                raise self._fail_at(i, f"{key}.{name}", f"expected the number of a BAR: {there}")
            if size < 4 or size & size - 1 or size > 1 << 40:
                raise self._fail_at(i, f"{key}.{name}", "expected a power of two, 4 to 2**40")
            found[int(name)] = size
        return dict(sorted(found.items()))

    def _writable(self, i: int, masks: dict[str, int], image: ConfigImage | None) -> dict[int, int]:
        end = len(image.data) if image is not None else 0
        found = {}
        for name, mask in masks.items():
            try:
                offset = int(name, 0)
            except ValueError:
                offset = -1
            if offset % 4 or not 0 <= offset < end:
                raise self._fail_at(i, f"writable.{name}", "expected the offset of a dword")
            if not 0 <= mask < 1 << 32:
                raise self._fail_at(i, f"writable.{name}", "expected 32 bits")
            found[offset] = mask
        return found

    def _contents(
        self, i: int, config: FunctionKeys, bars: dict[int, int], rom: int
    ) -> dict[str, dict[int, bytes]]:
        sizes = {str(number): size for number, size in bars.items()}
        if rom:
            sizes[ROM] = rom
        found = {}
        for name, file in config.contents.items():
            if name not in sizes:
                there = ", ".join(sizes) or "none"
                raise self._fail_at(i, f"contents.{name}", f"expected one of its regions: {there}")
            path = self._directory / file
            try:
                found[name] = parse_rows(path.read_text("ascii").splitlines(), sizes[name])
            except OSError as error:
                raise self._fail_at(i, f"contents.{name}", f"{path}: {error.strerror}") from None
            except ValueError as error:
                raise self._fail_at(i, f"contents.{name}", f"{path}: {error}") from None
        return found

    def _check_rom(self, i: int, rom: int) -> None:
        if rom and (rom < 2048 or rom & rom - 1 or rom > 1 << 24):
            raise self._fail_at(i, "rom", "expected a power of two, 2048 to 2**24, or 0")

    def _check_msix(
        self, i: int, image: ConfigImage | None, bars: dict[int, int], config: FunctionKeys
    ) -> None:
        if image is None or image.msix is None or config.model != "inert":
            return
        count, (table_bar, table), (pending_bar, pending) = image.msix
        if table + 16 * count > bars.get(table_bar, 0):
            raise self._fail_at(i, f"bars.{table_bar}", "expected room for the MSI-X table")
        if pending + (count + 63) // 64 * 8 > bars.get(pending_bar, 0):
            raise self._fail_at(
                i, f"bars.{pending_bar}", "expected room for the MSI-X pending bits"
            )

    def _parent(self, i: int) -> str | None:
        """The bridge to this function's bus, None on the root bus."""
        bus = _bus(self._bdfs[i])
        if bus == ROOT_BUS:
            return None
        bridges = [
            bdf
            for bdf, image in self._images.items()
            if image is not None and image.is_bridge and image.secondary_bus == bus
        ]
        if len(bridges) != 1 or _bus(bridges[0]) >= bus:
            raise self._fail_at(i, "bdf", f"expected one bridge that leads to bus {bus:02x}")
        return bridges[0]

    def _hot_reset(self, i: int, config: FunctionKeys) -> tuple[str, ...]:
        bdf = self._bdfs[i]
        bus = _bus(bdf)
        scope = config.reset_scope or ("none" if bus == ROOT_BUS else "bus")
        if scope == "none":
            return ()
        if bus == ROOT_BUS:
            raise self._fail_at(i, "reset_scope", "expected none on the root bus")
        slot = bdf[:-1]
        return tuple(
            other
            for other in self._bdfs
            if (other.startswith(slot) if scope == "slot" else self._is_below(other, bus))
        )

    def _is_below(self, bdf: str, bus: int) -> bool:
        """On the bus, or behind bridges on it."""
        while _bus(bdf) != bus:
            parent = self._parent(self._bdfs.index(bdf))
            if parent is None:
                return False
            bdf = parent
        return True


def _bus(bdf: str) -> int:
    return int(bdf[5:7], 16)


def _full(bdf: str) -> str:
    """With the domain."""
    return bdf if bdf.count(":") == 2 else f"0000:{bdf}"
