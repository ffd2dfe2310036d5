"""What an 82576 does to a frame on its way out: checksums, segmentation, the VLAN tag."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from iommufs.devices.igb.headers import ones_sum

UDP, TCP = 0, 1  # L4T of a context; 2, SCTP, has no checksum here

_TCP_FIN_PSH, _TCP_ALL = 0x09, 0xFF
_SMALLEST_MSS = 64


class Context(NamedTuple):
    """An advanced context descriptor: lengths in bytes."""

    vlan: int = 0
    mac_length: int = 0
    ip_length: int = 0
    is_v4: bool = False
    l4: int = UDP
    l4_length: int = 0
    mss: int = 0


def context(low: int, type_: int, lengths: int) -> Context:
    """From its dwords 0, 2 and 3."""
    return Context(
        vlan=low >> 16,
        mac_length=low >> 9 & 0x7F,
        ip_length=low & 0x1FF,
        is_v4=bool(type_ & 0x400),
        l4=type_ >> 11 & 3,
        l4_length=lengths >> 8 & 0xFF,
        mss=lengths >> 16,
    )


def _put(frame: bytearray, at: int, value: int) -> None:
    frame[at : at + 2] = (value & 0xFFFF).to_bytes(2, "big")


def _complement(total: int) -> int:
    """What makes a sum right."""
    return 0xFFFF - (total % 0xFFFF or 0xFFFF)


def insert_ip_checksum(frame: bytearray, at: int, length: int) -> None:
    """If there is room for it."""
    if at + 12 <= len(frame):
        _put(frame, at + 10, 0)
        _put(frame, at + 10, _complement(ones_sum(bytes(frame[at : at + length]))))


def insert_l4_checksum(frame: bytearray, at: int, l4: int, extra: int = 0) -> None:
    """The field holds the sum of the pseudo header, all of it or less `extra`."""
    field = at + (16 if l4 == TCP else 6)
    if l4 not in (UDP, TCP) or field + 2 > len(frame):
        return
    value = _complement(ones_sum(bytes(frame[at:])) + extra)
    _put(frame, field, value or (0xFFFF if l4 == UDP else 0))


def insert_sum(frame: bytearray, start: int, at: int) -> None:
    """A legacy descriptor's checksum, of all from `start` on."""
    if start < len(frame) and at + 2 <= len(frame):
        _put(frame, at, _complement(ones_sum(bytes(frame[start:]))))


def insert_checksums(frame: bytes, ctx: Context, ip: bool, l4: bool) -> bytes:
    out = bytearray(frame)
    if ip and ctx.is_v4:
        insert_ip_checksum(out, ctx.mac_length, ctx.ip_length)
    if l4:
        insert_l4_checksum(out, ctx.mac_length + ctx.ip_length, ctx.l4)
    return bytes(out)


def segments(frame: bytes, ctx: Context, ip: bool, l4: bool) -> Iterator[bytes]:
    """Frames of at most `mss` bytes of payload each, with headers made from the one given.

    None at all if the context cannot be right.
    """
    ip_at, l4_at = ctx.mac_length, ctx.mac_length + ctx.ip_length
    start = l4_at + ctx.l4_length
    smallest = 18 if ctx.l4 == TCP else 8
    fits = ip_at >= 12 and ctx.ip_length >= 20 and ctx.l4_length >= smallest and start <= len(frame)
    if not fits or ctx.mss < _SMALLEST_MSS or ctx.l4 not in (UDP, TCP):
        return
    for number, at in enumerate(range(start, len(frame), ctx.mss)):
        payload = frame[at : at + ctx.mss]
        out = bytearray(frame[:start])
        length = ctx.l4_length + len(payload)
        if ctx.is_v4:
            _put(out, ip_at + 2, ctx.ip_length + length)
            ident = int.from_bytes(out[ip_at + 4 : ip_at + 6], "big")
            _put(out, ip_at + 4, ident + number)
            if ip:
                insert_ip_checksum(out, ip_at, ctx.ip_length)
        else:
            _put(out, ip_at + 4, ctx.ip_length - 40 + length)
        if ctx.l4 == TCP:
            sequence = int.from_bytes(out[l4_at + 4 : l4_at + 8], "big") + number * ctx.mss
            out[l4_at + 4 : l4_at + 8] = (sequence & 0xFFFFFFFF).to_bytes(4, "big")
            is_last = at + ctx.mss >= len(frame)
            out[l4_at + 13] &= _TCP_ALL if is_last else ~_TCP_FIN_PSH & _TCP_ALL
        else:
            _put(out, l4_at + 4, length)
        out += payload
        if l4:
            insert_l4_checksum(out, l4_at, ctx.l4, extra=length)
        yield bytes(out)


def insert_vlan(frame: bytes, ethertype: int, tag: int) -> bytes:
    return frame[:12] + ethertype.to_bytes(2, "big") + tag.to_bytes(2, "big") + frame[12:]
