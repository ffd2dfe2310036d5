"""Binding devices, and attaching them to address spaces and page tables."""

import pytest

from tests.contract.client import PAGE, U64_MAX, refused


@pytest.fixture
async def bound(client, file):
    return await client.bind(file, 0)


@pytest.fixture
async def pair(client, file):
    """Two devices of one group."""
    return await client.bind(file, 2), await client.bind(file, 3)


@pytest.fixture
async def ioas(client, file, bound):
    return await client.ioas_alloc(file)


@pytest.fixture
async def other(client, file, ioas):
    return await client.ioas_alloc(file)


async def test_device_ids_are_object_ids(client, file):
    first = await client.bind(file, 0)
    second = await client.bind(file, 1)
    assert (first.devid, second.devid) == (1, 2)
    await first.close()
    assert (await client.bind(file, 0)).devid == 1


async def test_a_group_belongs_to_one_file_at_a_time(client, file):
    other = await client.open()
    first = await client.bind(file, 2)
    with refused("EPERM"):
        await client.bind(other, 3)
    second = await client.bind(file, 3)
    await first.close()
    with refused("EPERM"):
        await client.bind(other, 2)
    await second.close()
    await client.bind(other, 2)


async def test_an_ioas_gives_an_automatic_page_table_that_goes_with_the_device(
    client, file, bound, ioas
):
    hwpt = await bound.attach(ioas)
    assert hwpt == ioas + 1
    await bound.detach()
    with refused("ENOENT"):
        await bound.attach(hwpt)
    with refused("ENOENT"):
        await client.destroy(file, hwpt)
    await client.destroy(file, ioas)


async def test_attached_again_to_the_same_nothing_changes(client, file, bound, ioas):
    hwpt = await bound.attach(ioas)
    assert await bound.attach(ioas) == hwpt
    assert await bound.attach(hwpt) == hwpt
    with refused("EBUSY"):
        await client.destroy(file, hwpt)
    await bound.detach()
    await client.destroy(file, ioas)


async def test_devices_share_an_automatic_page_table(client, file, bound, ioas):
    second = await client.bind(file, 1)
    hwpt = await bound.attach(ioas)
    assert await second.attach(ioas) == hwpt
    await bound.detach()
    with refused("EBUSY"):
        await client.destroy(file, hwpt)
    await second.detach()
    with refused("ENOENT"):
        await client.destroy(file, hwpt)


async def test_a_page_table_made_by_hand_is_not_taken_automatically_and_stays(
    client, file, bound, ioas
):
    manual = await client.hwpt_alloc(file, bound.devid, ioas)
    assert await bound.attach(ioas) == manual + 1
    assert await bound.attach(manual) == manual
    await bound.detach()
    await client.destroy(file, manual)


async def test_a_replace_moves_to_a_new_automatic_page_table(client, file, bound, ioas, other):
    first = await bound.attach(ioas)
    second = await bound.attach(other)
    assert second == other + 2, "the old page table was there until the new one was"
    with refused("ENOENT"):
        await client.destroy(file, first)
    with refused("EBUSY"):
        await client.destroy(file, other)
    await client.destroy(file, ioas)


async def test_detached_twice_is_fine(bound, ioas):
    await bound.detach()
    await bound.attach(ioas)
    await bound.detach()
    await bound.detach()


async def test_what_is_nothing_to_attach_to(client, bound, ioas):
    for attached in (False, True):
        for pt_id in (0, 9999):
            with refused("ENOENT"):
                await bound.attach(pt_id)
        with refused("EINVAL"):
            await bound.attach(bound.devid)
        if not attached:
            await bound.attach(ioas)


async def test_siblings_attach_to_the_same(client, file, pair, ioas, other):
    first, second = pair
    hwpt = await first.attach(ioas)
    for pt_id in (other, await client.hwpt_alloc(file, first.devid, ioas)):
        with refused("EINVAL"):
            await second.attach(pt_id)
    assert await second.attach(ioas) == hwpt
    await first.detach()
    with refused("EBUSY"):
        await client.destroy(file, hwpt)
    await second.detach()
    await client.destroy(file, other)


async def test_a_replace_moves_all_siblings(client, file, pair, ioas, other):
    first, second = pair
    await first.attach(ioas)
    await second.attach(ioas)
    hwpt = await first.attach(other)
    assert await second.attach(other) == hwpt
    await client.destroy(file, ioas)
    await first.detach()
    assert await second.attach(other) == hwpt
    await second.detach()
    await client.destroy(file, other)


async def test_the_msi_window_is_kept_free_while_a_device_is_there(
    client, file, pair, ioas, memory
):
    first, second = pair
    await first.attach(ioas)
    await second.attach(ioas)
    for _ in range(2):
        with refused("EINVAL"):
            await client.map(file, ioas, memory.address, PAGE, 0xFEE00000)
        await first.detach()
    await second.detach()
    await client.map(file, ioas, memory.address, PAGE, 0xFEE00000)


@pytest.mark.parametrize("replace", [False, True], ids=["attach", "replace"])
async def test_an_ioas_that_does_not_fit_leaves_everything_as_it_was(
    client, file, bound, ioas, other, memory, replace
):
    if replace:
        hwpt = await bound.attach(other)
    hole = memory.protect(1, 0)
    for name, address, iova in [
        ("EADDRINUSE", memory.address, 0xFEE00000),
        ("EADDRINUSE", memory.address, 2**48),
        ("EADDRINUSE", memory.address, 100),
        ("EFAULT", hole, 0x10000),
    ]:
        await client.map(file, ioas, address, PAGE, iova)
        with refused(name):
            await bound.attach(ioas)
        await client.unmap(file, ioas, 0, U64_MAX)
    # No page table of the failures holds the IOAS, no range of them is reserved.
    await client.map(file, ioas, memory.address, 100, 0xFEE00001)
    await client.destroy(file, ioas)
    assert await client.ioas_alloc(file) == ioas
    if replace:
        assert await bound.attach(other) == hwpt


async def test_a_replace_of_siblings_that_fails_moves_none(client, file, pair, ioas, other, memory):
    first, second = pair
    hwpt = await first.attach(other)
    await second.attach(other)
    await client.map(file, ioas, memory.address, PAGE, 0xFEE00000)
    with refused("EADDRINUSE"):
        await first.attach(ioas)
    assert await first.attach(other) == await second.attach(other) == hwpt
    await client.unmap(file, ioas, 0, U64_MAX)
    await client.map(file, ioas, memory.address, 100, 1)


async def test_a_closed_device_leaves_its_ioas(client, file, bound, ioas):
    await bound.attach(ioas)
    await bound.close()
    await client.destroy(file, ioas)


async def test_a_bound_device_works_on_when_the_iommufd_is_closed(client, file, bound, ioas):
    hwpt = await bound.attach(ioas)
    await client.close(file)
    assert await bound.attach(ioas) == hwpt
    await bound.detach()
    assert await bound.attach(ioas) == hwpt
