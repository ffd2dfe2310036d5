"""As much of a driver of an 82576 as the tests of its model need. Not a test."""

import struct

from tests.devices import igb_registers as reg

MMIO = 0
TX_RING, RX_RING, TX_BUFFERS, RX_BUFFERS = 0x100000, 0x110000, 0x200000, 0x300000
SIZE = 32  # descriptors in a ring
BUFFER = 2048

EOP, IFCS, RS, VLE, TSE = 1 << 24, 1 << 25, 1 << 27, 1 << 30, 1 << 31
ADVANCED, CONTEXT = 0x20300000, 0x20200000
ONE_BUFFER = 0x02000000  # of SRRCTL
PROMISCUOUS = reg.RCTL_EN | reg.RCTL_UPE | reg.RCTL_MPE | reg.RCTL_BAM | reg.RCTL_SECRC
LOOPBACK = 1 << 6


def frame(length=60, to=b"\xff" * 6, source=b"\x02\0\0\0\0\1", kind=b"\x88\xb5", seed=1):
    """An Ethernet frame without its FCS."""
    head = to + source + kind
    return head + bytes((seed + i * 7) & 0xFF for i in range(length - len(head)))


class Driver:
    """Of one queue pair, on a fake host. Registers are written as by pwrite."""

    def __init__(self, host, model, queue=0):
        self.host, self.model, self.queue = host, host.plug(model), queue
        host.map(TX_RING, bytes(16 * SIZE))
        host.map(RX_RING, bytes(16 * SIZE))
        host.map(TX_BUFFERS, bytes(SIZE * BUFFER))
        host.map(RX_BUFFERS, bytes(SIZE * BUFFER))
        self.sent = self.taken = 0

    def read(self, register):
        return self.model.read(MMIO, register, 4)

    def write(self, register, value):
        self.model.write(MMIO, register, 4, value)

    def store(self, *stores):
        """What a mapping stores and the device sees together."""
        self.store_only(*stores)
        self.host.finish()

    def store_only(self, *stores):
        """The thread of the device does not go on meanwhile."""
        for register, value in stores:
            self.host.store(MMIO, register, 4, value)
        self.scan()

    def scan(self):
        self.model.native.scan()

    def rx(self, register):
        return reg.rx(self.queue, register)

    def tx(self, register):
        return reg.tx(self.queue, register)

    def begin(self, rctl=PROMISCUOUS, srrctl=ONE_BUFFER, buffers=SIZE - 1):
        """Set up and enable both rings, give the device its receive buffers."""
        self.write(reg.CTRL, self.read(reg.CTRL) | reg.CTRL_SLU)
        for place, ring in ((self.tx, TX_RING), (self.rx, RX_RING)):
            self.write(place(reg.BAL), ring)
            self.write(place(reg.BAH), 0)
            self.write(place(reg.LEN), 16 * SIZE)
        self.write(self.rx(reg.SRRCTL), srrctl)
        self.write(self.tx(reg.DCTL), reg.QUEUE_ENABLE)
        self.write(self.rx(reg.DCTL), reg.QUEUE_ENABLE)
        self.write(reg.RCTL, rctl)
        self.write(reg.TCTL, reg.TCTL_EN | reg.TCTL_PSP)
        for i in range(SIZE):
            self.put(RX_RING, i, RX_BUFFERS + BUFFER * i, 0)
        self.write(self.rx(reg.TAIL), buffers)
        self.host.finish()
        return self

    def poke(self, iova, data):
        for i, byte in enumerate(data):
            self.host.pages[(iova + i) // 4096][(iova + i) % 4096] = byte

    def put(self, ring, index, address, rest):
        self.poke(ring + 16 * (index % SIZE), struct.pack("<QQ", address, rest))

    def describe(self, address, low, high=0):
        """The next transmit descriptor; the tail is not moved."""
        self.put(TX_RING, self.sent, address, low | high << 32)
        self.sent += 1

    def ring(self):
        self.write(self.tx(reg.TAIL), self.sent % SIZE)
        self.host.finish()

    def send(self, data, flags=EOP | IFCS | RS, high=0):
        """One frame from one buffer, with an advanced descriptor."""
        at = TX_BUFFERS + BUFFER * (self.sent % SIZE)
        self.poke(at, data)
        self.describe(at, ADVANCED | flags | len(data), high | len(data) << 14)
        self.ring()

    def tx_done(self, index):
        return self.host.memory(TX_RING + 16 * index + 12, 1)[0] & 1

    def descriptor(self, index):
        """(packet type, hash, status, length, vlan) of a receive descriptor written back."""
        return struct.unpack("<IIIHH", self.host.memory(RX_RING + 16 * (index % SIZE), 16))

    def received(self):
        """The frames that have come since the last time; their buffers are given back."""
        frames, data = [], b""
        while self.descriptor(self.taken)[2] & 1:
            _, _, status, length, _ = self.descriptor(self.taken)
            data += self.host.memory(RX_BUFFERS + BUFFER * (self.taken % SIZE), length)
            self.put(RX_RING, self.taken, RX_BUFFERS + BUFFER * (self.taken % SIZE), 0)
            self.taken += 1
            if status & 2:
                frames.append(data)
                data = b""
        self.write(self.rx(reg.TAIL), (self.taken + SIZE - 1) % SIZE)
        self.host.finish()
        return frames
