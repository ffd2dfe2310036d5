"""Whose memory a mapping is, and whom it is charged to."""

from contextlib import contextmanager

import pytest

from iommufs import uapi
from iommufs._native import ffi
from tests.contract.client import PAGE, RW, U64_MAX, ProcessClient, refused
from tests.contract.other_process import OtherProcess
from tests.contract.test_ioas_copy import copy
from tests.contract.test_option import RLIMIT_MODE, SET, option

NOBODY = 65534
LIMIT = 16  # pages


class SharedClient(ProcessClient):
    """A client whose files several processes use: calls are `current`'s, or the test's own."""

    def __init__(self):
        super().__init__()
        self.current = None

    @property
    def caller(self):
        return self.current.caller() if self.current else super().caller

    @contextmanager
    def as_process(self, process):
        self.current = process
        yield
        self.current = None

    async def call(self, file, number, struct, **fields):
        if not self.current:
            return await super().call(file, number, struct, **fields)
        # The structure goes through the last page of the process.
        cmd = uapi.new(struct, **{"size": uapi.sizeof(struct)} | fields)
        address = self.current.address + 511 * PAGE
        await self.caller.write(address, bytes(ffi.buffer(cmd)))
        await self.ioctl(file, number, address)
        ffi.buffer(cmd)[:] = await self.caller.read(address, uapi.sizeof(struct))
        return cmd


@pytest.fixture
async def client():
    client = SharedClient()
    yield client
    await client.close_all()


@pytest.fixture
async def file(client):
    return await client.open()


@pytest.fixture
def spawn():
    """spawn(uid=…, memlock=pages…) starts a process."""
    processes = []

    def spawn(*, uid=0, euid=None, memlock=None):
        limit = -1 if memlock is None else memlock * PAGE
        processes.append(OtherProcess(uid=uid, euid=euid, memlock=limit))
        return processes[-1]

    yield spawn
    for process in processes:
        process.end()


async def test_memory_is_that_of_the_process_that_maps(client, file, spawn):
    first, second = spawn(), spawn()
    ioas = await client.ioas_alloc(file)
    for process, iova in [(first, 0x10000), (second, 0x20000)]:
        with client.as_process(process):
            await client.map(file, ioas, process.address, PAGE, iova)
    # The test itself has nothing there.
    second.end()
    bound = await client.bind(file, 0)
    with refused("EFAULT"):
        await bound.attach(ioas)
    await client.unmap(file, ioas, 0x20000, PAGE)
    await bound.attach(ioas)


async def test_after_an_exec_a_process_maps_its_new_memory(client, file, spawn):
    process = spawn()
    ioas, other = await client.ioas_alloc(file), await client.ioas_alloc(file)
    with client.as_process(process):
        await client.map(file, ioas, process.address, PAGE)
    process.exec()
    with client.as_process(process):
        await client.map(file, other, process.address, PAGE)
    bound = await client.bind(file, 0)
    with refused("EFAULT"):
        await bound.attach(ioas)
    await bound.attach(other)


@pytest.mark.root
async def test_pages_are_charged_when_they_are_pinned(client, file, spawn):
    process = spawn(uid=NOBODY, memlock=LIMIT)
    ioas = await client.ioas_alloc(file)
    with client.as_process(process):
        await client.map(file, ioas, process.address, (LIMIT + 1) * PAGE)
    bound = await client.bind(file, 0)
    with refused("ENOMEM"):
        await bound.attach(ioas)
    await client.unmap(file, ioas, 0, U64_MAX)
    await bound.attach(ioas)
    with client.as_process(process):
        with refused("ENOMEM"):
            await client.map(file, ioas, process.address, (LIMIT + 1) * PAGE)
        half = LIMIT // 2 * PAGE
        for iova in (0x100000, 0x200000):
            await client.map(file, ioas, process.address, half, iova)
        with refused("ENOMEM"):
            await client.map(file, ioas, process.address, PAGE)
        await client.unmap(file, ioas, 0x100000, half)
        await client.map(file, ioas, process.address, half)


@pytest.mark.root
async def test_a_copy_is_not_charged_again(client, file, spawn):
    process = spawn(uid=NOBODY, memlock=LIMIT)
    ioas = await client.ioas_with_domains(file, 2)
    with client.as_process(process):
        await client.map(file, ioas, process.address, LIMIT * PAGE, 0x100000)
        await copy(client, file, ioas, ioas, LIMIT * PAGE, 0x200000, 0x100000)
        await client.unmap(file, ioas, 0x100000, LIMIT * PAGE)
        with refused("ENOMEM"):
            await client.map(file, ioas, process.address, PAGE)


@pytest.mark.root
async def test_a_user_has_one_counter_in_all_processes_and_files(client, file, spawn):
    first, second = spawn(uid=NOBODY, memlock=LIMIT), spawn(uid=NOBODY, memlock=2 * LIMIT)
    ioas = await client.ioas_with_domains(file, 1)
    other_file = await client.open()
    other = await client.ioas_alloc(other_file)
    await (await client.bind(other_file, 1)).attach(other)
    with client.as_process(first):
        await client.map(file, ioas, first.address, LIMIT * PAGE)
    with client.as_process(second):
        # Each process has a limit of its own for what they use together.
        await client.map(other_file, other, second.address, LIMIT * PAGE)
        with refused("ENOMEM"):
            await client.map(other_file, other, second.address, PAGE)
    with client.as_process(spawn(uid=NOBODY - 1, memlock=LIMIT)):
        await client.map(file, ioas, client.current.address, LIMIT * PAGE)


@pytest.mark.root
async def test_the_real_user_is_charged(client, file, spawn):
    ioas = await client.ioas_with_domains(file, 1)
    first = spawn(uid=NOBODY, euid=NOBODY - 1, memlock=LIMIT)
    with client.as_process(first):
        await client.map(file, ioas, first.address, LIMIT * PAGE)
    with client.as_process(spawn(uid=NOBODY - 1, memlock=LIMIT)):
        await client.map(file, ioas, client.current.address, LIMIT * PAGE)
    with client.as_process(spawn(uid=NOBODY, memlock=LIMIT)), refused("ENOMEM"):
        await client.map(file, ioas, client.current.address, PAGE)


@pytest.mark.root
async def test_in_mm_mode_each_process_has_its_own(client, file, spawn):
    await option(client, file, RLIMIT_MODE, SET, 1)
    ioas = await client.ioas_with_domains(file, 1)
    for process in (spawn(uid=NOBODY, memlock=LIMIT), spawn(uid=NOBODY, memlock=LIMIT)):
        with client.as_process(process):
            await client.map(file, ioas, process.address, LIMIT * PAGE)
            with refused("ENOMEM"):
                await client.map(file, ioas, process.address, PAGE)


@pytest.mark.root
async def test_the_privileged_have_no_limit(client, file, spawn):
    process = spawn(memlock=1)
    ioas = await client.ioas_with_domains(file, 1)
    with client.as_process(process):
        await client.map(file, ioas, process.address, 256 * PAGE)


@pytest.mark.root
async def test_the_rlimit_mode_takes_privilege(client, file, spawn):
    ioas = await client.ioas_alloc(file)
    with client.as_process(spawn(uid=NOBODY)):
        for value in (0, 1, 2):
            with refused("EPERM"):
                await option(client, file, RLIMIT_MODE, SET, value)
        assert await option(client, file, RLIMIT_MODE, uapi.IOMMU_OPTION_OP_GET) == 0
        await client.map(file, ioas, client.current.address, PAGE, flags=RW)
