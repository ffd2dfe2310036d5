"""IOMMU_GET_HW_INFO."""

import pytest

from iommufs import uapi
from tests.contract.client import PAGE, refused

KIND = uapi.IOMMU_GET_HW_INFO, "iommu_hw_info"
INPUT_TYPE = uapi.IOMMU_HW_INFO_FLAG_INPUT_TYPE
VTD = uapi.IOMMU_HW_INFO_TYPE_INTEL_VTD
# From the oracle probe, section hw_info.
INFO = bytes.fromhex("010000000000000086062f228c00d280ca0ff00000000000")


@pytest.fixture
async def bound(client, file):
    return await client.bind(file, 0)


@pytest.mark.parametrize("room", [0, 1, 8, 23, 24, 25, 64, 3 * PAGE])
async def test_what_the_structure_leaves_of_the_room_is_zeroed(client, file, bound, memory, room):
    memory.write(0, b"\xaa" * 4 * PAGE)
    cmd = await client.call(
        file, *KIND, dev_id=bound.devid, data_len=room, data_uptr=memory.address
    )
    assert cmd.data_len == len(INFO)
    assert cmd.out_data_type == VTD
    assert cmd.out_capabilities == uapi.IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED == 8
    assert cmd.out_max_pasid_log2 == 0
    assert memory[0 : 4 * PAGE] == INFO[:room].ljust(room, b"\0").ljust(4 * PAGE, b"\xaa")


async def test_no_pointer_is_needed_without_room(client, file, bound):
    cmd = await client.call(file, *KIND, dev_id=bound.devid)
    assert cmd.data_len == len(INFO)


async def test_the_shortest_structure_will_do(client, file, bound):
    cmd = await client.call(file, *KIND, size=32, dev_id=bound.devid)
    assert (cmd.data_len, cmd.out_capabilities) == (len(INFO), 0)


async def test_the_type_is_looked_at_with_its_flag_only(client, file, bound):
    for flags, kind in [(0, 4), (0, 2**32 - 1), (INPUT_TYPE, 0), (INPUT_TYPE, VTD)]:
        cmd = await client.call(file, *KIND, dev_id=bound.devid, flags=flags, in_data_type=kind)
        assert cmd.out_data_type == VTD
    for kind in (2, 4, 2**32 - 1):
        with refused("EOPNOTSUPP"):
            await client.call(file, *KIND, dev_id=bound.devid, flags=INPUT_TYPE, in_data_type=kind)


async def test_a_bad_buffer_is_efault(client, file, bound, memory):
    hole = memory.protect(1, 0)
    for address, room in [(0, 8), (hole, 24), (hole - 23, 24), (hole - 24, 25)]:
        with refused("EFAULT"):
            await client.call(file, *KIND, dev_id=bound.devid, data_len=room, data_uptr=address)


async def test_errors_come_in_order(client, file, bound):
    ioas = await client.ioas_alloc(file)
    with refused("EOPNOTSUPP"):
        await client.call(file, *KIND, flags=2, dev_id=9999)
    for i in range(3):
        reserved = [0] * 3
        reserved[i] = 1
        with refused("EOPNOTSUPP"):
            await client.call(file, *KIND, dev_id=9999, __reserved=reserved)
    for devid in (0, 9999, ioas):
        with refused("ENOENT"):
            await client.call(file, *KIND, dev_id=devid, flags=INPUT_TYPE, in_data_type=4)
