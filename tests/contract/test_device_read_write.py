"""Reading and writing a device file; source: oracle probe, section regions."""

import pytest
import trio

from iommufs import uapi
from iommufs.errors import UapiError
from iommufs.vfio.function import PciFunction
from iommufs.vfio.model import Bar, Description, Model
from tests.contract.client import refused
from tests.contract.vfio_client import ALL, CONFIG, EDU, NIC0, NVME, TESTDEV, VfioClient
from tests.vfio.facts import ALL as facts_of_all
from tests.vfio.facts import WINDOW

COMMAND = CONFIG + 4
BAR = [index << 40 for index in range(6)]
ROM = 6 << 40
ALL_ON, ALL_OFF = b"\x07\x00", b"\x00\x00"
ONES = b"\xff"


@pytest.fixture
async def nvme(vfio):
    return await vfio.bound(NVME)


@pytest.mark.parametrize(
    ("offset", "size", "data"),
    [
        (0, 1, "36"),
        (1, 2, "1b10"),
        (1, 3, "1b1000"),
        (0x3C, 8, "0b01000011804000"),
        (0xFE, 4, "00000000"),
        (0x100, 4, "00000000"),
        (0x10, 24, "040080fe0000000000000000000000000000000000000000"),
        (0x34, 12, "40000000000000000b010000"),
        (0, 0, ""),
    ],
)
async def test_config_space_is_read_in_any_pieces(vfio, nvme, offset, size, data):
    got = await vfio.pread(nvme, size, CONFIG + offset)
    assert got == bytes.fromhex(data).ljust(size, b"\0")


@pytest.mark.parametrize("offset", [0xFFF, 0x1000, 1 << 39])
async def test_config_space_past_its_end_is_efault(vfio, nvme, offset):
    with refused("EFAULT"):
        await vfio.pread(nvme, 4, CONFIG + offset)
    with refused("EFAULT"):
        await vfio.pwrite(nvme, bytes(4), CONFIG + offset)


@pytest.mark.parametrize("position", [8 << 40, 9 << 40, ROM, BAR[1], BAR[0] + 0x4000, 1 << 62])
async def test_where_there_is_nothing_it_is_einval(vfio, nvme, position):
    with refused("EINVAL"):
        await vfio.pread(nvme, 4, position)
    with refused("EINVAL"):
        await vfio.pwrite(nvme, bytes(4), position)
    assert await vfio.pread(nvme, 0, position) == b""
    assert await vfio.pwrite(nvme, b"", position) == 0


async def test_a_read_across_the_end_of_a_bar_is_short(vfio, nvme):
    assert len(await vfio.pread(nvme, 8, BAR[0] + 0x3FFC)) == 4
    assert await vfio.pwrite(nvme, bytes(8), BAR[0] + 0x3FFC) == 4


async def test_the_vendor_id_cannot_be_written(vfio, nvme):
    assert await vfio.pwrite(nvme, b"\xff\xff", CONFIG) == 2
    assert await vfio.pread(nvme, 4, CONFIG) == bytes.fromhex("361b1000")


async def test_without_memory_decoding_a_bar_is_eio(vfio, nvme):
    await vfio.pwrite(nvme, ALL_OFF, COMMAND)
    with refused("EIO"):
        await vfio.pread(nvme, 4, BAR[0])
    with refused("EIO"):
        await vfio.pwrite(nvme, bytes(4), BAR[0])
    await vfio.pwrite(nvme, ALL_ON, COMMAND)
    assert len(await vfio.pread(nvme, 4, BAR[0])) == 4


async def test_without_decoding_ports_and_the_msix_table_read_as_ones(vfio):
    df = await vfio.bound(NIC0)
    await vfio.pwrite(df, ALL_OFF, COMMAND)
    assert await vfio.pread(df, 4, BAR[2]) == ONES * 4
    assert await vfio.pread(df, 8, BAR[3]) == ONES * 8
    assert await vfio.pwrite(df, bytes(4), BAR[2]) == 4
    with refused("EIO"):
        await vfio.pread(df, 4, BAR[3] + 0x50)


async def test_the_msix_table_is_hidden_and_what_is_beside_it_not(vfio):
    df = await vfio.bound(NIC0)
    await vfio.pwrite(df, ALL_ON, COMMAND)
    await vfio.pwrite(df, bytes(0x54), BAR[3])
    assert await vfio.pread(df, 0x54, BAR[3]) == ONES * 0x50 + bytes(4)


async def test_the_rom_is_read_only_and_ends_in_ones(vfio):
    df = await vfio.bound(NIC0)
    await vfio.pwrite(df, ALL_ON, COMMAND)
    assert len(await vfio.pread(df, 4, ROM)) == 4
    with refused("EINVAL"):
        await vfio.pwrite(df, bytes(4), ROM)


async def test_poll_says_ready(nvme):
    assert nvme.poll() == 0x145


async def test_edu_answers_by_its_datasheet(vfio):
    df = await vfio.bound(EDU)
    await vfio.pwrite(df, ALL_ON, COMMAND)
    assert await vfio.pread(df, 4, BAR[0]) == bytes.fromhex("ed000001")
    await vfio.pwrite(df, bytes.fromhex("78563412"), BAR[0] + 4)
    assert await vfio.pread(df, 4, BAR[0] + 4) == bytes.fromhex("87a9cbed")


@pytest.mark.parametrize("index", ALL)
async def test_config_space_of_the_default_machine_is_that_of_the_oracle(vfio, index):
    df = await vfio.bound(index)
    facts = {facts.address: facts for facts in facts_of_all}[df.function.address]
    before = await vfio.pread(df, facts.size, CONFIG)
    assert before == facts.after_opening()
    for offset in range(0, min(facts.size, WINDOW), 4):
        for value, changes in zip((b"\xff", b"\x00"), facts.changes(4, offset), strict=True):
            expected = bytearray(before)
            for at, byte in changes.items():
                expected[at] = byte
            await vfio.pwrite(df, value * 4, CONFIG + offset)
            assert await vfio.pread(df, facts.size, CONFIG) == expected, hex(offset)
        await vfio.pwrite(df, before[offset : offset + 4], CONFIG + offset)


async def test_a_long_access_lets_others_have_their_turn(vfio, nursery):
    df = await vfio.bound(NIC0)
    turns = []

    async def other():
        while True:
            turns.append(None)
            await trio.lowlevel.checkpoint()

    nursery.start_soon(other)
    pattern = bytes(range(256)) * 64
    assert await vfio.pwrite(df, pattern + b"beyond", BAR[3]) == 0x4000
    before = len(turns)
    got = await vfio.pread(df, 0x10000, BAR[3])
    assert len(turns) > before
    table = 5 * 16
    assert got == ONES * table + pattern[table:]
    assert await vfio.pread(df, 0x10000, BAR[3] + 0x1004) == got[0x1004:]
    nursery.cancel_scope.cancel()


# ---- how accesses are cut


# An expansion ROM of 2100 bytes with one image of four sectors.
IMAGE = b"\x55\xaa".ljust(0x18, b"R") + b"\x1c\0\0\0PCIR"
IMAGE = (IMAGE.ljust(0x26, b"\0") + b"\x18\0").ljust(0x2C, b"\0") + b"\4\0\0\0\0\x80"
IMAGE = IMAGE.ljust(2100, b"R")


class Recorder(Model):
    """Answers with ones and writes down what it was asked."""

    def __init__(self, host):
        super().__init__(host, {})
        self.calls = []

    def describe(self):
        return Description(
            vendor=1, device=2, class_code=0, rom=IMAGE, msix_vectors=2,
            bars={0: Bar(4096), 1: Bar(16, io=True), 2: Bar(4096)},
            msix_table=(2, 0x10), msix_pba=(2, 0x800),
        )  # fmt: skip

    def read(self, region, offset, size):
        self.calls.append((region, offset, size))
        return (1 << 8 * size) - 1

    def write(self, region, offset, size, value):
        self.calls.append((region, offset, size, value))


@pytest.fixture
async def recorder(vfio: VfioClient):
    vfio.add("0000:00:1e.0", Recorder)
    df = await vfio.bound(-1)
    df.function.model.calls.clear()
    return df


@pytest.mark.parametrize(
    ("offset", "size", "pieces"),
    [
        (0, 8, [(0, 8)]),
        (4, 8, [(4, 4), (8, 4)]),
        (2, 4, [(2, 2), (4, 2)]),
        (1, 16, [(1, 1), (2, 2), (4, 4), (8, 8), (16, 1)]),
        (3, 2, [(3, 1), (4, 1)]),
        (4094, 4, [(4094, 2)]),
    ],
)
async def test_memory_is_accessed_in_the_widest_aligned_pieces(
    vfio, recorder, offset, size, pieces
):
    got = await vfio.pread(recorder, size, BAR[0] + offset)
    assert recorder.function.model.calls == [(0, *piece) for piece in pieces]
    assert got == ONES * sum(width for _, width in pieces)


async def test_ports_are_four_bytes_wide_at_most(vfio, recorder):
    await vfio.pwrite(recorder, bytes(range(8)), BAR[1])
    calls = recorder.function.model.calls
    assert calls == [(1, 0, 4, 0x03020100), (1, 4, 4, 0x07060504)]


async def test_accesses_are_cut_at_the_msix_table(vfio, recorder):
    await vfio.pread(recorder, 64, BAR[2] + 8)
    assert recorder.function.model.calls == [(2, 8, 8), (2, 0x30, 8), (2, 0x38, 8), (2, 0x40, 8)]


async def test_the_rom_past_its_image_is_ones_and_nothing_without_decoding(vfio, recorder):
    assert await vfio.pread(recorder, 6, ROM) == IMAGE[:6]
    assert await vfio.pread(recorder, 6, ROM + 2045) == b"RRR" + ONES * 3
    await vfio.pwrite(recorder, ALL_OFF, COMMAND)
    for offset in (0, 2048):
        with refused("ENOMEM"):
            await vfio.pread(recorder, 4, ROM + offset)
    with refused("EINVAL"):
        await vfio.pread(recorder, 4, ROM + 4096)


@pytest.mark.logs("a device model failed")
async def test_a_model_that_fails_is_eio(vfio, recorder, monkeypatch):
    monkeypatch.setattr(recorder.function.model, "read", lambda *args: 1 // 0)
    with refused("EIO"):
        await vfio.pread(recorder, 4, BAR[0])
    assert recorder.function.counters["model_errors"] == 1


async def test_a_device_without_an_interrupt_is_still_read(vfio):
    df = await vfio.bound(TESTDEV)
    assert await vfio.pread(df, 2, CONFIG + 0x3C) == bytes(2)


# ---- plain memory


class Memory(Model):
    """A BAR that is memory, with an MSI-X table in its middle."""

    def describe(self):
        return Description(
            vendor=1, device=2, class_code=0, msix_vectors=2, msix_table=(0, 0x810),
            bars={0: Bar(4096, mappable=True, plain=True)}, msix_pba=(0, 0x800),
        )  # fmt: skip

    def read(self, region, offset, size):
        raise AssertionError("plain memory is not asked of the model")


@pytest.fixture
async def memory(vfio):
    df = await vfio.bound(vfio.add("0000:00:1e.0", lambda host: Memory(host, {})).index)
    df.function.bars.view(0)[:] = bytes(range(256)) * 16
    return df


@pytest.mark.parametrize(
    ("offset", "size", "data"),
    [
        (0, 4, "00010203"),
        (3, 10, "030405060708090a0b0c"),
        (0xFFD, 8, "fdfeff"),
        (0x80C, 8, "0c0d0e0fffffffff"),
        (0x82F, 2, "ff30"),
        (0x810, 32, "ff" * 32),
        (0x830, 1, "30"),
    ],
)
async def test_plain_memory_is_what_a_mapping_shows(vfio, memory, offset, size, data):
    assert (await vfio.pread(memory, size, BAR[0] + offset)).hex() == data


async def test_plain_memory_needs_decoding_and_power(vfio, memory):
    await vfio.pwrite(memory, ALL_OFF, COMMAND)
    with refused("EIO"):
        await vfio.pread(memory, 4, BAR[0])
    with refused("EINVAL"):
        await vfio.pread(memory, 4, BAR[0] + 4096)
    await vfio.pwrite(memory, ALL_ON, COMMAND)
    assert await vfio.pread(memory, 4, BAR[0]) == bytes(range(4))
    assert len(await vfio.pread(memory, 8192, BAR[0])) == 4096


# ---- what readers of the transport answer; that they answer the same is what pread() here asks


async def test_readers_answer_config_space_the_rom_and_plain_memory(vfio, recorder, memory):
    assert len(memory.fast.read(CONFIG, 256)) == 256
    assert memory.fast.read(CONFIG + 1, 3) == await vfio.pread(memory, 3, CONFIG + 1)
    assert memory.fast.read(BAR[0], 5) == bytes(range(5))
    assert recorder.fast.read(ROM, 2) == b"\x55\xaa"
    assert not recorder.fast.read(BAR[0], 4)
    assert not memory.fast.read(CONFIG, 0)
    assert not memory.fast.read(CONFIG + 250, 8)
    assert not memory.fast.read(BAR[0] + 0x80C, 8)


async def test_what_a_client_writes_to_config_space_readers_know(vfio, memory):
    await vfio.pwrite(memory, b"\x5a", CONFIG + 0x3C)
    await vfio.pwrite(memory, b"\xff" * 4, CONFIG + 0x10)
    assert memory.fast.read(CONFIG + 0x3C, 1) == b"\x5a"
    assert memory.fast.read(CONFIG + 0x10, 4) == b"\0\xf0\xff\xff"


async def test_memory_that_cannot_be_reached_readers_do_not_read(vfio, memory):
    await vfio.pwrite(memory, ALL_OFF, COMMAND)
    assert not memory.fast.read(BAR[0], 4)
    await vfio.pwrite(memory, ALL_ON, COMMAND)
    assert memory.fast.read(BAR[0], 4)
    memory.function.lose_memory()
    assert not memory.fast.read(BAR[0], 4)


async def test_a_device_in_low_power_is_pythons(vfio, memory):
    memory.low_power.enter(None)
    assert not memory.fast.read(CONFIG, 4)
    await vfio.pread(memory, 4, CONFIG)
    memory.low_power.leave()
    assert memory.fast.read(CONFIG, 4)


async def test_after_an_unbind_readers_know_nothing(vfio):
    device = vfio.add("0000:00:1e.0", lambda host: Memory(host, {}))
    df = await vfio.bound(device.index)
    df.unbind()
    assert not df.fast.read(CONFIG, 4)
    df.function.memory_changed(True)
    assert not df.fast.read(BAR[0], 4)


# ---- legacy VGA; source: the guest with CONFIG_VFIO_PCI_VGA and a VGA controller

VGA = 8 << 40


class VgaModel(Model):
    """Reads give the offset; what is written is kept."""

    def describe(self):
        return Description(vendor=1, device=1, class_code=0x030000)

    def open(self):
        self.accesses = []

    def read(self, region, offset, size):
        self.accesses.append((region, offset, size))
        return offset & 0xFF

    def write(self, region, offset, size, value):
        self.accesses.append((region, offset, size, value))


@pytest.fixture
async def vga(vfio):
    device = vfio.add("0000:00:1b.0", lambda host: VgaModel(host, {}), has_vga=True)
    return await vfio.bound(device.index)


@pytest.mark.parametrize(
    ("offset", "size", "length"),
    [
        (0xA0000, 4, 4),
        (0xBFFFE, 4, 2),
        (0xBFFFF, 1, 1),
        (0x3B0, 4, 4),
        (0x3B0, 16, 12),
        (0x3BB, 2, 1),
        (0x3C0, 1, 1),
        (0x3C0, 8192, 32),
        (0x3DE, 4, 2),
        (0x3DF, 1, 1),
        (0xA0001, 8, 8),
        (0xA0000, 0x20001, 0x20000),
        (0, 0, 0),
    ],
)
async def test_vga_is_three_windows(vfio, vga, offset, size, length):
    assert len(await vfio.pread(vga, size, VGA + offset)) == length
    assert await vfio.pwrite(vga, bytes(size), VGA + offset) == length


@pytest.mark.parametrize("offset", [0, 0x9FFFE, 0xC0000, 0x3AF, 0x3BC, 0x3BF, 0x3E0, 1 << 39])
async def test_outside_of_them_is_einval(vfio, vga, offset):
    with refused("EINVAL"):
        await vfio.pread(vga, 4, VGA + offset)
    with refused("EINVAL"):
        await vfio.pwrite(vga, b"x", VGA + offset)


async def test_accesses_are_of_four_bytes_at_most_and_decoding_does_not_matter(vfio, vga):
    await vfio.pwrite(vga, b"\0\0", CONFIG + 4)
    vga.function.model.accesses.clear()
    await vfio.pread(vga, 7, VGA + 0xA0001)
    await vfio.pwrite(vga, b"\1\2", VGA + 0x3C4)
    assert vga.function.model.accesses == [
        (8, 0xA0001, 1), (8, 0xA0002, 2), (8, 0xA0004, 4), (8, 0x3C4, 2, 0x201),
    ]  # fmt: skip


async def test_the_vga_region_is_told_and_not_mapped(vfio, vga):
    info = await vfio.call(vga, uapi.VFIO_DEVICE_GET_REGION_INFO, "vfio_region_info", index=8)
    assert (info.flags, info.size, info.offset) == (3, 0xC0000, VGA)
    with pytest.raises(UapiError):
        vga.check_mmap(vfio.caller, -1, 4096, 1, VGA + 0xA0000)


async def test_without_it_there_is_no_such_region(vfio):
    df = await vfio.bound(EDU)
    with refused("EINVAL"):
        await vfio.pread(df, 4, VGA + 0xA0000)


def test_only_a_vga_controller_has_it():
    with pytest.raises(ValueError, match="no VGA controller"):
        PciFunction("0000:00:1b.0", VfioClient.inert, spawn=None, has_vga=True)
