"""How the structure of an ioctl is read, the same for every row of the tables."""

import itertools

import pytest

from iommufs import tables, uapi
from iommufs.tables import Payload
from tests.contract.client import PAGE, Memory, ProcessClient, refused

ROWS = list(tables.IOMMUFD.values())
NAMES = {getattr(uapi, name): name for name in dir(uapi) if name.startswith("IOMMU_")}
# From the oracle probe, section dispatch: the errno of each ioctl with a structure of zeros.
OF_ZEROS = {
    "IOMMU_DESTROY": "ENOENT",
    "IOMMU_IOAS_ALLOW_IOVAS": "ENOENT",
    "IOMMU_IOAS_COPY": "EINVAL",
    "IOMMU_IOAS_IOVA_RANGES": "ENOENT",
    "IOMMU_IOAS_MAP": "EINVAL",
    "IOMMU_IOAS_UNMAP": "ENOENT",
    "IOMMU_VFIO_IOAS": "ENODEV",
    "IOMMU_HWPT_ALLOC": "ENOENT",
    "IOMMU_GET_HW_INFO": "ENOENT",
    "IOMMU_HWPT_SET_DIRTY_TRACKING": "ENOENT",
    "IOMMU_HWPT_GET_DIRTY_BITMAP": "ENOENT",
    "IOMMU_HWPT_INVALIDATE": "ENOENT",
    "IOMMU_IOAS_MAP_FILE": "EINVAL",
    "IOMMU_VIOMMU_ALLOC": "EOPNOTSUPP",
    "IOMMU_VDEVICE_ALLOC": "ENOENT",
    "IOMMU_VEVENTQ_ALLOC": "EOPNOTSUPP",
    "IOMMU_HW_QUEUE_ALLOC": "EOPNOTSUPP",
    "IOMMU_IOAS_NOIOMMU_GET_PA": "EOPNOTSUPP",
}
REFUSED = [row for row in ROWS if NAMES[row.number] in OF_ZEROS]


def name_of(row):
    return NAMES[row.number]


def sized(size: int, length: int) -> bytes:
    return size.to_bytes(4, "little") + bytes(length - 4)


def test_the_table_is_complete():
    numbers = [number & 0xFF for number in tables.IOMMUFD]
    assert numbers == list(range(tables.IOMMUFD_FIRST_NR, tables.IOMMUFD_LAST_NR + 1))
    assert all(row.payload is Payload.SIZED for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=name_of)
async def test_a_size_below_the_minimum_is_einval(client, file, memory, row):
    for size in range(row.min_size):
        with refused("EINVAL"):
            await client.ioctl(file, row.number, memory.write(0, sized(size, PAGE)))


@pytest.mark.parametrize("row", REFUSED, ids=name_of)
async def test_every_size_with_a_tail_of_zeros_reaches_the_handler(client, file, memory, row):
    for size in [*range(row.min_size, row.size + 9), PAGE, PAGE + 1, 9 * PAGE]:
        with refused(OF_ZEROS[name_of(row)]):
            await client.ioctl(file, row.number, memory.write(0, sized(size, 10 * PAGE)))


@pytest.mark.parametrize("row", ROWS, ids=name_of)
async def test_a_tail_that_is_not_zero_is_e2big(client, file, memory, row):
    for size, at in [(row.size + 1, row.size), (200, 199), (5 * PAGE, 5 * PAGE - 1)]:
        data = bytearray(sized(size, 6 * PAGE))
        data[at] = 1
        with refused("E2BIG"):
            await client.ioctl(file, row.number, memory.write(0, bytes(data)))


@pytest.mark.parametrize("row", REFUSED, ids=name_of)
async def test_what_follows_the_size_is_not_read(client, file, memory, row):
    memory.protect(1, 0)
    for size in (row.min_size, row.size):
        at = PAGE - size
        with refused(OF_ZEROS[name_of(row)]):
            await client.ioctl(file, row.number, memory.write(at, sized(size, size)))


@pytest.mark.parametrize("row", ROWS, ids=name_of)
async def test_a_structure_that_runs_into_a_hole_is_efault(client, file, memory, row):
    memory.protect(1, 0)
    for size in (row.size, row.size + 8, PAGE):
        at = PAGE - row.min_size + 4
        with refused("EFAULT"):
            await client.ioctl(file, row.number, memory.write(at, sized(size, PAGE - at)))


@pytest.mark.parametrize("row", ROWS, ids=name_of)
async def test_a_bad_pointer_is_efault(client, file, memory, row):
    hole = memory.protect(1, 0)
    for arg in (0, hole, hole - 2, 0xFFFF_8000_0000_0000, 2**64 - 1):
        with refused("EFAULT"):
            await client.ioctl(file, row.number, arg)


async def test_a_tail_is_judged_up_to_its_first_fault(client, file, memory):
    row = tables.IOMMUFD[uapi.IOMMU_DESTROY]
    memory.protect(2, 0)
    data = bytearray(sized(4 * PAGE, 2 * PAGE))
    with refused("EFAULT"):
        await client.ioctl(file, row.number, memory.write(0, bytes(data)))
    data[-1] = 1
    with refused("E2BIG"):
        await client.ioctl(file, row.number, memory.write(0, bytes(data)))


async def test_a_size_past_the_end_of_user_addresses_is_efault(client, file, memory):
    data = bytearray(sized(2**32 - 1, PAGE))
    data[-1] = 1
    address = memory.write(0, bytes(data))
    beyond = address + 2**32 - 1 > 0x7FFF_FFFF_F000
    with refused("EFAULT" if beyond else "E2BIG"):
        await client.ioctl(file, uapi.IOMMU_DESTROY, address)


async def test_a_size_has_no_upper_limit(client, file):
    memory = Memory(4096)
    size = memory.length
    address = memory.write(0, sized(size, PAGE))
    with refused("ENOENT"):
        await client.ioctl(file, uapi.IOMMU_DESTROY, address)
    memory.write(size - 1, b"\x01")
    with refused("E2BIG"):
        await client.ioctl(file, uapi.IOMMU_DESTROY, address)
    memory.free()


async def test_an_unknown_number_in_the_table_is_efault_before_it_is_enotty(client, file, memory):
    good = memory.write(0, sized(8, PAGE))
    for number in (0x7881, 0xC00C3B81, 0x3B81 | 1 << 16):
        with refused("EFAULT"):
            await client.ioctl(file, number, 0)
        with refused("ENOTTY"):
            await client.ioctl(file, number, good)


async def test_a_number_outside_of_the_table_is_enotty_unread(client, file):
    for number in (0x3B00, 0x3B7F, 0x3B96, 0x3B9F, 0x3BA0, 0x3BA1, 0x3BFF, 0x3B60, 0x3B73):
        with refused("ENOTTY"):
            await client.ioctl(file, number, 0)


async def test_test_ops_extend_the_table(memory):
    client = ProcessClient(test_ops=True)
    file = await client.open()
    good = memory.write(0, sized(8, PAGE))
    for number, arg in itertools.product((0x3B96, 0x3B9F), (0, good)):
        with refused("ENOTTY" if arg else "EFAULT"):
            await client.ioctl(file, number, arg)
    with refused("EINVAL"):
        await client.ioctl(file, uapi.IOMMU_TEST_CMD, good)
    with refused("EOPNOTSUPP"):
        await client.ioctl(file, uapi.IOMMU_TEST_CMD, memory.write(0, sized(72, PAGE)))
    with refused("ENOTTY"):
        await client.ioctl(file, 0x3BA1, 0)
    await client.close_all()


async def test_bytes_that_the_client_does_not_have_are_not_written(client, file, memory):
    ioas = await client.ioas_alloc(file)
    for size in (12, 13, 16, 64):
        address = memory.write(0, sized(size, 64) + b"\xaa" * 64)
        await client.ioctl(file, uapi.IOMMU_IOAS_ALLOC, address)
        ioas += 1
        assert memory[0:12] == bytes([size, 0, 0, 0] + [0] * 4 + [ioas, 0, 0, 0])
        assert memory[12:128] == bytes(52) + b"\xaa" * 64
