"""IOMMU_TEST_CMD: mock devices, and what address spaces with their page tables look like."""

import pytest

from iommufs import uapi
from tests.contract.client import PAGE, RW, U64_MAX, refused
from tests.contract.mock import CMD, DIRTY, HAS_PASIDS, NO_DIRTY, PASID, START

MAX_PASID_LG2 = 20


async def test_ids_are_given_in_order(mock):
    assert await mock.device(await mock.ioas()) == (2, 3, 4)


async def test_an_unknown_operation_is_eopnotsupp(mock):
    for op in (0, 24, 2**32 - 1):
        with refused("EOPNOTSUPP"):
            await mock.call(CMD, "iommu_test_cmd", op=op)


async def test_an_unknown_flag_is_einval_and_leaves_nothing(mock):
    ioas = await mock.ioas()
    with refused("EINVAL"):
        await mock.device(ioas, 2)
    assert await mock.device(ioas) == (2, 3, 4)


async def test_a_device_needs_something_to_attach_to(mock):
    with refused("ENOENT"):
        await mock.device(99)
    stdev, device, _ = await mock.device(await mock.ioas())
    for object_id in (stdev, device):
        with refused("EINVAL"):
            await mock.device(object_id)


async def test_the_device_goes_with_its_driver(mock):
    ioas = await mock.ioas()
    stdev, device, hwpt = await mock.device(ioas)
    for object_id in (ioas, device, hwpt):
        with refused("EBUSY"):
            await mock.destroy(object_id)
    await mock.destroy(stdev)
    for object_id in (device, hwpt):
        with refused("ENOENT"):
            await mock.destroy(object_id)
    await mock.destroy(ioas)


async def test_devices_share_the_automatic_page_table(mock):
    ioas = await mock.ioas()
    first, second = await mock.device(ioas), await mock.device(ioas)
    assert first[2] == second[2]
    assert (await mock.device(first[2]))[2] == first[2]


async def test_replace(mock):
    ioas, other = await mock.ioas(), await mock.ioas()
    stdev, device, hwpt = await mock.device(ioas)
    manual = await mock.hwpt(device, ioas)
    assert await mock.replace(stdev, manual) == manual
    with refused("ENOENT"):
        await mock.destroy(hwpt)
    assert await mock.replace(stdev, manual) == manual
    assert await mock.replace(stdev, other) not in (manual, other)
    await mock.destroy(manual)
    await mock.destroy(ioas)
    for name, target in (("ENOENT", 99), ("EINVAL", device)):
        with refused(name):
            await mock.replace(stdev, target)
    with refused("ENOENT"):
        await mock.replace(device, other)


async def test_the_aperture_and_the_alignment_are_the_mocks(mock, memory):
    ioas = await mock.ioas()
    stdev, *_ = await mock.device(ioas)
    for iova in (0, START - 2048, uapi.MOCK_APERTURE_LAST + 1, START + 1024):
        with refused("EINVAL"):
            await mock.map(ioas, memory.address, PAGE, iova)
    assert await mock.map(ioas, memory.address, 2048, START) == START
    await mock.destroy(stdev)
    assert await mock.map(ioas, memory.address, 3, 5) == 5


async def test_hw_info(mock):
    ioas = await mock.ioas()
    kind = uapi.IOMMU_GET_HW_INFO, "iommu_hw_info"
    for flags, capabilities, pasids in [
        (0, uapi.IOMMU_HW_CAP_DIRTY_TRACKING, 0),
        (HAS_PASIDS, uapi.IOMMU_HW_CAP_DIRTY_TRACKING, MAX_PASID_LG2),
        (NO_DIRTY, 0, 0),
    ]:
        _, device, _ = await mock.device(ioas, flags)
        info = await mock.call(*kind, dev_id=device)
        assert (info.out_data_type, info.data_len) == (uapi.IOMMU_HW_INFO_TYPE_SELFTEST, 8)
        assert info.out_capabilities == capabilities | uapi.IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED
        assert info.out_max_pasid_log2 == pasids


async def test_page_tables_with_data(mock):
    ioas = await mock.ioas()
    _, device, _ = await mock.device(ioas)
    data = uapi.new("iommu_hwpt_selftest", pagetable_type=uapi.MOCK_IOMMUPT_HUGE)
    await mock.hwpt(device, ioas, **mock.data(data))
    await mock.hwpt(device, ioas, **mock.data(data, length=4))
    for name, bad in [
        ("EINVAL", {"length": 3}),
        ("EINVAL", {"length": 9}),
        ("EOPNOTSUPP", {"data_type": 1}),
    ]:
        with refused(name):
            await mock.hwpt(device, ioas, **mock.data(data, **bad))
    data.pagetable_type = 2
    with refused("EOPNOTSUPP"):
        await mock.hwpt(device, ioas, **mock.data(data))


async def test_a_device_without_dirty_tracking(mock):
    ioas = await mock.ioas()
    _, device, _ = await mock.device(ioas)
    tracked = await mock.hwpt(device, ioas, DIRTY)
    with refused("EINVAL"):
        await mock.device(tracked, NO_DIRTY)
    _, other, _ = await mock.device(ioas, NO_DIRTY)
    with refused("EOPNOTSUPP"):
        await mock.hwpt(other, ioas, DIRTY)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("EINVAL", {"length": 0}),
        ("EOVERFLOW", {"start": U64_MAX, "length": 2}),
        ("EADDRINUSE", {"start": START, "length": 1}),
    ],
)
async def test_add_reserved(mock, memory, name, fields):
    ioas = await mock.ioas()
    await mock.map(ioas, memory.address, PAGE)
    with refused(name):
        await mock.op("ADD_RESERVED", "add_reserved", ioas, **fields)
    with refused("ENOENT"):
        await mock.op("ADD_RESERVED", "add_reserved", 99, start=START, length=1)
    await mock.op("ADD_RESERVED", "add_reserved", ioas, start=2 * START, length=PAGE)
    with refused("EINVAL"):
        await mock.map(ioas, memory.address, PAGE, 2 * START)


async def test_memory_limit(mock):
    with refused("EINVAL"):
        await mock.op("SET_TEMP_MEMORY_LIMIT", "memory_limit", limit=11)
    await mock.op("SET_TEMP_MEMORY_LIMIT", "memory_limit", limit=12)


async def test_check_map_and_refs(mock, memory):
    ioas = await mock.ioas()
    _, _, hwpt = await mock.device(ioas)

    async def check_map(iova, address, length=2 * PAGE, object_id=hwpt):
        await mock.op(
            "MD_CHECK_MAP", "check_map", object_id, iova=iova, uptr=address, length=length
        )

    async def check_refs(refs, address=memory.address, length=2 * PAGE):
        await mock.op("MD_CHECK_REFS", "check_refs", uptr=address, length=length, refs=refs)

    await check_refs(0)
    await mock.map(ioas, memory.address, 2 * PAGE)
    await mock.map(ioas, memory.address + 2048, PAGE, START + 4 * PAGE)
    await check_map(START, memory.address)
    await check_map(START + 4 * PAGE, memory.address + 2048, PAGE)
    for wrong in [
        (START, memory.address + PAGE),
        (START + 2048, memory.address),
        (START + PAGE, memory.address + PAGE),  # half of it is not mapped
        (START + 1, memory.address),
        (START, U64_MAX - 2047),
    ]:
        with refused("EINVAL"):
            await check_map(*wrong)
    with refused("ENOENT"):
        await check_map(START, memory.address, object_id=ioas)
    await check_refs(2)  # two mappings, not copies of one
    for wrong in (0, 1, 3):
        with refused("EIO"):
            await check_refs(wrong)
    with refused("EINVAL"):
        await check_refs(2, memory.address + 2048)
    memory.free()
    with refused("EFAULT"):
        await check_refs(2)
    with refused("EFAULT"):
        await check_map(START, memory.address)


async def test_copies_count_as_one_pin(mock, memory):
    ioas = await mock.ioas()
    await mock.device(ioas)
    await mock.map(ioas, memory.address, PAGE)
    await mock.call(
        uapi.IOMMU_IOAS_COPY, "iommu_ioas_copy", flags=RW | uapi.IOMMU_IOAS_MAP_FIXED_IOVA,
        dst_ioas_id=ioas, src_ioas_id=ioas, length=PAGE, src_iova=START, dst_iova=START + PAGE,
    )  # fmt: skip
    await mock.op("MD_CHECK_REFS", "check_refs", uptr=memory.address, length=PAGE, refs=1)


async def test_pasids(mock):
    ioas = await mock.ioas()
    stdev, device, _ = await mock.device(ioas, HAS_PASIDS)
    suits, other = [await mock.hwpt(device, ioas, PASID) for _ in range(2)]

    async def attach(pasid, pt_id, name="ATTACH"):
        await mock.op(f"PASID_{name}", f"pasid_{name.lower()}", stdev, pasid=pasid, pt_id=pt_id)

    async def check(pasid, hwpt):
        await mock.op("PASID_CHECK_HWPT", "pasid_check", stdev, pasid=pasid, hwpt_id=hwpt)

    with refused("EINVAL"):  # the RID's page table does not suit PASIDs
        await attach(7, suits)
    await mock.replace(stdev, suits)
    with refused("EINVAL"):
        await attach(7, ioas)
    with refused("EINVAL"):
        await attach(1 << MAX_PASID_LG2, suits)
    await check(7, 0)
    await attach(7, suits)
    await check(7, suits)
    for name, bad in [("EINVAL", 0), ("EINVAL", other), ("EINVAL", ioas), ("ENOENT", 99)]:
        with refused(name):
            await check(7, bad)
    with refused("EBUSY"):
        await attach(7, other)
    with refused("EINVAL"):  # now the RID must stay on one that suits
        await mock.replace(stdev, ioas)
    with refused("EINVAL"):
        await attach(8, other, "REPLACE")
    await attach(7, other, "REPLACE")
    await check(7, other)
    for _ in range(2):
        await mock.op("PASID_DETACH", "pasid_detach", stdev, pasid=7)
    await check(7, 0)
    await mock.replace(stdev, ioas)


async def test_a_device_without_pasids_has_that_of_the_rid_only(mock):
    ioas = await mock.ioas()
    stdev, device, _ = await mock.device(ioas)
    suits = await mock.hwpt(device, ioas, PASID)
    await mock.replace(stdev, suits)
    for pasid in (1, uapi.IOMMU_TEST_PASID_RESERVED):
        with refused("EINVAL"):
            await mock.op("PASID_ATTACH", "pasid_attach", stdev, pasid=pasid, pt_id=suits)


async def test_every_second_attach_to_the_reserved_pasid_fails(mock):
    ioas = await mock.ioas()
    stdev, device, _ = await mock.device(ioas, HAS_PASIDS)
    suits, other = [await mock.hwpt(device, ioas, PASID) for _ in range(2)]
    await mock.replace(stdev, suits)
    pasid = uapi.IOMMU_TEST_PASID_RESERVED
    await mock.op("PASID_ATTACH", "pasid_attach", stdev, pasid=pasid, pt_id=suits)
    with refused("ENOMEM"):
        await mock.op("PASID_REPLACE", "pasid_replace", stdev, pasid=pasid, pt_id=other)
    await mock.op("PASID_CHECK_HWPT", "pasid_check", stdev, pasid=pasid, hwpt_id=suits)
    await mock.op("PASID_REPLACE", "pasid_replace", stdev, pasid=pasid, pt_id=other)
