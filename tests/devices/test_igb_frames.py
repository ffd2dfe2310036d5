"""Frames through igb: descriptors, rings, filters, wires, statistics."""

import random
import struct
import time
import zlib

import pytest

from iommufs.devices.igb import Igb
from tests.devices import igb_registers as reg
from tests.devices.igb_driver import (
    ADVANCED,
    BUFFER,
    EOP,
    IFCS,
    LOOPBACK,
    ONE_BUFFER,
    PROMISCUOUS,
    RS,
    RX_BUFFERS,
    RX_RING,
    SIZE,
    TX_BUFFERS,
    TX_RING,
    Driver,
    frame,
)

LOOPED = PROMISCUOUS | LOOPBACK
DD_EOP = 3
LONG = 20  # seconds after which something hangs


@pytest.fixture
def looped(host):
    return Driver(host, Igb(host, {})).begin(rctl=LOOPED)


@pytest.fixture
def pair(make_host, request):
    """Two functions on a wire of their own."""
    hosts = make_host(), make_host()
    options = {"wire": request.node.name}
    return [Driver(host, Igb(host, options)).begin() for host in hosts]


def finish(*drivers):
    while any(driver.host.running for driver in drivers):
        for driver in drivers:
            driver.host.finish()


# -- the way of one frame --------------------------------------------------------------------------


def test_a_frame_comes_back_in_loopback(looped):
    data = frame(1000)
    looped.send(data)
    assert looped.descriptor(0)[2:4] == (DD_EOP, 1000)
    assert looped.received() == [data]
    assert looped.tx_done(0)
    assert looped.read(looped.tx(reg.HEAD)) == looped.read(looped.rx(reg.HEAD)) == 1


def test_the_loopback_of_the_phy_does_it_too(host):
    driver = Driver(host, Igb(host, {})).begin()
    driver.write(reg.MDIC, 1 << 26 | 0x4140 | 1 << 21)
    driver.send(frame())
    assert driver.received() == [frame()]


def test_a_frame_arrives_at_the_other_end(pair):
    here, there = pair
    here.send(frame(300))
    finish(here, there)
    assert there.received() == [frame(300)]
    assert here.received() == []


def test_nobody_hears_a_function_without_a_wire(host):
    driver = Driver(host, Igb(host, {})).begin()
    driver.send(frame())
    assert driver.tx_done(0)
    assert driver.received() == []


def test_rings_go_round(looped):
    sent = [frame(60 + i, seed=i) for i in range(5 * SIZE)]
    got = []
    for data in sent:
        looped.send(data)
        got += looped.received()
    assert got == sent


def test_many_descriptors_at_once(looped):
    sent = [frame(100 + i, seed=i) for i in range(SIZE - 1)]
    for i, data in enumerate(sent):
        looped.poke(TX_BUFFERS + BUFFER * i, data)
        looped.describe(TX_BUFFERS + BUFFER * i, ADVANCED | EOP | IFCS | len(data))
    looped.ring()
    assert looped.received() == sent
    assert not looped.tx_done(0)  # nobody asked for reports


def test_a_frame_of_many_pieces(looped):
    data = frame(900)
    looped.poke(TX_BUFFERS, data)
    looped.describe(TX_BUFFERS, ADVANCED | IFCS | 14)
    looped.describe(TX_BUFFERS + 14, ADVANCED | 0)
    looped.describe(TX_BUFFERS + 14, ADVANCED | 386)
    looped.ring()
    assert looped.received() == []
    looped.describe(TX_BUFFERS + 400, ADVANCED | EOP | IFCS | RS | 500)
    looped.ring()
    assert looped.received() == [data]
    assert [looped.tx_done(i) for i in range(4)] == [0, 0, 0, 1]


def test_a_frame_over_many_buffers(host):
    driver = Driver(host, Igb(host, {})).begin(rctl=LOOPED | reg.RCTL_LPE, srrctl=ONE_BUFFER | 1)
    data = frame(2500)
    driver.poke(TX_BUFFERS, data)
    driver.describe(TX_BUFFERS, ADVANCED | EOP | IFCS | len(data))
    driver.ring()
    assert [driver.descriptor(i)[2:4] for i in range(3)] == [(1, 1024), (1, 1024), (3, 452)]
    assert driver.received() == [data]


def test_short_frames_are_padded_if_wanted(looped):
    looped.send(frame(20))
    assert looped.received() == [frame(20).ljust(60, b"\0")]
    looped.write(reg.TCTL, reg.TCTL_EN)
    looped.send(frame(20))
    assert looped.received() == []
    assert looped.read(reg.RUC) == 1


def test_the_fcs_is_written_unless_stripped(looped):
    looped.write(reg.RCTL, LOOPED & ~reg.RCTL_SECRC)
    looped.send(frame())
    assert looped.received() == [frame() + zlib.crc32(frame()).to_bytes(4, "little")]


def test_an_fcs_of_the_client_s_must_be_right(looped):
    good = frame() + zlib.crc32(frame()).to_bytes(4, "little")
    looped.send(good, flags=EOP | RS)
    looped.send(frame() + b"\0\0\0\0", flags=EOP | RS)
    assert looped.received() == [frame()]
    assert looped.tx_done(1)


def test_legacy_descriptors(host):
    driver = Driver(host, Igb(host, {})).begin(rctl=LOOPED, srrctl=0)
    driver.poke(TX_BUFFERS, frame(200))
    driver.describe(TX_BUFFERS, EOP | IFCS | RS | 200, 0x12340000)
    driver.ring()
    assert driver.host.memory(TX_RING + 12, 4) == bytes.fromhex("01003412")
    address, length, _, status, errors, vlan = struct.unpack(
        "<QHHBBH", driver.host.memory(RX_RING, 16)
    )
    assert (length, status, errors, vlan) == (200, DD_EOP, 0, 0)
    assert driver.host.memory(address, 200) == frame(200)


def test_the_head_is_written_back_where_asked(looped):
    looped.host.map(0x400000)
    looped.write(looped.tx(reg.WBAL), 0x400010 | 1)
    looped.send(frame())
    looped.send(frame())
    assert looped.host.memory(0x400010, 4) == bytes.fromhex("02000000")
    assert not looped.tx_done(1)


# -- what stops a queue ----------------------------------------------------------------------------


def test_nothing_is_sent_before_both_enables(looped):
    looped.write(reg.TCTL, 0)
    looped.send(frame())
    assert looped.read(looped.tx(reg.HEAD)) == 0
    looped.write(reg.TCTL, reg.TCTL_EN)
    looped.host.finish()
    assert looped.received() == [frame()]
    looped.write(looped.tx(reg.DCTL), 0)
    looped.send(frame())
    assert looped.read(looped.tx(reg.HEAD)) == 1
    looped.write(looped.tx(reg.DCTL), reg.QUEUE_ENABLE)
    looped.host.finish()
    assert looped.received() == [frame()]


def test_frames_wait_for_descriptors_and_then_for_nobody(looped):
    looped.write(looped.rx(reg.TAIL), looped.read(looped.rx(reg.HEAD)))
    for i in range(80):  # of 1 KiB, into 64 KiB
        looped.send(frame(1024, seed=i))
    assert looped.read(reg.MPC) == 16
    got = []
    looped.write(looped.rx(reg.TAIL), SIZE - 1)
    looped.host.finish()
    while new := looped.received():
        got += new
    assert got == [frame(1024, seed=i) for i in range(64)]


def test_drop_enable_drops_what_has_no_descriptor(looped):
    looped.write(looped.rx(reg.SRRCTL), ONE_BUFFER | 1 << 31)
    looped.write(looped.rx(reg.TAIL), looped.read(looped.rx(reg.HEAD)))
    looped.send(frame())
    assert looped.read(looped.rx(reg.DROPPED)) == 1
    looped.write(looped.rx(reg.TAIL), SIZE - 1)
    looped.host.finish()
    assert looped.received() == []


def test_a_refused_read_drops_the_frame_and_the_next_is_sent(looped):
    looped.describe(0x900000, ADVANCED | EOP | IFCS | RS | 100)
    looped.send(frame())
    assert looped.received() == [frame()]
    assert looped.tx_done(0)
    assert looped.host.reports[0][1]["iova"] == "0x900000"


def test_a_refused_write_loses_the_data_but_not_the_descriptor(looped):
    looped.put(RX_RING, 0, 0x900000, 0)
    looped.send(frame())
    assert looped.descriptor(0)[2:4] == (DD_EOP, 60)
    assert looped.host.reports[0][1]["iova"] == "0x900000"


def test_rings_that_cannot_be_read_do_nothing(looped):
    looped.write(looped.tx(reg.BAL), 0x900000)
    looped.send(frame())
    assert looped.read(looped.tx(reg.HEAD)) == 0
    looped.write(looped.tx(reg.BAL), TX_RING)
    looped.write(looped.rx(reg.BAL), 0x900000)
    looped.ring()
    assert looped.read(looped.rx(reg.HEAD)) == 0
    assert [event for event, _ in looped.host.reports] == ["DMA refused"] * 2


def test_rings_at_the_end_of_all_addresses_do_nothing(looped):
    for ring in (looped.tx, looped.rx):
        looped.write(ring(reg.BAH), 0xFFFFFFFF)
        looped.write(ring(reg.BAL), 0xFFFFFF80)
    looped.write(looped.tx(reg.HEAD), 7)
    looped.sent = 9
    looped.ring()
    looped.write(looped.tx(reg.HEAD), 9)
    looped.write(looped.tx(reg.BAL), TX_RING)
    looped.write(looped.tx(reg.BAH), 0)
    looped.write(looped.rx(reg.HEAD), 9)
    looped.send(frame())
    assert [event for event, _ in looped.host.reports] == ["DMA refused"] * 2


@pytest.mark.parametrize("register", [reg.HEAD, reg.TAIL])
def test_positions_outside_the_ring_do_nothing(looped, register):
    looped.write(looped.tx(register), 0xFFFFFFFF)
    looped.write(looped.rx(register), SIZE)
    looped.host.finish()
    assert looped.host.reports == []


@pytest.mark.parametrize("n", range(1, 4))
def test_a_reset_while_a_frame_is_under_way_forgets_it(looped, n):
    """While the n-th read goes on: descriptor, frame, receive descriptor."""
    reads = []

    def reset(iova):
        reads.append(iova)
        if len(reads) == n:
            looped.write(reg.CTRL, reg.CTRL_RST)

    looped.host.before_dma = reset
    looped.send(frame())
    assert len(reads) == n
    looped.host.before_dma = lambda iova: None
    assert looped.host.memory(RX_BUFFERS, 60) == bytes(60)
    assert looped.descriptor(0)[2] == 0
    assert not looped.tx_done(0) or n == 3
    looped.sent = 0
    looped.put(TX_RING, 0, 0, 0)
    looped.begin(rctl=LOOPED)
    assert looped.received() == []
    assert not looped.tx_done(0)
    looped.send(frame(99))
    assert looped.received() == [frame(99)]


def test_a_packet_that_never_ends_is_not_kept(looped):
    for _ in range(40):
        for _ in range(SIZE - 1):
            looped.describe(TX_BUFFERS, ADVANCED | 0xFFFF)
        looped.ring()
    looped.describe(TX_BUFFERS, ADVANCED | EOP | IFCS | 60)
    looped.ring()
    assert looped.received() == []
    looped.send(frame())
    assert looped.received() == [frame()]


def fill(driver):
    """Send a ring full of frames of 2 KiB: which."""
    driver.write(reg.RCTL, PROMISCUOUS | reg.RCTL_LPE)
    sent = [frame(2048, seed=driver.sent + i) for i in range(SIZE - 1)]
    for data in sent:
        at = TX_BUFFERS + BUFFER * (driver.sent % SIZE)
        driver.poke(at, data)
        driver.describe(at, ADVANCED | EOP | IFCS | len(data))
    driver.ring()
    return sent


def test_a_sender_waits_for_a_receiver_that_is_busy(pair):
    """Frames of more than an inbox holds: none is lost on the wire while the other end gets on."""
    here, there = pair
    there.write(reg.RCTL, PROMISCUOUS | reg.RCTL_LPE)
    sent, got = [], []
    while here.read(here.tx(reg.HEAD)) == here.sent % SIZE:
        sent += fill(here)
    assert len(sent) * 2048 > 512 << 10
    there.model.native.finish()
    assert here.model.native.woken
    finish(here, there)
    assert here.read(here.tx(reg.HEAD)) == here.sent % SIZE
    while new := there.received():
        got += new
        finish(here, there)
    assert there.read(reg.TPR) == len(sent)
    assert got == sent[: len(got)]  # what came when its buffers were full is missed
    assert len(got) + there.read(reg.MPC) == len(sent)


def test_a_receiver_that_is_stuck_stops_nobody(pair):
    here, there = pair
    there.write(reg.RCTL, PROMISCUOUS | reg.RCTL_LPE)
    n_sent = 0
    while here.read(here.tx(reg.HEAD)) == here.sent % SIZE:
        n_sent += len(fill(here))
    end = time.monotonic() + LONG
    while here.read(here.tx(reg.HEAD)) != here.sent % SIZE:  # after the wire's patience
        here.host.finish()
        assert time.monotonic() < end
    n_sent += len(fill(here))
    assert here.read(here.tx(reg.HEAD)) == here.sent % SIZE
    finish(here, there)
    got = 0
    while new := there.received():
        got += len(new)
        finish(here, there)
    assert got
    assert got + there.read(reg.MPC) == n_sent


def test_what_a_receiver_has_not_taken_is_gone_with_a_reset(pair):
    here, there = pair
    here.send(frame())
    there.write(reg.CTRL, reg.CTRL_RST)
    there.begin()
    finish(here, there)
    assert there.received() == []
    assert there.read(reg.TPR) == 0
    here.send(frame(99))
    finish(here, there)
    assert there.received() == [frame(99)]


def test_three_ends_of_a_wire(make_host):
    hosts = [make_host() for _ in range(3)]
    drivers = [Driver(host, Igb(host, {"wire": "three"})).begin() for host in hosts]
    drivers[1].send(frame(200))
    finish(*drivers)
    assert [driver.received() for driver in drivers] == [[frame(200)], [], [frame(200)]]


def test_what_has_descriptors_is_not_missed(pair):
    here, there = pair
    there.write(reg.RXPBS, 1)
    sent = [frame(1514, seed=seed) for seed in range(SIZE - 1)]
    for data in sent:
        here.send(data)
    finish(here, there)
    assert there.received() == sent
    assert there.read(reg.MPC) == 0


# -- filters ---------------------------------------------------------------------------------------

MINE = bytes.fromhex("525400823576")


@pytest.mark.parametrize(
    ("to", "rctl", "taken"),
    [
        (MINE, 0, True),
        (b"\x02" + MINE[1:], 0, False),
        (b"\x02" + MINE[1:], reg.RCTL_UPE, True),
        (b"\x01\0\x5e\0\0\1", 0, False),
        (b"\x01\0\x5e\0\0\1", reg.RCTL_UPE, False),
        (b"\x01\0\x5e\0\0\1", reg.RCTL_MPE, True),
        (b"\xff" * 6, 0, False),
        (b"\xff" * 6, reg.RCTL_BAM, True),
    ],
)
def test_addresses(looped, to, rctl, taken):
    looped.write(reg.RCTL, reg.RCTL_EN | reg.RCTL_SECRC | LOOPBACK | rctl)
    looped.send(frame(to=to))
    assert looped.received() == ([frame(to=to)] if taken else [])


@pytest.mark.parametrize(("offset", "shift"), [(0, 4), (1, 3), (2, 2), (3, 0)])
def test_multicast_by_hash(looped, offset, shift):
    to = bytes.fromhex("01005e12a5c3")
    looped.write(reg.RCTL, reg.RCTL_EN | reg.RCTL_SECRC | LOOPBACK | offset << 12)
    number = 0xC3A5 >> shift & 0xFFF
    looped.write(reg.MTA + 4 * (number >> 5), 1 << (number & 31))
    looped.send(frame(to=to))
    looped.send(frame(to=to[:5] + b"\0"))
    assert looped.received() == [frame(to=to)]


@pytest.mark.parametrize("entry", [1, 15, 16, 23])
def test_more_addresses(looped, entry):
    at = reg.RA + 8 * entry if entry < 16 else reg.RA_UPPER + 8 * (entry - 16)
    looped.write(reg.RCTL, reg.RCTL_EN | reg.RCTL_SECRC | LOOPBACK)
    looped.write(at, 0x04030202)
    looped.write(at + 4, 0x0605)
    to = bytes((2, 2, 3, 4, 5, 6))
    looped.send(frame(to=to))
    assert looped.received() == []
    looped.write(at + 4, 1 << 31 | 0x0605)
    looped.send(frame(to=to))
    assert looped.received() == [frame(to=to)]


def test_long_frames_need_lpe(looped):
    looped.send(frame(1514))
    looped.send(frame(1515))
    assert looped.received() == [frame(1514)]
    assert looped.read(reg.ROC) == 1
    looped.write(reg.RCTL, LOOPED | reg.RCTL_LPE)
    looped.send(frame(2000))
    assert looped.received() == [frame(2000)]


def test_a_closed_receiver_takes_nothing(pair):
    here, there = pair
    there.write(reg.RCTL, 0)
    here.send(frame())
    finish(here, there)
    assert there.received() == []
    assert there.read(reg.TPR) == 0


# -- statistics ------------------------------------------------------------------------------------


def test_statistics_count_and_reading_clears_them(looped):
    looped.send(frame(60))
    looped.send(frame(200, to=b"\x01\0\0\0\0\0"))
    looped.send(frame(1000, to=MINE))
    expected = {
        reg.GPRC: 3, reg.GPTC: 3, reg.TPR: 3, reg.TPT: 3, reg.GORC: 1272, reg.GORC + 4: 0,
        reg.GOTC: 1272, reg.BPRC: 1, reg.MPRC: 1, reg.BPTC: 1, reg.MPTC: 1,
        reg.PRC64: 1, reg.PRC64 + 8: 1, reg.PRC64 + 16: 1, reg.PTC64: 1,
    }  # fmt: skip
    assert {register: looped.read(register) for register in expected} == expected
    assert all(looped.read(register) == 0 for register in expected)
    looped.write(reg.GPRC, 5)
    assert looped.read(reg.GPRC) == 0


def test_a_statistic_stays_at_its_maximum(looped):
    looped.host.store(0, reg.GPTC, 4, 0xFFFFFFFF)
    looped.host.store(0, reg.GOTC, 4, 0xFFFFFFFF)
    looped.send(frame())
    assert looped.read(reg.GPTC) == 0xFFFFFFFF
    assert looped.read(reg.GOTC) == 63
    assert looped.read(reg.GOTC + 4) == 1


def test_a_record_of_what_was_sent(host, tmp_path):
    path = tmp_path / "frames.pcap"
    driver = Driver(host, Igb(host, {"pcap_out": str(path)})).begin()
    driver.send(frame(77))
    driver.model.close()
    data = path.read_bytes()
    assert data[:4] == bytes.fromhex("4d3cb2a1")
    assert struct.unpack("<II", data[32:40]) == (77, 77)
    assert data[40:] == frame(77)
    driver.model.open()  # the next client's are added
    driver.sent = 0
    driver.begin()
    driver.send(frame(66))
    driver.model.close()
    assert path.read_bytes()[: len(data)] == data
    assert path.read_bytes()[-66:] == frame(66)


def test_a_record_that_cannot_be_made_is_reported(host, tmp_path):
    driver = Driver(host, Igb(host, {"pcap_out": str(tmp_path)})).begin()
    assert host.reports == [(f"cannot record: Is a directory: {tmp_path}", {})]
    driver.model.reset()
    assert len(host.reports) == 1
    driver.begin()
    driver.send(frame())
    assert driver.tx_done(0)


# -- anything at all -------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_a_hostile_client_breaks_nothing(host, seed):
    """Random registers, descriptors and resets: no exception, and a reset makes all well again."""
    rng = random.Random(seed)
    driver = Driver(host, Igb(host, {})).begin(rctl=LOOPED)
    interesting = [reg.CTRL, reg.RCTL, reg.TCTL, reg.MDIC, reg.EERD, reg.ICS, reg.IMS, reg.IMC,
                   reg.EICS, reg.EIMS, reg.EIMC, reg.GPIE, reg.MRQC, reg.RXCSUM, reg.RETA, reg.VET,
                   *(driver.tx(at) for at in (0, 8, 16, 24, 40, 56)),
                   *(driver.rx(at) for at in (0, 8, 12, 16, 24, 40))]  # fmt: skip
    for _ in range(300):
        choice = rng.randrange(4)
        if choice == 0:
            value = rng.choice([rng.getrandbits(32), rng.getrandbits(9), LOOPED])
            driver.write(rng.choice(interesting), value)
        elif choice == 1:
            ring = rng.choice([TX_RING, RX_RING])
            address = TX_BUFFERS + rng.getrandbits(14)
            driver.put(ring, rng.randrange(SIZE), address, rng.getrandbits(64))
        elif choice == 2:
            driver.store((rng.choice(interesting), rng.getrandbits(32)))
        else:
            driver.read(rng.choice(interesting))
        host.finish()
    driver.write(reg.CTRL, reg.CTRL_RST)
    host.finish()
    driver.sent = driver.taken = 0
    driver.begin(rctl=LOOPED)
    driver.send(frame())
    assert driver.received() == [frame()]
