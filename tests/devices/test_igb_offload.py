"""What igb does to frames: checksums, segmentation, VLAN tags, the hash of RSS.

Checksums are compared with a sum made word by word, the hash with the vectors that Microsoft
published for RSS.
"""

import socket
import struct

import pytest

from iommufs.devices.igb import Igb
from tests.devices import igb_registers as reg
from tests.devices.igb_driver import (
    ADVANCED,
    CONTEXT,
    EOP,
    IFCS,
    LOOPBACK,
    PROMISCUOUS,
    RS,
    TSE,
    TX_BUFFERS,
    VLE,
    Driver,
    frame,
)

IXSM, TXSM = 0x100, 0x200
VP, UDPCS, L4CS, IPCS, L4E, IPE = 8, 0x10, 0x20, 0x40, 1 << 29, 1 << 30
TCP, UDP = 6, 17
IPV4, IPV6 = 1, 4  # packet types


@pytest.fixture
def looped(host):
    rctl = PROMISCUOUS | LOOPBACK | reg.RCTL_LPE
    driver = Driver(host, Igb(host, {})).begin(rctl=rctl)
    driver.write(reg.RXCSUM, 0x300)
    return driver


def word_sum(data):
    total = sum(word for (word,) in struct.iter_unpack(">H", data + b"\0" * (len(data) & 1)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def pseudo(packet):
    """The sum of the pseudo header of an IP packet, and where its payload begins."""
    if packet[0] >> 4 == 4:
        start = (packet[0] & 15) * 4
        length = struct.unpack(">H", packet[2:4])[0] - start
        return word_sum(packet[12:20] + struct.pack(">HH", packet[9], length)), start
    length = struct.unpack(">H", packet[4:6])[0]
    return word_sum(packet[8:40] + struct.pack(">IHH", length, 0, packet[6])), 40


def is_right(data):
    """Both checksums of a frame."""
    packet = data[14:]
    total, start = pseudo(packet)
    l4 = word_sum(struct.pack(">H", total) + packet[start:]) == 0xFFFF
    return l4 and (packet[0] >> 4 == 6 or word_sum(packet[:start]) == 0xFFFF)


def packet(protocol, payload, version=4, flags=0x18):
    """A frame with IP and TCP or UDP, whose checksums are not there yet."""
    if protocol == TCP:
        l4 = struct.pack(">HHIIBBHHH", 1000, 2000, 7, 9, 0x50, flags, 512, 0, 0)
    else:
        l4 = struct.pack(">HHHH", 1000, 2000, 8 + len(payload), 0)
    length = len(l4) + len(payload)
    if version == 4:
        ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + length, 77, 0, 64, protocol, 0,
                         b"\x0a\0\0\1", b"\x0a\0\0\2")  # fmt: skip
    else:
        ip = struct.pack(">IHBB16s16s", 6 << 28, length, protocol, 64,
                         b"\xfe" * 16, b"\xfd" * 16)  # fmt: skip
    kind = b"\x08\0" if version == 4 else b"\x86\xdd"
    return b"\2\0\0\0\0\2" + b"\2\0\0\0\0\1" + kind + ip + l4 + payload


def with_sums(data):
    """As another computer would send it."""
    out = bytearray(data)
    if out[14] >> 4 == 4:
        out[24:26] = struct.pack(">H", 0xFFFF - word_sum(bytes(out[14:34])))
    total, start = pseudo(bytes(out[14:]))
    at = 14 + start + (16 if out[14 + (9 if out[14] >> 4 == 4 else 6)] == TCP else 6)
    value = 0xFFFF - word_sum(struct.pack(">H", total) + bytes(out[14 + start :]))
    out[at : at + 2] = struct.pack(">H", value or 0xFFFF)
    return bytes(out)


def context(driver, protocol, version=4, mss=0, vlan=0, index=0):
    ip_length, l4_length = (20 if version == 4 else 40), (20 if protocol == TCP else 8)
    kind = (0x400 if version == 4 else 0) | (0x800 if protocol == TCP else 0)
    low = vlan << 16 | 14 << 9 | ip_length
    driver.describe(low, CONTEXT | kind, mss << 16 | l4_length << 8 | index << 4)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize("length", [1, 100, 1001])
def test_checksums_are_inserted_and_found_right(looped, protocol, version, length):
    data = bytearray(packet(protocol, (bytes(range(1, 251)) * 5)[:length], version))
    total, start = pseudo(bytes(data[14:]))
    at = 14 + start + (16 if protocol == TCP else 6)
    data[at : at + 2] = struct.pack(">H", total)  # as drivers prepare it
    context(looped, protocol, version)
    looped.send(bytes(data), high=IXSM | TXSM)
    status = looped.descriptor(0)[2]
    (got,) = looped.received()
    assert is_right(got[: len(data)])
    assert status & (L4CS | L4E | IPE) == L4CS
    assert bool(status & IPCS) == (version == 4)
    assert bool(status & UDPCS) == (protocol == UDP)


def test_wrong_checksums_are_found_wrong(looped):
    good = with_sums(packet(TCP, b"hello, world" * 9))
    looped.send(good)
    looped.send(good[:24] + bytes([good[24] ^ 1]) + good[25:])
    looped.send(good[:-1] + b"?")
    bits = L4CS | IPCS | L4E | IPE
    assert [looped.descriptor(i)[2] & bits for i in range(3)] == [
        L4CS | IPCS, L4CS | IPCS | IPE, L4CS | IPCS | L4E,
    ]  # fmt: skip


def test_checksums_are_not_looked_at_unless_wanted(looped):
    looped.write(reg.RXCSUM, 0)
    looped.send(packet(TCP, b"hello" * 20))
    assert looped.descriptor(0)[2] == 3


def test_udp_without_a_checksum_is_not_judged(looped):
    looped.send(packet(UDP, b"hello" * 20))
    assert not looped.descriptor(0)[2] & (L4CS | UDPCS | L4E)


@pytest.mark.parametrize("version", [4, 6])
def test_a_tcp_stream_is_cut_into_segments(looped, version):
    payload = bytes(i * 3 & 255 for i in range(2500))
    data = bytearray(packet(TCP, payload, version, flags=0x19))
    total, start = pseudo(bytes(data[14:]))
    # For segmentation, drivers leave the length out of the sum.
    without = total - (len(payload) + 20)
    at = 14 + start + 16
    data[at : at + 2] = struct.pack(">H", without % 0xFFFF)
    context(looped, TCP, version, mss=1000)
    head = 14 + start + 20
    looped.poke(TX_BUFFERS, data)
    paylen = len(payload) << 14
    looped.describe(TX_BUFFERS, ADVANCED | TSE | IFCS | head, IXSM | TXSM | paylen)
    looped.describe(TX_BUFFERS + head, ADVANCED | TSE | IFCS | EOP | RS | len(payload), paylen)
    looped.ring()
    got = looped.received()
    assert [len(segment) - head for segment in got] == [1000, 1000, 500]
    assert b"".join(segment[head:] for segment in got) == payload
    assert all(is_right(segment) for segment in got)
    tcp = [struct.unpack(">HHIIBB", segment[head - 20 : head - 6]) for segment in got]
    assert [fields[2] for fields in tcp] == [7, 1007, 2007]
    assert [fields[5] for fields in tcp] == [0x10, 0x10, 0x19]
    if version == 4:
        assert [struct.unpack(">H", segment[18:20])[0] for segment in got] == [77, 78, 79]
    assert looped.read(reg.TSCTC) == 1


def test_udp_is_cut_too(looped):
    payload = bytes(300)
    data = bytearray(packet(UDP, payload))
    total, _ = pseudo(bytes(data[14:]))
    data[40:42] = struct.pack(">H", (total - 308) % 0xFFFF)
    context(looped, UDP, mss=200)
    looped.send(bytes(data), flags=TSE | EOP | IFCS | RS, high=IXSM | TXSM)
    got = looped.received()
    assert [struct.unpack(">H", segment[38:40])[0] for segment in got] == [208, 108]
    assert all(is_right(segment) for segment in got)


def test_a_context_that_cannot_be_is_not_sent(looped):
    for mss in (0, 1, 63):
        context(looped, TCP, mss=mss)
        looped.send(packet(TCP, bytes(300)), flags=TSE | EOP | IFCS | RS, high=IXSM | TXSM)
    looped.describe(0xFFFFFFFF, CONTEXT | 0x800, 0x40FF00)
    looped.send(packet(TCP, bytes(300)), flags=TSE | EOP | IFCS | RS, high=IXSM | TXSM)
    looped.send(bytes(60), high=IXSM | TXSM)
    assert looped.tx_done(5)
    assert len(looped.received()) == 1


def test_there_are_two_contexts(looped):
    context(looped, UDP, vlan=5, index=1)
    context(looped, UDP, vlan=6, index=0)
    for index in (1, 0):
        looped.send(frame(), flags=EOP | IFCS | VLE, high=index << 4)
    assert [data[14:16] for data in looped.received()] == [b"\0\5", b"\0\6"]


def test_tags_are_inserted_stripped_and_filtered(looped):
    context(looped, UDP, vlan=0x6123)
    tagged = frame()[:12] + b"\x81\0\x61\x23" + frame()[12:]
    looped.send(frame(), flags=EOP | IFCS | VLE)
    assert looped.received() == [tagged]
    looped.write(reg.CTRL, looped.read(reg.CTRL) | reg.CTRL_VME)
    looped.send(tagged)
    assert looped.descriptor(1)[2:] == (3 | VP, 60, 0x6123)
    assert looped.received() == [frame()]
    looped.write(reg.RCTL, looped.read(reg.RCTL) | reg.RCTL_VFE)
    looped.send(tagged)
    assert looped.received() == []
    looped.write(reg.VFTA + 4 * (0x123 >> 5), 1 << (0x123 & 31))
    looped.send(tagged)
    looped.send(frame())
    assert looped.received() == [frame(), frame()]


def test_a_legacy_descriptor_inserts_a_sum_and_a_tag(looped):
    data = frame(100)
    looped.poke(TX_BUFFERS, data)
    looped.describe(TX_BUFFERS, EOP | IFCS | 1 << 26 | VLE | 50 << 16 | 100, 20 << 8 | 7 << 16)
    looped.ring()
    (got,) = looped.received()
    plain = got[:12] + got[16:]
    assert got[12:16] == b"\x81\0\0\7"
    assert plain[50:52] == struct.pack(">H", 0xFFFF - word_sum(data[20:]))
    assert plain[:50] + plain[52:] == data[:50] + data[52:]


# -- receive side scaling --------------------------------------------------------------------------

KEY = bytes.fromhex(
    "6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa"
)
VECTORS = [
    ("66.9.149.187", 2794, "161.142.100.80", 1766, 0x323E8FC2, 0x51CCC178),
    ("199.92.111.2", 14230, "65.69.140.83", 4739, 0xD718262A, 0xC626B0EA),
    ("3ffe:2501:200:1fff::7", 2794, "3ffe:2501:200:3::1", 1766, 0x2CC18CD5, 0x40207D3D),
]


# MRQC's bits for packets without ports, and with those of TCP; the descriptors' types of both.
TYPES = {4: (1 << 17, 1 << 16, 2, 1), 6: (1 << 20, 1 << 18, 5, 3)}


def set_key(driver):
    for at in range(0, 40, 4):
        driver.write(reg.RSSRK + at, int.from_bytes(KEY[at : at + 4], "little"))
    driver.write(reg.RXCSUM, 0x2000)


@pytest.mark.parametrize(("source", "sport", "to", "dport", "ip", "tcp"), VECTORS)
def test_the_published_hashes(looped, source, sport, to, dport, ip, tcp):
    version = 6 if ":" in source else 4
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    addresses = socket.inet_pton(family, source) + socket.inet_pton(family, to)
    data = bytearray(packet(TCP, bytes(40), version))
    at = 26 if version == 4 else 22
    data[at : at + len(addresses)] = addresses
    at += len(addresses)
    data[at : at + 4] = struct.pack(">HH", sport, dport)
    set_key(looped)
    without, with_ports, *types = TYPES[version]
    for enabled in (without, with_ports):
        looped.write(reg.MRQC, 2 | enabled)
        looped.send(bytes(data))
    found = [looped.descriptor(i)[:2] for i in range(2)]
    assert [(kind & 0xF, value) for kind, value in found] == list(
        zip(types, (ip, tcp), strict=True)
    )


def toeplitz(key, data):
    """The hash of RSS, bit by bit."""
    key, result = int.from_bytes(key, "big"), 0
    for i in range(8 * len(data)):
        if data[i // 8] >> 7 - i % 8 & 1:
            result ^= key >> (320 - 32 - i) & 0xFFFFFFFF
    return result


def test_the_hash_chooses_the_queue(host):
    driver = Driver(host, Igb(host, {}), queue=3)
    driver.begin(rctl=PROMISCUOUS | LOOPBACK)
    set_key(driver)
    data = packet(TCP, bytes(40))
    value = toeplitz(KEY, data[26:34] + data[34:38])
    driver.write(reg.RETA + (value & 0x7C), 3 << 8 * (value & 3))
    driver.write(reg.MRQC, 2 | 1 << 16)
    driver.send(data)
    assert driver.descriptor(0)[:2] == (1 | 0x110, value)
    assert driver.received() == [data]
    driver.write(reg.MRQC, 2 | 1 << 22)  # UDP only
    driver.send(data)
    assert driver.received() == []  # it is in queue 0, which is not set up


def tagged(data):
    return data[:12] + b"\x81\0\0\1" + data[12:]


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (packet(TCP, bytes(20)), IPV4 | 0x10),
        (packet(UDP, bytes(20)), IPV4 | 0x20),
        (packet(UDP, bytes(20), 6), IPV6 | 0x20),
        (packet(UDP, bytes(20))[:14] + bytes(60), 0),
        (tagged(packet(UDP, bytes(20))), IPV4 | 0x20),
        (packet(UDP, bytes(20))[:20] + b"\x20\0" + packet(UDP, bytes(20))[22:], IPV4),
        (frame(), 0),
    ],
)
def test_types_of_packets(looped, data, kind):
    looped.send(data)
    assert looped.descriptor(0)[0] == kind << 4
