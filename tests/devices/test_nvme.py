"""The NVMe controller against docs/nvme.md: registers, admin commands, events."""

import errno
import os
import select
import struct

import pytest

from iommufs.errors import UapiError
from iommufs.vfio import native
from tests.contract.vfio_client import NVME, event
from tests.devices import nvme_client as c
from tests.devices.nvme_client import LONG, PAGE, NvmeClient, Queue


@pytest.fixture
async def idle(vfio):
    """A controller that is not enabled."""
    return await NvmeClient.make(vfio, {"size": "1M", "serial": "the serial"})


@pytest.fixture
async def nvme(idle):
    return idle.start()


# -- registers ------------------------------------------------------------------------------------


async def test_registers_after_power_on(idle):
    assert idle.read64(c.CAP) == 0x004008200F0107FF
    assert idle.read32(c.VS) == 0x00010400
    for register in (c.INTMS, c.INTMC, c.CC, c.CSTS, c.NSSR, c.AQA):
        assert idle.read32(register) == 0
    assert idle.read64(c.ASQ) == idle.read64(c.ACQ) == 0


async def test_what_can_be_written(idle):
    for register in (c.CAP, c.CAP + 4, c.VS, c.CSTS, c.NSSR, 0x38, 0x40):
        before = idle.read32(register)
        idle.write32(register, 0xFFFFFFFF)
        assert idle.read32(register) == before
    idle.write32(c.AQA, 0xFFFFFFFF)
    assert idle.read32(c.AQA) == 0x0FFF0FFF
    idle.write64(c.ASQ, 0x123456789ABCDEF0)
    assert idle.read64(c.ASQ) == 0x123456789ABCD000
    idle.write32(c.ACQ + 4, 7)
    idle.write32(c.ACQ, 0x2FFF)
    assert idle.read64(c.ACQ) == 0x7_0000_2000
    idle.function.write_bar(0, c.AQA, 2, 0)
    assert idle.read32(c.AQA) == 0x0FFF0FFF


async def test_interrupt_masks_are_set_and_cleared_bit_by_bit(idle):
    idle.write32(c.INTMS, 0b1011)
    idle.write32(c.INTMC, 0b0010)
    assert idle.read32(c.INTMS) == idle.read32(c.INTMC) == 0b1001


async def test_stores_through_a_mapping_are_taken_before_the_next_access(idle):
    bar = idle.function.bars.view(0)
    bar[c.AQA : c.AQA + 4] = b"\x0f\x00\x0f\x00"
    bar[c.VS : c.VS + 4] = b"what"
    assert idle.read32(c.VS) == 0x00010400
    assert idle.read32(c.AQA) == 0x000F000F
    bar[c.INTMS : c.INTMS + 4] = b"\1\0\0\0"
    assert idle.read32(c.INTMS) == 1
    bar[c.INTMC : c.INTMC + 4] = b"\1\0\0\0"
    assert idle.read32(c.INTMS) == 0


async def test_enabled_through_a_mapping(idle):
    idle.configure()
    bar = idle.function.bars.view(0)
    bar[c.CC : c.CC + 4] = c.ENABLE.to_bytes(4, "little")
    idle.until(lambda: bar[c.CSTS] == 1)
    idle.admin.put(c.KEEP_ALIVE)
    bar[c.DOORBELLS : c.DOORBELLS + 4] = b"\1\0\0\0"
    assert idle.admin.wait().status == 0


@pytest.mark.logs("values that it does not take")
@pytest.mark.parametrize(
    "cc",
    [c.ENABLE | 1 << 4, c.ENABLE | 7 << 4, c.ENABLE | 5 << 7, c.ENABLE | 1 << 11],
    ids=["set 1", "admin only", "pages of 128 KiB", "weighted"],
)
async def test_enabling_with_values_it_does_not_take_is_fatal_until_it_is_disabled(idle, cc):
    idle.configure()
    assert idle.enable(cc) == 2
    idle.disable()
    idle.until(lambda: idle.read32(c.CSTS) == 0)
    assert idle.enable() == 1


@pytest.mark.logs("values that it does not take")
async def test_queues_of_one_entry_are_fatal(idle):
    idle.configure()
    idle.write32(c.AQA, 0)
    assert idle.enable() == 2


async def test_disabling_forgets_queues_and_features_but_not_the_admin_registers(nvme):
    nvme.io_queue()
    nvme.admin.run(c.SET_FEATURES, cdw10=5, cdw11=7)
    before = nvme.read64(c.ASQ)
    nvme.disable()
    assert nvme.read32(c.CSTS) == 0
    assert nvme.read64(c.ASQ) == before
    nvme.start()
    assert nvme.admin.run(c.GET_FEATURES, cdw10=5).result == 0
    assert nvme.admin.run(c.DELETE_SQ, cdw10=1).status == 0x101


@pytest.mark.parametrize("kind", [1, 2], ids=["normal", "abrupt"])
async def test_shutdown(nvme, kind):
    nvme.write32(c.CC, c.ENABLE | kind << 14)
    nvme.until(lambda: nvme.read32(c.CSTS) == 0b1001)
    nvme.disable()
    assert nvme.enable() == 1
    assert nvme.read32(c.CSTS) == 1


async def test_a_reset_of_the_function_is_power_on(vfio):
    nvme = (await NvmeClient().open(vfio, NVME)).start()
    nvme.function.reset_function()
    assert nvme.read32(c.CSTS) == nvme.read32(c.CC) == nvme.read32(c.AQA) == 0
    assert nvme.start().identify(1)[:2] == b"\x36\x1b"


async def test_the_next_client_finds_a_fresh_controller_with_the_old_content(vfio):
    first = (await NvmeClient().open(vfio, NVME)).start()
    page = first.take()
    first.write(page, b"left by the first" * 30)
    assert first.io_queue().run(c.WRITE, nsid=1, prp1=page).status == 0
    vfio.close(first.df)
    second = await NvmeClient().open(vfio, NVME)
    assert second.read32(c.CSTS) == second.read32(c.AQA) == 0
    second.start()
    page = second.take()
    assert second.io_queue().run(c.READ, nsid=1, prp1=page).status == 0
    assert second.read(page, 17) == b"left by the first"


# -- without memory -------------------------------------------------------------------------------


@pytest.mark.logs("DMA refused")
@pytest.mark.logs("a command could not be fetched")
@pytest.mark.parametrize("why", ["bus master off", "unmapped", "not attached"])
async def test_a_queue_out_of_reach_is_fatal_and_reported(nvme, why):
    if why == "bus master off":
        await nvme.set_master(False)
    elif why == "unmapped":
        await nvme.unmap_all()
    else:
        await nvme.vfio.detach(nvme.df)
    nvme.admin.put(c.KEEP_ALIVE)
    nvme.admin.ring()
    nvme.until(lambda: nvme.read32(c.CSTS) & 2)
    nvme.function.refused.sum_up()
    refused = nvme.function.statistics()["DMA refused"]
    assert refused["last"] == {"iova": nvme.admin.sq, "access": "read", "reason": why}


@pytest.mark.logs("DMA refused")
async def test_data_out_of_reach_is_a_status(nvme):
    done = nvme.admin.run(c.IDENTIFY, cdw10=1, prp1=0x7000_0000)
    assert (done.status, done.dnr) == (0x004, False)
    assert nvme.read32(c.CSTS) == 1


STUCK = 0x4000_0000


def get_stuck(nvme, fd):
    """The device waits for one of the stuck pages."""
    lists = nvme.take()
    nvme.write(lists, struct.pack("<3Q", *(STUCK + i * PAGE for i in (1, 2, 3))))
    queue = nvme.io_queue()
    queue.put(c.READ, nsid=1, prp1=STUCK, prp2=lists, cdw12=31)
    queue.ring()
    assert select.select([fd], [], [], LONG)[0]
    os.read(fd, 32)


async def test_memory_that_does_not_answer_stops_one_life_of_the_device(vfio, stuck_pages):
    fd, address = stuck_pages
    nvme = (await NvmeClient().open(vfio, NVME)).start()
    await nvme.map_at(address, STUCK, 4 * PAGE)
    get_stuck(nvme, fd)
    nvme.function.reset_function()
    assert nvme.read32(c.CC) == nvme.read32(c.CSTS) == 0
    assert nvme.start().identify(1)[:2] == b"\x36\x1b"
    vfio.close(nvme.df)
    second = (await NvmeClient().open(vfio, NVME)).start()
    assert second.identify(1)[:2] == b"\x36\x1b"


@pytest.mark.logs("a device model failed")
async def test_a_client_whose_memory_never_answers_gets_no_lives_without_end(vfio, stuck_pages):
    fd, address = stuck_pages
    nvme = await NvmeClient().open(vfio, NVME)
    await nvme.map_at(address, STUCK, 4 * PAGE)
    for _ in range(15):
        get_stuck(nvme.start(), fd)
        nvme.function.reset_function()
        await nvme.set_master(True)
    get_stuck(nvme.start(), fd)
    with pytest.raises(UapiError) as refused:
        nvme.function.reset_function()
    assert refused.value.errno == errno.EIO
    assert nvme.function.counters["model_errors"] == 1


# -- identify -------------------------------------------------------------------------------------


async def test_identify_controller(nvme):
    data = nvme.identify(1)
    assert struct.unpack_from("<HH", data) == (0x1B36, 0x1AF4)
    assert data[4:24] == b"the serial          "
    assert data[24:64].rstrip() == b"iommufs NVMe Controller"
    assert data[77] == 7
    assert struct.unpack_from("<I", data, 80)[0] == 0x00010400
    assert (data[512], data[513]) == (0x66, 0x44)
    assert data[96] & 1  # host identifiers of 128 bits, which the feature takes
    assert struct.unpack_from("<H", data, 520)[0] == 0xDD
    assert struct.unpack_from("<H", data, 320)[0] == 1
    assert struct.unpack_from("<I", data, 516)[0] == 1
    assert data[768:].startswith(b"nqn.")


async def test_identify_namespace(nvme):
    data = nvme.identify(0, nsid=1)
    assert struct.unpack_from("<QQQ", data) == (2048, 2048, 2048)
    assert (data[25], data[26]) == (1, 0)
    assert struct.unpack_from("<HBB", data, 128) == (0, 9, 0)
    assert struct.unpack_from("<HBB", data, 132) == (0, 12, 0)


@pytest.mark.parametrize(
    ("cns", "nsid", "cdw11", "expected"),
    [
        (0, 0, 0, 0x00B),
        (0, 2, 0, 0x00B),
        (0, 0xFFFFFFFF, 0, 0x00B),
        (5, 0xFFFFFFFF, 0, 0x00B),
        (3, 2, 0, 0x00B),
        (2, 0xFFFFFFFE, 0, 0x00B),
        (5, 1, 0x0100_0000, 0x002),
        (0x08, 1, 0, 0x002),
        (0x20, 0, 0, 0x002),
        (0xFF, 0, 0, 0x002),
    ],
)
async def test_identify_of_what_is_not_there(nvme, cns, nsid, cdw11, expected):
    assert nvme.identify(cns, nsid, cdw11=cdw11) == expected


async def test_lists_of_namespaces(vfio):
    tables = [{"size": "1M", "id": 3}, {"size": "2M", "id": 9}, {"backing": "null", "id": 4}]
    nvme = (await NvmeClient.make(vfio, {"namespaces": tables})).start()
    for cns in (0x02, 0x07, 0x10):
        assert struct.unpack_from("<5I", nvme.identify(cns)) == (3, 4, 9, 0, 0)
        assert struct.unpack_from("<2I", nvme.identify(cns, nsid=3)) == (4, 9)
    assert struct.unpack_from("<I", nvme.identify(1), 516)[0] == 9
    assert nvme.identify(0, nsid=5) == bytes(PAGE)  # not active
    assert nvme.identify(0, nsid=10) == 0x00B
    assert struct.unpack_from("<Q", nvme.identify(0, nsid=9))[0] == 4096


async def test_descriptors_name_a_uuid_and_the_command_set(nvme):
    data = nvme.identify(3, nsid=1)
    assert data[:4] == b"\x03\x10\0\0"
    assert any(data[4:20])
    assert data[20:26] == b"\x04\x01\0\0\0\0"
    assert nvme.identify(3, nsid=1) == data


async def test_what_the_command_sets_add(nvme):
    assert nvme.identify(5, nsid=1) == bytes(PAGE)
    assert nvme.identify(6) == bytes(PAGE)
    assert struct.unpack_from("<Q", nvme.identify(0x1C))[0] == 1
    assert nvme.identify(0x13)[:4] == b"\1\0\0\0"


# -- queues ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"cdw10": 15 << 16}, 0x101),
        ({"cdw10": 15 << 16 | 65}, 0x101),
        ({"cdw10": 1}, 0x102),
        ({"cdw10": 2048 << 16 | 1}, 0x102),
        ({"cdw11": 0}, 0x002),
        ({"prp1": c.IOVA + 8}, 0x013),
        ({"cdw11": 65 << 16 | 3}, 0x108),
    ],
    ids=["0", "65", "one entry", "2049", "not contiguous", "offset", "vector"],
)
async def test_completion_queues_that_cannot_be(nvme, fields, status):
    assert nvme.create_cq(Queue(nvme, 1), **fields) == status


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"cdw10": 15 << 16}, 0x101),
        ({"cdw10": 15 << 16 | 65}, 0x101),
        ({"cdw10": 1}, 0x102),
        ({"cdw10": 2048 << 16 | 1}, 0x102),
        ({"cdw11": 1 << 16}, 0x002),
        ({"prp1": c.IOVA + 8}, 0x013),
        ({"cdw11": 2 << 16 | 1}, 0x100),
        ({"cdw11": 1}, 0x101),
        ({"cdw11": 65 << 16 | 1}, 0x101),
    ],
    ids=["0", "65", "one entry", "2049", "not contiguous", "offset", "no such CQ", "CQ 0", "CQ 65"],
)
async def test_submission_queues_that_cannot_be(nvme, fields, status):
    queue = Queue(nvme, 1)
    assert nvme.create_cq(queue) == 0
    assert nvme.create_sq(queue, **fields) == status
    assert nvme.create_sq(queue) == 0
    assert nvme.create_sq(queue) == nvme.create_cq(queue) == 0x101


async def test_entries_of_another_size_are_no_queue(idle):
    idle.configure()
    assert idle.enable(c.ENABLE & ~(15 << 20)) == 1
    assert idle.create_cq(Queue(idle, 1)) == 0x102


async def test_queues_are_deleted_in_order(nvme):
    nvme.io_queue(1)
    assert nvme.admin.run(c.DELETE_CQ, cdw10=1).status == 0x10C
    assert nvme.admin.run(c.DELETE_SQ, cdw10=1).status == 0
    assert nvme.admin.run(c.DELETE_SQ, cdw10=1).status == 0x101
    assert nvme.admin.run(c.DELETE_CQ, cdw10=1).status == 0
    assert nvme.admin.run(c.DELETE_CQ, cdw10=1).status == 0x101
    assert nvme.admin.run(c.DELETE_CQ, cdw10=0).status == 0x101
    nvme.io_queue(1)


async def test_sixty_four_queues_of_a_thousand_entries_go_round(nvme):
    page = nvme.take()
    queues = [nvme.io_queue(n, depth=1024 if n == 64 else 4) for n in range(1, 65)]
    for queue in queues:
        for _ in range(2 * queue.depth + 3):
            assert queue.run(c.READ, nsid=1, prp1=page).status == 0


async def test_a_full_completion_queue_stops_the_submission_queue(nvme):
    queue = nvme.io_queue(depth=4)
    for _ in range(3):
        queue.put(c.FLUSH, nsid=1)
    queue.ring()
    assert [nvme.until(queue.poll).sqhd for _ in range(3)] == [1, 2, 3]
    for _ in range(3):  # the device has not been told that it may go on
        queue.put(c.FLUSH, nsid=1)
    queue.ring()
    assert nvme.admin.run(c.KEEP_ALIVE).status == 0
    assert queue.poll() is None
    queue.take_back()
    assert [nvme.until(queue.poll).sqhd for _ in range(3)] == [0, 1, 2]


# -- interrupts -----------------------------------------------------------------------------------


def readable(fd):
    return bool(select.select([fd], [], [], LONG)[0])


async def test_each_queue_has_its_vector(nvme):
    fds = await nvme.vectors(4)
    queue = nvme.io_queue(vector=3)
    while event(fds[0]):  # of the admin commands
        pass
    queue.run(c.FLUSH, nsid=1)
    assert readable(fds[3])
    assert event(fds[0]) == event(fds[1]) == event(fds[2]) == 0
    quiet = nvme.io_queue(2)  # interrupts are not enabled
    assert os.eventfd_read(fds[3]) >= 1
    quiet.run(c.FLUSH, nsid=1)
    assert event(fds[3]) == 0


async def test_without_messages_the_line_follows_the_queues(nvme):
    nvme.admin.put(c.KEEP_ALIVE)
    nvme.admin.ring()
    nvme.until(nvme.admin.poll)
    nvme.until(lambda: native.drain() or nvme.function.intx_level)
    nvme.write32(c.INTMS, 1)
    nvme.until(lambda: native.drain() or not nvme.function.intx_level)
    nvme.write32(c.INTMC, 1)
    nvme.until(lambda: native.drain() or nvme.function.intx_level)
    nvme.admin.take_back()
    nvme.until(lambda: native.drain() or not nvme.function.intx_level)


async def test_without_messages_every_queue_drives_the_line_whatever_its_vector(nvme):
    queue = nvme.io_queue(vector=3)
    queue.put(c.FLUSH, nsid=1)
    queue.ring()
    nvme.until(queue.poll)
    nvme.admin.take_back()
    nvme.until(lambda: native.drain() or nvme.function.intx_level)
    nvme.write32(c.INTMS, 1)  # the line is vector 0
    nvme.until(lambda: native.drain() or not nvme.function.intx_level)
    nvme.write32(c.INTMS, 1 << 3)
    nvme.write32(c.INTMC, 1)
    nvme.until(lambda: native.drain() or nvme.function.intx_level)


async def test_messages_may_be_switched_on_after_a_queue_was_made(nvme):
    queue = nvme.io_queue(vector=3)
    fds = await nvme.vectors(4)
    queue.run(c.FLUSH, nsid=1)
    assert readable(fds[3])


async def test_coalesced_interrupts_come_in_the_end(nvme):
    fds = await nvme.vectors(2)
    assert nvme.admin.run(c.SET_FEATURES, cdw10=8, cdw11=1 << 8 | 99).status == 0
    queue = nvme.io_queue(vector=1)
    queue.run(c.FLUSH, nsid=1)
    assert readable(fds[1])  # after 100 µs


# -- features, log pages, events ------------------------------------------------------------------


async def test_features_of_one_dword_keep_what_is_set(nvme):
    for feature, default in ((1, 6), (2, 0), (5, 0), (6, 1), (8, 0), (0xA, 0), (0xB, 0), (0xF, 0)):
        assert nvme.admin.run(c.GET_FEATURES, cdw10=feature).result == default
        value = 0 if feature == 2 else 1 - (default & 1)
        assert nvme.admin.run(c.SET_FEATURES, cdw10=feature, cdw11=value).status == 0
        assert nvme.admin.run(c.GET_FEATURES, cdw10=feature).result == value
        assert nvme.admin.run(c.GET_FEATURES, cdw10=1 << 8 | feature).result == default
        assert nvme.admin.run(c.GET_FEATURES, cdw10=3 << 8 | feature).result == 4


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"cdw10": 0x0C}, 0x002),
        ({"cdw10": 0x00}, 0x002),
        ({"cdw10": 1 << 31 | 1}, 0x10D),
        ({"cdw10": 1, "nsid": 1}, 0x10F),
        ({"cdw10": 1, "nsid": 7}, 0x00B),
        ({"cdw10": 2, "cdw11": 1}, 0x002),
        ({"cdw10": 4, "cdw11": 2 << 20}, 0x002),
        ({"cdw10": 4, "cdw11": 3 << 16}, 0x002),
        ({"cdw10": 7, "cdw11": 0xFFFF}, 0x002),
        ({"cdw10": 9, "cdw11": 5}, 0x002),
        ({"cdw10": 0x19, "cdw11": 1}, 0x12B),
    ],
)
async def test_features_that_cannot_be_set(nvme, fields, status):
    assert nvme.admin.run(c.SET_FEATURES, **fields).status == status


async def test_the_number_of_queues_is_settled_before_there_are_any(nvme):
    assert nvme.admin.run(c.SET_FEATURES, cdw10=7, cdw11=3 << 16 | 3).result == 63 << 16 | 63
    nvme.io_queue()
    assert nvme.admin.run(c.SET_FEATURES, cdw10=7, cdw11=3 << 16 | 3).status == 0x00C


async def test_timestamp_and_host_id(nvme):
    page = nvme.take()
    nvme.write(page, (1_700_000_000_000).to_bytes(8, "little"))
    assert nvme.admin.run(c.SET_FEATURES, cdw10=0xE, prp1=page).status == 0
    assert nvme.admin.run(c.GET_FEATURES, cdw10=0xE, prp1=page).status == 0
    value = int.from_bytes(nvme.read(page, 8), "little")
    assert 0 <= (value & (1 << 48) - 1) - 1_700_000_000_000 < LONG * 1000
    assert value >> 48 == 2  # set by the host
    nvme.write(page, bytes(range(1, 17)))
    assert nvme.admin.run(c.SET_FEATURES, cdw10=0x81, cdw11=1, prp1=page).status == 0
    nvme.write(page, bytes(16))
    assert nvme.admin.run(c.GET_FEATURES, cdw10=0x81, cdw11=1, prp1=page).status == 0
    assert nvme.read(page, 16) == bytes(range(1, 17))


async def test_log_pages(nvme):
    assert nvme.log(3, 512)[:1] == b"\1"
    smart = nvme.log(2, 512)
    assert (smart[0], int.from_bytes(smart[1:3], "little")) == (0, 323)
    effects = nvme.log(5, 4096)
    assert effects[4 * c.IDENTIFY] == effects[1024 + 4 * c.READ] == 1
    assert effects[4 * 0x0D] == effects[1024 + 4 * 0x7F] == 0
    for page in (0, 6, 0x0D, 0x80, 0xFF):
        assert nvme.log(page, 512) == 0x109
    nvme.io_queue().run(c.READ, nsid=5)
    errors = nvme.log(1, 128)
    count, sqid, _, status = struct.unpack_from("<QHHH", errors)
    assert (count, sqid, status >> 1 & 0x7FF) == (6, 1, 0x00B)


async def test_log_pages_from_an_offset_on(nvme):
    page = nvme.take()
    nvme.write(page, b"x" * 16)
    done = nvme.admin.run(c.GET_LOG, prp1=page, cdw10=127 << 16 | 2, cdw12=508)
    assert done.status == 0
    assert nvme.read(page, 16) == bytes(4) + b"x" * 12  # to its end
    assert nvme.admin.run(c.GET_LOG, prp1=page, cdw10=2, cdw12=2).status == 0x002
    assert nvme.admin.run(c.GET_LOG, prp1=page, cdw10=2, cdw12=516).status == 0x002


def next_event(nvme):
    """An event that was asked for: type, info and log page."""
    completion = nvme.admin.wait()
    return completion.result & 7, completion.result >> 8 & 0xFF, completion.result >> 16 & 0xFF


def ask_for_event(nvme):
    nvme.admin.put(c.EVENT)
    nvme.admin.ring()


async def test_a_temperature_above_the_threshold_is_an_event_once(nvme):
    nvme.admin.run(c.SET_FEATURES, cdw10=0xB, cdw11=2)
    ask_for_event(nvme)
    nvme.admin.put(c.SET_FEATURES, cdw10=4, cdw11=200)
    nvme.admin.ring()
    found = sorted(nvme.admin.wait().result for _ in range(2))
    assert found == [0, 1 | 1 << 8 | 2 << 16]
    ask_for_event(nvme)
    assert nvme.log(2, 512, flags=1 << 15)[0] == 2  # retained: no new one
    nvme.admin.run(c.SET_FEATURES, cdw10=4, cdw11=343)
    assert nvme.log(2, 512)[0] == 0
    nvme.admin.put(c.SET_FEATURES, cdw10=4, cdw11=1 << 20 | 400)
    nvme.admin.ring()
    assert sorted(nvme.admin.wait().result for _ in range(2)) == found


async def test_doorbells_that_lead_nowhere_are_events(nvme):
    ask_for_event(nvme)
    nvme.write32(c.DOORBELLS + 8 * 5, 1)
    assert next_event(nvme) == (0, 0, 1)
    ask_for_event(nvme)
    nvme.log(1, 64)
    nvme.io_queue(1, depth=4)
    nvme.write32(c.DOORBELLS + 8, 4)
    assert next_event(nvme) == (0, 1, 1)


async def test_any_store_to_a_doorbell_without_a_queue_is_seen_through_a_mapping(nvme):
    bar = nvme.function.bars.view(0)

    def store(queue, value):
        at = c.DOORBELLS + 8 * queue
        bar[at : at + 4] = value.to_bytes(4, "little")

    ask_for_event(nvme)
    store(5, 0)  # what a tail begins with
    assert next_event(nvme) == (0, 0, 1)
    ask_for_event(nvme)
    nvme.log(1, 64)
    store(5, 0)  # again
    assert next_event(nvme) == (0, 0, 1)
    nvme.io_queue(5).run(c.FLUSH, nsid=1)
    assert nvme.admin.run(c.DELETE_SQ, cdw10=5).status == 0
    ask_for_event(nvme)
    nvme.log(1, 64)
    store(5, 1)  # what it held when it went
    assert next_event(nvme) == (0, 0, 1)


async def test_completions_that_were_not_written_cannot_be_taken(nvme):
    queue = nvme.io_queue(1, depth=8)
    queue.run(c.FLUSH, nsid=1)
    ask_for_event(nvme)
    nvme.write32(c.DOORBELLS + 12, 2)  # there was one
    assert next_event(nvme) == (0, 1, 1)
    queue.put(c.FLUSH, nsid=1)
    queue.ring()
    assert nvme.until(queue.poll).status == 0
    nvme.write32(c.DOORBELLS + 12, 2)
    assert nvme.admin.run(c.KEEP_ALIVE).status == 0


async def test_no_more_commands_than_the_queue_has_room_for(nvme):
    queue = Queue(nvme, 1, depth=8)
    assert nvme.create_cq(queue, cdw10=2 << 16 | 1) == 0  # three entries
    assert nvme.create_sq(queue) == 0
    for _ in range(6):
        queue.put(c.FLUSH, nsid=1)
    queue.ring()
    nvme.until(lambda: nvme.read(queue.cq + 16 + 14, 2) != bytes(2))  # two are done, four wait
    ask_for_event(nvme)
    nvme.write32(c.DOORBELLS + 8, 4)  # as if six more had come
    assert next_event(nvme) == (0, 1, 1)


@pytest.mark.logs("did not keep the controller alive")
async def test_a_controller_that_is_not_kept_alive_fails(nvme):
    assert nvme.admin.run(c.SET_FEATURES, cdw10=0xF, cdw11=1).status == 0  # ms: rounded up to 100
    assert nvme.admin.run(c.KEEP_ALIVE).status == 0
    assert nvme.until(lambda: nvme.read32(c.CSTS) & 2)
    nvme.disable()
    nvme.start()
    assert struct.unpack_from("<H", nvme.log(1, 64), 12)[0] >> 1 == 0x014
    assert nvme.admin.run(c.GET_FEATURES, cdw10=0xF).result == 0


async def test_no_more_than_four_event_requests(nvme):
    for _ in range(4):
        ask_for_event(nvme)
    assert nvme.admin.run(c.EVENT).status == 0x105


async def test_an_event_request_can_be_aborted_a_command_that_is_done_cannot(nvme):
    cid = nvme.admin.put(c.EVENT)
    nvme.admin.put(c.ABORT, cdw10=cid << 16)
    nvme.admin.ring()
    aborted, abort = nvme.admin.wait(), nvme.admin.wait()
    assert (aborted.cid, aborted.status) == (cid, 0x007)
    assert (abort.status, abort.result) == (0, 0)
    done = nvme.admin.run(c.ABORT, cdw10=cid << 16)
    assert (done.status, done.result) == (0, 1)
    assert nvme.admin.run(c.ABORT, cdw10=9).status == 0x002


@pytest.mark.parametrize("opcode", [0x03, 0x0D, 0x10, 0x11, 0x14, 0x15, 0x19, 0x7F, 0x84, 0xC0])
async def test_other_admin_commands_are_not_there(nvme, opcode):
    assert nvme.admin.run(opcode, nsid=1).status == 0x001


async def test_admin_commands_take_no_sgl(nvme):
    assert nvme.admin.run(c.IDENTIFY, flags=0x40, prp1=nvme.take(), cdw10=1).status == 0x002


async def test_format_changes_the_size_of_blocks_and_clears_them(nvme):
    page, queue = nvme.take(), nvme.io_queue()
    nvme.write(page, b"x" * 512)
    queue.run(c.WRITE, nsid=1, prp1=page)
    nvme.admin.run(c.SET_FEATURES, cdw10=0xB, cdw11=0x100)
    ask_for_event(nvme)
    nvme.admin.put(c.FORMAT, nsid=1, cdw10=1)
    nvme.admin.ring()
    assert sorted(nvme.admin.wait().result for _ in range(2)) == [0, 2 | 4 << 16]
    assert struct.unpack_from("<I", nvme.log(4, 64)) == (1,)
    assert struct.unpack_from("<I", nvme.log(4, 64)) == (0,)
    data = nvme.identify(0, nsid=1)
    assert struct.unpack_from("<Q", data)[0] == 256
    assert data[26] == 1
    assert queue.run(c.READ, nsid=1, prp1=page).status == 0
    assert nvme.read(page, PAGE) == bytes(PAGE)
    assert nvme.admin.run(c.FORMAT, nsid=1, cdw10=2).status == 0x10A
    assert nvme.admin.run(c.FORMAT, nsid=1, cdw10=1 << 5).status == 0x002
    assert nvme.admin.run(c.FORMAT, nsid=2).status == 0x00B
