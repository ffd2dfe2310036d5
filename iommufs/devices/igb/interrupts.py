"""Interrupt causes, masks and vectors of an 82576 (datasheet 7.3 and 8.8).

Causes that are not of a queue are in ICR, masked by IMS. Extended causes are in EICR, masked by
EIMS: with multiple MSI-X vectors (GPIE) one bit for each vector, and IVAR says which cause has
which; without, ICR is bit 31 and everything shares one line or message. Each assertion of an
enabled cause sends a message, whether its bit was set before or not. Throttling (EITR) is left out.

The cause of a frame is there before its descriptor is, its message follows. A client that sees the
descriptor and clears the cause so really has cleared it, and is not interrupted.

A client whose mapping loads ICR does not clear it, because nobody notices. So the causes that were
announced by an interrupt are cleared by its next store to a mask: that is what follows the load.
"""

from __future__ import annotations

from collections.abc import Iterable

from iommufs.devices.igb import registers as reg
from iommufs.vfio.model import Host

ALL = 0xFFFFFFFF
_VALID = 0x80  # in a byte of IVAR
_OTHER_BYTE = 1  # of IVAR_MISC

# In the order in which stores that are seen together are taken: what a driver clears it clears
# before it enables anything.
WATCHED = (reg.ICR, reg.EICR, reg.IMC, reg.IMS, reg.EIMC, reg.EIMS, reg.ICS, reg.EICS)
# Words that start something are 0 to loads, so that each store is seen.
CLEARING = frozenset((reg.IMC, reg.IMS, reg.EIMC, reg.EIMS, reg.ICS, reg.EICS))


def together(mask: int, cleared: int, set: int) -> int:
    """A mask after a store that clears bits and one that sets some, in an unknown order.

    Each of the two is taken to have changed something, so what is in both is as before. Clearing
    all is how drivers begin.
    """
    if cleared == ALL:
        return set
    both = cleared & set
    return (mask & ~(cleared & ~both)) | (set & ~both)


class Interrupts:
    def __init__(self, host: Host, registers: reg.Registers) -> None:
        self._host = host
        self._registers = registers
        self._clear()

    def _clear(self) -> None:
        self._icr = self._ims = self._eicr = self._eims = 0
        self._announced = 0
        self._arriving = 0  # bits of EICR whose descriptors the client does not see yet
        self._shown = 0  # what EICR was left as
        self._cleared: list[int] = []  # stores to EICR that have been taken before their event

    def reset(self) -> None:
        self._clear()
        self._host.set_intx(False)

    # -- causes -----------------------------------------------------------------------------------

    @property
    def _multiple(self) -> bool:
        return bool(self._registers.get(reg.GPIE) & reg.GPIE_MULTIPLE_MSIX)

    @property
    def _asserted(self) -> bool:
        return bool(self._icr & self._ims or self._eicr & self._eims)

    def cause(self, bits: int) -> None:
        """Causes of ICR."""
        self._icr |= bits
        if bits & self._ims:
            if self._multiple:
                self._announced |= self._icr & self._ims
                self._extended(self._vector(reg.IVAR_MISC, _OTHER_BYTE))
            else:
                self._interrupt()
        self._publish()

    def queues(self, received: Iterable[int], sent: Iterable[int]) -> None:
        """Descriptors of these queues have been written back."""
        bits = 0
        for queue in sent:
            bits |= self._queue_vector(queue, 1)
        for queue in received:
            bits |= self._queue_vector(queue, 0) & self._eicr  # if nobody has cleared it
        if bits:
            self._extended(bits)
        if not self._multiple:
            self.cause((reg.RXDW if received else 0) | (reg.TXDW if sent else 0))

    def arriving(self, queue: int) -> None:
        """Descriptors of a receive queue will be written back at once."""
        if bits := self._queue_vector(queue, 0):
            self._arriving |= bits
            self._show_eicr(bits)

    def arrived(self, queue: int) -> None:
        """They have been, or not after all; queues() follows if they have."""
        self._arriving &= ~self._queue_vector(queue, 0)

    def _queue_vector(self, queue: int, byte: int) -> int:
        return self._vector(reg.IVAR + 4 * (queue & 7), byte + (queue >> 3) * 2)

    def _vector(self, register: int, byte: int) -> int:
        entry = self._registers.get(register) >> 8 * byte & 0xFF
        return 1 << (entry & 0x1F) if entry & _VALID else 0

    def _extended(self, bits: int) -> None:
        self._show_eicr(bits)
        due = bits & self._eims & ~self._arriving
        if due and self._multiple:
            self._messages(due)
        elif due:
            self._interrupt()
        self._publish()

    def _messages(self, due: int) -> None:
        self._eicr &= ~(due & self._registers.get(reg.EIAC))
        if self._registers.get(reg.GPIE) & reg.GPIE_EIAME:
            self._eims &= ~(due & self._registers.get(reg.EIAM))
        for vector in range(due.bit_length()):
            if due >> vector & 1:
                self._host.msi(vector)

    def _interrupt(self) -> None:
        """The one message, or the line; something that is enabled has been asserted."""
        self._announced |= self._icr & self._ims
        if self._host.msi_enabled():
            self._host.msi(0)
        else:
            self._host.set_intx(True)

    def _publish(self) -> None:
        self._registers.put(reg.ICR, self._icr | (reg.INT_ASSERTED if self._asserted else 0))
        self._show_eicr(0)
        if not self._asserted and not self._multiple:
            self._host.set_intx(False)

    def _eicr_value(self) -> int:
        other = reg.EICR_OTHER if self._icr & self._ims and not self._multiple else 0
        return self._eicr | other

    def _show_eicr(self, new: int) -> None:
        """Set bits, and let loads see the register.

        A store that is found there clears what was there before the new bits; its event, which
        comes later, means nothing any more.
        """
        found = self._registers.put(reg.EICR, self._eicr_value() | new)
        if found != self._shown:
            self._eicr &= ~found
            self._cleared.append(found)
        self._eicr |= new
        self._shown = self._eicr_value()
        if found != self._shown:
            self._registers.put(reg.EICR, self._shown)

    # -- registers --------------------------------------------------------------------------------

    def read(self, register: int) -> int | None:
        """What a pread of a register that is not its word in memory finds; None: it is."""
        if register == reg.ICR:
            return self._read_icr()
        if register == reg.EICR:
            value, self._eicr = self._eicr_value(), 0
            self._publish()
            return value
        if register in (reg.IMS, reg.EIMS):
            return self._ims if register == reg.IMS else self._eims
        return None

    def _read_icr(self) -> int:
        asserted = self._asserted
        value = self._icr | (reg.INT_ASSERTED if asserted else 0)
        if asserted and self._registers.get(reg.CTRL_EXT) & reg.CTRL_EXT_IAME:
            self._ims &= ~self._registers.get(reg.IAM)
        if asserted or not self._ims or self._registers.get(reg.GPIE) & reg.GPIE_NSICR:
            self._icr = 0
        self._publish()
        return value

    def write(self, register: int, value: int) -> None:
        """One of WATCHED."""
        if register == reg.ICR:
            self._icr &= ~value
        elif register == reg.EICR:
            self._eicr &= ~value
        elif register == reg.ICS:
            self.cause(value)
        elif register == reg.EICS:
            self._extended(value)
        elif register in (reg.IMC, reg.IMS):
            self._mask(0 if register == reg.IMS else value, value if register == reg.IMS else 0)
        else:
            self._mask_extended(
                0 if register == reg.EIMS else value, value if register == reg.EIMS else 0
            )
        self._publish()

    def store(self, words: dict[int, int]) -> None:
        """Stores to WATCHED that were seen together, by register."""
        if reg.ICR in words:
            self.write(reg.ICR, words[reg.ICR])
        if reg.EICR in words:
            self._store_eicr(words[reg.EICR])
        if reg.IMC in words or reg.IMS in words:
            self._icr &= ~self._announced
            self._announced = 0
            self._mask(words.get(reg.IMC, 0), words.get(reg.IMS, 0))
        if reg.EIMC in words or reg.EIMS in words:
            self._mask_extended(words.get(reg.EIMC, 0), words.get(reg.EIMS, 0))
        for register in (reg.ICS, reg.EICS):
            if register in words:
                self.write(register, words[register])
        self._publish()

    def _store_eicr(self, value: int) -> None:
        if value in self._cleared:
            self._cleared.remove(value)
        else:
            self._shown = value
            self.write(reg.EICR, value)

    def _mask(self, cleared: int, set: int) -> None:
        self._ims = together(self._ims, cleared, set)
        if pending := self._icr & self._ims & set:
            self.cause(pending)

    def _mask_extended(self, cleared: int, set: int) -> None:
        self._eims = together(self._eims, cleared, set)
        if pending := self._eicr & self._eims & set:
            self._extended(pending)
