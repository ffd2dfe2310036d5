"""Headers of a frame, as far as an 82576 looks at them: types, checksums, the hash of RSS."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

# Packet types, as in a receive descriptor.
IPV4, IPV4_OPTIONS, IPV6, IPV6_EXTENSIONS = 0x01, 0x02, 0x04, 0x08
TCP, UDP, SCTP = 0x10, 0x20, 0x40

VLAN_TYPE, IPV4_TYPE, IPV6_TYPE = b"\x81\x00", b"\x08\x00", b"\x86\xdd"
_L4_TYPES = {6: TCP, 17: UDP, 132: SCTP}
_V6_EXTENSIONS = (0, 43, 60)  # hop by hop, routing, destination options


def ones_sum(data: bytes) -> int:
    """The one's complement sum of 16-bit words, big endian; 0 stands for 0xffff too."""
    if len(data) & 1:
        data += b"\0"
    # Adding with the carry wrapped around is arithmetic modulo 2^16 - 1.
    return int.from_bytes(data, "big") % 0xFFFF


class Headers(NamedTuple):
    """kind is 0 where nothing is known; l3, l4, end are offsets in the frame, l4 0: there is none.

    addresses  source and destination of IP, one after the other
    """

    kind: int = 0
    l3: int = 0
    l4: int = 0
    end: int = 0
    protocol: int = 0
    addresses: bytes = b""


UNKNOWN = Headers()


def parse(frame: bytes) -> Headers:
    """Frames that are cut short count as far as they go."""
    at, kind = 14, frame[12:14]
    if kind == VLAN_TYPE:
        at, kind = 18, frame[16:18]
    if kind == IPV4_TYPE:
        return _parse_v4(frame, at)
    if kind == IPV6_TYPE:
        return _parse_v6(frame, at)
    return UNKNOWN


def _parse_v4(frame: bytes, at: int) -> Headers:
    if len(frame) < at + 20 or frame[at] >> 4 != 4:
        return UNKNOWN
    length = (frame[at] & 15) * 4
    l4, end = at + length, at + int.from_bytes(frame[at + 2 : at + 4], "big")
    if length < 20 or not l4 <= end <= len(frame):
        return UNKNOWN
    kind = IPV4 | (IPV4_OPTIONS if length > 20 else 0)
    addresses = frame[at + 12 : at + 20]
    if int.from_bytes(frame[at + 6 : at + 8], "big") & 0x3FFF:  # a fragment
        return Headers(kind, at, 0, end, 0, addresses)
    return _with_l4(kind, at, l4, end, frame[at + 9], addresses)


def _parse_v6(frame: bytes, at: int) -> Headers:
    if len(frame) < at + 40 or frame[at] >> 4 != 6:
        return UNKNOWN
    protocol, l4 = frame[at + 6], at + 40
    end = l4 + int.from_bytes(frame[at + 4 : at + 6], "big")
    if end > len(frame):
        return UNKNOWN
    kind, addresses = IPV6, frame[at + 8 : at + 40]
    while protocol in _V6_EXTENSIONS and l4 + 8 <= end:
        kind |= IPV6_EXTENSIONS
        protocol, l4 = frame[l4], l4 + 8 * (frame[l4 + 1] + 1)
    if l4 > end:
        return Headers(kind, at, 0, end, 0, addresses)
    return _with_l4(kind, at, l4, end, protocol, addresses)


def _with_l4(kind: int, l3: int, l4: int, end: int, protocol: int, addresses: bytes) -> Headers:
    smallest = 20 if protocol == 6 else 8
    if protocol not in _L4_TYPES or end - l4 < smallest:
        return Headers(kind, l3, 0, end, 0, addresses)
    return Headers(kind | _L4_TYPES[protocol], l3, l4, end, protocol, addresses)


def ip_checksum_is_right(frame: bytes, headers: Headers) -> bool:
    length = (frame[headers.l3] & 15) * 4
    return ones_sum(frame[headers.l3 : headers.l3 + length]) == 0


def l4_checksum_is_right(frame: bytes, headers: Headers) -> bool | None:
    """Of TCP and UDP; None: there is none."""
    if not headers.kind & (TCP | UDP):
        return None
    if headers.kind & UDP and frame[headers.l4 + 6 : headers.l4 + 8] == b"\0\0":
        return None
    length = headers.end - headers.l4
    total = ones_sum(headers.addresses) + headers.protocol + length
    return (total + ones_sum(frame[headers.l4 : headers.end])) % 0xFFFF == 0


@lru_cache(maxsize=8)
def _windows(key: bytes) -> tuple[int, ...]:
    """The 32 bits of a key that begin at each bit of the input."""
    number = int.from_bytes(key, "big")
    bits = 8 * len(key)
    return tuple(number >> (bits - 32 - i) & 0xFFFFFFFF for i in range(bits - 31))


def toeplitz(key: bytes, data: bytes) -> int:
    """The hash of RSS; data of at most 36 bytes under a key of 40."""
    windows = _windows(key)
    number, result = int.from_bytes(data, "big"), 0
    last = 8 * len(data) - 1
    while number:
        low = number & -number
        result ^= windows[last - low.bit_length() + 1]
        number ^= low
    return result


# MRQC's enabling bits, and the RSS types of a descriptor.
_RSS_V4 = ((1 << 16, TCP, 1), (1 << 22, UDP, 7), (1 << 17, 0, 2))
_RSS_V6 = ((1 << 21 | 1 << 18, TCP, 3), (1 << 23, UDP, 8), (1 << 20 | 1 << 19, 0, 5))


def rss(mrqc: int, key: bytes, frame: bytes, headers: Headers) -> tuple[int, int]:
    """(type, hash) of a frame; (0, 0): it has none."""
    if not headers.kind & (IPV4 | IPV6):
        return 0, 0
    for enabled, kind, number in _RSS_V4 if headers.kind & IPV4 else _RSS_V6:
        if mrqc & enabled and (not kind or headers.kind & kind):
            ports = frame[headers.l4 : headers.l4 + 4] if kind else b""
            return number, toeplitz(key, headers.addresses + ports)
    return 0, 0
