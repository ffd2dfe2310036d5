"""VFIO_IOMMU_GET_INFO on an iommufd; every byte is the oracle's."""

import mmap
import struct

import pytest

from iommufs import uapi
from tests.contract.client import PAGE, U64_MAX, refused
from tests.contract.test_option import HUGE_PAGES, SET, option
from tests.contract.test_vfio_ioas import SET as CHOOSE
from tests.contract.test_vfio_ioas import vfio_ioas

GET_INFO = uapi.VFIO_IOMMU_GET_INFO
FILL = b"\xaa"

# One range in an IOAS without a domain, two around the MSI window with one.
WITHOUT = struct.pack("<IIQ", 72, 3, 2**64 - PAGE)
WITH = struct.pack("<IIQ", 88, 3, 0x40201000)
RANGE = struct.pack("<QQ", 0, U64_MAX)
RANGES = struct.pack("<QQQQ", 0, 0xFEDFFFFF, 0xFEF00000, 2**48 - 1)


def dma_avail(next):
    return struct.pack("<HHII", 3, 1, next, 2**32 - 1)


def iova_range(n):
    return struct.pack("<HHIII", 1, 1, 0, n, 0)


def answer(argsz, head, ranges):
    """What the client has afterwards in a buffer of FILL, by the order in which it is written."""
    out = bytearray(FILL * 160)

    def put(at, data):
        out[at : at + len(data)] = data

    n = len(ranges) // 16
    total = 56 + len(ranges)
    if argsz < 16:
        put(0, struct.pack("<I", argsz))
        return bytes(out)
    put(0, (head + struct.pack("<II", 24 if argsz >= total else 0, 0))[:argsz])
    if argsz >= 36:
        put(24, dma_avail(40 if argsz >= 40 else 0))
    for i in range(n):
        if argsz >= 72 + 16 * i:
            put(56 + 16 * i, ranges[16 * i : 16 * i + 16])
    if argsz >= total:
        put(40, iova_range(n))
    return bytes(out)


@pytest.fixture
async def chosen(client, file, ioas):
    await vfio_ioas(client, file, CHOOSE, ioas)
    return ioas


async def info(client, file, memory, argsz=160):
    address = memory.write(0, struct.pack("<I", argsz) + FILL * 156)
    await client.ioctl(file, GET_INFO, address)
    return memory[0:160]


@pytest.mark.parametrize("small_pages", [False, True])
async def test_every_argsz(client, file, chosen, domains, memory, small_pages):
    if small_pages:
        await option(client, file, HUGE_PAGES, SET, 0, object_id=chosen)
    head, ranges = (WITH, RANGES) if domains else (WITHOUT, RANGE)
    for argsz in [*range(16, 100), PAGE, 2**31, 2**32 - 1]:
        assert await info(client, file, memory, argsz) == answer(argsz, head, ranges), argsz
    for argsz in range(16):
        with refused("EINVAL"):
            await info(client, file, memory, argsz)
        assert memory[0:160] == answer(argsz, head, ranges)


async def test_neither_mappings_nor_allowed_ranges_count(client, file, memory):
    ioas = await client.ioas_alloc(file)
    await vfio_ioas(client, file, CHOOSE, ioas)
    await client.map(file, ioas, memory.address, PAGE, 0x10000)
    address = memory.write(PAGE, struct.pack("<QQ", 0x10000, 0x1FFFF))
    await client.call(
        file, uapi.IOMMU_IOAS_ALLOW_IOVAS, "iommu_ioas_allow_iovas",
        ioas_id=ioas, num_iovas=1, allowed_iovas=address,
    )  # fmt: skip
    assert await info(client, file, memory) == answer(160, WITHOUT, RANGE)


async def test_a_device_comes_and_goes(client, file, memory):
    ioas = await client.ioas_alloc(file)
    await vfio_ioas(client, file, CHOOSE, ioas)
    bound = await client.bind(file, 0)
    for _ in range(2):
        assert await info(client, file, memory) == answer(160, WITHOUT, RANGE)
        await bound.attach(ioas)
        assert await info(client, file, memory) == answer(160, WITH, RANGES)
        await bound.detach()


@pytest.mark.parametrize(
    ("room", "argsz", "written"),
    [
        (16, 24, WITHOUT),
        (23, 24, WITHOUT + bytes(7)),
        (24, 72, b""),
        (40, 72, FILL * 24 + dma_avail(0)),
        (56, 72, FILL * 24 + dma_avail(0)),
        (64, 72, FILL * 24 + dma_avail(0) + FILL * 20 + bytes(8)),
        (71, 72, FILL * 24 + dma_avail(0) + FILL * 20 + RANGE[:15]),
    ],
)
async def test_memory_that_ends_too_early_is_efault(client, file, memory, room, argsz, written):
    """Entries come first, then the head of their capability, the structure last of all."""
    await vfio_ioas(client, file, CHOOSE, await client.ioas_alloc(file))
    memory.protect(1, 0)
    at = PAGE - room
    with refused("EFAULT"):
        await client.ioctl(
            file, GET_INFO, memory.write(at, struct.pack("<I", argsz) + FILL * (room - 4))
        )
    expected = bytearray(written + FILL * (room - len(written)))
    if not written.startswith(WITHOUT[:4]):
        expected[:4] = struct.pack("<I", argsz)
    assert memory[at:PAGE] == expected


async def test_memory_that_cannot_be_written_is_efault(client, file, memory):
    await vfio_ioas(client, file, CHOOSE, await client.ioas_alloc(file))
    memory.write(0, struct.pack("<I", 16))
    with refused("EFAULT"):
        await client.ioctl(file, GET_INFO, memory.protect(0, mmap.PROT_READ))
