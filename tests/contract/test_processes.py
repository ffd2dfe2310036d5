"""Whose memory a mapping is, and whom it is charged to."""

import errno
from contextlib import contextmanager

import pytest

from iommufs import uapi
from iommufs._native import ffi
from tests.contract.client import PAGE, RW, U64_MAX, ProcessClient, refused
from tests.contract.other_process import OtherProcess
from tests.contract.test_ioas_copy import copy
from tests.contract.test_ioas_map_file import map_file
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


# ---- IOAS_CHANGE_PROCESS ------------------------------------------------------------------------


async def change_process(client, file, process):
    with client.as_process(process):
        await client.call(file, uapi.IOMMU_IOAS_CHANGE_PROCESS, "iommu_ioas_change_process")


async def map_its_file(client, file, process, ioas, pages, iova=None):
    with client.as_process(process):
        return await map_file(client, file, ioas, process.file, 0, pages * PAGE, iova)


async def room(client, file, process, ioas):
    """How many pages more the process can have pinned; nothing of it stays."""
    pages = 0
    for n in (LIMIT, 8, 4, 2, 1):
        try:
            await map_its_file(client, file, process, ioas, n, 0x1000000 + pages * PAGE)
            pages += n
        except OSError as error:
            assert error.errno == errno.ENOMEM  # noqa: PT017
    if pages:
        await client.unmap(file, ioas, 0x1000000, pages * PAGE)
    return pages


@pytest.mark.root
@pytest.mark.parametrize("mode", [0, 1])
async def test_the_next_process_pays(client, file, spawn, mode):
    await option(client, file, RLIMIT_MODE, SET, mode)
    first, second = (spawn(uid=uid, memlock=LIMIT) for uid in (NOBODY, NOBODY - 1))
    ioas, other = await client.ioas_with_domains(file, 1), await client.ioas_with_domains(file, 0)
    await map_its_file(client, file, first, ioas, 10, 0x10000)
    await copy(client, file, ioas, ioas, 4 * PAGE, 0x30000, 0x10000)
    await copy(client, file, other, ioas, PAGE, 0x30000, 0x10000)  # the same pages: once
    for payer, free in [(second, first), (second, first), (first, second)]:
        await change_process(client, file, payer)
        assert await room(client, file, payer, ioas) == LIMIT - 10
        assert await room(client, file, free, ioas) == LIMIT
    await client.unmap(file, ioas, 0, U64_MAX)
    assert await room(client, file, first, ioas) == LIMIT


@pytest.mark.root
@pytest.mark.parametrize("mode", [0, 1])
async def test_a_process_that_cannot_pay_changes_nothing(client, file, spawn, mode):
    await option(client, file, RLIMIT_MODE, SET, mode)
    ioas = await client.ioas_with_domains(file, 1)
    first, poor = spawn(uid=NOBODY, memlock=LIMIT), spawn(uid=NOBODY - 1, memlock=5)
    await map_its_file(client, file, first, ioas, 4)
    await map_its_file(client, file, first, ioas, 2)
    with refused("ENOMEM"):
        await change_process(client, file, poor)
    assert await room(client, file, poor, ioas) == 5
    assert await room(client, file, first, ioas) == LIMIT - 6
    with client.as_process(first):
        await client.map(file, ioas, first.address, PAGE, 0x400000)
    with refused("EINVAL"):  # before anything is counted
        await change_process(client, file, poor)


@pytest.mark.root
async def test_another_process_of_the_user_pays_before_the_first_is_paid_back(client, file, spawn):
    ioas = await client.ioas_with_domains(file, 1)
    first = spawn(uid=NOBODY, memlock=LIMIT)
    await map_its_file(client, file, first, ioas, 9)
    with refused("ENOMEM"):
        await change_process(client, file, spawn(uid=NOBODY, memlock=17))
    await change_process(client, file, spawn(uid=NOBODY, memlock=18))
    assert await room(client, file, first, ioas) == LIMIT - 9


@pytest.mark.root
async def test_what_nobody_paid_for_is_moved_for_nothing(client, file, spawn):
    ioas = await client.ioas_with_domains(file, 1)
    poor = spawn(uid=NOBODY, memlock=4)
    await map_its_file(client, file, spawn(), ioas, LIMIT)
    await change_process(client, file, poor)
    assert await room(client, file, poor, ioas) == 4


@pytest.mark.root
@pytest.mark.parametrize("mode", [0, 1])
async def test_the_limit_of_the_next_process_counts_later(client, file, spawn, mode):
    await option(client, file, RLIMIT_MODE, SET, mode)
    ioas = await client.ioas_alloc(file)
    bound = await client.bind(file, 0)
    await map_its_file(client, file, spawn(uid=NOBODY, memlock=4), ioas, 5)
    for limit, error in [(4, "ENOMEM"), (5, None)]:
        await change_process(client, file, spawn(uid=NOBODY - 1, memlock=limit))
        if error:
            with refused(error):
                await bound.attach(ioas)
        else:
            await bound.attach(ioas)


@pytest.mark.root
@pytest.mark.parametrize("mode", [0, 1])
async def test_a_process_that_ended_had_a_limit_and_gets_its_pages_back(client, file, spawn, mode):
    """In mode MM Linux says EINVAL (and warns), although all is moved then."""
    await option(client, file, RLIMIT_MODE, SET, mode)
    ioas = await client.ioas_alloc(file)
    bound = await client.bind(file, 0)
    first, next_one = spawn(uid=NOBODY, memlock=4), spawn(uid=NOBODY - 1, memlock=5)
    await map_its_file(client, file, first, ioas, 5)
    first.end()
    with refused("ENOMEM"):
        await bound.attach(ioas)
    if mode:
        with refused("EINVAL"):
            await change_process(client, file, next_one)
    else:
        await change_process(client, file, next_one)
    await bound.attach(ioas)
    await change_process(client, file, next_one)
    assert await room(client, file, next_one, ioas) == 0
