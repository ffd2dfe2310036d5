"""Dirty tracking of page tables that have it, filled by the test operation DIRTY."""

import pytest

from iommufs import uapi
from tests.contract.client import PAGE, U64_MAX, refused
from tests.contract.mock import DIRTY, START

SET = uapi.IOMMU_HWPT_SET_DIRTY_TRACKING, "iommu_hwpt_set_dirty_tracking"
GET = uapi.IOMMU_HWPT_GET_DIRTY_BITMAP, "iommu_hwpt_get_dirty_bitmap"
NO_CLEAR = uapi.IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR
BITMAP = 15 * PAGE  # in the client's memory


class Tracked:
    """A page table with dirty tracking, pages of 4 KiB in it."""

    def __init__(self, mock, memory):
        self.mock = mock
        self.memory = memory

    async def set_up(self):
        self.ioas = await self.mock.ioas()
        option = uapi.IOMMU_OPTION_HUGE_PAGES
        await self.mock.call(
            uapi.IOMMU_OPTION, "iommu_option",
            option_id=option, op=uapi.IOMMU_OPTION_OP_SET, object_id=self.ioas,
        )  # fmt: skip
        _, device, _ = await self.mock.device(self.ioas)
        self.hwpt = await self.mock.hwpt(device, self.ioas, DIRTY)
        await self.mock.map(self.ioas, self.memory.address, 8 * PAGE)
        self.plain = await self.mock.hwpt(device, self.ioas)

    async def track(self, enabled=1):
        await self.mock.call(*SET, hwpt_id=self.hwpt, flags=enabled)

    async def write(self, bits, size=PAGE, length=8 * PAGE, **fields):
        """Pages are written, those of the bits."""
        address = self.memory.write(BITMAP, bits)
        fields = {"iova": START, "length": length, "page_size": size, "uptr": address, **fields}
        object_id = fields.pop("hwpt", self.hwpt)
        return (await self.mock.op("DIRTY", "dirty", object_id, **fields)).out_nr_dirty

    async def read(self, size=PAGE, length=8 * PAGE, flags=0, before=b"\0", at=BITMAP, **fields):
        """The bitmap after it was `before`."""
        n = -(-(length // size) // 8)
        address = self.memory.write(at, before.ljust(n, b"\0"))
        fields = {
            "hwpt_id": self.hwpt, "iova": START, "length": length, "page_size": size,
            "data": address, "flags": flags, **fields,
        }  # fmt: skip
        await self.mock.call(*GET, **fields)
        return self.memory[at : at + n]


@pytest.fixture
async def tracked(mock, memory):
    tracked = Tracked(mock, memory)
    await tracked.set_up()
    return tracked


async def test_pages_are_read_and_cleared(tracked):
    await tracked.track()
    assert await tracked.write(b"\x05") == 2
    assert await tracked.read(flags=NO_CLEAR) == b"\x05"
    assert await tracked.read(before=b"\x82") == b"\x87"
    assert await tracked.read() == b"\0"


async def test_a_leaf_is_dirty_as_a_whole(tracked):
    await tracked.track()
    await tracked.write(b"\x02\0", 2048, iova=START + PAGE, length=2 * 2048)
    assert await tracked.read(2048) == b"\x0c\0"


async def test_a_bit_stands_for_more_than_a_leaf(tracked):
    await tracked.track()
    await tracked.write(b"\x42")
    assert await tracked.read(2 * PAGE) == b"\x09"


@pytest.mark.parametrize("at", [BITMAP, BITMAP + 1, BITMAP + PAGE - 1])
async def test_the_bitmap_may_be_anywhere(tracked, at):
    await tracked.track()
    await tracked.write(b"\xa1")
    assert await tracked.read(at=at) == b"\xa1"


async def test_switching_on_forgets(tracked):
    with refused("EINVAL"):
        await tracked.write(b"\xff")
    await tracked.track()
    await tracked.write(b"\xff")
    await tracked.track(0)
    assert await tracked.read(flags=NO_CLEAR) == b"\xff"
    await tracked.track()
    assert await tracked.read() == b"\0"


async def test_it_ends_at_a_hole(mock, tracked):
    await tracked.track()
    await mock.map(tracked.ioas, tracked.memory.address, PAGE, START + 9 * PAGE)
    assert await tracked.write(b"\x00\x03", length=16 * PAGE) == 2
    assert await tracked.read(length=16 * PAGE) == b"\0\0"
    assert await tracked.read(iova=START + 9 * PAGE, length=PAGE) == b"\x01"


async def test_a_bad_bitmap_is_no_error(tracked):
    await tracked.track()
    await tracked.write(b"\xff")
    await tracked.read(data=1)


async def test_a_page_table_without_it(tracked):
    for flags in (0, 1):
        with refused("EOPNOTSUPP"):
            await tracked.mock.call(*SET, hwpt_id=tracked.plain, flags=flags)
    with refused("EOPNOTSUPP"):
        await tracked.read(hwpt_id=tracked.plain)


async def test_the_test_operation_refuses(tracked):
    await tracked.track()
    for name, bad in [
        ("EINVAL", {"size": 0}),
        ("EINVAL", {"length": 0}),
        ("EINVAL", {"iova": START + 1}),
        ("EINVAL", {"length": PAGE + 1}),
        ("EINVAL", {"uptr": 0}),
        ("EOVERFLOW", {"length": PAGE << 28}),
        ("ENOENT", {"hwpt": tracked.ioas}),
        ("EINVAL", {"hwpt": tracked.plain}),
        ("EFAULT", {"uptr": 1}),
    ]:
        with refused(name):
            await tracked.write(b"\x01", **bad)
    assert await tracked.write(b"\x80", iova=U64_MAX - 8 * PAGE + 1) == 1
