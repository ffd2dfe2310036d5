"""VFIO_DEVICE_SET_IRQS: the oracle's answers call by call, then what devices do to the client."""

import errno
import os
from pathlib import Path

import pytest
from trio.testing import wait_all_tasks_blocked

from iommufs import uapi
from iommufs._native import ffi
from tests.contract.client import refused
from tests.contract.vfio_client import CONFIG, EDU, EDU_BRIDGE, IGB, NIC0, NVME, TESTDEV, event

NONE = uapi.VFIO_IRQ_SET_DATA_NONE
BOOL = uapi.VFIO_IRQ_SET_DATA_BOOL
EVENTFD = uapi.VFIO_IRQ_SET_DATA_EVENTFD
MASK = uapi.VFIO_IRQ_SET_ACTION_MASK
UNMASK = uapi.VFIO_IRQ_SET_ACTION_UNMASK
TRIGGER = uapi.VFIO_IRQ_SET_ACTION_TRIGGER
INTX, MSI, MSIX, ERR, REQ = range(5)

ANSWERS = Path(__file__).parent.parent / "data" / "set_irqs.txt"
RECORDED = {"nvme0": NVME, "e1000e0": NIC0, "testdev0": TESTDEV, "edu1": EDU_BRIDGE}


def fd_data(*fds: int) -> bytes:
    return b"".join(fd.to_bytes(4, "little", signed=True) for fd in fds)


class Replay:
    """Asks what the oracle's probe asked, in its order, and writes down the answers."""

    def __init__(self, vfio, df, name):
        self.vfio, self.df, self.name = vfio, df, name
        self.lines = []
        self.e, self.e2 = vfio.eventfd(), vfio.eventfd()
        self.null = vfio.fd(os.open("/dev/null", os.O_RDWR))

    async def ask(self, what, argsz, flags, index, start, count, *values):
        values = (*values, -1, -1, -1, -1)[:4]
        try:
            await self.vfio.set_irqs(
                self.df, flags, index, start, count, fd_data(*values), argsz=argsz
            )
            answer = str(self.vfio.result)
        except OSError as error:
            answer = errno.errorcode[error.errno]
        self.lines.append(f"{what}: {answer}")

    async def count(self, what, eventfd):
        self.lines.append(f"{what}: ={event(eventfd)}")

    async def general(self):
        def named(what):
            return f"{self.name} {what}"

        ask, e = self.ask, self.e
        await ask(named("argsz 19"), 19, TRIGGER | NONE, 0, 0, 0)
        await ask(
            named("argsz 20 TRIGGER|NONE idx0 count0 (disable, nothing on)"),
            20, TRIGGER | NONE, 0, 0, 0,
        )  # fmt: skip
        await ask(named("flags 0"), 20, 0, 0, 0, 0)
        await ask(named("two actions"), 24, TRIGGER | MASK | NONE, 0, 0, 1)
        await ask(named("two data"), 24, TRIGGER | NONE | BOOL, 0, 0, 1)
        await ask(named("unknown flag 64"), 24, 64 | TRIGGER | NONE, 0, 0, 1)
        await ask(named("index 5"), 24, TRIGGER | NONE, 5, 0, 0)
        await ask(named("index 7"), 24, TRIGGER | NONE, 7, 0, 0)
        await ask(named("only action"), 24, TRIGGER, 0, 0, 0)
        await ask(named("only data"), 24, NONE, 0, 0, 0)
        await ask(
            named("eventfd, argsz 20, count 1 (short data)"), 20, TRIGGER | EVENTFD, 0, 0, 1, e
        )
        await ask(named("BOOL, argsz 20 (short data)"), 20, TRIGGER | BOOL, 0, 0, 1, 1)
        await ask(named("eventfd, argsz 23"), 23, TRIGGER | EVENTFD, 0, 0, 1, e)

    async def index(self, x, n):
        def named(what):
            return f"{self.name} idx{x}(count {n}) {what}"

        ask, count, e, e2 = self.ask, self.count, self.e, self.e2
        trigger = TRIGGER | EVENTFD
        await ask(named("NONE trigger before enable, count1"), 20, TRIGGER | NONE, x, 0, 1)
        await ask(named("mask NONE before enable"), 20, MASK | NONE, x, 0, 1)
        await ask(named("start=count"), 24, trigger, x, n, 1, e)
        await ask(named("count=max+1"), 4096, trigger, x, 0, n + 1, e)
        await ask(named("start+count overflow"), 4096, trigger, x, 0xFFFFFFFF, 2, e)
        await ask(named("bad fd 9999"), 24, trigger, x, 0, 1, 9999)
        await ask(named("fd is /dev/null"), 24, trigger, x, 0, 1, self.null)
        await ask(named("fd -1"), 24, trigger, x, 0, 1, -1)
        await ask(named("fd -2"), 24, trigger, x, 0, 1, -2)
        await ask(named("eventfd enable count1"), 24, trigger, x, 0, 1, e)
        await ask(named("enable again same fd"), 24, trigger, x, 0, 1, e)
        event(e)
        await ask(named("loopback NONE"), 20, TRIGGER | NONE, x, 0, 1)
        await count(named("eventfd after loopback"), e)
        await ask(named("loopback BOOL 1"), 21, TRIGGER | BOOL, x, 0, 1, 1)
        await count(named("eventfd after BOOL 1"), e)
        await ask(named("loopback BOOL 0"), 21, TRIGGER | BOOL, x, 0, 1, 0)
        await count(named("eventfd after BOOL 0"), e)
        await ask(named("mask NONE"), 20, MASK | NONE, x, 0, 1)
        await ask(named("mask NONE twice"), 20, MASK | NONE, x, 0, 1)
        await ask(named("unmask NONE"), 20, UNMASK | NONE, x, 0, 1)
        await ask(named("unmask BOOL"), 21, UNMASK | BOOL, x, 0, 1, 1)
        await ask(named("unmask eventfd"), 24, UNMASK | EVENTFD, x, 0, 1, e2)
        await ask(named("unmask eventfd again"), 24, UNMASK | EVENTFD, x, 0, 1, e2)
        await ask(named("unmask eventfd -1"), 24, UNMASK | EVENTFD, x, 0, 1, -1)
        await ask(named("mask eventfd"), 24, MASK | EVENTFD, x, 0, 1, e2)
        if n > 1:
            await self.vectors(named, x, n)
        if x < 2:
            other = 0 if x else 2
            there = self.df.function.n_irqs(other)
            what = f"{self.name} enable idx{other} (count {there}) while idx{x} on"
            await ask(what, 24, trigger, other, 0, 1, e2)
            await ask("and disable it", 20, TRIGGER | NONE, other, 0, 0)
        await ask(named("-1 turns off single"), 24, trigger, x, 0, 1, -1)
        await ask(named("loopback after -1"), 20, TRIGGER | NONE, x, 0, 1)
        await ask(named("disable NONE count0"), 20, TRIGGER | NONE, x, 0, 0)
        await ask(named("disable again"), 20, TRIGGER | NONE, x, 0, 0)
        await ask(named("disable start 1 count 0"), 20, TRIGGER | NONE, x, 1, 0)
        await ask(named("DE count 0"), 20, trigger, x, 0, 0)
        await ask(named("DB count 0"), 20, TRIGGER | BOOL, x, 0, 0)

    async def vectors(self, named, x, n):
        ask, e2, trigger = self.ask, self.e2, TRIGGER | EVENTFD
        await ask(named("extend to vector 1 (start 1)"), 24, trigger, x, 1, 1, e2)
        await ask(named("loopback vec1"), 20, TRIGGER | NONE, x, 1, 1)
        await self.count(named("eventfd2"), e2)
        await ask(named("vector 1 off by -1"), 24, trigger, x, 1, 1, -1)
        await ask(named("loopback vec1 when off"), 20, TRIGGER | NONE, x, 1, 1)
        await ask(named("vector 3 direct"), 24, trigger, x, n - 1, 1, e2)


def recorded(name: str) -> list[str]:
    """The oracle's lines of one device; those without its name belong to the last one that has."""
    lines, current = [], None
    for line in ANSWERS.read_text().splitlines():
        if line.startswith("#"):
            continue
        if not line.startswith("and "):
            current = line.split()[0]
        if current == name:
            lines.append(line)
    return lines


@pytest.mark.parametrize("name", RECORDED)
async def test_every_call_is_answered_as_linux_answers_it(vfio, name):
    df = await vfio.bound(RECORDED[name])
    replay = Replay(vfio, df, name)
    await replay.general()
    for index in range(5):
        await replay.index(index, df.function.n_irqs(index))
    expected = recorded(name)
    assert len(expected) > 170
    assert replay.lines == expected


# ---- what reaches the client

COMMAND = CONFIG + 4
MASTER = b"\x06\x00"


class Edu:
    """A bound edu device whose interrupts are at hand."""

    RAISE, ACK = 0x60, 0x64

    def __init__(self, vfio, df):
        self.vfio, self.df = vfio, df

    async def raise_irq(self):
        await self.vfio.pwrite(self.df, b"\1\0\0\0", self.RAISE)

    async def ack(self):
        await self.vfio.pwrite(self.df, b"\1\0\0\0", self.ACK)

    async def irqs(self, flags, index=INTX, data=b"", count=1):
        await self.vfio.set_irqs(self.df, flags, index, 0, count, data)

    async def command(self, value):
        await self.vfio.pwrite(self.df, value, COMMAND)

    async def status(self):
        return await self.vfio.pread(self.df, 4, COMMAND)


@pytest.fixture
async def edu(vfio):
    edu = Edu(vfio, await vfio.bound(EDU))
    await edu.command(MASTER)
    return edu


async def test_intx_masks_itself_until_unmasked(vfio, edu):
    """Oracle probe, section edu-dma."""
    e = vfio.eventfd()
    await edu.irqs(TRIGGER | EVENTFD, data=fd_data(e))
    await edu.raise_irq()
    assert event(e) == 1
    assert await edu.status() == bytes.fromhex("06001800")
    await edu.ack()
    await edu.raise_irq()
    assert event(e) == 0
    await edu.irqs(UNMASK | NONE)
    assert event(e) == 1
    await edu.ack()
    assert await edu.status() == bytes.fromhex("06001000")
    await edu.irqs(UNMASK | NONE)
    await edu.raise_irq()
    assert event(e) == 1


async def test_unmasking_while_the_line_is_up_signals_each_time(vfio, edu):
    e = vfio.eventfd()
    await edu.irqs(TRIGGER | EVENTFD, data=fd_data(e))
    await edu.irqs(MASK | NONE)
    await edu.raise_irq()
    assert event(e) == 0
    for _ in range(2):
        await edu.irqs(UNMASK | NONE)
        assert event(e) == 1


async def test_the_intx_disable_bit_masks_and_unmasks(vfio, edu):
    e = vfio.eventfd()
    await edu.command(b"\x06\x04")
    await edu.irqs(TRIGGER | EVENTFD, data=fd_data(e))
    await edu.raise_irq()
    assert event(e) == 0
    await edu.irqs(UNMASK | NONE)
    await edu.irqs(TRIGGER | NONE)
    assert event(e) == 0
    await edu.command(MASTER)
    assert event(e) == 1
    await edu.irqs(TRIGGER | NONE)
    assert event(e) == 1


async def test_an_unmask_eventfd_resamples(vfio, edu):
    e, unmask = vfio.eventfd(), vfio.eventfd()
    await edu.irqs(TRIGGER | EVENTFD, data=fd_data(e))
    await edu.irqs(UNMASK | EVENTFD, data=fd_data(unmask))
    await wait_all_tasks_blocked()
    await edu.raise_irq()
    assert event(e) == 1
    os.eventfd_write(unmask, 1)
    await wait_all_tasks_blocked()
    assert event(e) == 1
    assert event(unmask) == 0
    await edu.ack()
    os.eventfd_write(unmask, 3)
    await wait_all_tasks_blocked()
    await edu.raise_irq()
    assert event(e) == 1


async def test_an_unmask_eventfd_that_is_signalled_already_counts_once_and_is_left(vfio, edu):
    e, unmask = vfio.eventfd(), vfio.eventfd()
    await edu.irqs(TRIGGER | EVENTFD, data=fd_data(e))
    await edu.raise_irq()
    assert event(e) == 1
    os.eventfd_write(unmask, 5)
    await edu.irqs(UNMASK | EVENTFD, data=fd_data(unmask))
    await wait_all_tasks_blocked()
    assert event(e) == 1
    assert event(unmask) == 5


async def test_taking_the_unmask_eventfd_away_empties_it(vfio, edu):
    """Seen in the oracle, for IOEVENTFD too: eventfd_ctx_remove_wait_queue() reads the counter."""
    e, unmask = vfio.eventfd(), vfio.eventfd()
    await edu.irqs(TRIGGER | EVENTFD, data=fd_data(e))
    os.eventfd_write(unmask, 5)
    await edu.irqs(UNMASK | EVENTFD, data=fd_data(unmask))
    await edu.irqs(UNMASK | EVENTFD, data=fd_data(-1))
    assert event(unmask) == 0


async def test_taking_the_unmask_eventfd_away_ends_its_task(vfio, edu):
    e, unmask = vfio.eventfd(), vfio.eventfd()
    await edu.irqs(TRIGGER | EVENTFD, data=fd_data(e))
    await edu.irqs(UNMASK | EVENTFD, data=fd_data(unmask))
    await edu.irqs(UNMASK | EVENTFD, data=fd_data(-1))
    await edu.raise_irq()
    os.eventfd_write(unmask, 1)
    await wait_all_tasks_blocked()
    assert event(e) == 1
    assert event(unmask) == 1


async def test_msi_needs_bus_mastering(vfio, edu):
    e = vfio.eventfd()
    await edu.irqs(TRIGGER | EVENTFD, MSI, fd_data(e))
    await edu.raise_irq()
    await edu.raise_irq()
    assert event(e) == 2
    await edu.command(b"\x02\x00")
    await edu.raise_irq()
    await edu.command(MASTER)
    assert event(e) == 0
    assert edu.df.function.counters["msi_dropped"] == 1


async def test_the_msi_enable_bit_works_while_msi_is_on(vfio, edu):
    """Oracle: flags read as written while on; a 0 there stops the messages."""
    e = vfio.eventfd()
    flags = CONFIG + 0x42
    await edu.irqs(TRIGGER | EVENTFD, MSI, fd_data(e))
    assert await vfio.pread(edu.df, 1, flags) == b"\x80"
    await vfio.pwrite(edu.df, b"\xff", flags)
    assert await vfio.pread(edu.df, 1, flags) == b"\x8f"
    await edu.raise_irq()
    assert event(e) == 1
    await vfio.pwrite(edu.df, b"\x00", flags)
    assert await vfio.pread(edu.df, 1, flags) == b"\x00"
    await edu.irqs(TRIGGER | NONE, MSI)
    assert event(e) == 1


async def test_msix_shows_in_config_space(vfio):
    df = await vfio.bound(NVME)
    e = vfio.eventfd()
    await vfio.set_irqs(df, TRIGGER | EVENTFD, MSIX, 0, 1, fd_data(e))
    assert await vfio.pread(df, 2, CONFIG + 0x42) == b"\x40\x80"
    await vfio.pwrite(df, b"\xff\xff", CONFIG + 0x42)
    await vfio.set_irqs(df, TRIGGER | NONE, MSIX, 0, 0)
    assert await vfio.pread(df, 2, CONFIG + 0x42) == b"\x40\x00"


async def test_a_masked_msi_vector_waits(vfio):
    df = await vfio.bound(IGB)
    e = vfio.eventfd()
    await vfio.pwrite(df, MASTER, COMMAND)
    await vfio.set_irqs(df, TRIGGER | EVENTFD, MSI, 0, 1, fd_data(e))
    await vfio.pwrite(df, b"\1", CONFIG + 0x60)
    df.function.host.msi(0)
    assert event(e) == 0
    assert await vfio.pread(df, 4, CONFIG + 0x64) == b"\1\0\0\0"
    await vfio.pwrite(df, b"\0", CONFIG + 0x60)
    assert event(e) == 1
    assert await vfio.pread(df, 4, CONFIG + 0x64) == bytes(4)


async def test_msi_vectors_without_an_eventfd_are_masked(vfio):
    """Source: oracle; pci_msi_mask_irq(), pci_msi_shutdown(), pci_restore_msi_state()."""
    df, e = await vfio.bound(IGB), vfio.eventfd()
    none, some = fd_data(-1), fd_data(e)

    async def masks():
        return (await vfio.pread(df, 4, CONFIG + 0x60))[0]

    for data, expected in ((some, 0), (none, 1), (some, 0), (none, 1)):
        await vfio.set_irqs(df, TRIGGER | EVENTFD, MSI, 0, 1, data)
        assert await masks() == expected
    await vfio.ioctl(df, uapi.VFIO_DEVICE_RESET, 0)
    assert await masks() == 1
    await vfio.pwrite(df, b"\0", CONFIG + 0x60)
    await vfio.set_irqs(df, TRIGGER | NONE, MSI, 0, 0)
    await vfio.pwrite(df, b"\1", CONFIG + 0x60)
    await vfio.set_irqs(df, TRIGGER | EVENTFD, MSI, 0, 1, some)
    assert await masks() == 0
    await vfio.set_irqs(df, TRIGGER | EVENTFD, MSI, 0, 1, none)
    await vfio.set_irqs(df, TRIGGER | NONE, MSI, 0, 0)
    assert await masks() == 0


async def test_the_first_bad_fd_takes_the_block_away(vfio):
    df = await vfio.bound(NVME)
    eventfds = [vfio.eventfd() for _ in range(3)]
    await vfio.set_irqs(df, TRIGGER | EVENTFD, MSIX, 0, 3, fd_data(*eventfds))
    with refused("EBADF"):
        data = fd_data(eventfds[0], 9999, eventfds[2])
        await vfio.set_irqs(df, TRIGGER | EVENTFD, MSIX, 0, 3, data)
    await vfio.set_irqs(df, TRIGGER | NONE, MSIX, 0, 3)
    assert [event(e) for e in eventfds] == [0, 0, 1]


async def test_a_bad_fd_when_enabling_leaves_it_off(vfio):
    df = await vfio.bound(EDU)
    with refused("EBADF"):
        await vfio.set_irqs(df, TRIGGER | EVENTFD, MSI, data=fd_data(9999))
    with refused("EINVAL"):
        await vfio.set_irqs(df, TRIGGER | NONE, MSI, count=0)


async def test_data_that_cannot_be_read_is_efault(vfio, read_only_page):
    df = await vfio.bound(NVME)
    header = uapi.new(
        "vfio_irq_set", argsz=24, flags=TRIGGER | EVENTFD, index=MSIX, start=0, count=1
    )
    address = read_only_page(bytes(ffi.buffer(header)), at_the_end=True)
    with refused("EFAULT"):
        await vfio.ioctl(df, uapi.VFIO_DEVICE_SET_IRQS, address)


async def test_a_full_eventfd_does_not_hold_anyone_up(vfio):
    df = await vfio.bound(NVME)
    blocking = vfio.fd(os.eventfd(0))
    os.eventfd_write(blocking, 2**64 - 2)
    await vfio.set_irqs(df, TRIGGER | EVENTFD, MSIX, data=fd_data(blocking))
    await vfio.set_irqs(df, TRIGGER | NONE, MSIX)
    assert os.eventfd_read(blocking) >= 2**64 - 2


async def test_closing_the_device_closes_the_eventfds_and_ends_the_tasks(vfio, edu):
    before = len(os.listdir("/proc/self/fd"))
    e = vfio.eventfd()
    for index in (ERR, REQ, INTX):
        await edu.irqs(TRIGGER | EVENTFD, index, fd_data(e))
    await edu.irqs(UNMASK | EVENTFD, data=fd_data(e))
    await wait_all_tasks_blocked()
    vfio.close(edu.df)
    await wait_all_tasks_blocked()
    assert len(os.listdir("/proc/self/fd")) == before + 1  # the client's own eventfd
