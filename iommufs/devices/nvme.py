"""`nvme`: an NVMe 1.4 controller (docs/nvme.md is its datasheet).

What is hot is C: native/nvme.h. Here is what describes the controller to the machine, and the check
of its options.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from iommufs.vfio.model import Bar, Description, Host, NativeModel

VENDOR, DEVICE = 0x1B36, 0x0010
SUBSYSTEM_VENDOR, SUBSYSTEM_DEVICE = 0x1AF4, 0x1100

DOORBELLS = 0x1000  # in BAR 0, which the MSI-X table and its pending bits follow, a page each
MSIX_TABLE = 0x2000
MSIX_PBA = 0x3000
BAR_SIZE = 0x4000

MAX_QUEUES = 255  # whose doorbells, with the admin queue's, fit before the table
MAX_VECTORS = 256
MAX_NAMESPACES = 256
MAX_MDTS = 10
LBA_SIZES = (512, 4096)
DEFAULT_SIZE = 16 << 20

_U32, _U64 = (1 << 32) - 1, (1 << 64) - 1
_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}

_NAMESPACE_KEYS = ("backing", "path", "size", "lba_size", "read_only", "id")
_RULE_NUMBERS = {
    "queue": 0xFFFF,
    "opcode": 0xFF,
    "nsid": _U32,
    "first_lba": _U64,
    "last_lba": _U64,
    "skip": _U64,
    "every": _U64,
    "count": _U64,
    "status": 0x7FF,
    "latency_us": _U32,
}

# Command and status, and interrupt pin A; capabilities: MSI-X, PCIe endpoint with FLR, power.
_CONFIG = {
    0x04: "03011000",
    0x34: "40",
    0x3C: "0001",
    0x40: "1180",
    0x60: "0100030008000000",
    0x80: "106002002080001000000000110400000000110000000000",
    0xA4: "00003000",
}
_MSIX = 0x40

# With the option pri: ATS for whole pages, PRI for as many requests as commands can wait for one.
_PRI_CONFIG = {0x100: "0f0001112000", 0x110: "13000100", 0x116: "0001", 0x118: "20000000"}


class Nvme(NativeModel):
    """An NVMe 1.4 controller."""

    symbol = "nvme"

    options: ClassVar[Mapping[str, str]] = {
        "size": 'bytes of its namespace, or "16M", "1G" (default 16M, of a file all that it has)',
        "path": "the file or block device behind its namespace (default: memory)",
        "backing": '"memory", "file" or "null": reads find zeros, writes are lost',
        "lba_size": "bytes of a block, 512 (default) or 4096",
        "read_only": "its namespace cannot be written",
        "namespaces": "a list of tables with the five keys above and `id`, for several of them",
        "serial": "serial number, at most 20 characters",
        "model": "model number, at most 40 characters",
        "firmware": "firmware revision, at most 8 characters",
        "queues": f"how many pairs of I/O queues there can be, 1 to {MAX_QUEUES} (default 64)",
        "vectors": f"how many MSI-X vectors there are, 1 to {MAX_VECTORS} (default 65)",
        "mdts": f"largest transfer, in powers of two of 4 KiB, 0 to {MAX_MDTS} (default 7)",
        "temperature": "in kelvin (default 323)",
        "pri": "it asks for pages of commands' data that it misses (default false)",
        "inject": "a list of tables: which commands go wrong, and how",
    }

    def __init__(self, host: Host, options: Mapping[str, Any]) -> None:
        self._vectors = _integer(options, "vectors", 65, 1, MAX_VECTORS)
        self._pri = _boolean(options, "pri")
        super().__init__(host, options)

    def describe(self) -> Description:
        config = bytearray(4096)
        for offset, text in (_CONFIG | (_PRI_CONFIG if self._pri else {})).items():
            data = bytes.fromhex(text)
            config[offset : offset + len(data)] = data
        struct.pack_into("<HII", config, _MSIX + 2, self._vectors - 1, MSIX_TABLE, MSIX_PBA)
        return Description(
            vendor=VENDOR,
            device=DEVICE,
            class_code=0x010802,
            revision=0x02,
            subsystem_vendor=SUBSYSTEM_VENDOR,
            subsystem_device=SUBSYSTEM_DEVICE,
            bars={0: Bar(size=BAR_SIZE, mappable=True, bits64=True)},
            intx=True,
            msix_vectors=self._vectors,
            msix_table=(0, MSIX_TABLE),
            msix_pba=(0, MSIX_PBA),
            config=bytes(config),
        )

    def native_options(self, options: Mapping[str, Any]) -> Sequence[str]:
        queues = _integer(options, "queues", 64, 1, MAX_QUEUES)
        return [
            f"serial={_text(options, 'serial', 'iommufs-1', 20)}",
            f"model={_text(options, 'model', 'iommufs NVMe Controller', 40)}",
            f"firmware={_text(options, 'firmware', '1.0', 8)}",
            f"queues={queues}",
            f"vectors={self._vectors}",
            f"mdts={_integer(options, 'mdts', 7, 0, MAX_MDTS)}",
            f"temperature={_integer(options, 'temperature', 323, 0, 0xFFFF)}",
            f"vendor={VENDOR}",
            f"subsystem={SUBSYSTEM_VENDOR}",
            *_namespaces(options),
            *_rules(options.get("inject", [])),
        ]


def _integer(
    table: Mapping[str, Any], key: str, default: int, least: int, most: int, where: str = ""
) -> int:
    value = table.get(key, default)
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{where}{key}: expected a number from {least} to {most}, got {value!r}")
    return value


def _boolean(table: Mapping[str, Any], key: str, where: str = "") -> bool:
    value = table.get(key, False)
    if type(value) is not bool:
        raise ValueError(f"{where}{key}: expected true or false, got {value!r}")
    return value


def _text(options: Mapping[str, Any], key: str, default: str, length: int) -> str:
    value = options.get(key, default)
    if type(value) is int:
        value = str(value)
    printable = isinstance(value, str) and value.isascii() and value.isprintable()
    if not printable or len(value) > length:
        raise ValueError(f"{key}: expected at most {length} characters of ASCII, got {value!r}")
    return value


def _size(value: Any, where: str) -> int:
    """Bytes, as a number or with a unit."""
    size = value
    if isinstance(value, str):
        digits, unit = value.rstrip("KMGT"), value[len(value.rstrip("KMGT")) :]
        if not (digits.isascii() and digits.isdecimal()) or unit not in _UNITS:
            raise ValueError(f'{where}size: expected bytes or "16M", got {value!r}')
        size = int(digits) << _UNITS[unit]
    if type(size) is not int or not 0 < size < 1 << 47:
        raise ValueError(f"{where}size: expected 1 to 2**47 bytes, got {value!r}")
    return size


# -- namespaces -----------------------------------------------------------------------------------


def _namespaces(options: Mapping[str, Any]) -> Sequence[str]:
    given = options.get("namespaces")
    single = {key: options[key] for key in _NAMESPACE_KEYS if key in options}
    if given is None:
        return [_namespace(single, 1, "")]
    if single:
        raise ValueError(f"{next(iter(single))}: expected in namespaces, which is there too")
    if not isinstance(given, list) or len(given) > MAX_NAMESPACES:
        raise ValueError(f"namespaces: expected a list of at most {MAX_NAMESPACES} tables")
    found: dict[int, str] = {}
    for i, table in enumerate(given):
        where = f"namespaces[{i}]."
        if not isinstance(table, dict):
            raise ValueError(f"namespaces[{i}]: expected a table, got {table!r}")
        for key in table:
            if key not in _NAMESPACE_KEYS:
                raise ValueError(f"{where}{key}: there is: {', '.join(_NAMESPACE_KEYS)}")
        nsid = _integer(table, "id", i + 1, 1, MAX_NAMESPACES, where)
        if nsid in found:
            raise ValueError(f"{where}id: {nsid} is there already")
        found[nsid] = _namespace(table, nsid, where)
    return [found[nsid] for nsid in sorted(found)]


def _namespace(table: Mapping[str, Any], nsid: int, where: str) -> str:
    path = table.get("path")
    if path is not None and (not isinstance(path, str) or not path or "\0" in path):
        raise ValueError(f"{where}path: expected the name of a file, got {path!r}")
    backing = table.get("backing", "memory" if path is None else "file")
    if backing not in ("memory", "file", "null") or (backing == "file") != (path is not None):
        raise ValueError(
            f'{where}backing: expected "memory", "null", or "file" with a path, got {backing!r}'
        )
    lba_size = table.get("lba_size", 512)
    if type(lba_size) is not int or lba_size not in LBA_SIZES:
        raise ValueError(f"{where}lba_size: expected 512 or 4096, got {lba_size!r}")
    read_only = _boolean(table, "read_only", where)
    size = 0  # of a file: what it has
    if backing != "file" or "size" in table:
        size = _size(table.get("size", DEFAULT_SIZE), where)
    if size % lba_size:
        raise ValueError(f"{where}size: expected a multiple of {lba_size}, got {size}")
    text = f"namespace={backing},id={nsid},size={size},lba={lba_size},readonly={int(read_only)}"
    return text if path is None else f"{text},path={path}"


# -- errors on order ------------------------------------------------------------------------------


def _rules(given: Any) -> Sequence[str]:
    if not isinstance(given, list):
        raise ValueError(f"inject: expected a list of tables, got {given!r}")
    return [_rule(rule, f"inject[{i}]") for i, rule in enumerate(given)]


def _rule(rule: Any, where: str) -> str:
    keys = ("kind", *_RULE_NUMBERS, "drop")
    if not isinstance(rule, dict):
        raise ValueError(f"{where}: expected a table, got {rule!r}")
    for key in rule:
        if key not in keys:
            raise ValueError(f"{where}.{key}: there is: {', '.join(keys)}")
    kind = rule.get("kind", "io")
    if kind not in ("io", "admin"):
        raise ValueError(f'{where}.kind: expected "io" or "admin", got {kind!r}')
    drop = _boolean(rule, "drop", f"{where}.")
    if not drop and not rule.get("status") and not rule.get("latency_us"):
        raise ValueError(f"{where}: expected status, latency_us or drop")
    words = [kind, f"drop={int(drop)}"]
    for key, most in _RULE_NUMBERS.items():
        if key in rule:
            least = 1 if key in ("every", "count") else 0
            words.append(f"{key}={_integer(rule, key, 0, least, most, f'{where}.')}")
    return f"inject={','.join(words)}"
