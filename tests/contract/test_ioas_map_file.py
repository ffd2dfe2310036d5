"""IOMMU_IOAS_MAP_FILE."""

import os

import pytest

from iommufs import uapi
from tests.contract.client import FIXED, PAGE, RW, U64_MAX, refused

KIND = uapi.IOMMU_IOAS_MAP_FILE, "iommu_ioas_map_file"


@pytest.fixture
def memfd():
    """16 pages."""
    fd = os.memfd_create("contract")
    os.ftruncate(fd, 16 * PAGE)
    yield fd
    os.close(fd)


async def map_file(client, file, ioas, fd, start, length, iova=None):
    flags = RW if iova is None else RW | FIXED
    cmd = await client.call(
        file, *KIND, ioas_id=ioas, fd=fd, start=start, length=length, iova=iova or 0, flags=flags
    )
    return cmd.iova


async def test_a_memfd(client, file, ioas, memfd):
    assert await map_file(client, file, ioas, memfd, 0, 16 * PAGE, 0x100000) == 0x100000
    assert await map_file(client, file, ioas, memfd, PAGE, PAGE) == 0x1000
    assert await client.unmap(file, ioas, 0, U64_MAX) == 17 * PAGE


async def test_the_mapping_holds_the_file(client, file, ioas):
    fd = os.memfd_create("contract")
    os.ftruncate(fd, PAGE)
    await map_file(client, file, ioas, fd, 0, PAGE, 0x1000)
    os.close(fd)
    other = await client.ioas_with_domains(file, 0)
    await client.call(
        file,
        uapi.IOMMU_IOAS_COPY,
        "iommu_ioas_copy",
        src_ioas_id=ioas,
        dst_ioas_id=other,
        src_iova=0x1000,
        length=PAGE,
        flags=RW,
    )
    bound = await client.bind(file, 1)
    await bound.attach(other)


async def test_what_can_be_pinned_counts_with_a_page_table_only(client, file, ioas, domains, memfd):
    with open("/dev/null", "r+b") as null:
        for fd, start in [(null.fileno(), 0), (memfd, 15 * PAGE), (memfd, 2**40)]:
            if domains:
                with refused("EINVAL"):
                    await map_file(client, file, ioas, fd, start, 2 * PAGE, start)
            else:
                await map_file(client, file, ioas, fd, start, 2 * PAGE, start + PAGE)


async def test_a_file_that_is_not_open_is_ebadf(client, file, ioas):
    path_only = os.open("/", os.O_PATH)
    for fd in (-1, -2, 9999, path_only):
        with refused("EBADF"):
            await map_file(client, file, ioas, fd, 0, PAGE, 0x10000)
    os.close(path_only)


async def test_errors_come_in_order(client, file, ioas):
    bad = {"fd": -1, "start": U64_MAX}
    with refused("EOPNOTSUPP"):
        await client.call(file, *KIND, **bad, ioas_id=9999, iova=U64_MAX, flags=8)
    with refused("EOVERFLOW"):
        await client.call(file, *KIND, **bad, ioas_id=9999, iova=U64_MAX)
    with refused("EOVERFLOW"):
        await client.call(file, *KIND, **bad, ioas_id=9999, length=U64_MAX)
    with refused("EINVAL"):
        await client.call(file, *KIND, **bad, ioas_id=9999, length=PAGE, flags=FIXED)
    with refused("ENOENT"):
        await client.call(file, *KIND, **bad, ioas_id=9999, length=0, flags=RW)
    with refused("EINVAL"):
        await client.call(file, *KIND, **bad, ioas_id=ioas, length=0, flags=RW)
    with refused("EOVERFLOW"):
        await client.call(file, *KIND, **bad, ioas_id=ioas, length=2, flags=RW)
    with refused("EBADF"):
        await client.call(file, *KIND, **bad, ioas_id=ioas, length=1, flags=RW)


async def test_an_overlap_is_eexist(client, file, ioas, memfd):
    await map_file(client, file, ioas, memfd, 0, PAGE, 0x10000)
    with refused("EEXIST"):
        await map_file(client, file, ioas, memfd, 0, PAGE, 0x10000)
