"""Which frames an 82576 takes in, into which queue, and what it says of them (datasheet 7.1)."""

from __future__ import annotations

import zlib
from bisect import bisect_left

from iommufs.devices.igb import registers as reg
from iommufs.devices.igb.headers import (
    IPV4,
    UDP,
    UNKNOWN,
    VLAN_TYPE,
    Headers,
    ip_checksum_is_right,
    l4_checksum_is_right,
    parse,
    rss,
)
from iommufs.devices.igb.rx import Arrival

_BROADCAST = b"\xff" * 6
_MTA_SHIFTS = (4, 3, 2, 0)  # by RCTL.MO

_SHORTEST, _LONGEST, _FCS, _TAG = 60, 1518, 4, 4
_IP_OFFLOAD, _L4_OFFLOAD, _HASH_NOT_SUM = 1 << 8, 1 << 9, 1 << 13  # of RXCSUM
_RSS = 2  # of MRQC

_VP, _UDPCS, _L4CS, _IPCS = 0x08, 0x10, 0x20, 0x40
_L4E, _IPE = 1 << 29, 1 << 30

_SIZES = (64, 127, 255, 511, 1023)  # the upper bounds of the statistics by size


def size_class(length: int) -> int:
    """Which of the six statistics registers by size counts a frame of so many bytes."""
    return bisect_left(_SIZES, length)


class Filters:
    """The registers that decide, as they are at one moment."""

    def __init__(self, registers: reg.Registers) -> None:
        self._registers = registers
        self._rctl = registers.get(reg.RCTL)
        self._rxcsum = registers.get(reg.RXCSUM)
        self._mrqc = registers.get(reg.MRQC)
        self._strip_tags = registers.get(reg.CTRL) & reg.CTRL_VME
        everything = reg.RCTL_UPE | reg.RCTL_MPE | reg.RCTL_BAM
        self._takes_all = self._rctl & everything == everything
        self._addresses: set[bytes] | None = None
        limit = registers.get(reg.RLPML) if self._rctl & reg.RCTL_LPE else _LONGEST
        self._limit = limit - _FCS
        self._key = b""
        if self._mrqc & 7 == _RSS:
            self._key = b"".join(
                registers.get(reg.RSSRK + at).to_bytes(4, "little") for at in range(0, 40, 4)
            )

    def refusal(self, frame: bytes) -> int | None:
        """The statistics register that counts a frame of a wrong length; 0: not for us."""
        if len(frame) < _SHORTEST:
            return reg.RUC
        tagged = frame[12:14] == VLAN_TYPE
        if len(frame) > self._limit + (_TAG if tagged else 0):
            return reg.ROC
        if not self._takes_all and not self._is_wanted(frame[:6]):
            return 0
        if tagged and self._rctl & reg.RCTL_VFE and not self._has_vlan(frame):
            return 0
        return None

    def _is_wanted(self, to: bytes) -> bool:
        if to == _BROADCAST:
            return bool(self._rctl & (reg.RCTL_BAM | reg.RCTL_MPE))
        if self._rctl & (reg.RCTL_MPE if to[0] & 1 else reg.RCTL_UPE):
            return True
        if self._addresses is None:
            self._addresses = self._read_addresses()
        return to in self._addresses or bool(to[0] & 1 and self._is_in_mta(to))

    def _read_addresses(self) -> set[bytes]:
        found = set()
        for i in range(reg.N_RA):
            at = reg.RA + 8 * i if i < reg.N_RA_LOWER else reg.RA_UPPER + 8 * (i - reg.N_RA_LOWER)
            high = self._registers.get(at + 4)
            if high & reg.RAH_VALID:
                low = self._registers.get(at).to_bytes(4, "little")
                found.add(low + (high & 0xFFFF).to_bytes(2, "little"))
        return found

    def _is_in_mta(self, to: bytes) -> bool:
        shift = _MTA_SHIFTS[self._rctl >> 12 & 3]
        number = (to[4] | to[5] << 8) >> shift & 0xFFF
        return bool(self._registers.get(reg.MTA + 4 * (number >> 5)) >> (number & 31) & 1)

    def _has_vlan(self, frame: bytes) -> bool:
        vlan = int.from_bytes(frame[14:16], "big") & 0xFFF
        return bool(self._registers.get(reg.VFTA + 4 * (vlan >> 5)) >> (vlan & 31) & 1)

    def arrival(self, frame: bytes) -> tuple[int, Arrival]:
        """The queue of a frame, and what is written there."""
        status = vlan = 0
        headers = parse(frame)
        if headers is not UNKNOWN:
            status = self._checksums(frame, headers)
        kind, value = rss(self._mrqc, self._key, frame, headers) if self._key else (0, 0)
        queue = 0
        if kind:
            entry = self._registers.get(reg.RETA + 4 * ((value & 0x7F) >> 2))
            queue = entry >> 8 * (value & 3) & 0xF
        if not self._rxcsum & _HASH_NOT_SUM:
            value = 0  # the sum of a fragment would be there; it is left out
        if self._strip_tags and frame[12:14] == VLAN_TYPE:
            status |= _VP
            vlan = int.from_bytes(frame[14:16], "big")
            frame = frame[:12] + frame[16:]
        if not self._rctl & reg.RCTL_SECRC:
            frame += zlib.crc32(frame).to_bytes(4, "little")
        return queue, Arrival(frame, kind | headers.kind << 4, value, status, vlan)

    def _checksums(self, frame: bytes, headers: Headers) -> int:
        status = 0
        if self._rxcsum & _IP_OFFLOAD and headers.kind & IPV4:
            status |= _IPCS if ip_checksum_is_right(frame, headers) else _IPCS | _IPE
        if self._rxcsum & _L4_OFFLOAD and headers.l4:
            right = l4_checksum_is_right(frame, headers)
            if right is not None:
                status |= _L4CS | (0 if right else _L4E)
                status |= _UDPCS if headers.kind & UDP else 0
        return status
