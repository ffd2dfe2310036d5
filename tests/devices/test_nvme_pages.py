"""The NVMe controller with `pri` (docs/nvme.md): commands that ask for the pages they miss.

Who answers is the test; a real fault queue is in tests/e2e/test_page_requests.py.
"""

import struct
import types

import pytest

from iommufs import uapi
from iommufs.vfio import native
from tests.devices import nvme_client as c
from tests.devices.nvme_client import PAGE, NvmeClient

BLOCK = 512
MISSING = 0x7000_0000
COMES, NEVER = uapi.IOMMUFD_PAGE_RESP_SUCCESS, uapi.IOMMUFD_PAGE_RESP_INVALID
DATA_TRANSFER, ABORTED, ABORTED_SQ_DELETED = 0x004, 0x007, 0x008


@pytest.fixture
async def nvme(vfio, monkeypatch):
    """A controller with an I/O queue whose page requests are in `asked`."""
    nvme = (await NvmeClient.make(vfio, {"size": 1 << 20, "pri": True})).start()
    nvme.queue = nvme.io_queue(depth=64)
    nvme.asked = []

    def request_page(iova, write, number, respond):
        nvme.asked.append(types.SimpleNamespace(iova=iova, write=write, respond=respond))
        return True

    monkeypatch.setattr(nvme.function.iommu_device, "request_page", request_page)
    return nvme


def put(nvme, opcode, lba, n, *prps):
    cid = nvme.queue.put(
        opcode, nsid=1, cdw10=lba, cdw12=n - 1, prp1=prps[0], prp2=prps[1] if prps[1:] else 0
    )
    nvme.queue.ring()
    return cid


def next_request(nvme):
    """What the device asks for, when it does."""

    def look():
        native.drain()
        return nvme.asked

    nvme.until(look)
    return nvme.asked.pop(0)


async def map_page(nvme, iova):
    """The page at `iova` is a new one of the arena, whose IOVA is returned."""
    page = nvme.take()
    await nvme.map_at(nvme.address + page - c.IOVA, iova, PAGE)
    return page


async def test_config_space_has_ats_and_pri(nvme):
    image = bytes(nvme.function.description.config)
    ats, pri = (struct.unpack_from("<I", image, offset)[0] for offset in (0x100, 0x110))
    assert (ats & 0xFFFF, ats >> 20, pri & 0xFFFF, pri >> 20) == (0x0F, 0x110, 0x13, 0)
    assert nvme.function.requests_pages


async def test_a_command_waits_for_its_pages_while_others_go_on(nvme):
    there = nvme.take()
    nvme.write(there, b"over there".ljust(PAGE, b"."))
    waits = put(nvme, c.WRITE, 0, 16, MISSING, MISSING + PAGE)
    request = next_request(nvme)
    assert (request.iova, request.write) == (MISSING, False)
    passes = put(nvme, c.WRITE, 64, 8, there)
    assert nvme.queue.wait().cid == passes
    first = await map_page(nvme, MISSING)
    nvme.write(first, b"first".ljust(PAGE))
    request.respond(COMES)
    request = next_request(nvme)
    assert (request.iova, request.write) == (MISSING + PAGE, False)
    second = await map_page(nvme, MISSING + PAGE)
    nvme.write(second, b"second".ljust(PAGE))
    request.respond(COMES)
    done = nvme.queue.wait()
    assert (done.cid, done.status) == (waits, 0)

    put(nvme, c.READ, 0, 16, there, MISSING + 2 * PAGE)
    request = next_request(nvme)
    assert (request.iova, request.write) == (MISSING + 2 * PAGE, True)
    third = await map_page(nvme, MISSING + 2 * PAGE)
    request.respond(COMES)
    assert nvme.queue.wait().status == 0
    assert nvme.read(there, 5) == b"first"
    assert nvme.read(third, 6) == b"second"
    assert not nvme.asked


async def test_a_list_is_asked_for_too(nvme):
    pages = nvme.take(3)
    put(nvme, c.WRITE, 0, 24, pages, MISSING)
    request = next_request(nvme)
    assert (request.iova, request.write) == (MISSING, False)
    listed = await map_page(nvme, MISSING)
    nvme.write(listed, b"".join((pages + n * PAGE).to_bytes(8, "little") for n in (1, 2)))
    request.respond(COMES)
    assert nvme.queue.wait().status == 0


def refused(nvme):
    """What the IOMMU refused it."""
    nvme.function.refused.sum_up()
    return nvme.function.statistics()["DMA refused"]


@pytest.mark.logs("DMA refused")
async def test_a_page_that_will_not_come_is_a_data_transfer_error(nvme):
    put(nvme, c.READ, 0, 8, MISSING)
    request = next_request(nvme)
    assert "last" not in refused(nvme)
    request.respond(NEVER)
    assert nvme.queue.wait().status == DATA_TRANSFER
    assert refused(nvme)["last"] == {"iova": MISSING, "access": "write", "reason": "unmapped"}


@pytest.mark.logs("DMA refused")
async def test_without_a_fault_queue_it_is_one_at_once(vfio):
    nvme = (await NvmeClient.make(vfio, {"size": 1 << 20, "pri": True})).start()
    nvme.queue = nvme.io_queue()
    put(nvme, c.READ, 0, 8, MISSING)

    def look():
        native.drain()
        return nvme.queue.poll()

    assert nvme.until(look).status == DATA_TRANSFER
    assert refused(nvme)["last"] == {"iova": MISSING, "access": "write", "reason": "unmapped"}


async def test_an_admin_command_waits_too(nvme):
    cid = nvme.admin.put(c.IDENTIFY, prp1=MISSING, cdw10=1)
    nvme.admin.ring()
    request = next_request(nvme)
    assert nvme.admin.run(c.KEEP_ALIVE).cid != cid
    page = await map_page(nvme, MISSING)
    request.respond(COMES)
    assert nvme.admin.wait().cid == cid
    assert nvme.read(page + 4, 9) == b"iommufs-1"


@pytest.mark.logs("DMA refused")
async def test_no_more_commands_are_fetched_than_can_wait(nvme):
    for i in range(40):
        nvme.queue.put(c.READ, nsid=1, cdw12=7, prp1=MISSING + i * PAGE)
    nvme.queue.ring()
    requests = [next_request(nvme) for _ in range(24)]
    assert [request.iova for request in requests] == [MISSING + i * PAGE for i in range(24)]
    assert nvme.admin.run(c.KEEP_ALIVE).status == 0
    native.drain()
    assert not nvme.asked
    for request in requests:
        request.respond(NEVER)
    for _ in range(16):
        next_request(nvme).respond(NEVER)
    found = sorted(nvme.queue.wait().cid for _ in range(40))
    assert found == list(range(1, 41))


@pytest.mark.parametrize("how", ["abort", "delete", "disable", "reset"])
async def test_what_waits_is_ended_without_an_answer(nvme, how):
    cid = put(nvme, c.READ, 0, 8, MISSING)
    request = next_request(nvme)
    if how == "abort":
        assert nvme.admin.run(c.ABORT, cdw10=cid << 16 | 1).result == 0
        done = nvme.queue.wait()
        assert (done.cid, done.status) == (cid, ABORTED)
    elif how == "delete":
        assert nvme.admin.run(c.DELETE_SQ, cdw10=1).status == 0
        assert nvme.queue.wait().status == ABORTED_SQ_DELETED
    elif how == "disable":
        nvme.disable()
    else:
        nvme.function.reset_function()
    page = await map_page(nvme, MISSING)
    request.respond(COMES)  # too late
    if how in ("disable", "reset"):
        await nvme.set_master(True)
        nvme.start()
        nvme.queue = nvme.io_queue(2)
    assert nvme.admin.run(c.KEEP_ALIVE).status == 0
    assert nvme.read(page, PAGE) == bytes(PAGE)
