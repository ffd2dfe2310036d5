"""Which calls the readers of the transport finish without Python, and which they do not.

That both answer the same is what all other tests here say, which run against both.
"""

import errno
import os
import subprocess
import sys

import pytest

from iommufs import uapi
from iommufs._native import ffi
from tests.contract.client import FIXED, PAGE, RW, U64_MAX, Memory, refused
from tests.contract.mount_client import ROOT, MountClient

pytestmark = pytest.mark.mount

TRIGGER = uapi.VFIO_IRQ_SET_DATA_NONE | uapi.VFIO_IRQ_SET_ACTION_TRIGGER
SET_EVENTFD = uapi.VFIO_IRQ_SET_DATA_EVENTFD | uapi.VFIO_IRQ_SET_ACTION_TRIGGER
MSI, ERR = 1, 3
CONFIG = 7 << 40


@pytest.fixture
async def mounted(server):
    """A client of the mount; after the test nothing that it made is left."""
    before = server.statistics()
    client = MountClient(server.path)
    yield client
    await client.close_all()
    assert server.statistics() == before


@pytest.fixture
def by_readers(server):
    """Counts the ioctls of a block that the readers finish."""

    class Count:
        def __enter__(self):
            self._before = server.requests()["ioctls_by_readers"]
            return self

        def __exit__(self, *_):
            self.n = server.requests()["ioctls_by_readers"] - self._before

    return Count()


async def struct_ioctl(client, file, number, struct, argsz=None, **fields):
    cmd = uapi.new(struct, argsz=argsz or uapi.sizeof(struct), **fields)
    await client.ioctl(file, number, int(ffi.cast("uintptr_t", cmd)))
    return cmd


async def space(client, memory):
    """A file and an IOAS whose source of memory is known."""
    file = await client.open()
    ioas = await client.ioas_alloc(file)
    await client.map(file, ioas, memory.address, PAGE, 0x1000)
    return file, ioas


async def test_maps_copies_and_unmaps(mounted, memory, by_readers):
    file, ioas = await space(mounted, memory)
    with by_readers:
        assert await mounted.map(file, ioas, memory.address, PAGE, 0x10000) == 0x10000
        await mounted.map(file, ioas, memory.address, PAGE)
        cmd = await mounted.call(
            file, uapi.IOMMU_IOAS_COPY, "iommu_ioas_copy", src_ioas_id=ioas, dst_ioas_id=ioas,
            length=PAGE, src_iova=0x1000, dst_iova=0x20000, flags=RW | FIXED,
        )  # fmt: skip
        assert cmd.dst_iova == 0x20000
        ranges = ffi.new("struct iommu_iova_range[8]")
        cmd = await mounted.call(
            file, uapi.IOMMU_IOAS_IOVA_RANGES, "iommu_ioas_iova_ranges", ioas_id=ioas,
            num_iovas=8, allowed_iovas=int(ffi.cast("uintptr_t", ranges)),
        )  # fmt: skip
        assert (cmd.num_iovas, cmd.out_iova_alignment) == (1, 1)
        assert (ranges[0].start, ranges[0].last) == (0, U64_MAX)
        assert await mounted.unmap(file, ioas, 0x10000, PAGE) == PAGE
        assert await mounted.unmap(file, ioas, 0, U64_MAX) == 3 * PAGE
        assert await mounted.unmap(file, ioas, 0, U64_MAX) == 0
    assert by_readers.n == 7


async def test_a_payload_that_lies_in_two_pages(mounted, memory, by_readers):
    file, ioas = await space(mounted, memory)
    cmd = uapi.new(
        "iommu_ioas_map", size=uapi.sizeof("iommu_ioas_map"), flags=RW | FIXED, ioas_id=ioas,
        user_va=memory.address, length=PAGE, iova=0x10000,
    )  # fmt: skip
    with by_readers:
        for inside in (2, 20):
            cmd.iova += PAGE
            address = memory.write(PAGE - inside, bytes(ffi.buffer(cmd)))
            await mounted.ioctl(file, uapi.IOMMU_IOAS_MAP, address)
    assert by_readers.n == 2


async def test_with_a_device_attached_too(mounted, memory, by_readers):
    file, ioas = await space(mounted, memory)
    bound = await mounted.bind(file, 0)
    await bound.attach(ioas)
    with by_readers:
        await mounted.map(file, ioas, memory.address, PAGE, 0x10000)
        await mounted.unmap(file, ioas, 0x10000, PAGE)
    assert by_readers.n == 2


async def vfio_space(client, memory):
    """A file whose container calls have an IOAS, and whose source of memory is known."""
    file, ioas = await space(client, memory)
    await client.call(
        file, uapi.IOMMU_VFIO_IOAS, "iommu_vfio_ioas", ioas_id=ioas, op=uapi.IOMMU_VFIO_IOAS_SET
    )
    return file, ioas


async def map_dma(client, file, address, iova, length=PAGE, flags=3):
    fields = {"flags": flags, "vaddr": address, "iova": iova, "size": length}
    await struct_ioctl(client, file, uapi.VFIO_IOMMU_MAP_DMA, "vfio_iommu_type1_dma_map", **fields)


async def unmap_dma(client, file, iova, length, flags=0):
    """The errno, 0, and the size that was written."""
    cmd = uapi.new(
        "vfio_iommu_type1_dma_unmap", argsz=uapi.sizeof("vfio_iommu_type1_dma_unmap"),
        flags=flags, iova=iova, size=length,
    )  # fmt: skip
    try:
        address = int(ffi.cast("uintptr_t", cmd))
        await client.ioctl(file, uapi.VFIO_IOMMU_UNMAP_DMA, address)
    except OSError as error:
        return error.errno, cmd.size
    return 0, cmd.size


async def test_maps_and_unmaps_of_a_container(mounted, memory, by_readers):
    file, ioas = await vfio_space(mounted, memory)
    with by_readers:
        await map_dma(mounted, file, memory.address, 0x10000)
        await map_dma(mounted, file, memory.address, 0x20000, 4 * PAGE, flags=1)
        assert await unmap_dma(mounted, file, 0x20000, 0x10000) == (0, 4 * PAGE)
        # The second area sticks out: the first is gone, and said to be.
        await map_dma(mounted, file, memory.address, 0x20000, 2 * PAGE)
        assert await unmap_dma(mounted, file, 0x10000, 0x11000) == (errno.ENOENT, PAGE)
    assert by_readers.n == 5
    assert await mounted.unmap(file, ioas, 0, U64_MAX) == 3 * PAGE


async def test_what_else_a_container_is_asked_is_left_to_python(mounted, memory, by_readers):
    file, _ = await vfio_space(mounted, memory)
    with by_readers:
        await map_dma(mounted, file, memory.address, 0x30000, flags=0)
        assert await unmap_dma(mounted, file, 0x40000, PAGE) == (0, 0)
        assert await unmap_dma(mounted, file, 0, 0, flags=uapi.VFIO_DMA_UNMAP_FLAG_ALL)
        await mounted.ioctl(file, uapi.VFIO_SET_IOMMU, uapi.VFIO_TYPE1_IOMMU)
    with by_readers:
        await map_dma(mounted, file, memory.address, 0x10000, 2 * PAGE)
    assert by_readers.n == 1
    with by_readers:
        assert await unmap_dma(mounted, file, 0x10000, PAGE) == (0, PAGE)  # splits the mapping
        await mounted.call(
            file, uapi.IOMMU_VFIO_IOAS, "iommu_vfio_ioas", op=uapi.IOMMU_VFIO_IOAS_CLEAR
        )
        with refused("ENODEV"):
            await map_dma(mounted, file, memory.address, 0x10000)
    assert by_readers.n == 0
    with refused("ENOENT"):  # it has no number
        await mounted.map(file, 0, memory.address, PAGE, 0x50000)


async def test_what_fails_is_left_to_python(mounted, memory, by_readers):
    file, ioas = await space(mounted, memory)
    with by_readers:
        with refused("EEXIST"):
            await mounted.map(file, ioas, memory.address, PAGE, 0x1000)
        with refused("ENOENT"):
            await mounted.map(file, ioas + 1, memory.address, PAGE, 0x10000)
        with refused("ENOENT"):
            await mounted.unmap(file, ioas, 0x10000, PAGE)
        with refused("EOPNOTSUPP"):
            await mounted.map(file, ioas, memory.address, PAGE, 0x10000, flags=1 << 31)
    assert by_readers.n == 0


async def test_the_first_map_of_a_process_is_left_to_python(mounted, memory, by_readers):
    file = await mounted.open()
    ioas = await mounted.ioas_alloc(file)
    with by_readers:
        for iova in (0x1000, 0x2000):
            await mounted.map(file, ioas, memory.address, PAGE, iova)
    assert by_readers.n == 1


async def test_nothing_is_left_of_a_destroyed_ioas(mounted, memory):
    file, ioas = await space(mounted, memory)
    await mounted.destroy(file, ioas)
    with refused("ENOENT"):
        await mounted.map(file, ioas, memory.address, PAGE, 0x2000)
    assert await mounted.ioas_alloc(file) == ioas
    with refused("ENOENT"):
        await mounted.unmap(file, ioas, 0x1000, PAGE)


MAP_AGAIN = """
import sys
from iommufs import uapi
from iommufs._native import ffi
from tests.contract.client import FIXED, PAGE, RW, Memory
from tests.contract.mount_client import ioctl
file, ioas = int(sys.argv[1]), int(sys.argv[2])
memory = Memory(1)
for iova in (0x10000, 0x20000):
    cmd = uapi.new("iommu_ioas_map", size=uapi.sizeof("iommu_ioas_map"), flags=RW | FIXED,
                   ioas_id=ioas, user_va=memory.address, length=PAGE, iova=iova)
    ioctl(file, uapi.IOMMU_IOAS_MAP, int(ffi.cast("uintptr_t", cmd)))
"""


async def test_another_process_has_memory_of_its_own(mounted, memory, by_readers):
    file, ioas = await space(mounted, memory)
    with by_readers:
        subprocess.run(
            [sys.executable, "-c", MAP_AGAIN, str(file), str(ioas)],
            pass_fds=[file], check=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert await mounted.unmap(file, ioas, 0x10000, 0x20000) == 2 * PAGE
    assert by_readers.n == 2  # its second map, and the unmap


async def test_what_a_device_is(mounted, by_readers):
    device = await mounted.bind(await mounted.open(), 0)
    with by_readers:
        info = await struct_ioctl(mounted, device.fd, uapi.VFIO_DEVICE_GET_INFO, "vfio_device_info")
        for index in range(8):
            number = uapi.VFIO_DEVICE_GET_REGION_INFO
            region = await struct_ioctl(mounted, device.fd, number, "vfio_region_info", index=index)
            assert (region.index, region.offset) == (index, index << 40)
        for index in range(info.num_irqs):
            number = uapi.VFIO_DEVICE_GET_IRQ_INFO
            irq = await struct_ioctl(mounted, device.fd, number, "vfio_irq_info", index=index)
            assert irq.index == index
    assert by_readers.n == 1 + 8 + 5


async def test_config_space_is_read_without_python(mounted, server):
    device = await mounted.bind(await mounted.open(), 0)
    before = server.requests()
    assert os.pread(device.fd, 4, CONFIG) == b"\x34\x12\xe8\x11"
    with refused("EFAULT"):
        os.pread(device.fd, 4, CONFIG + 0x1000)
    after = server.requests()
    assert after["reads_by_readers"] - before["reads_by_readers"] == 1
    assert after["reads_by_python"] - before["reads_by_python"] == 1


async def set_irqs(client, fd, flags, index, start=0, count=1, data=()):
    size = uapi.sizeof("vfio_irq_set")
    cmd = ffi.new("int32_t[]", [size + 4 * len(data), flags, index, start, count, *data])
    await client.ioctl(fd, uapi.VFIO_DEVICE_SET_IRQS, int(ffi.cast("uintptr_t", cmd)))


@pytest.fixture
def eventfd():
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    yield fd
    os.close(fd)


@pytest.mark.parametrize("index", [MSI, ERR])
async def test_an_interrupt_rung_by_hand(mounted, by_readers, eventfd, index):
    device = await mounted.bind(await mounted.open(), 0)
    await set_irqs(mounted, device.fd, SET_EVENTFD, index, data=[eventfd])
    with by_readers:
        for _ in range(3):
            await set_irqs(mounted, device.fd, TRIGGER, index)
        assert os.eventfd_read(eventfd) == 3
    assert by_readers.n == 3
    with by_readers:
        await set_irqs(mounted, device.fd, TRIGGER, index, count=0)  # off
        with refused("EINVAL"):
            await set_irqs(mounted, device.fd, TRIGGER, index)
    assert by_readers.n == 0


async def test_after_the_device_is_closed_nothing_answers_for_it(mounted, server):
    device = await mounted.bind(await mounted.open(), 0)
    other = mounted._add("dev/vfio/devices/vfio0")
    number, struct = uapi.VFIO_DEVICE_GET_INFO, "vfio_device_info"
    await struct_ioctl(mounted, device.fd, number, struct)
    with refused("EINVAL"):  # not bound through this one
        await struct_ioctl(mounted, other, number, struct)


async def test_an_answer_that_cannot_be_written_leaves_the_mapping(mounted, memory, by_readers):
    file, ioas = await space(mounted, memory)
    page = Memory(1)
    cmd = uapi.new(
        "iommu_ioas_map", size=uapi.sizeof("iommu_ioas_map"), flags=RW | FIXED, ioas_id=ioas,
        user_va=memory.address, length=PAGE, iova=0x10000,
    )  # fmt: skip
    address = page.write(0, bytes(ffi.buffer(cmd)))
    page.protect(0, 1)
    with by_readers, refused("EFAULT"):
        await mounted.ioctl(file, uapi.IOMMU_IOAS_MAP, address)
    assert by_readers.n == 1
    assert await mounted.unmap(file, ioas, 0x10000, PAGE) == PAGE
    page.free()
