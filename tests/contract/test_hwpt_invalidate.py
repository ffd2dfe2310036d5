"""IOMMU_HWPT_INVALIDATE, where nothing is nested."""

import mmap

import pytest

from iommufs import uapi
from iommufs._native import ffi
from tests.contract.client import refused

GOOD = {"entry_num": 3, "entry_len": 24, "data_uptr": 1}


async def invalidate(client, file, memory, **fields):
    """The number of entries in the answer."""
    cmd = uapi.new("iommu_hwpt_invalidate", size=32, **fields)
    address = memory.write(0, bytes(ffi.buffer(cmd)))
    try:
        await client.ioctl(file, uapi.IOMMU_HWPT_INVALIDATE, address)
    finally:
        left = int.from_bytes(memory[24:28], "little")
        assert left == 0, "no entry was done"


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("EOPNOTSUPP", GOOD | {"__reserved": 1, "entry_len": 0}),
        ("EINVAL", GOOD | {"data_uptr": 0}),
        ("EINVAL", GOOD | {"entry_len": 0}),
        ("EINVAL", GOOD | {"entry_len": 4097}),
        ("EINVAL", GOOD | {"entry_num": 524289}),
        ("ENOENT", GOOD | {"entry_num": 524288, "entry_len": 4096}),
        ("ENOENT", GOOD | {"entry_num": 0, "entry_len": 0, "data_uptr": 0}),
        ("EINVAL", GOOD | {"hwpt_id": 1}),
    ],
)
async def test_errors_are_answered_with_no_entry_done(client, file, memory, name, fields):
    assert await client.ioas_alloc(file) == 1
    with refused(name):
        await invalidate(client, file, memory, **{"hwpt_id": 9999} | fields)


async def test_an_answer_that_cannot_be_written_is_efault(client, file, memory):
    cmd = uapi.new("iommu_hwpt_invalidate", size=32, hwpt_id=9999)
    memory.write(0, bytes(ffi.buffer(cmd)))
    with refused("EFAULT"):
        await client.ioctl(file, uapi.IOMMU_HWPT_INVALIDATE, memory.protect(0, mmap.PROT_READ))
