"""VFIO's type1 calls on an iommufd. Answers not explained here are those of the oracle."""

import errno
import mmap
import struct

import pytest

from iommufs import uapi
from iommufs._native import ffi
from tests.contract.client import PAGE, READ, RW, U64_MAX, WRITE, refused
from tests.contract.test_ioas_copy import copy
from tests.contract.test_option import GET, HUGE_PAGES, RLIMIT_MODE, SET, option
from tests.contract.test_vfio_ioas import CLEAR, vfio_ioas
from tests.contract.test_vfio_ioas import SET as CHOOSE

V1, V2 = uapi.VFIO_TYPE1_IOMMU, uapi.VFIO_TYPE1v2_IOMMU
ALL = uapi.VFIO_DMA_UNMAP_FLAG_ALL
DMA_READ, DMA_WRITE = uapi.VFIO_DMA_MAP_FLAG_READ, uapi.VFIO_DMA_MAP_FLAG_WRITE
DMA_RW = DMA_READ | DMA_WRITE
MAP, UNMAP = uapi.VFIO_IOMMU_MAP_DMA, uapi.VFIO_IOMMU_UNMAP_DMA
STRUCTS = {MAP: "vfio_iommu_type1_dma_map", UNMAP: "vfio_iommu_type1_dma_unmap"}
SIZES = {uapi.VFIO_IOMMU_GET_INFO: 16, MAP: 32, UNMAP: 24}


async def check(client, file, extension):
    return await client.ioctl(file, uapi.VFIO_CHECK_EXTENSION, extension)


async def set_iommu(client, file, kind):
    await client.ioctl(file, uapi.VFIO_SET_IOMMU, kind)


async def dma_map(client, file, address, size, iova, flags=DMA_RW):
    cmd = uapi.new(STRUCTS[MAP], argsz=32, flags=flags, vaddr=address, iova=iova, size=size)
    await client.ioctl(file, MAP, int(ffi.cast("uintptr_t", cmd)))


async def try_unmap(client, file, iova, size, flags=0):
    """The errno's name, "" for success, and the size that was written back."""
    cmd = uapi.new(STRUCTS[UNMAP], argsz=24, flags=flags, iova=iova, size=size)
    try:
        await client.ioctl(file, UNMAP, int(ffi.cast("uintptr_t", cmd)))
    except OSError as error:
        return errno.errorcode[error.errno], cmd.size
    return "", cmd.size


async def dma_unmap(client, file, iova, size, flags=0):
    """Returns the number of bytes unmapped."""
    name, unmapped = await try_unmap(client, file, iova, size, flags)
    if name:
        raise OSError(getattr(errno, name), name)
    return unmapped


@pytest.fixture
async def chosen(client, file, ioas):
    """The IOAS that the calls work on."""
    await vfio_ioas(client, file, CHOOSE, ioas)
    return ioas


@pytest.fixture(params=[V1, V2], ids=["v1", "v2"])
async def version(request, client, file, domains, memory):
    """A chosen IOAS of either version with 4 + 4 pages at 0x10000 and 4 at 0x20000."""
    ioas = await client.ioas_alloc(file)
    await vfio_ioas(client, file, CHOOSE, ioas)
    await set_iommu(client, file, request.param)
    if domains:
        bound = await client.bind(file, 0)
        await bound.attach(ioas)
        if domains == 2:
            await client.hwpt_alloc(file, bound.devid, ioas)
    for iova in (0x10000, 0x14000, 0x20000):
        await dma_map(client, file, memory.address, 4 * PAGE, iova)
    return request.param


# ---- what is there ------------------------------------------------------------------------------


async def test_the_api_version_is_0(client, file):
    for arg in (0, U64_MAX):
        assert await client.ioctl(file, uapi.VFIO_GET_API_VERSION, arg) == 0


async def test_the_numbers_are_whole_numbers(client, file):
    """Another type or size is another ioctl, as is every number without a row."""
    for number in range(0x3B60, 0x3B80):
        for other in (number ^ 0x0100, number | 4 << 16):
            with refused("ENOTTY"):
                await client.ioctl(file, other, 0)
        if number not in (0x3B64, 0x3B65, 0x3B66, 0x3B70, 0x3B71, 0x3B72):
            with refused("ENOTTY"):
                await client.ioctl(file, number, 0)


async def test_extensions(client, file, domains):
    there = {V1, V2, uapi.VFIO_UNMAP_ALL}
    numbers = [*range(65), 2**31, 2**32 + 1, U64_MAX]
    with refused("ENODEV"):
        await check(client, file, uapi.VFIO_DMA_CC_IOMMU)
    numbers.remove(uapi.VFIO_DMA_CC_IOMMU)
    for number in numbers:
        assert await check(client, file, number) == (number in there)
    await vfio_ioas(client, file, CHOOSE, await client.ioas_with_domains(file, domains))
    assert await check(client, file, uapi.VFIO_DMA_CC_IOMMU) == 1
    for number in numbers:
        assert await check(client, file, number) == (number in there)


async def test_the_container_counts_pages_for_the_process(client):
    file = await client.open_container()
    assert await option(client, file, RLIMIT_MODE, GET) == 1
    assert await client.ioas_alloc(file) == 1


async def test_a_container_is_an_iommufd(client, memory):
    file = await client.open_container()
    with refused("ENODEV"):
        await set_iommu(client, file, V1)
    ioas = await client.ioas_alloc(file)
    await vfio_ioas(client, file, CHOOSE, ioas)
    await set_iommu(client, file, V1)
    await dma_map(client, file, memory.address, PAGE, 0x10000)
    bound = await client.bind(file, 0)
    await bound.attach(ioas)
    assert await client.unmap(file, ioas, 0, U64_MAX) == PAGE


# ---- structures ---------------------------------------------------------------------------------


@pytest.mark.parametrize("number", SIZES, ids=["GET_INFO", "MAP_DMA", "UNMAP_DMA"])
async def test_argsz(client, file, memory, number):
    size = SIZES[number]
    for argsz in [*range(size), *range(size, size + 9), 2**32 - 1]:
        with refused("EINVAL" if argsz < size else "ENODEV"):
            await client.ioctl(file, number, memory.write(0, struct.pack("<I", argsz)))


@pytest.mark.parametrize("number", SIZES, ids=["GET_INFO", "MAP_DMA", "UNMAP_DMA"])
async def test_the_structure_is_read_before_argsz_counts(client, file, memory, number):
    hole = memory.protect(1, 0)
    for arg in (0, hole, hole - SIZES[number] + 1):
        with refused("EFAULT"):
            await client.ioctl(file, number, arg)
    data = struct.pack("<I", 100) + bytes(SIZES[number] - 4)
    with refused("ENODEV"):  # and nothing behind it is read
        await client.ioctl(file, number, memory.write(PAGE - len(data), data))


async def test_flags_come_before_the_ioas_and_all_with_a_range_after_it(client, file, ioas, memory):
    for flags in (4, 5, 8, 2**31, 2**32 - 1):
        with refused("EINVAL"):
            await dma_map(client, file, memory.address, PAGE, 0x10000, flags)
    for flags in (1, 3, 4, 6, 8, 2**31):
        with refused("EINVAL"):
            await dma_unmap(client, file, 0, 0, flags)
    for flags in range(4):
        with refused("ENODEV"):
            await dma_map(client, file, memory.address, 0, 1, flags)
    for flags in (0, ALL):
        with refused("ENODEV"):
            await dma_unmap(client, file, 1, 0, flags)
    await vfio_ioas(client, file, CHOOSE, ioas)
    for iova, size in [(1, 0), (0, 1), (PAGE, PAGE)]:
        with refused("EINVAL"):
            await dma_unmap(client, file, iova, size, ALL)


# ---- the IOAS -----------------------------------------------------------------------------------


async def test_the_ioas_can_be_another_one_and_go(client, file, memory):
    first, second = await client.ioas_alloc(file), await client.ioas_alloc(file)
    await vfio_ioas(client, file, CHOOSE, first)
    await dma_map(client, file, memory.address, PAGE, 0x10000)
    await vfio_ioas(client, file, CHOOSE, second)
    assert await dma_unmap(client, file, 0x10000, PAGE) == 0
    await client.destroy(file, second)
    for call in (
        dma_map(client, file, memory.address, PAGE, 0x10000),
        dma_unmap(client, file, 0x10000, PAGE),
        set_iommu(client, file, V1),
        set_iommu(client, file, V2),
        check(client, file, uapi.VFIO_DMA_CC_IOMMU),
    ):
        with refused("ENODEV"):
            await call
    await vfio_ioas(client, file, CHOOSE, first)
    assert await dma_unmap(client, file, 0x10000, PAGE) == PAGE
    await vfio_ioas(client, file, CLEAR)
    with refused("ENODEV"):
        await dma_map(client, file, memory.address, PAGE, 0x10000)


async def test_set_iommu_as_often_as_wanted(client, file, chosen):
    for kind in (0, 2, 4, 6, 7, 8, 9, 2**32 + V1, 2**32 + V2, U64_MAX):
        with refused("EINVAL"):
            await set_iommu(client, file, kind)
    assert await option(client, file, HUGE_PAGES, GET, object_id=chosen) == 1
    await set_iommu(client, file, V2)
    assert await option(client, file, HUGE_PAGES, GET, object_id=chosen) == 1
    for kind in (V1, V1, V2):
        await set_iommu(client, file, kind)
        assert await option(client, file, HUGE_PAGES, GET, object_id=chosen) == 0


async def test_another_type_is_einval_without_an_ioas(client, file):
    with refused("EINVAL"):
        await set_iommu(client, file, 2)
    for kind in (V1, V2):
        with refused("ENODEV"):
            await set_iommu(client, file, kind)


async def test_version_1_needs_small_pages_from_the_beginning(
    client, file, chosen, domains, memory
):
    await dma_map(client, file, memory.address, PAGE, 0x10000)
    if domains:
        with refused("EINVAL"):
            await set_iommu(client, file, V1)
        assert await dma_unmap(client, file, 0x10000, PAGE) == PAGE
        await set_iommu(client, file, V1)
        await dma_map(client, file, memory.address, PAGE, 0x10000)
    await set_iommu(client, file, V1)


async def test_version_1_with_a_mapping_off_page_boundaries_is_eaddrinuse(client, file, memory):
    ioas = await client.ioas_alloc(file)
    await vfio_ioas(client, file, CHOOSE, ioas)
    await dma_map(client, file, memory.address, 100, 0x10000)
    with refused("EADDRINUSE"):
        await set_iommu(client, file, V1)
    await set_iommu(client, file, V2)
    assert await option(client, file, HUGE_PAGES, GET, object_id=ioas) == 1


async def test_the_version_is_the_option_of_huge_pages(client, file, memory):
    ioas = await client.ioas_alloc(file)
    await vfio_ioas(client, file, CHOOSE, ioas)
    await option(client, file, HUGE_PAGES, SET, 0, object_id=ioas)
    await dma_map(client, file, memory.address, 4 * PAGE, 0x10000)
    assert await dma_unmap(client, file, 0x11000, PAGE) == PAGE
    await option(client, file, HUGE_PAGES, SET, 1, object_id=ioas)
    with refused("ENOENT"):
        await dma_unmap(client, file, 0x12000, PAGE)


# ---- map ----------------------------------------------------------------------------------------


async def test_overlaps_are_eexist(client, file, chosen, memory):
    await dma_map(client, file, memory.address, 2 * PAGE, 0x10000)
    for iova, pages in [(0x11000, 1), (0xF000, 2), (0x10000, 2)]:
        with refused("EEXIST"):
            await dma_map(client, file, memory.address, pages * PAGE, iova)
    await dma_map(client, file, memory.address, PAGE, 0xF000)
    await dma_map(client, file, memory.address, PAGE, 0x12000)


@pytest.mark.parametrize(("flags", "writeable"), [(1, False), (2, True), (3, True)])
async def test_access_rights(client, file, chosen, memory, flags, writeable):
    await dma_map(client, file, memory.address, PAGE, 0x10000, flags)
    await copy(client, file, chosen, chosen, PAGE, 0x20000, 0x10000, READ)
    for iova, wanted in [(0x30000, WRITE), (0x40000, RW)]:
        if writeable:
            await copy(client, file, chosen, chosen, PAGE, iova, 0x10000, wanted)
        else:
            with refused("EPERM"):
                await copy(client, file, chosen, chosen, PAGE, iova, 0x10000, wanted)


async def test_no_access_right_will_do_without_a_page_table(client, file, chosen, domains, memory):
    if domains:
        with refused("EINVAL"):
            await dma_map(client, file, memory.address, PAGE, 0x10000, 0)
        return
    await dma_map(client, file, memory.address, PAGE, 0x10000, 0)
    with refused("EEXIST"):
        await dma_map(client, file, memory.address, PAGE, 0x10000, 0)
    bound = await client.bind(file, 0)
    with refused("EINVAL"):
        await bound.attach(chosen)
    assert await dma_unmap(client, file, 0x10000, PAGE) == PAGE
    await bound.attach(chosen)


async def test_ranges_without_a_page_table(client, file, memory):
    await vfio_ioas(client, file, CHOOSE, await client.ioas_alloc(file))
    va = memory.address
    for iova, size, address, error in [
        (0x10000, 0, va, "EINVAL"),
        (U64_MAX - PAGE + 1, 2 * PAGE, va, "EOVERFLOW"),
        (U64_MAX, PAGE, va, "EOVERFLOW"),
        (0, U64_MAX, 0, "EINVAL"),
        (0, U64_MAX, 1, "EOVERFLOW"),
        (0, U64_MAX - PAGE + 1, 0, "EINVAL"),
        (0x10000, PAGE, U64_MAX - PAGE + 1, "EOVERFLOW"),
    ]:
        with refused(error):
            await dma_map(client, file, address, size, iova)
    for iova, size, address in [
        (U64_MAX, 1, va),  # 2**64 - 1 is a number like any other here
        (U64_MAX - PAGE + 1, PAGE, va),
        (0, U64_MAX - PAGE, 0),
        (0x10000, 1, va),
        (1, PAGE, va + 1),
        (0, PAGE, 0),
    ]:
        await dma_map(client, file, address, size, iova)
        assert await dma_unmap(client, file, 0, 0, ALL) == size


async def test_ranges_with_a_page_table(client, file, memory):
    await vfio_ioas(client, file, CHOOSE, await client.ioas_with_domains(file, 1))
    va = memory.address
    for iova, size, address, error in [
        (0x10000, 0, va, "EINVAL"),
        (U64_MAX - PAGE + 1, 2 * PAGE, va, "EOVERFLOW"),
        (U64_MAX, PAGE, va, "EINVAL"),
        (0x10000, 1, va, "EINVAL"),
        (1, PAGE, va, "EINVAL"),
        (0x10000, PAGE, va + 1, "EINVAL"),
        (0x10000, PAGE, 0, "EFAULT"),
        (0xFEE00000, PAGE, va, "EINVAL"),
        (2**48, PAGE, va, "EINVAL"),
    ]:
        with refused(error):
            await dma_map(client, file, address, size, iova)
    await dma_map(client, file, va, PAGE, 0)


async def test_map_writes_nothing_back(client, file, chosen, memory):
    cmd = uapi.new(STRUCTS[MAP], argsz=32, flags=3, vaddr=memory.address, iova=PAGE, size=PAGE)
    memory.write(PAGE, bytes(ffi.buffer(cmd)))
    await client.ioctl(file, MAP, memory.protect(1, mmap.PROT_READ))
    assert await dma_unmap(client, file, PAGE, PAGE) == PAGE


# ---- unmap --------------------------------------------------------------------------------------

# What versions 2 and 1 unmap of the three mappings, in pages, and the errno of version 2.
UNMAPS = [
    (0x10000, 4, 4, "", 4),
    (0x10000, 8, 8, "", 8),
    (0x10000, 1, 0, "ENOENT", 1),
    (0x11000, 1, 0, "ENOENT", 1),
    (0x11000, 2, 0, "ENOENT", 2),
    (0x13000, 2, 0, "ENOENT", 2),
    (0x12000, 4, 0, "ENOENT", 4),
    (0x0F000, 2, 0, "ENOENT", 1),
    (0x0F000, 1, 0, "", 0),
    (0x0F000, 5, 4, "", 4),
    (0x17000, 10, 0, "ENOENT", 2),
    (0x18000, 8, 0, "", 0),
    (0x16000, 11, 0, "ENOENT", 3),
    (0x10000, 32, 12, "", 12),
    (0x00000, 256, 12, "", 12),
    (0x21000, 3, 0, "ENOENT", 3),
    (0x10000, 6, 4, "ENOENT", 6),
    (0x10000, 17, 8, "ENOENT", 9),
]


@pytest.mark.parametrize(("iova", "pages", "v2", "error", "v1"), UNMAPS)
async def test_unmap(client, file, version, iova, pages, v2, error, v1):
    unmapped, error = (v1, "") if version == V1 else (v2, error)
    result = await try_unmap(client, file, iova, pages * PAGE)
    assert result == (error, unmapped * PAGE), "the size is written back after an error, too"
    assert await dma_unmap(client, file, 0, 0, ALL) == (12 - unmapped) * PAGE
    assert await dma_unmap(client, file, 0, 0, ALL) == 0


async def test_version_1_leaves_the_parts_of_a_split_mapping(client, file, chosen, domains, memory):
    await set_iommu(client, file, V1)
    await dma_map(client, file, memory.address, 8 * PAGE, 0x10000)
    assert await dma_unmap(client, file, 0x12000, 2 * PAGE) == 2 * PAGE
    with refused("ENOENT"):
        await client.unmap(file, chosen, 0x10000, PAGE)
    assert await client.unmap(file, chosen, 0x10000, 2 * PAGE) == 2 * PAGE
    assert await client.unmap(file, chosen, 0x14000, 4 * PAGE) == 4 * PAGE


async def test_version_1_splits_at_pages_only(client, file, version):
    if version == V2:
        return
    for iova, size in [
        (0x10000, 100),
        (0x10010, PAGE),
        (0x11000, PAGE + 1),
        (0x10FFF, PAGE),
        (0x0FF00, PAGE),
        (0x13F00, 2 * PAGE),
    ]:
        assert await try_unmap(client, file, iova, size) == ("EINVAL", size), "not written back"
    # Ends in a hole are as good as any.
    assert await dma_unmap(client, file, 0x23000, 2 * PAGE - 1) == PAGE


async def test_ranges_that_are_none(client, file, version):
    top = U64_MAX - PAGE + 1
    for iova, size, error in [
        (0x10000, 0, "EINVAL"),
        (0, 0, "EINVAL"),
        (U64_MAX, 0, "EINVAL"),
        (U64_MAX, 2, "EOVERFLOW"),
        (top, PAGE + 1, "EOVERFLOW"),
        (U64_MAX, 1, ""),
        (top, PAGE, ""),
    ]:
        assert await try_unmap(client, file, iova, size) == (error, 0)
    assert await dma_unmap(client, file, 0, U64_MAX) == 12 * PAGE
    assert await dma_unmap(client, file, 1, U64_MAX) == 0


async def test_an_unmap_that_cannot_be_answered_is_done(client, file, chosen, memory):
    await dma_map(client, file, memory.address, PAGE, 0x10000)
    cmd = uapi.new(STRUCTS[UNMAP], argsz=24, iova=0x10000, size=PAGE)
    memory.write(PAGE, bytes(ffi.buffer(cmd)))
    with refused("EFAULT"):
        await client.ioctl(file, UNMAP, memory.protect(1, mmap.PROT_READ))
    assert await dma_unmap(client, file, 0x10000, PAGE) == 0


async def test_small_pages_after_a_page_table_do_not_help_it(client, file, memory):
    """With mappings in place huge pages stay; a new beginning is needed."""
    ioas = await client.ioas_alloc(file)
    await vfio_ioas(client, file, CHOOSE, ioas)
    await dma_map(client, file, memory.address, 4 * PAGE, 0x10000)
    bound = await client.bind(file, 0)
    await bound.attach(ioas)
    with refused("EINVAL"):
        await set_iommu(client, file, V1)
    with refused("ENOENT"):
        await dma_unmap(client, file, 0x11000, PAGE)
    await bound.detach()
    await set_iommu(client, file, V1)
    assert await dma_unmap(client, file, 0x11000, PAGE) == PAGE
    await bound.attach(ioas)
    await option(client, file, HUGE_PAGES, SET, 1, object_id=ioas)
    with refused("ENOENT"):
        await dma_unmap(client, file, 0x12000, PAGE)


WHOLE = {0x10000: 4, 0x14000: 4, 0x20000: 4}


@pytest.mark.parametrize(
    ("iova", "size", "error", "written", "left"),
    [
        # It is split even where nothing is unmapped then.
        (0x11000, 0, "EINVAL", 0, {0x10000: 1, 0x11000: 3, 0x14000: 4, 0x20000: 4}),
        (0x11FFF, 1, "EINVAL", 1, {0x10000: 2, 0x12000: 2, 0x14000: 4, 0x20000: 4}),
        (
            *(0x12000, U64_MAX - PAGE + 1, "EOVERFLOW", 0),
            {0x10000: 1, 0x11000: 1, 0x12000: 2, 0x14000: 4, 0x20000: 4},
        ),
        # The first and the last byte of a mapping are no places to split at, and no error.
        (0x10000, 1, "ENOENT", 0, WHOLE),
        (0x10001, 4 * PAGE - 1, "ENOENT", 0, WHOLE),
        (0x13FFF, 1, "EINVAL", 1, WHOLE),
        (0x10000, 4 * PAGE + 1, "ENOENT", 4 * PAGE, {0x14000: 4, 0x20000: 4}),
        (0x00FFF, 0x10001, "", PAGE, {0x11000: 3, 0x14000: 4, 0x20000: 4}),
        (1, U64_MAX, "", 12 * PAGE, {}),
    ],
)
async def test_what_version_1_leaves(client, file, version, iova, size, error, written, left):
    if version == V2:
        return
    ioas = await vfio_ioas(client, file, uapi.IOMMU_VFIO_IOAS_GET)
    assert await try_unmap(client, file, iova, size) == (error, written)
    for start, pages in left.items():
        assert await client.unmap(file, ioas, start, pages * PAGE) == pages * PAGE
    assert await client.unmap(file, ioas, 0, U64_MAX) == 0
