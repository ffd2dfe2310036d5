"""Stand-ins of dma-bufs: made and revoked by test operations, mapped by IOMMU_IOAS_MAP_FILE."""

import pytest

from iommufs import uapi
from iommufs._native import ffi
from tests.contract.client import FIXED, PAGE, RW, refused
from tests.contract.mock import CMD, START


async def get(mock, length):
    fields = {"op": uapi.IOMMU_TEST_OP_DMABUF_GET, "dmabuf_get": {"length": length}}
    cmd = uapi.new("iommu_test_cmd", size=uapi.sizeof("iommu_test_cmd"), **fields)
    return await mock.client.ioctl(mock.file, CMD, int(ffi.cast("uintptr_t", cmd)))


async def revoke(mock, fd, revoked=1):
    await mock.op("DMABUF_REVOKE", "dmabuf_revoke", dmabuf_fd=fd, revoked=revoked)


async def map_file(mock, ioas, fd, iova=START, start=0, length=4 * PAGE):
    await mock.call(
        uapi.IOMMU_IOAS_MAP_FILE, "iommu_ioas_map_file", flags=RW | FIXED, ioas_id=ioas, fd=fd,
        start=start, length=length, iova=iova,
    )  # fmt: skip


@pytest.mark.parametrize("length", [0, 2**21 + 1, 2**32 - 1])
async def test_lengths(mock, length):
    with refused("EINVAL"):
        await get(mock, length)
    await get(mock, 1)
    await get(mock, 2**21)


async def test_map(mock):
    ioas = await mock.ioas()
    await mock.device(ioas)
    fd = await get(mock, 4 * PAGE - 1)
    for bad in ({"length": 0}, {"start": 4 * PAGE}, {"length": 5 * PAGE}):
        with refused("EINVAL"):
            await map_file(mock, ioas, fd, **bad)
    await map_file(mock, ioas, fd)
    await mock.client.close_fd(fd)
    assert await mock.unmap(ioas, START, 4 * PAGE) == 4 * PAGE


async def test_revoke(mock):
    ioas = await mock.ioas()
    _, device, _ = await mock.device(ioas)
    fd = await get(mock, 4 * PAGE)
    await map_file(mock, ioas, fd)
    await revoke(mock, fd)
    await mock.hwpt(device, ioas)  # leaves out what is revoked
    with refused("ENODEV"):
        await map_file(mock, ioas, fd, 2 * START)
    await revoke(mock, fd, 0)
    await map_file(mock, ioas, fd, 2 * START)
    await mock.unmap(ioas, START, 4 * PAGE)
    await map_file(mock, ioas, fd)


async def test_only_dma_bufs_are_revoked(mock):
    cmd = await mock.call(uapi.IOMMU_FAULT_QUEUE_ALLOC, "iommu_fault_alloc")
    with refused("EINVAL"):
        await revoke(mock, cmd.out_fault_fd)


async def test_accesses_do_not_reach_it(mock, memory):
    ioas = await mock.ioas()
    fd = await get(mock, PAGE)
    await map_file(mock, ioas, fd, length=PAGE)
    access = (await mock.op("CREATE_ACCESS", "create_access", ioas, flags=1)).out_access_fd
    with refused("EINVAL"):
        await mock.op("ACCESS_PAGES", "access_pages", access, iova=START, length=PAGE)
    with refused("EINVAL"):
        fields = {"iova": START, "length": 1, "uptr": memory.address}
        await mock.op("ACCESS_RW", "access_rw", access, **fields)
