"""IOMMU_FAULT_QUEUE_ALLOC. What its file does: tests/unit/test_fault_queue.py."""

import mmap

import pytest

from iommufs import uapi
from tests.contract.client import refused

KIND = uapi.IOMMU_FAULT_QUEUE_ALLOC, "iommu_fault_alloc"
# The descriptor needs a launcher; through it: tests/e2e.
pytestmark = pytest.mark.parametrize("client", ["prefetched", "unread"], indirect=True)
FAULT_ID_VALID = uapi.IOMMU_HWPT_FAULT_ID_VALID


async def test_a_queue_is_an_object_and_a_file(client, file):
    cmd = await client.call(file, *KIND, out_fault_id=77, out_fault_fd=77)
    assert cmd.out_fault_id == 1
    with refused("EBUSY"):
        await client.destroy(file, cmd.out_fault_id)
    await client.close_fd(cmd.out_fault_fd)
    await client.destroy(file, cmd.out_fault_id)


async def test_each_call_makes_one(client, file):
    made = [await client.call(file, *KIND) for _ in range(3)]
    assert [cmd.out_fault_id for cmd in made] == [1, 2, 3]
    assert len({cmd.out_fault_fd for cmd in made}) == 3


@pytest.mark.parametrize("flags", [1, 1 << 31])
async def test_a_flag_is_eopnotsupp(client, file, flags):
    with refused("EOPNOTSUPP"):
        await client.call(file, *KIND, flags=flags)


async def test_one_that_cannot_be_told_is_gone(client, file, memory):
    memory.write(0, (16).to_bytes(4, "little"))
    with refused("EFAULT"):
        await client.ioctl(file, KIND[0], memory.protect(0, mmap.PROT_READ))
    assert await client.ioas_alloc(file) == 1


async def test_a_page_table_holds_its_queue(client, file):
    queue = await client.call(file, *KIND)
    await client.close_fd(queue.out_fault_fd)
    bound = await client.bind(file, 0)
    hwpt = await client.hwpt_alloc(
        file,
        bound.devid,
        await client.ioas_alloc(file),
        flags=FAULT_ID_VALID,
        fault_id=queue.out_fault_id,
    )
    with refused("EBUSY"):
        await client.destroy(file, queue.out_fault_id)
    await client.destroy(file, hwpt)
    await client.destroy(file, queue.out_fault_id)


async def test_a_device_without_page_requests_cannot_be_attached(client, file):
    """ENODEV, and it stays attached where it was; oracle guest with Intel's IOMMU."""
    queue = await client.call(file, *KIND)
    bound = await client.bind(file, 0)
    ioas = await client.ioas_alloc(file)
    with_queue = {"flags": FAULT_ID_VALID, "fault_id": queue.out_fault_id}
    hwpt = await client.hwpt_alloc(file, bound.devid, ioas, **with_queue)
    with refused("ENODEV"):
        await bound.attach(hwpt)
    await bound.attach(ioas)
    with refused("ENODEV"):
        await bound.attach(hwpt)
    await client.destroy(file, hwpt)
    await bound.detach()
    await client.close_fd(queue.out_fault_fd)


async def test_the_file_outlives_the_iommufd(client, file):
    queue = await client.call(file, *KIND)
    await client.close(file)
    await client.close_fd(queue.out_fault_fd)
