"""The PHY and the NVM of an 82576, behind MDIC and EERD.

The PHY is the integrated one, at address 1: the registers of IEEE 802.3 clause 22, and beyond them
plain words, in pages. Its link is up when a cable is plugged, or in loopback; what is negotiated
is always 1000 Mb/s, full duplex.
"""

from __future__ import annotations

from collections.abc import Callable

# MDIC.
DATA, OP_WRITE, OP_READ, READY, ERROR = 0xFFFF, 1 << 26, 1 << 27, 1 << 28, 1 << 30
ADDRESS = 1

CONTROL, MII_STATUS, ID1, ID2, ADVERTISE, PARTNER, EXPANSION = range(7)
GIGABIT_CONTROL, GIGABIT_STATUS, EXTENDED_STATUS = 9, 10, 15
PORT_STATUS, PAGE_SELECT = 17, 31

CONTROL_RESET, CONTROL_LOOPBACK, CONTROL_POWER_DOWN, CONTROL_RESTART = (
    1 << bit for bit in (15, 14, 11, 9)
)

_LINK, _NEGOTIATED = 1 << 2, 1 << 5
_PARTNER_READY = 0x3C00  # both receivers are fine, the partner can do 1000 Mb/s

_READ_ONLY = (
    MII_STATUS,
    ID1,
    ID2,
    PARTNER,
    EXPANSION,
    GIGABIT_STATUS,
    EXTENDED_STATUS,
    PORT_STATUS,
)
_POWER_ON = {
    CONTROL: 0x1140,
    MII_STATUS: 0x7949,
    ID1: 0x02A8,
    ID2: 0x0391,
    ADVERTISE: 0x0DE1,
    GIGABIT_CONTROL: 0x0300,
    EXTENDED_STATUS: 0x3000,
}


class Phy:
    """plugged  tells whether there is a cable with a PHY at its other end that has power."""

    def __init__(self, plugged: Callable[[], bool]) -> None:
        self._plugged = plugged
        self.reset()

    def reset(self) -> None:
        self._words = dict(_POWER_ON)
        self._page = 0

    @property
    def loopback(self) -> bool:
        return bool(self._words[CONTROL] & CONTROL_LOOPBACK)

    @property
    def powered(self) -> bool:
        return not self._words[CONTROL] & CONTROL_POWER_DOWN

    @property
    def linked(self) -> bool:
        """With the other end."""
        return self.powered and self._plugged()

    def access(self, mdic: int) -> int:
        """What is in MDIC after a command was written to it."""
        register, address = mdic >> 16 & 0x1F, mdic >> 21 & 0x1F
        if address != ADDRESS:
            return mdic | READY | ERROR
        if mdic & OP_WRITE:
            self._write(register, mdic & DATA)
        elif mdic & OP_READ:
            mdic = (mdic & ~DATA) | self._read(register)
        return mdic | READY

    def _key(self, register: int) -> int:
        """Registers from 16 on are there once for each page, but for the selector itself."""
        return register if register < 16 or register == PAGE_SELECT else self._page << 5 | register

    def _read(self, register: int) -> int:
        if register == PAGE_SELECT:
            return self._page
        value = self._words.get(self._key(register), 0)
        if not self.linked:
            return value
        if register == MII_STATUS:
            return value | _LINK | _NEGOTIATED
        if register == PARTNER:
            return 0x4DE1  # as we, acknowledged
        if register == EXPANSION:
            return 0x0001  # the partner negotiates
        if register == GIGABIT_STATUS:
            return _PARTNER_READY | 0x4000
        if register == PORT_STATUS:
            return 0xCE00  # 1000 Mb/s, full duplex
        return value

    def _write(self, register: int, value: int) -> None:
        if register == PAGE_SELECT:
            self._page = value
        elif register == CONTROL and value & CONTROL_RESET:
            self.reset()
        elif register == CONTROL:
            self._words[CONTROL] = value & ~CONTROL_RESTART
        elif register not in _READ_ONLY:
            self._words[self._key(register)] = value


NVM_WORDS = 1024
_NVM_CHECKED = 0x40  # words that the checksum covers, itself the last of them
_NVM_SUM = 0xBABA


def nvm(mac: bytes) -> list[int]:
    """The words of an NVM with this MAC address."""
    words = [0] * NVM_WORDS
    words[0:3] = [int.from_bytes(mac[at : at + 2], "little") for at in (0, 2, 4)]
    words[0x08:0x0A] = [0xFFFF, 0xFFFF]  # no part number
    words[0x0B:0x0F] = [0x1AF4, 0x1100, 0x8086, 0x10C9]
    words[0x37] = 0xFFFF  # no second MAC address
    words[_NVM_CHECKED - 1] = _NVM_SUM - sum(words[: _NVM_CHECKED - 1]) & 0xFFFF
    return words
