"""Interrupts of igb: causes, masks, vectors, and what a mapping makes of them."""

import pytest

from iommufs.devices.igb import Igb
from tests.devices import igb_registers as reg
from tests.devices.igb_driver import EOP, IFCS, LOOPBACK, MMIO, PROMISCUOUS, Driver, frame

ALL = 0xFFFFFFFF
MULTIPLE = reg.GPIE_MULTIPLE_MSIX


@pytest.fixture
def driver(host):
    driver = Driver(host, Igb(host, {})).begin(rctl=PROMISCUOUS | LOOPBACK)
    driver.read(reg.ICR)  # the link came up
    return driver


@pytest.fixture
def msix(driver):
    """Receive queue 0 has vector 3, transmit queue 0 vector 1, other causes 2; all enabled."""
    driver.host.msi_on = True
    driver.write(reg.GPIE, MULTIPLE)
    driver.write(reg.IVAR, 0x8183)
    driver.write(reg.IVAR_MISC, 0x8200)
    driver.write(reg.EIMS, 0xE)
    return driver


# -- one line, or one message ----------------------------------------------------------------------


def test_the_line_follows_enabled_causes(driver):
    host = driver.host
    driver.write(reg.ICS, reg.LSC)
    assert not host.intx
    driver.write(reg.IMS, reg.LSC)
    assert host.intx
    assert driver.read(reg.IMS) == reg.LSC
    assert driver.read(reg.ICR) == reg.LSC | reg.INT_ASSERTED
    assert not host.intx
    assert driver.read(reg.ICR) == 0
    driver.write(reg.ICS, reg.LSC)
    driver.write(reg.IMC, reg.LSC)
    assert not host.intx


def test_writing_ones_clears_causes(driver):
    driver.write(reg.IMS, reg.LSC | reg.RXO)
    driver.write(reg.ICS, reg.LSC | reg.RXO)
    driver.write(reg.ICR, reg.LSC)
    assert driver.host.intx
    driver.write(reg.ICR, reg.RXO)
    assert not driver.host.intx


def test_causes_that_interrupt_nobody_stay_while_something_is_enabled(driver):
    driver.write(reg.IMS, reg.RXO)
    driver.write(reg.ICS, reg.LSC)
    assert [driver.read(reg.ICR) for _ in range(2)] == [reg.LSC] * 2
    driver.write(reg.GPIE, reg.GPIE_NSICR)
    assert [driver.read(reg.ICR) for _ in range(2)] == [reg.LSC, 0]


def test_frames_are_causes(driver):
    driver.send(frame())
    assert driver.read(reg.ICR) == reg.RXDW | reg.TXDW


def test_a_change_of_the_link_is_a_cause(make_host):
    hosts = make_host(), make_host()
    driver, other = (Driver(host, Igb(host, {"wire": "lsc"})) for host in hosts)
    driver.write(reg.IMS, reg.LSC)
    driver.write(reg.CTRL, reg.CTRL_SLU)
    assert hosts[0].intx
    driver.read(reg.ICR)
    driver.write(reg.CTRL, reg.CTRL_SLU)
    assert not hosts[0].intx
    for control in (0x1940, 0x1140):  # its PHY powered down, and up
        other.write(reg.MDIC, 1 << 26 | 1 << 21 | control)
        hosts[1].finish()
        assert hosts[0].running  # it was woken
        hosts[0].finish()
        assert hosts[0].intx
        driver.read(reg.ICR)


def test_with_msi_each_assertion_is_a_message(driver):
    driver.host.msi_on = True
    driver.write(reg.IMS, reg.LSC)
    driver.write(reg.ICS, reg.LSC)
    driver.write(reg.ICS, reg.LSC)
    driver.write(reg.ICS, reg.RXO)
    assert driver.host.messages == [0, 0]
    assert not driver.host.intx


def test_reading_masks_automatically_where_asked(driver):
    driver.write(reg.CTRL_EXT, reg.CTRL_EXT_IAME)
    driver.write(reg.IAM, reg.LSC)
    driver.write(reg.IMS, reg.LSC | reg.RXO)
    driver.write(reg.ICS, reg.LSC)
    driver.read(reg.ICR)
    assert driver.read(reg.IMS) == reg.RXO


def test_extended_causes_without_vectors(driver):
    driver.write(reg.IVAR, 0x8180)  # receive: bit 0, transmit: bit 1
    driver.write(reg.EIMS, 1)
    driver.send(frame())
    assert driver.host.intx
    assert driver.read(reg.EICR) == 3
    assert not driver.host.intx
    driver.write(reg.IMS, reg.LSC)
    driver.write(reg.ICS, reg.LSC)
    assert driver.read(reg.EICR) == 1 << 31


# -- vectors ---------------------------------------------------------------------------------------


def test_each_cause_has_its_vector(msix):
    msix.send(frame())
    assert msix.host.messages == [1, 3]
    msix.write(reg.IMS, reg.LSC)
    msix.write(reg.ICS, reg.LSC)
    assert msix.host.messages == [1, 3, 2]
    assert msix.read(reg.EICR) == 0b1110
    assert msix.read(reg.EICR) == 0


@pytest.mark.parametrize("queue", [0, 5, 9, 15])
def test_where_ivar_has_a_queue(host, queue):
    driver = Driver(host, Igb(host, {}), queue=queue)
    driver.write(reg.MRQC, 0)
    driver.begin(rctl=PROMISCUOUS)
    host.msi_on = True
    driver.write(reg.GPIE, MULTIPLE)
    shift = 8 + (16 if queue >= 8 else 0)
    driver.write(reg.IVAR + 4 * (queue & 7), 0x84 << shift)
    driver.write(reg.EIMS, ALL)
    driver.send(frame())
    assert host.messages == [4]


def test_a_vector_that_is_not_enabled_waits(msix):
    msix.write(reg.EIMC, ALL)
    msix.write(reg.EICS, 1 << 3)
    assert msix.host.messages == []
    msix.write(reg.EIMS, 1 << 3)
    assert msix.host.messages == [3]
    msix.write(reg.EICR, 1 << 3)
    msix.write(reg.EIMS, 1 << 3)
    assert msix.host.messages == [3]


def test_a_cause_without_a_valid_entry_has_no_vector(msix):
    msix.write(reg.IVAR, 0x01)
    msix.send(frame())
    assert msix.host.messages == []


def test_automatic_clearing_and_masking(msix):
    msix.write(reg.GPIE, MULTIPLE | reg.GPIE_EIAME)
    msix.write(reg.EIAC, 1 << 3)
    msix.write(reg.EIAM, 1 << 3)
    msix.write(reg.EICS, 0b1010)
    assert msix.host.messages == [1, 3]
    assert msix.read(reg.EIMS) == 0b0110
    assert msix.read(reg.EICR) == 0b0010
    msix.write(reg.EICS, 1 << 3)
    msix.write(reg.EIMS, 1 << 3)
    assert msix.host.messages == [1, 3, 3]


# -- through a mapping -----------------------------------------------------------------------------


def test_what_starts_something_reads_as_zero_afterwards(driver):
    starting = {reg.IMS, reg.IMC, reg.ICS, reg.EIMS, reg.EIMC, reg.EICS}
    starting |= {0x1504, 0x1508, 0x150C}
    for register in starting:
        driver.write(register, 1 << 20)
        assert driver.host.load(MMIO, register, 4) == 0
        driver.store_only((register, 1 << 20))
        assert driver.host.load(MMIO, register, 4) == 0


def test_both_addresses_work(driver):
    driver.store((0x1508, reg.LSC))
    driver.store((0x1504, reg.LSC))
    assert driver.host.intx
    asserted = reg.LSC | reg.INT_ASSERTED
    assert driver.host.load(MMIO, 0x1500, 4) & asserted == asserted
    assert driver.host.load(MMIO, reg.ICR, 4) == driver.host.load(MMIO, 0x1500, 4)


def test_announced_causes_end_with_the_next_store_to_a_mask(driver):
    driver.store((reg.IMS, reg.LSC | reg.RXO))
    driver.store((reg.ICS, reg.LSC))
    assert driver.host.intx
    driver.store((reg.IMC, ALL))
    assert not driver.host.intx
    driver.store((reg.ICS, reg.RXO))  # after what was announced
    driver.store((reg.IMS, reg.LSC | reg.RXO))
    assert driver.host.intx
    assert driver.host.load(MMIO, reg.ICR, 4) == reg.RXO | reg.INT_ASSERTED


def send_and(driver, once_seen):
    """A frame comes; once_seen() is called when the client sees its descriptor first."""

    def look(iova):
        if driver.descriptor(0)[2] & 1:
            driver.host.after_dma = lambda iova: None
            once_seen()

    driver.host.after_dma = look
    driver.send(frame(), flags=EOP | IFCS)
    assert driver.host.after_dma is not look


def test_a_cause_that_is_cleared_when_its_frame_is_seen_does_not_interrupt(msix):
    msix.write(reg.EIMC, ALL)
    send_and(msix, lambda: msix.store_only((reg.EICR, ALL), (reg.EIMS, 1 << 3)))
    assert msix.host.messages == []
    assert msix.read(reg.EICR) == 0


def test_a_cause_that_is_cleared_then_but_not_looked_at_yet_does_not_either(msix):
    msix.write(reg.EIMC, ALL)
    send_and(msix, lambda: [msix.host.store(MMIO, at, 4, ALL) for at in (reg.EICR, reg.EIMS)])
    msix.scan()
    assert msix.host.messages == []
    assert msix.read(reg.EICR) == 0


def test_a_cause_that_is_enabled_while_its_frame_arrives_interrupts_once_it_is_there(msix):
    msix.write(reg.EIMC, ALL)
    msix.write(reg.EIAC, ALL)

    def enable():
        msix.store_only((reg.EIMS, 1 << 3))
        assert msix.host.messages == []

    send_and(msix, enable)
    assert msix.host.messages == [3]


def test_a_store_that_is_older_than_a_cause_does_not_clear_it(msix):
    msix.write(reg.EIMC, ALL)
    msix.host.before_dma = lambda iova: msix.host.store(MMIO, reg.EICR, 4, ALL)  # not seen yet
    msix.write(reg.EICS, 1 << 5)
    msix.send(frame(), flags=EOP | IFCS)
    assert msix.host.load(MMIO, reg.EICR, 4) == 0b1000
    msix.scan()
    assert msix.host.load(MMIO, reg.EICR, 4) == msix.read(reg.EICR) == 0b1000


def test_a_pair_of_mask_stores_seen_together_leaves_the_mask(msix):
    msix.store((reg.EIMC, 1 << 3), (reg.EIMS, 1 << 3))
    assert msix.read(reg.EIMS) == 0xE
    msix.write(reg.EIMC, 1 << 3)
    msix.store((reg.EIMC, 1 << 3), (reg.EIMS, 1 << 3))
    assert msix.read(reg.EIMS) == 0x6


def test_causes_are_cleared_before_they_are_enabled_and_frames_come_last(msix):
    msix.write(reg.EIMC, ALL)
    msix.write(reg.EICS, 1 << 3)
    tail = msix.tx(reg.TAIL)
    msix.store((reg.EICR, ALL), (reg.EIMC, 1 << 3), (reg.EIMS, 1 << 3), (tail, 0))
    assert msix.host.messages == []
    msix.store((reg.EICR, ALL), (reg.EIMS, 1 << 3), (tail, 0))
    assert msix.host.messages == []
    assert msix.read(reg.EIMS) == 1 << 3


@pytest.mark.parametrize(
    ("mask", "cleared", "set", "after"),
    [
        (0b0000, 0b0001, 0b0000, 0b0000),
        (0b0001, 0b0001, 0b0001, 0b0001),
        (0b0000, 0b0001, 0b0001, 0b0000),
        (0b1100, 0b0110, 0b0011, 0b1001),
        (0b0000, ALL, 0b0001, 0b0001),
        (0b1000, ALL, 0b0001, 0b0001),
    ],
)
def test_masks_after_two_stores(driver, mask, cleared, set, after):
    driver.write(reg.IMS, mask)
    driver.store((reg.IMC, cleared), (reg.IMS, set))
    assert driver.read(reg.IMS) == after
