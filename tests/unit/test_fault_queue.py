"""Fault queues and their file: groups of page requests, read whole, answered by cookie."""

import errno
import select

import pytest

from iommufs import uapi
from iommufs._native import ffi
from iommufs.errors import UapiError
from iommufs.iommufd.ctx import Ctx
from iommufs.iommufd.fault import FaultFile, FaultGroup, FaultQueue

SUCCESS, INVALID = uapi.IOMMUFD_PAGE_RESP_SUCCESS, uapi.IOMMUFD_PAGE_RESP_INVALID
RECORD, RESPONSE = 40, 8


@pytest.fixture
def ctx():
    ctx = Ctx()
    yield ctx
    ctx.release()


@pytest.fixture
def queue(ctx):
    with ctx.objects.new(FaultQueue()) as queue:
        pass
    return queue


@pytest.fixture
def file(ctx, queue):
    file = FaultFile(ctx, queue)
    yield file
    file.release()


@pytest.fixture
def report(queue):
    """report(addresses…) queues a group of faults; the answers it gets are in the list returned."""

    def report(*addresses):
        answers = []
        records = [uapi.new("iommu_hwpt_pgfault", dev_id=1, addr=addr) for addr in addresses]
        queue.report(FaultGroup(records, answers.append))
        return answers

    return report


def records_of(data):
    """(cookie, address) of each."""
    parts = [data[i : i + RECORD] for i in range(0, len(data), RECORD)]
    records = [ffi.from_buffer("struct iommu_hwpt_pgfault *", part) for part in parts]
    return [(record.cookie, record.addr) for record in records]


def responses(*pairs):
    made = [uapi.new("iommu_hwpt_page_response", cookie=a, code=b) for a, b in pairs]
    return b"".join(bytes(ffi.buffer(each)) for each in made)


def refused(name):
    return pytest.raises(UapiError, match=name)


async def test_an_empty_queue_reads_as_nothing(file):
    for size in (0, RECORD, 10 * RECORD):
        assert await file.read(0, size) == b""
    for size in (1, 8, 64, RECORD + 1):
        with refused("ESPIPE"):
            await file.read(0, size)


async def test_whole_groups_are_read_each_with_its_cookie(file, report):
    for group in [(0x1000,), (0x2000, 0x3000), (0x4000, 0x5000)]:
        report(*group)
    data = await file.read(0, 4 * RECORD)
    assert records_of(data) == [(1, 0x1000), (2, 0x2000), (2, 0x3000)]
    for size in (0, RECORD):
        with refused("EINVAL"):
            await file.read(0, size)
    assert records_of(await file.read(0, 2 * RECORD)) == [(3, 0x4000), (3, 0x5000)]


async def test_responses(file, report):
    first, second = report(0x1000, 0x2000), report(0x3000)
    await file.read(0, 3 * RECORD)
    assert await file.write(0, responses((2, SUCCESS), (1, INVALID))) == 2 * RESPONSE
    assert (first, second) == ([INVALID], [SUCCESS])
    with refused("EINVAL"):
        await file.write(0, responses((1, SUCCESS)))


async def test_the_lowest_free_cookie_is_next(file, report):
    for address in range(3):
        report(address)
    await file.read(0, 3 * RECORD)
    await file.write(0, responses((2, SUCCESS)))
    report(7), report(8)
    assert records_of(await file.read(0, 2 * RECORD)) == [(2, 7), (4, 8)]


async def test_a_write_stops_at_the_first_bad_response(file, report):
    answers = report(0x1000)
    await file.read(0, RECORD)
    for bad in [(2, SUCCESS), (0, SUCCESS), (1, 2)]:
        with refused("EINVAL"):
            await file.write(0, responses(bad, (1, SUCCESS)))
    assert answers == []
    assert await file.write(0, responses((1, SUCCESS), (1, SUCCESS))) == RESPONSE
    assert answers == [SUCCESS]


async def test_a_write_is_of_whole_responses(file):
    assert await file.write(0, b"") == 0
    for size in (1, 4, 12):
        with refused("ESPIPE"):
            await file.write(0, bytes(size))


async def test_poll(file, report):
    woken = []
    file.watch_poll(lambda: woken.append(1))
    assert file.poll() == select.POLLOUT
    report(0x1000)
    assert woken == [1]
    assert file.poll() == select.POLLIN | select.POLLRDNORM | select.POLLOUT
    await file.read(0, RECORD)
    assert file.poll() == select.POLLOUT


async def test_what_nobody_answers_is_invalid_when_the_queue_ends(ctx, queue, report):
    file = FaultFile(ctx, queue)
    unread, unanswered = report(0x1000), report(0x2000)
    await file.read(0, RECORD)
    with pytest.raises(UapiError) as info:
        ctx.objects.destroy(queue.id)
    assert info.value.errno == errno.EBUSY
    file.release()
    ctx.objects.destroy(queue.id)
    assert unread == unanswered == [INVALID]


async def test_the_file_keeps_the_context(ctx, report):
    other = Ctx()
    with other.objects.new(FaultQueue()) as queue:
        pass
    file = FaultFile(other, queue)
    other.release()
    assert other.objects.find(queue.id, FaultQueue) is queue
    file.release()
    assert len(other.objects) == 0
