"""igb in its own threads, in a machine that is real but for the mount."""

import select

import pytest

from iommufs.devices.igb import Igb
from iommufs.vfio import refused
from tests.contract.vfio_client import event
from tests.devices import igb_registers as reg
from tests.devices.igb_driver import (
    ADVANCED,
    EOP,
    IFCS,
    ONE_BUFFER,
    PROMISCUOUS,
    RS,
    RX_BUFFERS,
    RX_RING,
    SIZE,
    TX_BUFFERS,
    Driver,
    frame,
)
from tests.devices.nvme_client import LONG, PAGE, NvmeClient

N_FRAMES = 600
STUCK = 0x4000_0000
LARGE = 9000  # bytes of a frame: a DMA of less is refused where memory does not answer


class Memory:
    """What Driver wants of a host."""

    def __init__(self, client):
        self.memory = client.read

    def finish(self):
        """The device does so by itself."""


class ThreadedDriver(Driver):
    """Driver on a function that a client has opened, with its memory at the same addresses."""

    def __init__(self, client):
        self.client, self.host, self.queue = client, Memory(client), 0
        self.sent = self.taken = 0

    def read(self, register):
        return self.client.read32(register)

    def write(self, register, value):
        self.client.write32(register, value)

    def poke(self, iova, data):
        self.client.write(iova, data)

    def has_been_refused(self):
        refused.drain()
        return self.client.function.refused.total

    def wait_for(self, n):
        """So many frames."""
        frames = []

        def receive():
            frames.extend(self.received())
            return len(frames) >= n

        self.client.until(receive)
        return frames

    def wait_for_one_of(self, length):
        """The next frame of this length."""
        found = self.client.until(lambda: [f for f in self.received() if len(f) == length])
        return found[0]

    def send_in_turn(self, data):
        """Once there is a descriptor for it."""
        done = self.sent - SIZE // 2
        if done >= 0:
            self.client.until(lambda: self.tx_done(done % SIZE))
        self.send(data)


async def plug(vfio, options, rctl=PROMISCUOUS):
    vfio.add(f"0000:{0x20 + len(vfio.devices):02x}:00.0", lambda host: Igb(host, options))
    return await open_again(vfio, len(vfio.devices) - 1, rctl)


async def open_again(vfio, index, rctl=PROMISCUOUS):
    client = await NvmeClient().open(vfio, index)
    client.index = index
    return ThreadedDriver(client).begin(rctl=rctl)


@pytest.fixture
async def pair(vfio, request):
    options = {"wire": request.node.name}
    return [await plug(vfio, options) for _ in range(2)]


async def test_frames_of_a_pair_all_arrive_both_ways(pair):
    here, there = pair
    got = {here: [], there: []}
    sent = {driver: [frame(60 + i, seed=i) for i in range(N_FRAMES)] for driver in pair}
    for i in range(N_FRAMES):
        for driver in pair:
            driver.send_in_turn(sent[driver][i])
        for driver in pair:
            got[driver] += driver.received()
    for driver, other in ((here, there), (there, here)):
        got[driver] += driver.wait_for(N_FRAMES - len(got[driver]))
        assert got[driver] == sent[other]
        assert driver.read(reg.GPRC) == driver.read(reg.GPTC) == N_FRAMES
        assert driver.read(reg.MPC) == 0


async def test_an_interrupt_follows_its_frame(vfio, pair):
    here, there = pair
    (fd,) = await there.client.vectors(1)
    there.write(reg.GPIE, reg.GPIE_MULTIPLE_MSIX)
    there.write(reg.IVAR, 0x80)
    there.write(reg.EIMS, 1)
    here.send(frame())
    assert select.select([fd], [], [], LONG)[0]
    assert event(fd) == 1
    assert there.received() == [frame()]


@pytest.mark.logs("DMA refused")
async def test_an_other_end_that_goes_and_comes_back(vfio, pair):
    here, there = pair
    index = there.client.index
    for seed in range(8):
        for i in range(SIZE):
            here.send_in_turn(frame(200 + i))
        if seed % 2:
            await there.client.set_master(False)  # as a close does first
            there.send(frame(70))
            there.client.until(there.has_been_refused)
            vfio.close(there.client.df)  # with frames on their way
            there = await open_again(vfio, index)
        else:
            there.client.function.reset_function()
            assert there.read(reg.RCTL) == 0
            there.sent = there.taken = 0
            there.begin()
        while there.received():
            pass
        here.send_in_turn(frame(100, seed=seed))
        assert there.wait_for_one_of(100) == frame(100, seed=seed)


async def test_the_link_follows_the_other_end(pair):
    here, there = pair
    here.write(reg.IMS, reg.LSC)
    here.read(reg.ICR)
    for control, up in ((0x1940, False), (0x1140, True)):
        there.write(reg.MDIC, 1 << 26 | 1 << 21 | control)
        here.client.until(lambda: here.read(reg.ICR) & reg.LSC)
        assert bool(here.read(reg.STATUS) & reg.STATUS_LU) == up


async def test_a_receiver_whose_memory_does_not_answer_stops_only_itself(vfio, pair, stuck_pages):
    here, there = pair
    fd, address = stuck_pages
    await there.client.map_at(address, STUCK, 4 * PAGE)
    there.put(RX_RING, 0, STUCK, 0)
    there.write(there.rx(reg.SRRCTL), ONE_BUFFER | 16)
    there.write(reg.RCTL, PROMISCUOUS | reg.RCTL_LPE)
    here.describe(TX_BUFFERS, ADVANCED | EOP | IFCS | RS | LARGE)
    here.ring()
    assert select.select([fd], [], [], LONG)[0]  # it waits there now
    for i in range(2 * SIZE):
        here.send_in_turn(frame(1500, seed=i))
    there.client.function.reset_function()
    there.sent = there.taken = 0
    there.begin()
    here.send(frame(99))
    assert there.wait_for_one_of(99) == frame(99)


async def test_a_sender_whose_memory_does_not_answer_stops_only_itself(vfio, pair, stuck_pages):
    here, there = pair
    fd, address = stuck_pages
    await here.client.map_at(address, STUCK, 4 * PAGE)
    here.describe(STUCK, ADVANCED | EOP | IFCS | LARGE)
    here.ring()
    assert select.select([fd], [], [], LONG)[0]
    there.send(frame(77))  # nobody takes it now
    here.client.function.reset_function()
    here.sent = here.taken = 0
    here.begin()
    here.send(frame(99))
    assert there.wait_for(1) == [frame(99)]
    there.send(frame(88))
    assert here.wait_for_one_of(88) == frame(88)


@pytest.mark.logs("DMA refused")
async def test_a_frame_after_an_unmap_goes_nowhere(pair):
    here, there = pair
    before = there.client.read(RX_BUFFERS, 60)
    await there.client.unmap_all()
    here.send(frame())
    here.client.until(lambda: here.tx_done(0))
    there.client.until(lambda: there.read(reg.GPRC))
    assert there.client.read(RX_BUFFERS, 60) == before
    assert here.client.read(TX_BUFFERS, 60) == frame()
