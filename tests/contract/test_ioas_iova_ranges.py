"""IOMMU_IOAS_IOVA_RANGES."""

import struct

import pytest

from iommufs import uapi
from iommufs._native import ffi
from tests.contract.client import PAGE, U64_MAX, refused

EVERYTHING = [(0, U64_MAX)]
VTD = [(0, 0xFEDFFFFF), (0xFEF00000, 2**48 - 1)]


async def ranges(client, file, ioas, memory, room=8):
    """(ranges, number of them, alignment)"""
    memory.write(0, bytes(PAGE))
    cmd = await client.call(
        file,
        uapi.IOMMU_IOAS_IOVA_RANGES,
        "iommu_ioas_iova_ranges",
        ioas_id=ioas,
        num_iovas=room,
        allowed_iovas=memory.address,
        out_iova_alignment=77,
    )
    found = list(struct.iter_unpack("<QQ", memory[0 : min(room, cmd.num_iovas) * 16]))
    return found, cmd.num_iovas, cmd.out_iova_alignment


async def test_a_fresh_ioas_has_everything(client, file, memory):
    ioas = await client.ioas_alloc(file)
    assert await ranges(client, file, ioas, memory) == (EVERYTHING, 1, 1)


async def test_neither_mappings_nor_the_allowed_list_count(client, file, memory):
    ioas = await client.ioas_alloc(file)
    await client.map(file, ioas, memory.address, PAGE, 0x10000)
    memory.write(0, struct.pack("<QQ", 0x100000, 0x1FFFFF))
    await client.call(
        file,
        uapi.IOMMU_IOAS_ALLOW_IOVAS,
        "iommu_ioas_allow_iovas",
        ioas_id=ioas,
        num_iovas=1,
        allowed_iovas=memory.address,
    )
    assert await ranges(client, file, ioas, memory) == (EVERYTHING, 1, 1)


async def test_a_page_table_reserves_what_is_beyond_it_and_a_device_its_msi_window(
    client, file, memory
):
    ioas = await client.ioas_alloc(file)
    bound = await client.bind(file, 0)
    hwpt = await client.hwpt_alloc(file, bound.devid, ioas)
    assert await ranges(client, file, ioas, memory) == ([(0, 2**48 - 1)], 1, PAGE)
    await bound.attach(hwpt)
    assert await ranges(client, file, ioas, memory) == (VTD, 2, PAGE)
    await bound.detach()
    await client.destroy(file, hwpt)
    assert await ranges(client, file, ioas, memory) == (EVERYTHING, 1, 1)


@pytest.mark.parametrize("room", [0, 1])
async def test_too_little_room_is_emsgsize_but_answered(client, file, memory, room):
    ioas = await client.ioas_with_domains(file, 1)
    cmd = uapi.new(
        "iommu_ioas_iova_ranges",
        size=32,
        ioas_id=ioas,
        num_iovas=room,
        allowed_iovas=memory.address + 64,
    )
    address = memory.write(0, bytes(ffi.buffer(cmd)) + bytes(96))
    with refused("EMSGSIZE"):
        await client.ioctl(file, uapi.IOMMU_IOAS_IOVA_RANGES, address)
    answer = struct.unpack("<IIIIQQ", memory[0:32])
    assert answer == (32, ioas, 2, 0, memory.address + 64, PAGE)
    assert memory[64:96] == (struct.pack("<QQ", *VTD[0]) + bytes(16) if room else bytes(32))


async def test_errors_come_in_order(client, file, memory):
    ioas = await client.ioas_alloc(file)
    hole = memory.protect(1, 0)
    kind = uapi.IOMMU_IOAS_IOVA_RANGES, "iommu_ioas_iova_ranges"
    with refused("EOPNOTSUPP"):
        await client.call(file, *kind, ioas_id=9, num_iovas=1, __reserved=1, allowed_iovas=hole)
    with refused("ENOENT"):
        await client.call(file, *kind, ioas_id=9, num_iovas=1, allowed_iovas=hole)
    with refused("EFAULT"):
        await client.call(file, *kind, ioas_id=ioas, num_iovas=1, allowed_iovas=hole)
    with refused("EMSGSIZE"):
        await client.call(file, *kind, ioas_id=ioas, num_iovas=0, allowed_iovas=hole)
