"""IOMMU_OPTION."""

import pytest

from iommufs import uapi
from iommufs._native import ffi
from tests.contract.client import PAGE, refused

GET, SET = uapi.IOMMU_OPTION_OP_GET, uapi.IOMMU_OPTION_OP_SET
RLIMIT_MODE, HUGE_PAGES = uapi.IOMMU_OPTION_RLIMIT_MODE, uapi.IOMMU_OPTION_HUGE_PAGES


async def option(client, file, option_id, op, value=77, **fields):
    cmd = await client.call(
        file,
        uapi.IOMMU_OPTION,
        "iommu_option",
        option_id=option_id,
        op=op,
        val64=value,
        **fields,
    )
    return cmd.val64


@pytest.mark.root
async def test_rlimit_mode_of_a_fresh_file(client, file):
    assert await option(client, file, RLIMIT_MODE, GET) == 0
    for mode in (1, 1, 0, 0):
        assert await option(client, file, RLIMIT_MODE, SET, mode) == mode
        assert await option(client, file, RLIMIT_MODE, GET) == mode
    with refused("EINVAL"):
        await option(client, file, RLIMIT_MODE, SET, 2)


@pytest.mark.root
async def test_rlimit_mode_is_fixed_once_there_is_an_object(client, file):
    ioas = await client.ioas_alloc(file)
    for mode in (0, 1, 2):
        with refused("EBUSY"):
            await option(client, file, RLIMIT_MODE, SET, mode)
    assert await option(client, file, RLIMIT_MODE, GET) == 0
    await client.destroy(file, ioas)
    await option(client, file, RLIMIT_MODE, SET, 1)


async def test_rlimit_mode_belongs_to_no_object(client, file):
    for op in (GET, SET, 2):
        with refused("EOPNOTSUPP"):
            await option(client, file, RLIMIT_MODE, op, object_id=1)


@pytest.mark.parametrize("option_id", [RLIMIT_MODE, HUGE_PAGES])
async def test_unknown_ops_and_reserved_fields_are_eopnotsupp(client, file, option_id):
    ioas = await client.ioas_alloc(file)
    target = ioas if option_id == HUGE_PAGES else 0
    for op in (2, 0xFFFF):
        with refused("EOPNOTSUPP"):
            await option(client, file, option_id, op, object_id=target)
    with refused("EOPNOTSUPP"):
        await option(client, file, option_id, GET, object_id=9, __reserved=1)


async def test_an_unknown_option_is_eopnotsupp(client, file):
    for option_id in (2, 2**32 - 1):
        with refused("EOPNOTSUPP"):
            await option(client, file, option_id, GET)


async def test_huge_pages(client, file, ioas, domains):
    assert await option(client, file, HUGE_PAGES, GET, object_id=ioas) == 1
    for value in (1, 0, 0, 1):
        assert await option(client, file, HUGE_PAGES, SET, value, object_id=ioas) == value
        assert await option(client, file, HUGE_PAGES, GET, object_id=ioas) == value
    with refused("EINVAL"):
        await option(client, file, HUGE_PAGES, SET, 2, object_id=ioas)
    with refused("ENOENT"):
        await option(client, file, HUGE_PAGES, GET, object_id=9999)


async def test_huge_pages_stay_on_with_a_domain_and_a_mapping(client, file, ioas, domains, memory):
    await client.map(file, ioas, memory.address, PAGE)
    if domains:
        with refused("EINVAL"):
            await option(client, file, HUGE_PAGES, SET, 0, object_id=ioas)
        assert await option(client, file, HUGE_PAGES, GET, object_id=ioas) == 1
    else:
        await option(client, file, HUGE_PAGES, SET, 0, object_id=ioas)
        # Its state is looked at first: it is off already.
        bound = await client.bind(file, 0)
        await bound.attach(ioas)
        await option(client, file, HUGE_PAGES, SET, 0, object_id=ioas)


async def test_huge_pages_stay_on_with_a_mapping_off_page_boundaries(client, file, memory):
    ioas = await client.ioas_alloc(file)
    await client.map(file, ioas, memory.address, 100, 0x10000)
    with refused("EADDRINUSE"):
        await option(client, file, HUGE_PAGES, SET, 0, object_id=ioas)
    assert await option(client, file, HUGE_PAGES, GET, object_id=ioas) == 1


async def test_without_huge_pages_everything_is_aligned_to_pages(client, file, memory):
    ioas = await client.ioas_alloc(file)
    await option(client, file, HUGE_PAGES, SET, 0, object_id=ioas)
    with refused("EINVAL"):
        await client.map(file, ioas, memory.address, 100, 0x10000)
    await option(client, file, HUGE_PAGES, SET, 1, object_id=ioas)
    await client.map(file, ioas, memory.address, 100, 0x10000)


async def test_only_the_value_is_written_back(client, file, memory):
    cmd = uapi.new("iommu_option", size=24, option_id=RLIMIT_MODE, op=GET, val64=5)
    # The rest of the structure is in a page that cannot be written.
    raw = bytes(ffi.buffer(cmd))
    at = PAGE - 16
    memory.write(at, raw)
    address = memory.protect(0, 1) + at
    await client.ioctl(file, uapi.IOMMU_OPTION, address)
    assert memory[at + 16 : at + 24] == bytes(8)


@pytest.mark.root
async def test_a_set_that_cannot_be_answered_is_done(client, file, memory):
    cmd = uapi.new("iommu_option", size=24, option_id=RLIMIT_MODE, op=SET, val64=1)
    memory.write(0, bytes(ffi.buffer(cmd)))
    address = memory.protect(0, 1)
    with refused("EFAULT"):
        await client.ioctl(file, uapi.IOMMU_OPTION, address)
    assert await option(client, file, RLIMIT_MODE, GET) == 1
