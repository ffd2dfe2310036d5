"""Registers of igb as its datasheet (docs/igb.md) has them."""

import pytest

from iommufs.devices.igb import Igb
from tests.devices import igb_registers as reg
from tests.devices.igb_driver import MMIO, PROMISCUOUS, Driver

READY, ERROR = 1 << 28, 1 << 30


@pytest.fixture
def driver(host):
    return Driver(host, Igb(host, {}))


@pytest.fixture
def other(make_host, request):
    """The other end of a wire."""
    host = make_host()
    return Driver(host, Igb(host, {"wire": request.node.name}))


@pytest.fixture
def plugged(host, other, request):
    return Driver(host, Igb(host, {"wire": request.node.name}))


def nvm(driver, word):
    driver.write(reg.EERD, word << 2 | 1)
    value = driver.read(reg.EERD)
    assert value & 2
    return value >> 16


def phy(driver, register, value=None):
    command = 1 << 27 if value is None else 1 << 26 | value
    driver.write(reg.MDIC, command | register << 16 | 1 << 21)
    answer = driver.read(reg.MDIC)
    assert answer & (READY | ERROR) == READY
    return answer & 0xFFFF


def test_the_identity(driver):
    description = driver.model.describe()
    assert (description.vendor, description.device) == (0x8086, 0x10C9)
    assert description.msix_vectors == 10
    assert [description.bars[i].size for i in range(4)] == [0x20000, 0x20000, 0x20, 0x4000]


def test_the_nvm_has_a_valid_checksum_and_the_mac_address(host):
    driver = Driver(host, Igb(host, {"mac": "52:54:00:12:34:56"}))
    assert sum(nvm(driver, word) for word in range(0x40)) & 0xFFFF == 0xBABA
    assert [nvm(driver, word) for word in range(3)] == [0x5452, 0x1200, 0x5634]
    assert driver.read(reg.RA) == 0x12005452
    assert driver.read(reg.RA + 4) == 0x80005634
    assert nvm(driver, 0x3FFF) == 0xFFFF


def test_ends_of_a_wire_have_different_addresses(make_host):
    first, second = (
        Driver(host, Igb(host, {"wire": "macs"})) for host in (make_host(), make_host())
    )
    assert second.read(reg.RA + 4) - first.read(reg.RA + 4) == 0x100


@pytest.mark.parametrize("mac", ["", "52:54:00:12:34", "g2:54:00:12:34:56", 1, "01:00:00:00:00:00"])
def test_a_mac_that_is_none_is_refused(host, mac):
    with pytest.raises(ValueError, match="mac must"):
        Igb(host, {"mac": mac})


def test_what_traps_cannot_be_mapped(host):
    bar = Igb(host, {"trap": True}).describe().bars[0]

    def is_mapped(register):
        return any(start <= register < start + length for start, length in bar.mapped)

    assert not any(map(is_mapped, (reg.ICR, reg.IMS, reg.EIMS, reg.EICR, reg.GPRC, reg.TPT)))
    assert all(is_mapped(reg.tx(queue, reg.TAIL)) for queue in range(16))
    assert Igb(host, {}).describe().bars[0].mapped == ()
    with pytest.raises(ValueError, match="trap must be true or false, not 1"):
        Igb(host, {"trap": 1})


@pytest.mark.parametrize("name", ["wire", "pcap_out", "pcap_in", "tap"])
def test_an_option_that_is_no_string_is_refused(host, name):
    with pytest.raises(ValueError, match=f"{name} must be a string"):
        Igb(host, {name: 1})


def test_the_phy_has_an_id_and_keeps_what_is_written(driver):
    assert (phy(driver, 2), phy(driver, 3)) == (0x02A8, 0x0391)
    phy(driver, 4, 0x1234)
    assert phy(driver, 4) == 0x1234
    phy(driver, 2, 0)
    assert phy(driver, 2) == 0x02A8


def test_phy_registers_from_16_on_are_paged(driver):
    phy(driver, 31, 0x300)
    phy(driver, 16, 1)
    phy(driver, 31, 0x320)
    assert phy(driver, 16) == 0
    phy(driver, 31, 0x300)
    assert phy(driver, 16) == 1
    assert phy(driver, 31) == 0x300


def test_another_phy_address_is_an_error(driver):
    driver.write(reg.MDIC, 1 << 27 | 2 << 21)
    assert driver.read(reg.MDIC) & (READY | ERROR) == READY | ERROR


def test_a_reset_of_the_phy(driver):
    phy(driver, 0, 0x4140)
    phy(driver, 0, 0x8000)
    assert phy(driver, 0) == 0x1140
    phy(driver, 0, 0x4140)
    driver.write(reg.CTRL, reg.CTRL_PHY_RST)
    assert phy(driver, 0) == 0x1140


def link(driver):
    return bool(driver.read(reg.STATUS) & reg.STATUS_LU)


def test_the_link_is_up_when_wanted_and_plugged(plugged):
    assert not link(plugged)
    assert phy(plugged, 1) & 0x24 == 0x24
    plugged.write(reg.CTRL, reg.CTRL_SLU)
    assert link(plugged)
    plugged.write(reg.CTRL, 0)
    assert not link(plugged)


def test_the_link_needs_both_phys(plugged, other):
    for driver in (plugged, other):
        driver.write(reg.CTRL, reg.CTRL_SLU)
    phy(other, 0, 0x1940)  # powered down
    assert not link(plugged)
    assert not link(other)
    assert phy(plugged, 1) & 0x24 == 0
    other.model.close()
    assert link(plugged)
    assert phy(plugged, 5) & 0x4000


def test_a_wire_with_one_end_has_no_link(host):
    driver = Driver(host, Igb(host, {"wire": "alone"}))
    driver.write(reg.CTRL, reg.CTRL_SLU)
    assert not link(driver)


def test_without_a_wire_a_loopback_makes_the_link(driver):
    driver.write(reg.CTRL, reg.CTRL_SLU)
    assert not link(driver)
    assert phy(driver, 1) & 0x24 == 0
    phy(driver, 0, 0x4140)
    assert link(driver)
    phy(driver, 0, 0x1140)
    assert not link(driver)
    driver.write(reg.RCTL, 1 << 6)
    assert link(driver)


def test_a_software_reset_clears_everything_but_the_phy(driver):
    phy(driver, 4, 0x1234)
    driver.begin()
    driver.write(reg.RA, 0)
    driver.write(reg.MTA, 5)
    driver.write(reg.CTRL, reg.CTRL_RST | reg.CTRL_SLU)
    assert not driver.read(reg.CTRL) & (reg.CTRL_RST | reg.CTRL_SLU)
    assert driver.read(reg.RA) != 0
    assert driver.read(reg.MTA) == driver.read(reg.RCTL) == driver.read(driver.tx(reg.BAL)) == 0
    assert driver.read(driver.tx(reg.DCTL)) & reg.QUEUE_ENABLE
    assert not driver.read(reg.tx(1, reg.DCTL)) & reg.QUEUE_ENABLE
    assert phy(driver, 4) == 0x1234
    driver.model.reset()
    assert phy(driver, 4) == 0x0DE1


def test_status_is_read_only_and_follows_the_master_disable(driver):
    before = driver.read(reg.STATUS)
    driver.write(reg.STATUS, 0)
    assert driver.read(reg.STATUS) == before
    driver.store((reg.STATUS, 0))
    assert driver.host.load(MMIO, reg.STATUS, 4) == before
    driver.write(reg.CTRL, reg.CTRL_MASTER_DISABLE)
    assert not driver.read(reg.STATUS) & reg.STATUS_MASTER
    driver.write(reg.CTRL, 0)
    assert driver.read(reg.STATUS) & reg.STATUS_MASTER


def test_the_nvm_is_granted_at_once_and_its_size_stays(driver):
    before = driver.read(reg.EECD)
    driver.write(reg.EECD, 1 << 6)
    assert driver.read(reg.EECD) == before | 1 << 6
    driver.write(reg.EECD, 0)
    assert driver.read(reg.EECD) == before


@pytest.mark.parametrize(("one", "other"), [(0x1510, 0xE0), (0xC04C, 0x290C), (0xE000, 0x3800)])
def test_registers_with_two_addresses(driver, one, other):
    driver.write(one, 0x5A)
    assert driver.read(other) == driver.read(one) == driver.host.load(MMIO, one, 4) == 0x5A
    driver.write(other, 0xA5)
    assert driver.read(one) == 0xA5


def test_accesses_of_other_widths(driver):
    driver.model.write(MMIO, reg.RA, 8, 0x1122334455667788)
    assert driver.model.read(MMIO, reg.RA, 8) == 0x1122334455667788
    driver.model.write(MMIO, reg.RA + 1, 1, 0xAA)
    assert driver.read(reg.RA) == 0x5566AA88
    assert driver.model.read(MMIO, reg.RA + 2, 2) == 0x5566
    assert driver.model.read(MMIO, reg.RA + 1, 1) == 0xAA


def test_registers_through_ports(driver):
    def port(offset, value):
        driver.model.write(2, offset, 4, value)

    port(0, reg.VET)
    assert driver.model.read(2, 0, 4) == reg.VET
    assert driver.model.read(2, 4, 4) == 0x81008100
    port(4, 0x88A88100)
    assert driver.read(reg.VET) == 0x88A88100
    port(0, 0x20000)
    port(4, 1)
    assert driver.model.read(2, 4, 4) == 0


def test_the_flash_reads_as_zeros_and_the_msix_bar_is_memory(driver):
    driver.model.write(1, 0, 4, 5)
    assert driver.model.read(1, 0, 4) == driver.model.read(3, 0x2000, 8) == 0


def test_the_next_client_finds_the_registers_reset(driver):
    driver.begin(rctl=PROMISCUOUS)
    driver.model.close()
    driver.model.open()
    assert driver.read(reg.RCTL) == 0


def test_every_register_that_does_something_is_watched(driver):
    order = [offset for _, offset, _ in driver.model.native.words]
    for queue in range(16):
        assert {reg.rx(queue, reg.TAIL), reg.tx(queue, reg.TAIL)} <= set(order)
    assert {reg.ICR, reg.ICS, reg.IMS, reg.IMC, 0x1500, 0x1504, 0x1508, 0x150C} <= set(order)
    assert order[0] == reg.CTRL
    assert order.index(reg.EIMC) < order.index(reg.EIMS) < order.index(reg.rx(0, reg.TAIL))
    assert order.index(reg.rx(15, reg.TAIL)) < order.index(reg.tx(0, reg.TAIL))
