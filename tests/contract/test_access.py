"""Accesses, through the test operations that make and use them."""

import pytest

from iommufs import uapi
from tests.contract.client import PAGE, READ, U64_MAX, refused
from tests.contract.mock import START

PINS = uapi.MOCK_FLAGS_ACCESS_CREATE_NEEDS_PIN_PAGES
WRITE = uapi.MOCK_FLAGS_ACCESS_WRITE
SYZ = uapi.MOCK_FLAGS_ACCESS_SYZ
RW_WRITE = uapi.MOCK_ACCESS_RW_WRITE
SLOW = uapi.MOCK_ACCESS_RW_SLOW_PATH
MAX_LENGTH = 16 << 20


async def create(mock, ioas, flags=PINS):
    return (await mock.op("CREATE_ACCESS", "create_access", ioas, flags=flags)).out_access_fd


async def pin(mock, access, iova, length, uptr=0, flags=0):
    fields = {"iova": iova, "length": length, "uptr": uptr, "flags": flags}
    return (await mock.op("ACCESS_PAGES", "access_pages", access, **fields)).out_access_pages_id


async def unpin(mock, access, item):
    await mock.op("DESTROY_ACCESS_PAGES", "destroy_access_pages", access, access_pages_id=item)


async def rw(mock, access, iova, length, uptr, flags=0):
    fields = {"iova": iova, "length": length, "uptr": uptr, "flags": flags}
    await mock.op("ACCESS_RW", "access_rw", access, **fields)


async def pins_of(mock, memory):
    """How often its first page is pinned."""
    for refs in range(4):
        try:
            await mock.op(
                "MD_CHECK_REFS", "check_refs", uptr=memory.address, length=PAGE, refs=refs
            )
        except OSError:
            continue
        return refs
    raise AssertionError("too often")


@pytest.fixture
async def ioas(mock, memory):
    """An IOAS with the memory at START."""
    ioas = await mock.ioas()
    await mock.map(ioas, memory.address, memory.length)
    return ioas


async def test_it_holds_the_ioas_until_it_is_closed(mock, ioas):
    access = await create(mock, ioas)
    with refused("EBUSY"):
        await mock.destroy(ioas)
    await mock.client.close_fd(access)
    await mock.destroy(ioas)


async def test_it_cannot_be_destroyed_by_id(mock):
    ioas = await mock.ioas()
    await create(mock, ioas)
    with refused("EBUSY"):
        await mock.destroy(ioas + 1)


async def test_create_refuses(mock, memory):
    ioas = await mock.ioas()
    with refused("EOPNOTSUPP"):
        await create(mock, ioas, 2)
    with refused("ENOENT"):
        await create(mock, 99)
    await mock.map(ioas, memory.address, PAGE // 2)
    with refused("EADDRINUSE"):
        await create(mock, ioas)
    await create(mock, ioas, 0)
    assert (await mock.ioas()) == ioas + 2


async def test_pin_and_unpin(mock, ioas, memory):
    access = await create(mock, ioas)
    assert await pins_of(mock, memory) == 0
    items = [await pin(mock, access, START, PAGE, memory.address) for _ in range(2)]
    assert items == [0, 1]
    assert await pins_of(mock, memory) == 1
    for item in items:
        await unpin(mock, access, item)
        with refused("ENOENT"):
            await unpin(mock, access, item)
    assert await pins_of(mock, memory) == 0
    assert await pin(mock, access, START, PAGE) == 2
    await mock.client.close_fd(access)
    assert await pins_of(mock, memory) == 0


async def test_pin_refuses(mock, ioas, memory):
    access, plain = await create(mock, ioas), await create(mock, ioas, 0)
    end = START + memory.length
    for name, *arguments in [
        ("ENOMEM", START, MAX_LENGTH + 1),
        ("EOPNOTSUPP", START, PAGE, 0, 2),
        ("EINVAL", START, 0),
        ("EOVERFLOW", U64_MAX, 2),
        ("ENOENT", end, PAGE),
        ("ENOENT", end - PAGE, 2 * PAGE),
        ("EINVAL", START + 1, PAGE),
        ("EBADE", START, PAGE, memory.address + PAGE),
        ("EFAULT", START, PAGE, 1),
    ]:
        with refused(name):
            await pin(mock, access, *arguments)
    with refused("EOPNOTSUPP"):
        await pin(mock, plain, START, PAGE)
    with refused("EBADFD"):
        await pin(mock, 99, START, PAGE)
    assert await pins_of(mock, memory) == 0
    await mock.client.map(mock.file, ioas, memory.address, PAGE, end, READ)
    with refused("EPERM"):
        await pin(mock, access, end, PAGE, flags=WRITE)


async def test_an_unmap_takes_the_pins_away(mock, ioas, memory):
    access = await create(mock, ioas)
    item = await pin(mock, access, START, PAGE)
    assert await mock.unmap(ioas, START, memory.length) == memory.length
    with refused("ENOENT"):
        await unpin(mock, access, item)
    assert await pins_of(mock, memory) == 0


async def test_rw(mock, ioas, memory):
    access = await create(mock, ioas, 0)
    other = memory.address + 8 * PAGE
    memory.write(5, b"there")
    for flags in (0, SLOW):
        await rw(mock, access, START + 5, 5, other, flags)
        assert memory[8 * PAGE : 8 * PAGE + 5] == b"there"
        memory.write(8 * PAGE, b"again")
        await rw(mock, access, START + PAGE - 2, 5, other, flags | RW_WRITE)
        assert memory[PAGE - 2 : PAGE + 3] == b"again"
    end = START + memory.length
    for name, *arguments in [
        ("ENOMEM", START, MAX_LENGTH + 1, other),
        ("EOPNOTSUPP", START, 1, other, 2),
        ("EINVAL", START, 0, other),
        ("EOVERFLOW", U64_MAX, 2, other),
        ("ENOENT", end, 1, other),
        ("EFAULT", START, 1, 1),
        ("EFAULT", START, 1, 1, RW_WRITE),
    ]:
        with refused(name):
            await rw(mock, access, *arguments)
    with refused("EBADFD"):
        await rw(mock, 99, START, 1, other)


async def test_syz_counts_mappings(mock, ioas, memory):
    access = await create(mock, ioas, 0)
    await mock.map(ioas, memory.address + PAGE, PAGE, 2 * START)
    memory.write(PAGE + 3, b"x")
    await rw(mock, access, 3 << 32 | 1, 1, memory.address, SYZ)
    assert memory[0:1] == b"x"


async def test_replace_moves_it_without_its_pins(mock, ioas, memory):
    access = await create(mock, ioas)
    item = await pin(mock, access, START, PAGE)
    other, misaligned = await mock.ioas(), await mock.ioas()
    await mock.map(misaligned, memory.address, PAGE // 2)
    replace = "ACCESS_REPLACE_IOAS", "access_replace_ioas"
    for name, target in (("ENOENT", 99), ("EADDRINUSE", misaligned)):
        with refused(name):
            await mock.op(*replace, access, ioas_id=target)
    await mock.op(*replace, access, ioas_id=ioas)
    assert await pins_of(mock, memory) == 1
    await mock.op(*replace, access, ioas_id=other)
    assert await pins_of(mock, memory) == 0
    with refused("ENOENT"):
        await unpin(mock, access, item)
    await mock.destroy(ioas)
    with refused("EBUSY"):
        await mock.destroy(other)
    with refused("EBADFD"):
        await mock.op(*replace, 99, ioas_id=other)
