"""vIOMMUs of an IOMMU that has them: devices, caches, events and queues in them."""

import select

import pytest

from iommufs import uapi
from iommufs._native import ffi
from tests.contract.client import PAGE, U64_MAX, refused
from tests.contract.mock import IOTLB, NEST_PARENT, SELFTEST_VIOMMU, START

CACHE = uapi.IOMMU_TEST_DEV_CACHE_DEFAULT
INVALIDATE = uapi.IOMMU_HWPT_INVALIDATE, "iommu_hwpt_invalidate"
KIND = uapi.IOMMU_VIOMMU_INVALIDATE_DATA_SELFTEST
EVENTS = uapi.IOMMU_VEVENTQ_TYPE_SELFTEST
QUEUE = uapi.IOMMU_HW_QUEUE_TYPE_SELFTEST
HEADER = uapi.sizeof("iommufd_vevent_header")
EVENT = HEADER + 4


class Guest:
    """A mock device with a vIOMMU below a page table of the IOAS."""

    def __init__(self, mock):
        self.mock = mock

    async def set_up(self):
        self.ioas = await self.mock.ioas()
        self.stdev, self.device, _ = await self.mock.device(self.ioas)
        self.parent = await self.mock.hwpt(self.device, self.ioas, NEST_PARENT)
        self.viommu = await self.viommu_alloc()

    async def viommu_alloc(self, **fields):
        fields = {
            "dev_id": self.device, "hwpt_id": self.parent, "type": SELFTEST_VIOMMU, **fields
        }  # fmt: skip
        call = uapi.IOMMU_VIOMMU_ALLOC, "iommu_viommu_alloc"
        return (await self.mock.call(*call, **fields)).out_viommu_id

    async def vdevice(self, virt_id, **fields):
        fields = {"viommu_id": self.viommu, "dev_id": self.device, "virt_id": virt_id, **fields}
        call = uapi.IOMMU_VDEVICE_ALLOC, "iommu_vdevice_alloc"
        return (await self.mock.call(*call, **fields)).out_vdevice_id

    async def veventq(self, depth=2, **fields):
        """(id, file, fd)"""
        fields = {"viommu_id": self.viommu, "type": EVENTS, "veventq_depth": depth, **fields}
        cmd = await self.mock.call(uapi.IOMMU_VEVENTQ_ALLOC, "iommu_veventq_alloc", **fields)
        file = self.mock.client.descriptors[cmd.out_veventq_fd]
        return cmd.out_veventq_id, file, cmd.out_veventq_fd

    async def hw_queue(self, index, iova=START, length=PAGE, **fields):
        fields = {
            "viommu_id": self.viommu, "type": QUEUE, "index": index,
            "nesting_parent_iova": iova, "length": length, **fields,
        }  # fmt: skip
        call = uapi.IOMMU_HW_QUEUE_ALLOC, "iommu_hw_queue_alloc"
        return (await self.mock.call(*call, **fields)).out_hw_queue_id

    async def event(self):
        await self.mock.op("TRIGGER_VEVENT", "trigger_vevent", dev_id=self.device)


@pytest.fixture
async def guest(mock):
    guest = Guest(mock)
    await guest.set_up()
    return guest


async def test_viommu_alloc(mock, guest):
    plain = await mock.hwpt(guest.device, guest.ioas)
    for name, bad in [
        ("EOPNOTSUPP", {"flags": 1}),
        ("EOPNOTSUPP", {"type": 0}),
        ("EOPNOTSUPP", {"type": 7, "hwpt_id": 99}),
        ("ENOENT", {"dev_id": 99}),
        ("ENOENT", {"hwpt_id": 99}),
        ("ENOENT", {"hwpt_id": guest.viommu}),
        ("EINVAL", {"hwpt_id": plain}),
        ("EINVAL", {"data_len": 7, "data_uptr": 1}),
        ("EFAULT", {"data_len": 8, "data_uptr": 1}),
    ]:
        with refused(name):
            await guest.viommu_alloc(**bad)
    with refused("EBUSY"):
        await mock.destroy(guest.parent)
    data = uapi.new("iommu_viommu_selftest", in_data=0xBEEF)
    address = int(ffi.cast("uintptr_t", data))
    await guest.viommu_alloc(data_uptr=address, data_len=ffi.sizeof(data[0]))
    assert data.out_data == 0xBEEF
    assert (data.out_mmap_offset, data.out_mmap_length) == (PAGE, 2 * PAGE)


async def test_a_device_has_one_id(mock, guest):
    stdev, other, _ = await mock.device(guest.ioas)
    vdevice = await guest.vdevice(0x99)
    for name, bad in [
        ("ENOENT", {"viommu_id": 99}),
        ("ENOENT", {"dev_id": 99}),
        ("EEXIST", {"virt_id": 5}),
        ("EEXIST", {"dev_id": other}),
    ]:
        with refused(name):
            await guest.vdevice(**{"virt_id": 0x99, **bad})
    with refused("EBUSY"):
        await mock.destroy(guest.viommu)
    await mock.destroy(vdevice)
    vdevice = await guest.vdevice(0x99, dev_id=other)
    await mock.destroy(stdev)
    with refused("ENOENT"):
        await mock.destroy(vdevice)
    made = [await mock.ioas() for _ in range(4)]
    assert vdevice not in made, "the id of a vdevice that went with its device is used again"
    await guest.vdevice(0x99)
    await mock.destroy(guest.stdev)


async def test_a_nested_page_table_needs_the_device_in_the_viommu(mock, guest):
    nested = await mock.nested(guest.device, guest.viommu)
    with refused("ENOENT"):
        await mock.replace(guest.stdev, nested)
    vdevice = await guest.vdevice(1)
    assert await mock.replace(guest.stdev, nested) == nested
    await mock.op("MD_CHECK_IOTLB", "check_iotlb", nested, id=0, iotlb=IOTLB)
    await mock.replace(guest.stdev, guest.ioas)
    await mock.destroy(vdevice)
    with refused("EBUSY"):
        await mock.destroy(guest.viommu)
    await mock.destroy(nested)
    await mock.destroy(guest.viommu)


async def invalidate(guest, items, done, name=None, **fields):
    array = ffi.new(f"struct iommu_viommu_invalidate_selftest[{len(items) + 1}]", items)
    cmd = uapi.new(
        INVALIDATE[1],
        **{
            "size": uapi.sizeof(INVALIDATE[1]),
            "hwpt_id": guest.viommu,
            "data_uptr": int(ffi.cast("uintptr_t", array)),
            "data_type": KIND,
            "entry_len": ffi.sizeof(array[0]),
            "entry_num": len(items),
            **fields,
        },
    )
    call = guest.mock.client.ioctl(guest.mock.file, INVALIDATE[0], int(ffi.cast("uintptr_t", cmd)))
    if name:
        with refused(name):
            await call
    else:
        await call
    assert cmd.entry_num == done


async def check_cache(guest, *expected):
    for i, value in enumerate(expected):
        fields = {"id": i, "cache": value}
        await guest.mock.op("DEV_CHECK_CACHE", "check_dev_cache", guest.device, **fields)


async def test_invalidate(guest):
    await guest.vdevice(0x99)
    await invalidate(guest, [], 0)
    await invalidate(guest, [], 0, "EINVAL", data_type=1)
    good = (0, 0x99, 0)
    for name, bad in [("EINVAL", {"data_type": 1}), ("EFAULT", {"data_uptr": 1})]:
        await invalidate(guest, [good], 0, name, **bad)
    # Longer structures are all right if we do not miss anything in them.
    await invalidate(guest, [(0, 0x99, 1)], 1, entry_len=16)
    await invalidate(guest, [(0, 0x99, 0), (1, 0, 0)], 0, "E2BIG", entry_len=16, entry_num=1)
    await check_cache(guest, CACHE, 0, CACHE, CACHE)
    for name, bad in [
        ("EOPNOTSUPP", (2, 0x99, 0)), ("EINVAL", (0, 0x99, 4)), ("EINVAL", (0, 0x98, 0)),
    ]:  # fmt: skip
        await invalidate(guest, [(0, 0x99, 2), bad], 1, name)
    await check_cache(guest, CACHE, 0, 0, CACHE)
    await invalidate(guest, [(1, 0x99, 0)], 1)
    await check_cache(guest, 0, 0, 0, 0)
    for entry, value in ((0, 1), (4, 0)):
        with refused("EINVAL"):
            await guest.mock.op(
                "DEV_CHECK_CACHE", "check_dev_cache", guest.device, id=entry, cache=value
            )


async def test_veventq_alloc(mock, guest):
    queue, _, fd = await guest.veventq(depth=524288)
    for name, bad in [
        ("EOPNOTSUPP", {"flags": 1}),
        ("EOPNOTSUPP", {"__reserved": 1}),
        ("EOPNOTSUPP", {"type": 0}),
        ("EINVAL", {"veventq_depth": 0}),
        ("EINVAL", {"veventq_depth": 524289}),
        ("ENOENT", {"viommu_id": 99}),
        ("EEXIST", {}),
    ]:
        with refused(name):
            await guest.veventq(**{"depth": bad.pop("veventq_depth", 2), **bad})
    await guest.veventq(type=EVENTS - 1)
    with refused("EBUSY"):
        await mock.destroy(queue)
    await mock.client.close_fd(fd)
    await mock.destroy(queue)
    await guest.veventq()


def header(data):
    found = uapi.new("iommufd_vevent_header")
    ffi.buffer(found)[:] = data[:HEADER]
    return found.flags, found.sequence


async def test_events(mock, guest):
    with refused("ENOENT"):
        await guest.event()
    nested = await mock.nested(guest.device, guest.viommu)
    await guest.vdevice(0x1_0000_0099)
    await mock.replace(guest.stdev, nested)
    with refused("EOPNOTSUPP"):
        await guest.event()
    _, file, _ = await guest.veventq(depth=2)
    assert file.poll() == 0
    assert await file.read(0, EVENT) == b""
    reports = []
    file.watch_poll(lambda: reports.append(1))
    await guest.event()
    assert reports == [1]
    assert file.poll() == select.POLLIN | select.POLLRDNORM
    for size in (HEADER - 1, EVENT - 1):
        with pytest.raises(Exception, match="EINVAL"):
            await file.read(0, size)
    assert await file.read(0, 2 * EVENT) == bytes(8) + (0x99).to_bytes(4, "little")


async def test_lost_events_leave_one_header_at_the_end(mock, guest):
    nested = await mock.nested(guest.device, guest.viommu)
    await guest.vdevice(1)
    await mock.replace(guest.stdev, nested)
    _, file, _ = await guest.veventq(depth=2)
    for _ in range(4):
        await guest.event()
    data = await file.read(0, 100)
    assert len(data) == 2 * EVENT + HEADER
    parts = data[:EVENT], data[EVENT : 2 * EVENT], data[2 * EVENT :]
    lost = uapi.IOMMU_VEVENTQ_FLAG_LOST_EVENTS
    assert [header(part) for part in parts] == [(0, 0), (0, 1), (lost, 3)]
    for _ in range(3):
        await guest.event()
    assert len(await file.read(0, EVENT)) == EVENT
    await guest.event()  # there is room again: it takes the place of the header
    assert [header(await file.read(0, EVENT)) for _ in range(2)] == [(0, 5), (0, 7)]


async def test_hw_queues(mock, guest, memory):
    for name, bad in [
        ("EOPNOTSUPP", {"flags": 1}),
        ("EOPNOTSUPP", {"type": 0}),
        ("EINVAL", {"length": 0}),
        ("EOVERFLOW", {"iova": U64_MAX, "length": 2}),
        ("ENOENT", {"viommu_id": 99}),
        ("EOPNOTSUPP", {"type": 7}),
        ("ERANGE", {"iova": 0xFFF, "length": U64_MAX - 0xFFF}),
        ("ENOENT", {}),
    ]:
        with refused(name):
            await guest.hw_queue(0, **bad)
    await mock.map(guest.ioas, memory.address, PAGE)
    await mock.map(guest.ioas, memory.address + PAGE, PAGE, START + PAGE)
    for name, index in (("EIO", 1), ("EINVAL", 2)):
        with refused(name):
            await guest.hw_queue(index)
    first = await guest.hw_queue(0)
    with refused("EEXIST"):
        await guest.hw_queue(0)
    with refused("EBUSY"):
        await mock.unmap(guest.ioas, START, PAGE)
    await mock.unmap(guest.ioas, START + PAGE, PAGE)
    second = await guest.hw_queue(1, START + PAGE // 2, PAGE // 2)
    for object_id in (first, first + 1, guest.viommu):  # + 1: the access that pins its memory
        with refused("EBUSY"):
            await mock.destroy(object_id)
    assert second == first + 2
    await mock.destroy(second)
    await mock.destroy(first)
    with refused("ENOENT"):
        await mock.destroy(first + 1)
    await mock.unmap(guest.ioas, START, PAGE)
