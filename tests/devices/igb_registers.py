"""The registers of the 82576 as a driver knows them, by Intel's 82576EB datasheet. Not a test."""

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
