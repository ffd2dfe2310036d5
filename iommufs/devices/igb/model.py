"""`igb`: Intel's 82576 Gigabit Ethernet controller, 8086:10c9 (docs/igb.md is its datasheet).

One port: this room has its life and what its registers do; the others are named after what they
know. Registers without side effects are only memory.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from iommufs.devices.igb import identity, interrupts, phy
from iommufs.devices.igb import registers as reg
from iommufs.devices.igb.engine import Engine
from iommufs.devices.igb.identity import FLASH, MMIO, PORTS
from iommufs.devices.igb.wire import Pcap
from iommufs.vfio.model import Description, Host, Model

_DEFAULT_MAC = bytes.fromhex("525400823576")
_RCTL_LOOPBACK = 3 << 6
_EECD_WRITABLE = 0x4F

# Of each queue: what the client changes to start and stop it.
_RX_REGISTERS = {reg.rx(q, r): q for r in (reg.DCTL, reg.TAIL) for q in range(reg.N_QUEUES)}
_TX_REGISTERS = {reg.tx(q, r): q for r in (reg.DCTL, reg.TAIL) for q in range(reg.N_QUEUES)}

# In the order in which stores that are seen together are taken: what starts something comes last.
WATCHED = (
    reg.CTRL,
    reg.STATUS,
    reg.EECD,
    reg.EERD,
    reg.MDIC,
    *interrupts.WATCHED,
    *(alias for alias, first in reg.ALIASES.items() if first in interrupts.WATCHED),
    reg.RCTL,
    reg.TCTL,
    *_RX_REGISTERS,
    *_TX_REGISTERS,
)


def _mac(options: Mapping[str, Any], number: int) -> bytes:
    text = options.get("mac")
    if text is None:
        return _DEFAULT_MAC[:5] + bytes([_DEFAULT_MAC[5] + number & 0xFF])
    if not isinstance(text, str) or not re.fullmatch("([0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}", text):
        raise ValueError(f"mac must be like 52:54:00:82:35:76, not {text!r}")
    mac = bytes.fromhex(text.replace(":", ""))
    if mac[0] & 1:
        raise ValueError(f"mac must not be a multicast address, as {text} is")
    return mac


def _string(options: Mapping[str, Any], name: str) -> str | None:
    value = options.get(name)
    if value is not None and (not isinstance(value, str) or not value):
        raise ValueError(f"{name} must be a string, not {value!r}")
    return value


class Igb(Model):
    """Intel 82576 Gigabit Ethernet controller, 8086:10c9 (docs/igb.md)."""

    options: ClassVar[Mapping[str, str]] = {
        "wire": "functions with the same name here hear each other; without, nothing is plugged",
        "mac": "the MAC address in its NVM (default 52:54:00:82:35:76, + 1 for each on the wire)",
        "pcap_out": "file that records the frames it sends, in libpcap's format",
    }

    def __init__(self, host: Host, options: Mapping[str, Any]) -> None:
        super().__init__(host, options)
        wire = _string(options, "wire")
        self._pcap_path = _string(options, "pcap_out")
        self._registers = reg.Registers(host)
        self._interrupts = interrupts.Interrupts(host, self._registers)
        self._engine = Engine(
            host, self._registers, self._interrupts, wire, link_changed=self._update_link
        )
        self._phy = phy.Phy(lambda: self._engine.wire.plugged)
        self._nvm = phy.nvm(_mac(options, self._engine.wire.index))
        self._recorded = False
        self._status = 0
        self._port = 0  # what IOADDR holds
        self._writers: dict[int, Callable[[int], None]] = {
            reg.CTRL: self._write_ctrl,
            reg.STATUS: self._write_status,
            reg.EECD: self._write_eecd,
            reg.EERD: self._write_eerd,
            reg.MDIC: self._write_mdic,
            reg.RCTL: self._write_rctl,
            reg.TCTL: self._write_tctl,
        }

    def describe(self) -> Description:
        return identity.describe()

    # -- life -------------------------------------------------------------------------------------

    def open(self) -> None:
        self._open_record()
        self.reset()
        for register in WATCHED:
            clears = reg.canonical(register) in interrupts.CLEARING
            self.host.watch(MMIO, register, 4, clears=clears)

    def close(self) -> None:
        self._engine.stop()
        if self._engine.pcap is not None:
            self._engine.pcap.close()
            self._engine.pcap = None

    def _open_record(self) -> None:
        """One file for all clients."""
        if self._pcap_path is not None:
            try:
                self._engine.pcap = Pcap(self._pcap_path, new=not self._recorded)
                self._recorded = True
            except OSError as error:
                self.host.report("cannot record", path=self._pcap_path, error=error.strerror)

    def reset(self) -> None:
        self._phy.reset()
        self._restart()

    def _restart(self) -> None:
        """What CTRL.RST does: everything but the PHY."""
        self._engine.stop()
        self._registers.reset()
        self._interrupts.reset()
        low, middle, high = self._nvm[:3]
        self._registers.put(reg.RA, low | middle << 16)
        self._registers.put(reg.RA + 4, high | reg.RAH_VALID)
        self._status = self._registers.get(reg.STATUS)
        self._update_link()

    # -- registers --------------------------------------------------------------------------------

    def read(self, region: int, offset: int, size: int) -> int:
        if region == MMIO:
            first = offset & ~3
            value = self._read_word(first)
            if size == 8:
                value |= self._read_word(first + 4) << 32
            return value >> 8 * (offset - first) & (1 << 8 * size) - 1
        if region == PORTS:
            return self._read_port(offset) if size == 4 else 0
        if region == FLASH:
            return 0
        return int.from_bytes(self.host.bar(region)[offset : offset + size], "little")

    def write(self, region: int, offset: int, size: int, value: int) -> None:
        if region == PORTS:
            self._write_port(offset, value)
        if region != MMIO:
            return
        if size == 8:
            self._write_word(offset, value & 0xFFFFFFFF)
            self._write_word(offset + 4, value >> 32)
        elif size == 4:
            self._write_word(offset, value)
        else:  # the other bytes stay
            first = offset & ~3
            word = bytearray(self._registers.get(first).to_bytes(4, "little"))
            word[offset - first : offset - first + size] = value.to_bytes(size, "little")
            self._write_word(first, int.from_bytes(word, "little"))

    def stores(self, region: int, stores: Sequence[tuple[int, int, int]]) -> None:
        together: dict[int, int] = {}
        for offset, _, value in stores:
            register = reg.canonical(offset)
            if register in interrupts.WATCHED:
                together[register] = together.get(register, 0) | value
        for offset, _, value in stores:
            register = reg.canonical(offset)
            if register not in interrupts.WATCHED:
                if together and register >= reg.RCTL:
                    self._interrupts.store(together)
                    together = {}
                self._write_word(register, value)
        if together:
            self._interrupts.store(together)

    def _read_port(self, offset: int) -> int:
        """IOADDR at 0 names a register, IODATA at 4 is that register."""
        if offset == 4:
            return self._read_word(self._port) if self._port < reg.BAR_SIZE else 0
        return self._port if offset == 0 else 0

    def _write_port(self, offset: int, value: int) -> None:
        if offset == 0:
            self._port = value & ~3
        elif offset == 4 and self._port < reg.BAR_SIZE:
            self._write_word(self._port, value)

    def _read_word(self, offset: int) -> int:
        register = reg.canonical(offset)
        value = self._interrupts.read(register)
        if value is None:
            value = self._registers.get(register)
            if register in reg.STATISTICS and value:
                self._registers.put(register, 0)
        return value

    def _write_word(self, offset: int, value: int) -> None:
        register = reg.canonical(offset)
        if register in interrupts.WATCHED:
            self._interrupts.write(register, value)
        elif register in reg.STATISTICS:
            pass
        elif writer := self._writers.get(register):
            writer(value)
        else:
            self._registers.put(register, value)
            if register in _RX_REGISTERS:
                self._engine.rx_changed(_RX_REGISTERS[register])
            elif register in _TX_REGISTERS:
                self._engine.tx_changed(_TX_REGISTERS[register])

    # -- what writing does ------------------------------------------------------------------------

    def _write_ctrl(self, value: int) -> None:
        if value & reg.CTRL_RST:
            self._restart()
            return
        if value & reg.CTRL_PHY_RST:
            self._phy.reset()
        self._registers.put(reg.CTRL, value)
        if value & reg.CTRL_MASTER_DISABLE:
            self._status &= ~reg.STATUS_MASTER
        else:
            self._status |= reg.STATUS_MASTER
        self._update_link()

    def _write_status(self, value: int) -> None:
        """Read only: what a mapping stored there is undone."""
        self._registers.put(reg.STATUS, self._status)

    def _write_eecd(self, value: int) -> None:
        fixed = reg.EECD_PRESENT | reg.EECD_AUTO_RD | reg.EECD_SIZE | reg.EECD_GRANT
        self._registers.put(reg.EECD, (value & _EECD_WRITABLE) | fixed)

    def _write_eerd(self, value: int) -> None:
        if value & reg.EERD_START:
            address = value >> 2 & 0x3FFF
            word = self._nvm[address] if address < len(self._nvm) else 0xFFFF
            value = word << 16 | address << 2 | reg.EERD_DONE
        self._registers.put(reg.EERD, value)

    def _write_mdic(self, value: int) -> None:
        self._registers.put(reg.MDIC, self._phy.access(value))
        self._update_link()

    def _write_rctl(self, value: int) -> None:
        self._registers.put(reg.RCTL, value)
        self._update_link()

    def _write_tctl(self, value: int) -> None:
        self._registers.put(reg.TCTL, value)
        self._engine.tx_all_changed()

    def _update_link(self) -> None:
        """The link is up if the client wants one and there is an other end, or a loopback."""
        self._engine.wire.power(self._phy.powered)
        looped = self._phy.loopback or bool(self._registers.get(reg.RCTL) & _RCTL_LOOPBACK)
        self._engine.looped = looped
        wanted = self._registers.get(reg.CTRL) & reg.CTRL_SLU
        was = self._status
        self._status &= ~reg.STATUS_LU
        if wanted and (looped or self._phy.linked):
            self._status |= reg.STATUS_LU
        self._registers.put(reg.STATUS, self._status)
        if (was ^ self._status) & reg.STATUS_LU:
            self._interrupts.cause(reg.LSC)
