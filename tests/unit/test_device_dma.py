"""Where the DMA of bound devices goes: the page table of the group, or nowhere."""

import pytest

from iommufs._native import ffi, lib
from iommufs.iommufd.ctx import statistics
from tests.contract.client import PAGE, READ, Memory, ProcessClient


@pytest.fixture
async def client():
    before = statistics()
    client = ProcessClient()
    yield client
    await client.close_all()
    assert statistics() == before


@pytest.fixture
def memory():
    memory = Memory(4)
    yield memory
    memory.free()


def dma_read(bound, iova, length):
    """The bytes, or how the IOMMU refused: (first bad IOVA, reason)."""
    if bound.device.domain is None:
        return None
    data, fault = ffi.new("char[]", length), ffi.new("struct iofs_dma_fault *")
    result = lib.iofs_dma_read(bound.device.domain, iova, data, length, fault)
    return bytes(ffi.buffer(data)) if result == 0 else (fault.iova, fault.reason)


def dma_write(bound, iova, data):
    fault = ffi.new("struct iofs_dma_fault *")
    result = lib.iofs_dma_write(bound.device.domain, iova, data, len(data), fault)
    return None if result == 0 else (fault.iova, fault.reason)


async def test_dma_reaches_what_is_mapped(client, memory):
    file = await client.open()
    ioas = await client.ioas_alloc(file)
    bound = await client.bind(file, 0)
    assert bound.device.domain is None
    await client.map(file, ioas, memory.address, 2 * PAGE, 0x10000)
    await client.map(file, ioas, memory.address + 3 * PAGE, PAGE, 0x12000, READ)
    await bound.attach(ioas)
    memory.write(PAGE - 2, b"both")
    memory.write(3 * PAGE, b"more")
    assert dma_read(bound, 0x10FFE, 4) == b"both"
    assert dma_read(bound, 0x11FFE, 6) == bytes(2) + b"more"
    assert dma_write(bound, 0x10FFE, b"back") is None
    assert memory[PAGE - 2 : PAGE + 2] == b"back"
    assert dma_write(bound, 0x11FFE, b"nowhere") == (0x12000, lib.IOFS_DMA_PERMISSION)
    assert memory[2 * PAGE - 2 : 2 * PAGE] == bytes(2)
    assert dma_read(bound, 0x12FFF, 2) == (0x13000, lib.IOFS_DMA_UNMAPPED)
    await client.unmap(file, ioas, 0x10000, 2 * PAGE)
    assert dma_read(bound, 0x10FFE, 4) == (0x10FFE, lib.IOFS_DMA_UNMAPPED)
    await bound.detach()
    assert bound.device.domain is None


async def test_a_replace_moves_the_dma_of_all_siblings(client, memory):
    file = await client.open()
    first, second = await client.bind(file, 2), await client.bind(file, 3)
    here, there = await client.ioas_alloc(file), await client.ioas_alloc(file)
    await client.map(file, here, memory.write(0, b"here"), PAGE, 0x10000)
    await client.map(file, there, memory.write(PAGE, b"there"), PAGE, 0x10000)
    await first.attach(here)
    # The IOMMU cannot tell them apart.
    assert dma_read(second, 0x10000, 4) == b"here"
    await second.attach(here)
    await second.attach(there)
    assert dma_read(first, 0x10000, 5) == dma_read(second, 0x10000, 5) == b"there"
    await first.detach()
    assert dma_read(first, 0x10000, 5) == b"there"
    await second.detach()
    assert dma_read(first, 0x10000, 5) is None


async def test_maps_reach_every_page_table_of_the_ioas(client, memory):
    file = await client.open()
    first, second = await client.bind(file, 0), await client.bind(file, 1)
    ioas = await client.ioas_alloc(file)
    await client.map(file, ioas, memory.write(0, b"old"), PAGE, 0x10000)
    await first.attach(await client.hwpt_alloc(file, first.devid, ioas))
    await second.attach(ioas)
    await client.map(file, ioas, memory.write(PAGE, b"new"), PAGE, 0x20000)
    for bound in (first, second):
        assert dma_read(bound, 0x10000, 3) == b"old"
        assert dma_read(bound, 0x20000, 3) == b"new"


async def test_statistics_count_what_lives(client):
    before = statistics()
    file = await client.open()
    bound = await client.bind(file, 0)
    ioas = await client.ioas_alloc(file)
    await bound.attach(ioas)
    now = statistics()
    assert now["ctxs"] == before["ctxs"] + 1
    assert now["objects"] == {"Device": 1, "Ioas": 1, "HwptPaging": 1}
    assert (now["iopts"], now["domains"]) == (before["iopts"] + 1, before["domains"] + 1)
    await bound.close()
    assert statistics()["objects"] == {"Ioas": 1}
