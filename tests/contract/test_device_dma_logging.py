"""DMA logging by VFIO_DEVICE_FEATURE; source: vfio_main.c, and mlx5 for what it leaves open."""

import struct

import pytest
import trio

from iommufs import uapi
from iommufs._native import ffi
from tests.contract.client import PAGE, refused
from tests.contract.migration_client import GET, SET, migrated
from tests.contract.vfio_client import CONFIG

START, STOP, REPORT = 6, 7, 8
BASE = 0x100000
N_PAGES = 16


class Logged:
    """An edu with 16 pages of the client mapped at BASE, whose DMA is logged."""

    def __init__(self, vfio, device, memory):
        self.vfio, self.device, self.memory = vfio, device, memory
        self.bitmap = ffi.new("uint64_t[8]")

    async def start(self, *ranges, page_size=PAGE, count=None):
        """Returns the page size in use."""
        packed = b"".join(struct.pack("<QQ", *pair) for pair in ranges)
        self.ranges = ffi.from_buffer(packed or b"x")
        at = int(ffi.cast("uintptr_t", self.ranges))
        n = len(ranges) if count is None else count
        tail = await self.device.feature(SET | START, struct.pack("<QIIQ", page_size, n, 0, at))
        return struct.unpack_from("<Q", tail)[0]

    async def report(self, iova=BASE, length=N_PAGES * PAGE, page_size=PAGE, bitmap=None):
        """The numbers of the bits that are set."""
        at = int(ffi.cast("uintptr_t", self.bitmap)) if bitmap is None else bitmap
        await self.device.feature(GET | REPORT, struct.pack("<QQQQ", iova, length, page_size, at))
        bits = int.from_bytes(ffi.buffer(self.bitmap), "little")
        ffi.buffer(self.bitmap)[:] = bytes(64)
        return [n for n in range(512) if bits >> n & 1]

    async def write(self, iova, length):
        """A DMA of the device into the client."""
        df = self.device.df
        for register, value in enumerate((0x40000, iova, length, 3)):
            await self.vfio.pwrite(df, value.to_bytes(8, "little"), 0x80 + 8 * register)
        with trio.fail_after(10):
            while (await self.vfio.pread(df, 8, 0x98))[0] & 1:
                await trio.lowlevel.checkpoint()


@pytest.fixture
async def logged(vfio, memory):
    device = await migrated(vfio)
    ctx = device.df.iommu_device.ctx
    ioas = await vfio.ioas(ctx)
    await vfio.attach(device.df, ioas)
    cmd = uapi.new(
        "iommu_ioas_map", size=uapi.sizeof("iommu_ioas_map"), flags=7, ioas_id=ioas,
        user_va=memory.address, length=N_PAGES * PAGE, iova=BASE,
    )  # fmt: skip
    await vfio.ioctl(ctx, uapi.IOMMU_IOAS_MAP, int(ffi.cast("uintptr_t", cmd)))
    await vfio.pwrite(device.df, b"\x06\0", CONFIG + 4)
    return Logged(vfio, device, memory)


async def test_pages_that_were_written_are_told_once(logged):
    await logged.start((BASE, N_PAGES * PAGE))
    await logged.write(BASE + 2 * PAGE - 1, 2)
    await logged.write(BASE + 9 * PAGE, 1)
    assert await logged.report() == [1, 2, 9]
    assert await logged.report() == []


async def test_what_was_written_before_or_outside_is_not(logged):
    await logged.write(BASE, 1)
    await logged.start((BASE, 2 * PAGE), (BASE + 4 * PAGE, PAGE))
    for page in range(6):
        await logged.write(BASE + page * PAGE, PAGE)
    assert await logged.report() == [0, 1, 4]


async def test_reads_and_refused_writes_are_not(logged):
    await logged.start((BASE, N_PAGES * PAGE))
    df = logged.device.df
    for register, value in enumerate((BASE, 0x40000, 64, 1)):
        await logged.vfio.pwrite(df, value.to_bytes(8, "little"), 0x80 + 8 * register)
    with trio.fail_after(10):
        while (await logged.vfio.pread(df, 8, 0x98))[0] & 1:
            await trio.lowlevel.checkpoint()
    assert await logged.report() == []


@pytest.mark.parametrize(
    ("page_size", "bits"), [(PAGE, [3, 8, 9]), (2 * PAGE, [1, 4]), (16 * PAGE, [0])]
)
async def test_a_bit_is_a_page_of_the_size_asked_for(logged, page_size, bits):
    await logged.start((BASE, N_PAGES * PAGE))
    await logged.write(BASE + 3 * PAGE, 8)
    await logged.write(BASE + 8 * PAGE + 8, PAGE)
    assert await logged.report(page_size=page_size) == bits


async def test_a_report_of_a_part_leaves_the_rest_and_begins_at_its_iova(logged):
    await logged.start((BASE, N_PAGES * PAGE))
    await logged.write(BASE, 8)
    await logged.write(BASE + 4 * PAGE, PAGE)
    assert await logged.report(iova=BASE + 3 * PAGE, length=2 * PAGE) == [1]
    assert await logged.report() == [0]


async def test_bits_of_the_client_stay(logged):
    await logged.start((BASE, N_PAGES * PAGE))
    await logged.write(BASE, 1)
    logged.bitmap[0] = 1 << 40
    assert await logged.report() == [0, 40]


async def test_a_bitmap_that_cannot_be_written_is_not_told(logged):
    await logged.start((BASE, N_PAGES * PAGE))
    await logged.write(BASE, 1)
    assert await logged.report(bitmap=8) == []
    assert await logged.report() == []


async def test_on_and_off(logged):
    with refused("EINVAL"):
        await logged.report()
    await logged.start((BASE, PAGE))
    with refused("EINVAL"):
        await logged.start((BASE, PAGE))
    for _ in range(2):
        await logged.device.feature(SET | STOP)
    with refused("EINVAL"):
        await logged.report()
    await logged.start((BASE, PAGE))


@pytest.mark.parametrize(
    ("wanted", "used"),
    [(PAGE, PAGE), (2 << 20, 2 << 20), (1, PAGE), (2, PAGE), (0x1800, PAGE), (0x3000, 0x2000)],
)
async def test_the_page_size_in_use_is_told(logged, wanted, used):
    assert await logged.start((0, 0x600000), page_size=wanted) == used


@pytest.mark.parametrize(
    ("ranges", "fields", "errno"),
    [
        ([], {}, "EINVAL"),
        ([(0, PAGE)] * 2, {}, "EINVAL"),
        ([(0, 2 * PAGE), (PAGE, PAGE)], {}, "EINVAL"),
        ([(1, PAGE)], {}, "EINVAL"),
        ([(0, PAGE - 1)], {}, "EINVAL"),
        ([(PAGE, PAGE)], {"page_size": 2 * PAGE}, "EINVAL"),
        ([(PAGE, PAGE)], {"page_size": 0}, "EINVAL"),
        ([(2**64 - PAGE, PAGE)], {}, "EOVERFLOW"),
        ([(2**64 - PAGE, 2 * PAGE)], {}, "EOVERFLOW"),
        ([(0, PAGE)], {"count": 257}, "E2BIG"),
    ],
)
async def test_ranges_that_cannot_be_logged(logged, ranges, fields, errno):
    with refused(errno):
        await logged.start(*ranges, **fields)
    with refused("EINVAL"):
        await logged.report()


async def test_256_ranges_are_a_page_full(logged):
    await logged.start(*((n * 2 * PAGE, PAGE) for n in range(256)))


async def test_ranges_that_cannot_be_read_are_efault(logged):
    data = struct.pack("<QIIQ", PAGE, 1, 0, 8)
    with refused("EFAULT"):
        await logged.device.feature(SET | START, data)


@pytest.mark.parametrize(
    ("fields", "errno"),
    [
        ({"page_size": 2048}, "EINVAL"),
        ({"page_size": 0}, "EINVAL"),
        ({"page_size": 3 * PAGE}, "EINVAL"),
        ({"iova": 2**64 - PAGE, "length": PAGE}, "EOVERFLOW"),
    ],
)
async def test_reports_that_are_refused(logged, fields, errno):
    await logged.start((BASE, PAGE))
    with refused(errno):
        await logged.report(**fields)


async def test_what_can_be_probed(logged):
    operations = {START: SET, STOP: SET, REPORT: GET}
    for feature, possible in operations.items():
        for asked in (0, GET, SET, GET | SET):
            flags = 1 << 18 | asked | feature
            if asked & ~possible:
                with refused("EINVAL"):
                    await logged.device.feature(flags)
            else:
                await logged.device.feature(flags)
    with refused("EINVAL"):
        await logged.device.feature(SET | START, bytes(23))
    with refused("EINVAL"):
        await logged.device.feature(GET | REPORT, bytes(31))


async def test_closing_ends_it(logged):
    await logged.start((BASE, PAGE))
    index = logged.device.df.device.index
    logged.vfio.close(logged.device.df)
    df = await logged.vfio.bound(index)
    assert not df.function.dma_log.on
