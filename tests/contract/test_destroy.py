"""IOMMU_DESTROY."""

import pytest

from tests.contract.client import refused


@pytest.mark.parametrize("object_id", [0, 2, 9999, 2**31, 2**32 - 1])
async def test_an_unknown_id_is_enoent(client, file, object_id):
    await client.ioas_alloc(file)
    with refused("ENOENT"):
        await client.destroy(file, object_id)


async def test_twice_is_enoent(client, file):
    ioas = await client.ioas_alloc(file)
    await client.destroy(file, ioas)
    with refused("ENOENT"):
        await client.destroy(file, ioas)


async def test_mappings_do_not_hold_an_ioas(client, file, memory):
    ioas = await client.ioas_alloc(file)
    await client.map(file, ioas, memory.address, memory.length)
    await client.destroy(file, ioas)
    with refused("ENOENT"):
        await client.map(file, ioas, memory.address, memory.length)


async def test_page_tables_hold_their_ioas(client, file):
    ioas = await client.ioas_alloc(file)
    bound = await client.bind(file, 0)
    hwpt = await client.hwpt_alloc(file, bound.devid, ioas)
    with refused("EBUSY"):
        await client.destroy(file, ioas)
    await client.destroy(file, hwpt)
    await client.destroy(file, ioas)


async def test_an_attached_device_holds_its_page_table(client, file):
    ioas = await client.ioas_alloc(file)
    bound = await client.bind(file, 0)
    hwpt = await bound.attach(await client.hwpt_alloc(file, bound.devid, ioas))
    with refused("EBUSY"):
        await client.destroy(file, hwpt)
    await bound.detach()
    await client.destroy(file, hwpt)


async def test_a_bound_device_is_ebusy_until_it_is_closed(client, file):
    bound = await client.bind(file, 0)
    with refused("EBUSY"):
        await client.destroy(file, bound.devid)
    await bound.close()
    with refused("ENOENT"):
        await client.destroy(file, bound.devid)
