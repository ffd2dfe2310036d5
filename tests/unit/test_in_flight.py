"""Ioctls that wait for their client's memory while others go on."""

import pytest
import trio

from iommufs import jobs, uapi
from iommufs.iommufd.ctx import statistics
from iommufs.iommufd.objects import Object
from tests.contract.client import PAGE, RW, Memory, ProcessCaller, ProcessClient, refused


class SlowCaller(ProcessCaller):
    """Its memory cannot be written before the test says so."""

    async def write(self, address, data):
        slow = self._client.slow
        if slow is not None:
            self._client.slow = None
            slow.waiting.set()
            await jobs.in_task()
            await slow.go_on.wait()
        await super().write(address, data)


class Slow:
    def __init__(self):
        self.waiting = trio.Event()
        self.go_on = trio.Event()


class SlowClient(ProcessClient):
    """start() leaves a call in flight: it has done its work, and waits to write its answer."""

    slow = None

    @property
    def caller(self):
        return SlowCaller(self)

    async def start(self, nursery, call, *args):
        self.slow = slow = Slow()
        results = []
        scope = trio.CancelScope()

        async def run():
            with scope:
                results.append(await call(*args))

        nursery.start_soon(run)
        with trio.fail_after(30):
            await slow.waiting.wait()
        return slow, scope, results


@pytest.fixture
async def client():
    before = statistics()
    client = SlowClient()
    yield client
    await client.close_all()
    assert statistics() == before


@pytest.fixture
async def file(client):
    return await client.open()


async def test_an_object_cannot_be_found_before_its_client_knows_it(client, file):
    async with trio.open_nursery() as nursery:
        slow, _, results = await client.start(nursery, client.ioas_alloc, file)
        with refused("ENOENT"):
            await client.destroy(file, 1)
        assert await client.ioas_alloc(file) == 2
        slow.go_on.set()
    assert results == [1]
    await client.destroy(file, 1)


async def test_an_ioctl_that_is_interrupted_leaves_nothing(client, file):
    bound = await client.bind(file, 0)
    ioas = await client.ioas_alloc(file)
    for call, *args in [
        (client.ioas_alloc, file),
        (client.hwpt_alloc, file, bound.devid, ioas),
        (client.call, file, uapi.IOMMU_FAULT_QUEUE_ALLOC, "iommu_fault_alloc"),
    ]:
        before = statistics()
        async with trio.open_nursery() as nursery:
            _, scope, results = await client.start(nursery, call, *args)
            assert len(file.objects) == 3
            scope.cancel()
        assert results == []
        assert statistics() == before
        assert len(file.objects) == 2


async def test_an_ioas_at_work_cannot_be_destroyed(client, file):
    memory = Memory(1)
    ioas = await client.ioas_alloc(file)
    async with trio.open_nursery() as nursery:
        slow, _, results = await client.start(
            nursery, client.map, file, ioas, memory.address, PAGE, 0x10000, RW
        )
        with refused("EBUSY"):
            await client.destroy(file, ioas)
        assert await client.unmap(file, ioas, 0x10000, PAGE) == PAGE
        slow.go_on.set()
    assert results == [0x10000]
    await client.destroy(file, ioas)
    memory.free()


async def test_a_device_that_is_closed_ends_with_the_last_call_about_it(client, file):
    other = await client.open()
    bound = await client.bind(file, 0)
    ioas = await client.ioas_alloc(file)
    async with trio.open_nursery() as nursery:
        slow, _, results = await client.start(nursery, client.hwpt_alloc, file, bound.devid, ioas)
        await bound.close()
        with refused("ENOENT"):
            await client.hwpt_alloc(file, bound.devid, ioas)
        with refused("EPERM"):
            await client.bind(other, 0)
        slow.go_on.set()
    assert results == [3]
    await client.bind(other, 0)
    assert (await client.bind(file, 1)).devid == 1, "the id is free again"


async def test_an_automatic_page_table_at_work_stays_when_its_device_goes(client, file):
    """It may be destroyed by hand then, as where Linux loses that race."""
    bound = await client.bind(file, 0)
    ioas = await client.ioas_alloc(file)
    hwpt = await bound.attach(ioas)
    with file.objects.use(hwpt, Object):
        await bound.detach()
    await client.destroy(file, hwpt)
    await client.destroy(file, ioas)
