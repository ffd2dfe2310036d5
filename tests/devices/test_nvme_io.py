"""The NVMe controller against docs/nvme.md: I/O commands, where their data is, errors on order."""

import os
import random
import re
import struct

import pytest

from iommufs.devices.nvme import Nvme
from tests.devices import nvme_client as c
from tests.devices.nvme_client import PAGE, NvmeClient

BLOCK = 512
SIZE = 4 << 20
BACKINGS = ["memory", "file", "null"]
GONE = 0x7000_0000  # nothing is mapped there


@pytest.fixture
def open_disk(vfio, tmp_path):
    """Makes a controller with a namespace, and a queue for it."""

    async def open_disk(backing="memory", **options):
        options = {"size": SIZE, **options}
        if backing == "file":
            options["path"] = str(tmp_path / "disk")
        else:
            options["backing"] = backing
        nvme = (await NvmeClient.make(vfio, options)).start()
        nvme.queue = nvme.io_queue()
        return nvme

    return open_disk


@pytest.fixture
async def nvme(open_disk):
    return await open_disk()


def io(nvme, opcode, lba=0, n=1, prps=(), **fields):
    """The status of one command."""
    prp1, prp2 = (*prps, 0, 0)[:2]
    low, high = lba & 0xFFFFFFFF, lba >> 32
    fields = {"nsid": 1, "cdw10": low, "cdw11": high, "cdw12": n - 1, **fields}
    return nvme.queue.run(opcode, prp1=prp1, prp2=prp2, **fields).status


def content(seed, length):
    return random.Random(seed).randbytes(length)


# -- reading and writing --------------------------------------------------------------------------


@pytest.mark.parametrize("lba_size", [512, 4096])
@pytest.mark.parametrize("backing", BACKINGS)
async def test_what_was_written_is_read_but_from_null(open_disk, backing, lba_size):
    nvme = await open_disk(backing, lba_size=lba_size)
    page, data = nvme.take(2), content(backing, 2 * PAGE)
    nvme.write(page, data)
    n = 2 * PAGE // lba_size
    assert io(nvme, c.WRITE, 5, n, [page, page + PAGE]) == 0
    nvme.write(page, bytes(2 * PAGE))
    assert io(nvme, c.FLUSH) == 0
    assert io(nvme, c.READ, 5, n, [page, page + PAGE]) == 0
    assert nvme.read(page, 2 * PAGE) == (bytes(2 * PAGE) if backing == "null" else data)


async def test_a_file_holds_what_was_written(open_disk, tmp_path):
    nvme = await open_disk("file", size="1M")
    page = nvme.take()
    nvme.write(page, b"in the file".ljust(BLOCK))
    assert io(nvme, c.WRITE, 7, 1, [page], cdw12=1 << 30) == 0  # force unit access
    disk = (tmp_path / "disk").read_bytes()
    assert len(disk) == 1 << 20
    assert disk[7 * BLOCK : 8 * BLOCK] == b"in the file".ljust(BLOCK)


async def test_a_file_that_is_cut_short_is_a_media_error_not_the_end(open_disk, tmp_path):
    nvme = await open_disk("file")
    page = nvme.take()
    os.truncate(tmp_path / "disk", PAGE)
    assert io(nvme, c.READ, 0, 8, [page]) == 0
    assert io(nvme, c.READ, 8, 8, [page]) == 0x281
    assert io(nvme, c.WRITE, 8, 8, [page]) == 0x280


@pytest.mark.parametrize("opcode", [c.READ, c.WRITE, c.COMPARE, c.ZEROES, c.VERIFY])
async def test_blocks_past_the_end(nvme, opcode):
    page, last = nvme.take(), SIZE // BLOCK - 1
    assert io(nvme, opcode, last, 1, [page]) == 0
    for lba, n in ((last, 2), (last + 1, 1), (1 << 63, 1), ((1 << 64) - 1, 2)):
        assert io(nvme, opcode, lba, n, [page, page]) == 0x080


async def test_more_than_the_largest_transfer(open_disk):
    nvme = await open_disk(mdts=1)
    page = nvme.take(2)
    assert io(nvme, c.READ, 0, 16, [page, page + PAGE]) == 0
    assert io(nvme, c.READ, 0, 17, [page, page + PAGE]) == 0x002
    assert io(nvme, c.VERIFY, 0, 1000) == 0


async def test_namespaces_that_are_not_there(nvme):
    for opcode in (c.FLUSH, c.READ, c.DATASET):
        assert io(nvme, opcode, nsid=2) == 0x00B
        assert io(nvme, opcode, nsid=0) == 0x00B
    assert io(nvme, c.FLUSH, nsid=0xFFFFFFFF) == 0


async def test_other_io_commands_are_not_there(nvme):
    for opcode in (0x04, 0x0D, 0x11, 0x19, 0x7F, 0x80):
        assert io(nvme, opcode) == 0x001
    assert io(nvme, c.READ, flags=1) == 0x002  # fused


async def test_a_namespace_that_cannot_be_written(open_disk):
    nvme = await open_disk(read_only=True)
    page = nvme.take()
    assert io(nvme, c.READ, 0, 1, [page]) == 0
    for opcode in (c.WRITE, c.ZEROES, c.DATASET):
        assert io(nvme, opcode, 0, 1, [page]) == 0x020
    assert nvme.admin.run(c.FORMAT, nsid=1).status == 0x020
    assert nvme.identify(0, nsid=1)[99] == 1


async def test_compare(nvme):
    page = nvme.take()
    nvme.write(page, content(1, PAGE))
    io(nvme, c.WRITE, 0, 8, [page])
    assert io(nvme, c.COMPARE, 0, 8, [page]) == 0
    nvme.write(page + PAGE - 1, bytes([nvme.read(page + PAGE - 1, 1)[0] ^ 1]))
    assert io(nvme, c.COMPARE, 0, 8, [page]) == 0x285


@pytest.mark.parametrize("backing", ["memory", "file"])
async def test_zeroes_and_deallocation_leave_the_neighbours_alone(open_disk, backing):
    nvme = await open_disk(backing)
    page = nvme.take(16)
    every = [page + i * PAGE for i in range(1, 16)]
    lists = nvme.take()
    nvme.write(lists, struct.pack("<15Q", *every))
    before = content(2, 16 * PAGE)
    nvme.write(page, before)
    assert io(nvme, c.WRITE, 0, 128, [page, lists]) == 0
    assert io(nvme, c.ZEROES, 3, 30) == 0
    ranges = nvme.take()
    nvme.write(ranges, struct.pack("<IIQIIQ", 0, 5, 50, 0, 17, 64))
    assert io(nvme, c.DATASET, prps=[ranges], cdw10=1, cdw11=4) == 0
    assert io(nvme, c.READ, 0, 128, [page, lists]) == 0
    expected = bytearray(before)
    for first, n in ((3, 30), (50, 5), (64, 17)):
        expected[first * BLOCK : (first + n) * BLOCK] = bytes(n * BLOCK)
    assert nvme.read(page, 16 * PAGE) == expected
    nvme.write(ranges, struct.pack("<IIQ", 0, 2, SIZE // BLOCK - 1))
    assert io(nvme, c.DATASET, prps=[ranges], cdw10=0, cdw11=4) == 0x080


# -- PRPs -----------------------------------------------------------------------------------------


def written(nvme, length, seed=3):
    """Put known blocks at the beginning of the namespace."""
    data = content(seed, length)
    buffer, lists = nvme.take(length // PAGE), nvme.take()
    nvme.write(buffer, data)
    entries = [buffer + i * PAGE for i in range(1, length // PAGE)]
    nvme.write(lists, struct.pack(f"<{len(entries)}Q", *entries))
    assert io(nvme, c.WRITE, 0, length // BLOCK, [buffer, lists]) == 0
    return data


@pytest.mark.parametrize("offset", [0, 4, 512, 4092])
async def test_data_may_begin_anywhere_in_a_page(nvme, offset):
    data = written(nvme, 16 * PAGE)
    pages = nvme.take(5)
    lists = nvme.take()
    nvme.write(lists + 64, struct.pack("<4Q", *(pages + i * PAGE for i in range(1, 5))))
    assert io(nvme, c.READ, 0, 24, [pages + offset, lists + 64]) == 0
    assert nvme.read(pages + offset, 24 * BLOCK) == data[: 24 * BLOCK]


async def test_a_list_goes_on_in_the_next_page(nvme):
    data = written(nvme, 16 * PAGE)
    pages, lists = nvme.take(16), nvme.take(2)
    order = random.Random(4).sample(range(16), 16)
    entries = [pages + i * PAGE for i in order]
    first = lists + PAGE - 4 * 8  # room for three entries and the way on
    nvme.write(first, struct.pack("<4Q", *entries[1:4], lists))
    nvme.write(lists, struct.pack("<12Q", *entries[4:]))
    assert io(nvme, c.READ, 0, 128, [entries[0], first]) == 0
    assert b"".join(nvme.read(at, PAGE) for at in entries) == data


@pytest.mark.parametrize(
    ("prps", "n", "status"),
    [
        ((1, 0), 1, 0x013),
        ((2, 0), 1, 0x013),
        ((0, 512), 16, 0x013),
        ((0, 4), 128, 0x013),
    ],
    ids=["not a dword", "nor this", "second with an offset", "crooked list"],
)
async def test_prp_offsets_that_cannot_be(nvme, prps, n, status):
    page = nvme.take(2)
    assert io(nvme, c.READ, 0, n, [page + prps[0], page + PAGE + prps[1]]) == status


async def test_list_entries_have_no_offset_and_then_nothing_moves(nvme):
    written(nvme, 16 * PAGE)
    page, lists = nvme.take(3), nvme.take()
    nvme.write(page, b"x" * PAGE)
    nvme.write(lists, struct.pack("<2Q", page + PAGE, page + 2 * PAGE + 512))
    assert io(nvme, c.READ, 0, 24, [page, lists]) == 0x013
    assert nvme.read(page, PAGE) == b"x" * PAGE


async def test_a_list_that_leads_in_a_circle_ends(nvme):
    page, lists = nvme.take(), nvme.take()
    nvme.write(lists + PAGE - 8, struct.pack("<Q", lists + PAGE - 8))
    assert io(nvme, c.READ, 0, 128, [page, lists + PAGE - 8]) == 0x002


@pytest.mark.logs("DMA refused")
@pytest.mark.parametrize("what", ["data", "second page", "list"])
@pytest.mark.parametrize("opcode", [c.READ, c.WRITE, c.COMPARE])
async def test_memory_out_of_reach_is_a_data_transfer_error(nvme, opcode, what):
    page = nvme.take()
    prps, n = {
        "data": ([GONE], 8), "second page": ([page, GONE], 16), "list": ([page, GONE], 128),
    }[what]  # fmt: skip
    assert io(nvme, opcode, 0, n, prps) == 0x004
    assert io(nvme, c.FLUSH) == 0


# -- SGLs -----------------------------------------------------------------------------------------


def sgl(address, length, kind, sub=0):
    return struct.pack("<QI3xB", address, length, kind << 4 | sub)


def io_sgl(nvme, opcode, n, descriptor, lba=0):
    prp1, prp2 = struct.unpack("<QQ", descriptor)
    return io(nvme, opcode, lba, n, [prp1, prp2], flags=0x40)


async def test_one_data_block(nvme):
    data, page = written(nvme, 4 * PAGE), nvme.take(2)
    assert io_sgl(nvme, c.READ, 8, sgl(page + 3, PAGE, 0)) == 0
    assert nvme.read(page + 3, PAGE) == data[:PAGE]


async def test_segments_of_pieces_of_any_size_and_a_bit_bucket(nvme):
    data, page, first, second = written(nvme, 4 * PAGE), nvme.take(4), nvme.take(), nvme.take()
    nvme.write(page, b"x" * 4 * PAGE)
    nvme.write(first, sgl(page + 7, 1, 0) + sgl(page + 100, 3900, 0) + sgl(second, 32, 3))
    nvme.write(second, sgl(0, 500, 1) + sgl(page + PAGE, 8192 - 4401, 0))
    assert io_sgl(nvme, c.READ, 16, sgl(first, 48, 2)) == 0
    assert nvme.read(page + 7, 1) == data[:1]
    assert nvme.read(page + 100, 3900) == data[1:3901]
    assert nvme.read(page + PAGE, 8192 - 4401) == data[4401:8192]
    assert nvme.read(page + 8, 1) == b"x"


@pytest.mark.parametrize(
    ("descriptors", "status"),
    [
        ([sgl(c.IOVA, 511, 0)], 0x00F),
        ([sgl(c.IOVA, 513, 0)], 0x00F),
        ([sgl(c.IOVA, 512, 0, 1)], 0x011),
        ([sgl(c.IOVA, 512, 4)], 0x011),
        ([sgl(c.IOVA, 16, 15)], 0x011),
        ([sgl(0, 15, 3)], 0x00D),
        ([sgl(0, 16, 3), sgl(c.IOVA, 16, 3)], 0x011),
        ([sgl(0, 32, 2), sgl(c.IOVA, 16, 2), sgl(c.IOVA, 512, 0)], 0x011),
        ([sgl(0, 16, 3), sgl(c.IOVA, 500, 0)], 0x00F),
    ],
)
async def test_sgls_that_cannot_be(nvme, descriptors, status):
    lists = nvme.take()
    first, *rest = descriptors
    nvme.write(lists, b"".join(rest))
    address, length, kind = struct.unpack("<QI3xB", first)
    if kind >> 4 in (2, 3) and not address:
        first = struct.pack("<QI3xB", lists, length, kind)
    assert io_sgl(nvme, c.READ, 1, first) == status


async def test_segments_in_a_circle_end(nvme):
    lists, page = nvme.take(), nvme.take()
    nvme.write(lists, sgl(page, 0, 0) + sgl(lists, 32, 2))
    assert io_sgl(nvme, c.READ, 1, sgl(lists, 32, 2)) == 0x00E


# -- errors on order ------------------------------------------------------------------------------


async def test_every_third_read_fails_after_the_first_two(open_disk):
    rule = {"opcode": c.READ, "skip": 2, "every": 3, "count": 2, "status": 0x281}
    nvme = await open_disk(inject=[rule])
    page = nvme.take()
    found = [io(nvme, c.READ, 0, 1, [page]) for _ in range(12)]
    assert found == [0, 0, 0x281, 0, 0, 0x281, *[0] * 6]
    assert io(nvme, c.WRITE, 0, 1, [page]) == 0


async def test_rules_look_at_blocks_queues_and_namespaces(open_disk):
    rules = [
        {"opcode": c.WRITE, "first_lba": 8, "last_lba": 15, "status": 0x280},
        {"queue": 2, "status": 0x006},
        {"kind": "admin", "opcode": c.KEEP_ALIVE, "status": 0x00C},
        {"nsid": 9, "status": 0x082},
    ]
    nvme = await open_disk(inject=rules)
    page = nvme.take()
    assert [io(nvme, c.WRITE, lba, 1, [page]) for lba in (7, 8, 15, 16)] == [0, 0x280, 0x280, 0]
    assert io(nvme, c.FLUSH, nsid=9) == 0x082
    assert nvme.admin.run(c.KEEP_ALIVE).status == 0x00C
    nvme.queue = nvme.io_queue(2)
    assert io(nvme, c.FLUSH) == 0x006


async def test_a_dropped_completion_never_comes_but_the_command_can_be_aborted(open_disk):
    nvme = await open_disk(inject=[{"opcode": c.FLUSH, "drop": True, "count": 2}])
    lost = nvme.queue.put(c.FLUSH, nsid=1)
    nvme.queue.put(c.FLUSH, nsid=1)
    kept = nvme.queue.put(c.FLUSH, nsid=1)
    nvme.queue.ring()
    assert nvme.queue.wait().cid == kept
    done = nvme.admin.run(c.ABORT, cdw10=lost << 16 | 1)
    assert (done.status, done.result) == (0, 0)
    aborted = nvme.queue.wait()
    assert (aborted.cid, aborted.status) == (lost, 0x007)
    assert nvme.admin.run(c.DELETE_SQ, cdw10=1).status == 0
    assert nvme.queue.wait().status == 0x008


async def test_a_late_completion_comes_after_others(open_disk):
    nvme = await open_disk(inject=[{"opcode": c.FLUSH, "latency_us": 20000, "count": 1}])
    late = nvme.queue.put(c.FLUSH, nsid=1)
    soon = nvme.queue.put(c.FLUSH, nsid=1)
    nvme.queue.ring()
    assert [nvme.queue.wait().cid for _ in range(2)] == [soon, late]


# -- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"size": 0}, "size: expected 1 to 2**47 bytes, got 0"),
        ({"size": "10x"}, "size: expected bytes or \"16M\", got '10x'"),
        ({"size": 1000}, "size: expected a multiple of 512, got 1000"),
        ({"size": "1K", "lba_size": 4096}, "size: expected a multiple of 4096, got 1024"),
        ({"lba_size": 520}, "lba_size: expected 512 or 4096, got 520"),
        ({"backing": "file"}, 'backing: expected "memory", "null", or "file" with a path'),
        ({"backing": "null", "path": "x"}, "backing: expected"),
        ({"path": 5}, "path: expected the name of a file, got 5"),
        ({"path": "/nowhere/at/all"}, "/nowhere/at/all: No such file or directory"),
        ({"path": "/dev"}, "/dev: Is a directory"),
        ({"path": "/dev/zero"}, "/dev/zero: neither a file nor a block device"),
        ({"path": "/dev/shm/none", "read_only": True}, "No such file"),
        ({"read_only": 1}, "read_only: expected true or false, got 1"),
        ({"serial": "x" * 21}, "serial: expected at most 20 characters of ASCII"),
        ({"model": "\u00e9"}, "model: expected at most 40 characters of ASCII"),
        ({"queues": 256}, "queues: expected a number from 1 to 255, got 256"),
        ({"vectors": True}, "vectors: expected a number from 1 to 256, got True"),
        ({"mdts": 11}, "mdts: expected a number from 0 to 10, got 11"),
        ({"namespaces": {}}, "namespaces: expected a list of at most 256 tables"),
        ({"namespaces": [1]}, "namespaces[0]: expected a table, got 1"),
        ({"namespaces": [{"sise": 1}]}, "namespaces[0].sise: there is: backing, path, size,"),
        ({"namespaces": [{"id": 2}, {}]}, "namespaces[1].id: 2 is there already"),
        ({"namespaces": [{"id": 0}]}, "namespaces[0].id: expected a number from 1 to 256, got 0"),
        ({"namespaces": [], "size": 512}, "size: expected in namespaces, which is there too"),
        ({"inject": 1}, "inject: expected a list of tables, got 1"),
        ({"inject": [{}]}, "inject[0]: expected status, latency_us or drop"),
        ({"inject": [{"wen": 1}]}, "inject[0].wen: there is: kind, queue,"),
        ({"inject": [{"status": 0x800}]}, "inject[0].status: expected a number from 0 to 2047"),
        ({"inject": [{"kind": "x", "drop": True}]}, 'inject[0].kind: expected "io" or "admin"'),
    ],
)
async def test_options_that_cannot_be(vfio, options, error):
    with pytest.raises(ValueError, match=re.escape(error)) as found:
        vfio.add("0000:09:00.0", lambda host: Nvme(host, options))
    assert "\n" not in str(found.value)


async def test_a_controller_without_a_namespace(vfio):
    nvme = (await NvmeClient.make(vfio, {"namespaces": []})).start()
    assert nvme.identify(2) == bytes(PAGE)
    assert struct.unpack_from("<I", nvme.identify(1), 516)[0] == 0
    assert nvme.identify(0, nsid=1) == 0x00B
