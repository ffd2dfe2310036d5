"""The registers of the 82576: where they are, their bits, what they are after a reset.

Names and numbers are those of Intel's 82576EB datasheet, chapter 8. They live in the memory of
BAR 0, which clients map: a register without side effects is nothing but its word there.

Not here: what reading and writing them does (the other rooms).
"""

from __future__ import annotations

from collections.abc import Iterator

from iommufs.vfio.model import Host

BAR_SIZE = 0x20000
N_QUEUES = 16  # of each direction

CTRL, STATUS, EECD, EERD, CTRL_EXT, MDIC = 0x00, 0x08, 0x10, 0x14, 0x18, 0x20
VET = 0x38
RCTL, TCTL = 0x100, 0x400
EEMNGCTL = 0x1010
ICR, ICS, IMS, IMC, IAM = 0xC0, 0xC8, 0xD0, 0xD8, 0xE0
GPIE, EICS, EIMS, EIMC, EIAC, EIAM, EICR = 0x1514, 0x1520, 0x1524, 0x1528, 0x152C, 0x1530, 0x1580
IVAR, IVAR_MISC = 0x1700, 0x1740
RXPBS, TXPBS = 0x2404, 0x3404
RXCSUM, RLPML, RFCTL = 0x5000, 0x5004, 0x5008
MTA, RA, RA_UPPER, VFTA = 0x5200, 0x5400, 0x54E0, 0x5600
MRQC, RETA, RSSRK = 0x5818, 0x5C00, 0x5C80
N_RA, N_RA_LOWER = 24, 16
RAH_VALID = 1 << 31

# Registers with two addresses. Loads of a mapping find them at both, pread and pwrite too.
ALIASES = {0x1500: ICR, 0x1504: ICS, 0x1508: IMS, 0x150C: IMC, 0x1510: IAM}

CTRL_FD, CTRL_MASTER_DISABLE = 1 << 0, 1 << 2
CTRL_SLU, CTRL_RST, CTRL_VME, CTRL_PHY_RST = 1 << 6, 1 << 26, 1 << 30, 1 << 31
CTRL_EXT_IAME = 1 << 27

STATUS_FD, STATUS_LU, STATUS_SPEED_1000 = 1 << 0, 1 << 1, 2 << 6
STATUS_PHYRA, STATUS_MASTER = 1 << 10, 1 << 19
STATUS_RESET_DONE, STATUS_CLOCK_OK = 1 << 21, 1 << 31

EECD_GRANT, EECD_PRESENT, EECD_AUTO_RD, EECD_SIZE = 1 << 7, 1 << 8, 1 << 9, 4 << 11
EERD_START, EERD_DONE = 1 << 0, 1 << 1

RCTL_EN, RCTL_SBP, RCTL_UPE, RCTL_MPE, RCTL_LPE = (1 << bit for bit in (1, 2, 3, 4, 5))
RCTL_BAM, RCTL_VFE, RCTL_SECRC = 1 << 15, 1 << 18, 1 << 26
TCTL_EN, TCTL_PSP = 1 << 1, 1 << 3

QUEUE_ENABLE = 1 << 25  # of RXDCTL and TXDCTL

GPIE_NSICR, GPIE_MULTIPLE_MSIX, GPIE_EIAME = 1 << 0, 1 << 4, 1 << 30

# Interrupt causes.
TXDW, LSC, RXDMT0, RXO, RXDW, INT_ASSERTED = 1 << 0, 1 << 2, 1 << 4, 1 << 6, 1 << 7, 1 << 31
EICR_OTHER = 1 << 31  # in EICR, without MSI-X

# Statistics.
CRCERRS, MPC, RLEC = 0x4000, 0x4010, 0x4040
PRC64, PTC64 = 0x405C, 0x40D8  # and five more each: 127, 255, 511, 1023, 1522
GPRC, BPRC, MPRC, GPTC = 0x4074, 0x4078, 0x407C, 0x4080
GORC, GOTC = 0x4088, 0x4090  # 64 bits
RNBC, RUC, ROC = 0x40A0, 0x40A4, 0x40AC
TOR, TOT = 0x40C0, 0x40C8  # 64 bits
TPR, TPT, MPTC, BPTC, TSCTC = 0x40D0, 0x40D4, 0x40F0, 0x40F4, 0x40F8
STATISTICS = range(0x4000, 0x4140, 4)


def rx(queue: int, register: int) -> int:
    """Address of a receive register: its offset in the block of queue 0 … 15."""
    return register + (0x2800 + 0x100 * queue if queue < 4 else 0xC000 + 0x40 * queue)


def tx(queue: int, register: int) -> int:
    """Address of a transmit register, likewise."""
    return register + (0x3800 + 0x100 * queue if queue < 4 else 0xE000 + 0x40 * queue)


# In a queue's block.
BAL, BAH, LEN, SRRCTL, HEAD, TAIL, DCTL, DROPPED, WBAL, WBAH = (
    0x00, 0x04, 0x08, 0x0C, 0x10, 0x18, 0x28, 0x30, 0x38, 0x3C,
)  # fmt: skip


def _queue_alias(offset: int) -> int:
    """Queues 0 to 3 have two addresses; this is the lower one."""
    for start, lower in ((0xC000, 0x2800), (0xE000, 0x3800)):
        if start <= offset < start + 4 * 0x40:
            queue, register = divmod(offset - start, 0x40)
            return lower + 0x100 * queue + register
    return offset


def canonical(offset: int) -> int:
    """The first address of the register at an offset."""
    return ALIASES.get(offset, _queue_alias(offset))


ALIASES_OF = {
    canonical(offset): offset
    for offset in (*ALIASES, *range(0xC000, 0xC100, 4), *range(0xE000, 0xE100, 4))
}


def _after_reset() -> Iterator[tuple[int, int]]:
    """(offset, value) of the registers that are not 0 then, without the MAC address."""
    yield CTRL, 0x00100201  # full duplex, 1000 Mb/s
    yield STATUS, (
        STATUS_FD | STATUS_SPEED_1000 | STATUS_PHYRA | STATUS_MASTER
        | STATUS_RESET_DONE | STATUS_CLOCK_OK
    )  # fmt: skip
    yield EECD, EECD_GRANT | EECD_PRESENT | EECD_AUTO_RD | EECD_SIZE
    yield VET, 0x81008100
    yield TCTL, 0xA40400F8
    yield 0x404, 0x00010840  # TCTL_EXT
    yield 0x410, 0x00601008  # TIPG
    yield 0xE00, 0x07068302  # LEDCTL
    yield EEMNGCTL, 0x000C0000  # configuration of both ports is done
    yield RXPBS, 0x40
    yield TXPBS, 0x28
    yield RXCSUM, 0x300
    yield RLPML, 0x2600
    for queue in range(N_QUEUES):
        enable = QUEUE_ENABLE if queue == 0 else 0
        yield rx(queue, DCTL), enable | 0x10000
        yield tx(queue, DCTL), enable


def _reset_image() -> bytes:
    words = memoryview(bytearray(BAR_SIZE)).cast("I")
    for offset, value in _after_reset():
        words[offset // 4] = value
        words[ALIASES_OF.get(offset, offset) // 4] = value
    return bytes(words)


_RESET_IMAGE = _reset_image()
_PAGE = 4096


class Registers:
    """BAR 0 as 32-bit registers."""

    def __init__(self, host: Host) -> None:
        self._host = host

    @property
    def _memory(self) -> memoryview:
        return self._host.bar(0)

    def get(self, offset: int) -> int:
        return int.from_bytes(self._memory[offset : offset + 4], "little")

    def put(self, offset: int, value: int) -> int:
        """At both addresses of the register; not a client's store. What was at the first."""
        before = self._host.store(0, offset, 4, value)
        alias = ALIASES_OF.get(offset)
        if alias is not None:
            self._host.store(0, alias, 4, value)
        return before

    def change(self, offset: int, clear: int, set: int) -> None:
        self.put(offset, (self.get(offset) & ~clear) | set)

    def get64(self, low: int) -> int:
        return self.get(low) | self.get(low + 4) << 32

    def descriptor(self, low: int, index: int) -> int:
        """The IOVA of a descriptor of the ring whose base is in two registers."""
        return (self.get64(low) & ~0x7F) + 16 * index & (1 << 64) - 1

    def count(self, offset: int, n: int = 1) -> None:
        """Add to a statistics register; it stays at its maximum."""
        if n:
            self.put(offset, min(self.get(offset) + n, 0xFFFFFFFF))

    def count64(self, low: int, n: int) -> None:
        value = min(self.get64(low) + n, (1 << 64) - 1)
        self.put(low, value & 0xFFFFFFFF)
        self.put(low + 4, value >> 32)

    def reset(self) -> None:
        """All of them, to what they are without the MAC address from the NVM."""
        for page in range(0, BAR_SIZE, _PAGE):
            wanted = _RESET_IMAGE[page : page + _PAGE]
            now = bytes(self._memory[page : page + _PAGE])
            if now == wanted:
                continue
            for at in range(0, _PAGE, 4):
                if now[at : at + 4] != wanted[at : at + 4]:
                    value = int.from_bytes(wanted[at : at + 4], "little")
                    self._host.store(0, page + at, 4, value)
