"""IOMMU_IOAS_ALLOW_IOVAS."""

import struct
from array import array

import pytest

from iommufs import uapi
from tests.contract.client import PAGE, U64_MAX, Memory, refused


async def allow(client, file, ioas, memory, *ranges, count=None, address=None):
    data = b"".join(struct.pack("<QQ", *each) for each in ranges)
    memory.write(0, data)
    await client.call(
        file,
        uapi.IOMMU_IOAS_ALLOW_IOVAS,
        "iommu_ioas_allow_iovas",
        ioas_id=ioas,
        num_iovas=len(ranges) if count is None else count,
        allowed_iovas=memory.address if address is None else address,
    )


async def test_automatic_iovas_come_from_the_list_fixed_ones_need_not(client, file, memory, ioas):
    await allow(client, file, ioas, memory, (0x100000, 0x1FFFFF), (0x400000, 0x4FFFFF))
    assert await client.map(file, ioas, memory.address, PAGE) == 0x100000
    assert await client.map(file, ioas, memory.address, PAGE, 0x900000) == 0x900000
    await allow(client, file, ioas, memory, (0x400000, 0x400000 + PAGE - 1))
    assert await client.map(file, ioas, memory.address, PAGE) == 0x400000
    with refused("ENOSPC"):
        await client.map(file, ioas, memory.address, PAGE)
    await allow(client, file, ioas, memory)
    assert await client.map(file, ioas, memory.address, PAGE) == PAGE


@pytest.mark.parametrize(
    "ranges",
    [
        [(0x200000, 0x2FFFFF), (0x100000, 0x1FFFFF)],
        [(0x100000, 0x1FFFFF), (0x200000, 0x2FFFFF)],
        [(0x100001, 0x1FFFFE)],
        [(0, U64_MAX)],
    ],
    ids=["descending", "touching", "unaligned", "everything"],
)
async def test_good_lists(client, file, memory, ranges):
    ioas = await client.ioas_alloc(file)
    await allow(client, file, ioas, memory, *ranges)


@pytest.mark.parametrize(
    "ranges",
    [
        [(0x1FFFFF, 0x100000)],
        [(0x100000, 0x100000)],
        [(0x100000, 0x1FFFFF), (0x1FFFFF, 0x2FFFFF)],
        [(0x300000, 0x3FFFFF), (0x100000, 0x1FFFFF), (0x180000, 0x18FFFF)],
    ],
    ids=["backwards", "one byte", "overlap by one", "inside another"],
)
async def test_bad_lists_are_einval_and_leave_the_old_one(client, file, memory, ioas, ranges):
    await allow(client, file, ioas, memory, (0x500000, 0x5FFFFF))
    with refused("EINVAL"):
        await allow(client, file, ioas, memory, *ranges)
    assert await client.map(file, ioas, memory.address, PAGE) == 0x500000


async def test_a_reserved_range_is_eaddrinuse(client, file, memory):
    ioas = await client.ioas_with_domains(file, 1)
    for bad in [(0xFEE00000, 0xFEE00FFF), (0xFEDFF000, 0xFEE00000), (2**48 - PAGE, 2**48)]:
        with refused("EADDRINUSE"):
            await allow(client, file, ioas, memory, (0, 0xFFFF), bad)
    await allow(client, file, ioas, memory, (0, 0xFEDFFFFF), (0xFEF00000, 2**48 - 1))


async def test_what_is_allowed_cannot_become_reserved(client, file, memory):
    ioas = await client.ioas_alloc(file)
    bound = await client.bind(file, 0)
    await allow(client, file, ioas, memory, (0xFEE00000, 0xFEE00FFF))
    with refused("EADDRINUSE"):
        await bound.attach(ioas)
    await allow(client, file, ioas, memory, (2**48 - 1, 2**48))
    with refused("EADDRINUSE"):
        await client.hwpt_alloc(file, bound.devid, ioas)
    await allow(client, file, ioas, memory)
    await bound.attach(ioas)


async def test_a_range_is_judged_before_the_next_one_is_read(client, file, memory):
    ioas = await client.ioas_alloc(file)
    memory.protect(1, 0)
    near = memory.address + PAGE - 32
    memory.write(PAGE - 32, struct.pack("<QQQQ", 0, 0xFFF, 0x1000, 0x1FFF))
    with refused("EFAULT"):
        await allow(client, file, ioas, memory, count=3, address=near)
    memory.write(PAGE - 32, struct.pack("<QQQQ", 0, 0xFFF, 0x800, 0x1FFF))
    with refused("EINVAL"):
        await allow(client, file, ioas, memory, count=3, address=near)
    memory.write(PAGE - 32, struct.pack("<QQQQ", 0, 0xFFF, 0x1FFF, 0x1000))
    with refused("EINVAL"):
        await allow(client, file, ioas, memory, count=3, address=near)


async def test_a_huge_count_of_bad_ranges_is_einval_at_once(client, file, memory):
    ioas = await client.ioas_alloc(file)
    memory.write(0, bytes(memory.length))
    for count in (1 << 20, 2**32 - 1):
        with refused("EINVAL"):
            await allow(client, file, ioas, memory, count=count)


async def test_more_ranges_than_there_is_memory_for_are_enomem(client, file):
    ioas = await client.ioas_alloc(file)
    memory = Memory(4097)
    ranges = array("Q", range(0, memory.length, 8))  # (0, 8), (16, 24), …
    memory.write(0, ranges.tobytes())
    with refused("ENOMEM"):
        await allow(client, file, ioas, memory, count=(1 << 20) + 1)
    memory.free()


async def test_errors_come_in_order(client, file, memory):
    ioas = await client.ioas_alloc(file)
    kind = uapi.IOMMU_IOAS_ALLOW_IOVAS, "iommu_ioas_allow_iovas"
    hole = memory.protect(1, 0)
    with refused("EOPNOTSUPP"):
        await client.call(file, *kind, ioas_id=9, num_iovas=1, __reserved=1, allowed_iovas=hole)
    with refused("ENOENT"):
        await client.call(file, *kind, ioas_id=9, num_iovas=1, allowed_iovas=hole)
    with refused("EFAULT"):
        await client.call(file, *kind, ioas_id=ioas, num_iovas=1, allowed_iovas=hole)
    await client.call(file, *kind, ioas_id=ioas, num_iovas=0, allowed_iovas=hole)
