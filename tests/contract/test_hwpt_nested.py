"""Nested page tables (IOMMU_HWPT_ALLOC below another), their caches and their faults."""

import pytest

from iommufs import uapi
from iommufs._native import ffi
from tests.contract.client import refused
from tests.contract.mock import DATA, FAULT, IOTLB, NEST_PARENT, PASID

INVALIDATE = uapi.IOMMU_HWPT_INVALIDATE, "iommu_hwpt_invalidate"
KIND = uapi.IOMMU_HWPT_INVALIDATE_DATA_SELFTEST
ALL = uapi.IOMMU_TEST_INVALIDATE_FLAG_ALL


@pytest.fixture
async def device(mock):
    """(stdev, device, a page table to nest in, the IOAS)"""
    ioas = await mock.ioas()
    stdev, device, _ = await mock.device(ioas)
    return stdev, device, await mock.hwpt(device, ioas, NEST_PARENT), ioas


async def check_iotlb(mock, hwpt, *expected):
    for i, value in enumerate(expected):
        await mock.op("MD_CHECK_IOTLB", "check_iotlb", hwpt, id=i, iotlb=value)


async def test_what_can_be_a_parent(mock, device):
    _, device, parent, ioas = device
    nested = await mock.nested(device, parent)
    plain = await mock.hwpt(device, ioas)
    for name, pt_id, fields in [
        ("EINVAL", plain, {}),
        ("EINVAL", nested, {}),
        ("EINVAL", device, {}),
        ("EINVAL", 99, {}),
        ("EOPNOTSUPP", parent, {"flags": NEST_PARENT}),
        ("EOPNOTSUPP", parent, {"flags": 1 << 31}),
        ("EOPNOTSUPP", parent, {"data_type": DATA + 1}),
        ("EINVAL", parent, {"data_len": 3}),
        ("EFAULT", parent, {"data_uptr": 0}),
        ("ENOENT", parent, {"flags": FAULT, "fault_id": 99}),
    ]:
        with refused(name):
            await mock.nested(device, pt_id, **fields)
    with refused("EBUSY"):
        await mock.destroy(parent)
    await mock.destroy(nested)
    await mock.destroy(parent)


async def test_it_is_attached_like_others(mock, device):
    stdev, device, parent, ioas = device
    nested = await mock.nested(device, parent, PASID)
    assert await mock.replace(stdev, nested) == nested
    with refused("EBUSY"):
        await mock.destroy(nested)
    for kind, struct in [
        (uapi.IOMMU_HWPT_SET_DIRTY_TRACKING, "iommu_hwpt_set_dirty_tracking"),
        (uapi.IOMMU_HWPT_GET_DIRTY_BITMAP, "iommu_hwpt_get_dirty_bitmap"),
    ]:
        with refused("ENOENT"):
            await mock.call(kind, struct, hwpt_id=nested)
    await mock.replace(stdev, ioas)
    await mock.destroy(nested)


def requests(*items):
    """An array of invalidation requests, each (flags, iotlb_id)."""
    array = ffi.new(f"struct iommu_hwpt_invalidate_selftest[{len(items)}]")
    for i, (flags, entry) in enumerate(items):
        array[i].flags, array[i].iotlb_id = flags, entry
    return array


async def invalidate(mock, hwpt, array, done, name=None, **fields):
    """Carry it out, or expect the errno `name`; `done` are done in any case."""
    cmd = uapi.new(
        INVALIDATE[1],
        **{
            "size": uapi.sizeof(INVALIDATE[1]),
            "hwpt_id": hwpt,
            "data_uptr": int(ffi.cast("uintptr_t", array)),
            "data_type": KIND,
            "entry_len": ffi.sizeof(array[0]),
            "entry_num": len(array),
            **fields,
        },
    )
    call = mock.client.ioctl(mock.file, INVALIDATE[0], int(ffi.cast("uintptr_t", cmd)))
    if name:
        with refused(name):
            await call
    else:
        await call
    assert cmd.entry_num == done


async def test_invalidate(mock, device):
    _, device, parent, _ = device
    nested = await mock.nested(device, parent)
    await check_iotlb(mock, nested, *[IOTLB] * 4)
    good = requests((0, 0))
    for name, fields in [
        ("EOPNOTSUPP", {"__reserved": 1}),
        ("EINVAL", {"data_uptr": 0}),
        ("EINVAL", {"entry_len": 0}),
        ("EINVAL", {"entry_len": 4097}),
        ("EINVAL", {"entry_num": 524289}),
        ("EINVAL", {"data_type": KIND - 1}),
        ("EINVAL", {"data_type": KIND - 1, "entry_num": 0}),
        ("EINVAL", {"entry_len": 7}),
        ("EINVAL", {"entry_len": 9}),
        ("EFAULT", {"data_uptr": 1}),
    ]:
        await invalidate(mock, nested, good, 0, name, **fields)
    await invalidate(mock, 99, good, 0, "ENOENT")
    await invalidate(mock, parent, good, 0, "EINVAL")
    await invalidate(mock, nested, good, 0, entry_num=0, entry_len=0, data_uptr=0)
    await check_iotlb(mock, nested, *[IOTLB] * 4)

    await invalidate(mock, nested, requests((0, 1), (2, 0)), 1, "EOPNOTSUPP")
    await check_iotlb(mock, nested, IOTLB, 0, IOTLB, IOTLB)
    await invalidate(mock, nested, requests((0, 3), (0, 4)), 1, "EINVAL")
    await check_iotlb(mock, nested, IOTLB, 0, IOTLB, 0)
    await invalidate(mock, nested, requests((ALL, 0)), 1)
    await check_iotlb(mock, nested, 0, 0, 0, 0)


async def test_check_iotlb(mock, device):
    _, device, parent, _ = device
    nested = await mock.nested(device, parent)
    for entry, value in ((0, IOTLB + 1), (4, IOTLB)):
        with refused("EINVAL"):
            await mock.op("MD_CHECK_IOTLB", "check_iotlb", nested, id=entry, iotlb=value)
    with refused("ENOENT"):
        await mock.op("MD_CHECK_IOTLB", "check_iotlb", parent, id=0, iotlb=IOTLB)


def record(data):
    pgfault = uapi.new("iommu_hwpt_pgfault")
    ffi.buffer(pgfault)[:] = data
    return pgfault


RECORD = uapi.sizeof("iommu_hwpt_pgfault")


async def test_a_fault_is_read_and_answered(mock, device):
    stdev, device, parent, ioas = device
    queue, file = await mock.fault_queue()
    nested = await mock.nested(device, parent, FAULT, fault_id=queue)
    fault = {"dev_id": device, "pasid": 9, "grpid": 2, "perm": 3, "addr": 0xDEAD000}
    await mock.op("TRIGGER_IOPF", "trigger_iopf", **fault)
    assert await file.read(0, RECORD) == b"", "nobody is attached"

    await mock.replace(stdev, nested)
    await mock.op("TRIGGER_IOPF", "trigger_iopf", **fault)
    got = record(await file.read(0, RECORD))
    assert {name: getattr(got, name) for name in fault} == fault
    assert (got.flags, got.length, got.cookie) == (3, 0, 1)
    response = uapi.new("iommu_hwpt_page_response", cookie=1, code=0)
    assert await file.write(0, bytes(ffi.buffer(response))) == 8

    await mock.op("TRIGGER_IOPF", "trigger_iopf", dev_id=device)
    await mock.replace(stdev, ioas)
    assert await file.read(0, RECORD) == b"", "a fault stays after its device has left"
    for name, object_id in (("ENOENT", 99), ("ENOENT", stdev)):
        with refused(name):
            await mock.op("TRIGGER_IOPF", "trigger_iopf", dev_id=object_id)
