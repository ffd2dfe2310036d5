"""DMA of a device through the page table that it is attached to; oracle probe, section edu-dma."""

import pytest
import trio
import trio.testing

from iommufs import uapi
from iommufs._native import ffi
from iommufs.iommufd.ctx import statistics
from iommufs.vfio.model import DmaError
from tests.contract.vfio_client import CONFIG, EDU, NIC0, NIC1

SOURCE, TARGET, BUFFER = 0x100000, 0x200000, 0x40000
ON, MASTER_OFF = b"\x06\x00", b"\x02\x00"
READ_ONLY, READ_WRITE = 5, 7
PAGE = 4096


class Setup:
    """An edu device attached to an IOAS, and pages of this process mapped there."""

    def __init__(self, vfio, ctx, ioas, df, memory):
        self.vfio, self.ctx, self.ioas, self.df, self.memory = vfio, ctx, ioas, df, memory

    async def call(self, number, struct, **fields):
        cmd = uapi.new(struct, size=uapi.sizeof(struct), ioas_id=self.ioas, **fields)
        await self.vfio.ioctl(self.ctx, number, int(ffi.cast("uintptr_t", cmd)))

    async def map(self, page, iova, flags=READ_WRITE):
        await self.call(
            uapi.IOMMU_IOAS_MAP, "iommu_ioas_map",
            user_va=self.memory.address + page * PAGE, length=PAGE, iova=iova, flags=flags,
        )  # fmt: skip

    async def unmap(self, iova):
        await self.call(uapi.IOMMU_IOAS_UNMAP, "iommu_ioas_unmap", iova=iova, length=PAGE)

    async def command(self, value):
        await self.vfio.pwrite(self.df, value, CONFIG + 4)

    async def run(self, source, target, count, command):
        """One transfer of edu's engine, waited for as a driver does."""
        for register, value in enumerate((source, target, count, command)):
            await self.vfio.pwrite(self.df, value.to_bytes(8, "little"), 0x80 + 8 * register)
        with trio.fail_after(10):
            while (await self.vfio.pread(self.df, 8, 0x98))[0] & 1:
                await trio.lowlevel.checkpoint()

    async def load(self, iova, count):
        await self.run(iova, BUFFER, count, 1)

    async def store(self, iova, count):
        await self.run(BUFFER, iova, count, 3)


@pytest.fixture
async def setup(vfio, memory):
    ctx, fd = vfio.iommufd()
    ioas = await vfio.ioas(ctx)
    df = await vfio.bound(EDU, fd)
    setup = Setup(vfio, ctx, ioas, df, memory)
    memory.write(0, bytes(i * 7 & 255 for i in range(PAGE)))
    await setup.map(0, SOURCE, READ_ONLY)
    await setup.map(2, TARGET)
    await vfio.attach(df, ioas)
    await setup.command(ON)
    return setup


async def test_a_copy_arrives(setup):
    await setup.load(SOURCE, 256)
    await setup.store(TARGET, 256)
    assert setup.memory[2 * PAGE : 2 * PAGE + 256] == setup.memory[0:256]
    assert setup.memory[2 * PAGE + 256 : 3 * PAGE] == bytes(PAGE - 256)
    assert setup.df.function.counters["dma_bytes"] == 512


async def refused_store(setup, iova):
    before = setup.memory[0 : 3 * PAGE]
    await setup.store(iova, 256)
    assert setup.memory[0 : 3 * PAGE] == before
    assert setup.df.function.refused.total == 1


@pytest.mark.logs("'reason': 'permission'")
async def test_a_read_only_mapping_is_not_written(setup):
    await setup.load(SOURCE + 1, 256)
    await refused_store(setup, SOURCE)


@pytest.mark.logs("'reason': 'unmapped'")
async def test_an_iova_without_a_mapping_is_not_written(setup):
    await setup.load(SOURCE, 256)
    await setup.unmap(TARGET)
    await refused_store(setup, TARGET)


@pytest.mark.logs("'reason': 'not attached'")
async def test_a_device_that_is_not_attached_reaches_nothing(setup):
    await setup.load(SOURCE, 256)
    await setup.vfio.detach(setup.df)
    await refused_store(setup, TARGET)


@pytest.mark.logs("'reason': 'bus master off'")
async def test_without_bus_mastering_nothing_moves(setup):
    await setup.load(SOURCE, 256)
    await setup.command(MASTER_OFF)
    await refused_store(setup, TARGET)
    await setup.command(ON)
    await setup.store(TARGET, 256)
    assert setup.memory[2 * PAGE : 2 * PAGE + 256] == setup.memory[0:256]


@pytest.mark.logs("'reason': 'bus master off'")
async def test_a_device_in_d3hot_reaches_nothing(vfio):
    df = await vfio.bound(NIC0)
    await vfio.pwrite(df, ON, CONFIG + 4)
    await vfio.pwrite(df, b"\x03", CONFIG + 0xCC)
    with pytest.raises(DmaError, match="bus master off"):
        await df.function.host.dma_read(0, 4)


async def test_a_sibling_that_is_attached_is_enough(vfio, memory):
    ctx, fd = vfio.iommufd()
    ioas = await vfio.ioas(ctx)
    first, second = await vfio.bound(NIC0, fd), await vfio.bound(NIC1, fd)
    memory.write(0, b"group")
    await Setup(vfio, ctx, ioas, first, memory).map(0, SOURCE)
    await vfio.attach(first, ioas)
    await vfio.pwrite(second, ON, CONFIG + 4)
    assert await second.function.host.dma_read(SOURCE, 5) == b"group"


@pytest.mark.logs("DMA refused")
async def test_a_device_in_trouble_does_not_fill_the_log(setup, log_lines):
    await setup.command(MASTER_OFF)
    for _ in range(100):
        with pytest.raises(DmaError):
            await setup.df.function.host.dma_read(0, 4)
    assert setup.df.function.refused.total == 100
    counts = [entry["count"] for entry in log_lines if entry["event"] == "DMA refused"]
    assert counts == [*range(1, 9), 16, 32, 64]
    setup.vfio.close(setup.df)
    assert log_lines[-1]["event"] == "DMA refused, in all"
    assert log_lines[-1]["read, bus master off"] == 100
    assert setup.df.function.statistics()["DMA refused"] == {
        "read, bus master off": 100,
        "last": {"iova": 0, "access": "read", "reason": "bus master off"},
    }


async def test_closing_the_device_stops_its_engine_and_leaves_nothing(setup):
    stopped = trio.Event()

    async def engine():
        try:
            await trio.sleep_forever()
        finally:
            stopped.set()

    setup.df.function.host.start(engine)
    await trio.testing.wait_all_tasks_blocked()
    setup.vfio.close(setup.df)
    await stopped.wait()
    assert setup.df.function.iommu_device is None
    assert statistics()["domains"] == 0


@pytest.mark.logs("a device model failed")
async def test_a_task_of_a_model_that_fails_is_reported(setup):
    async def engine():
        raise RuntimeError("out of order")

    setup.df.function.host.start(engine)
    await trio.testing.wait_all_tasks_blocked()
    assert setup.df.function.counters["model_errors"] == 1


@pytest.mark.logs("'reason': '(permission|unmapped)'")
async def test_many_spans_in_one_go(setup):
    host = setup.df.function.host
    nowhere = TARGET + PAGE
    writes = [(TARGET + 8, b"one"), (SOURCE, b"no"), (nowhere, b"no"), (TARGET, b"two")]
    assert [(error.iova, error.reason) for error in await host.dma_write_spans(writes)] == [
        (SOURCE, "permission"),
        (nowhere, "unmapped"),
    ]
    assert setup.memory[2 * PAGE : 2 * PAGE + 11] == b"two".ljust(8, b"\0") + b"one"
    first, refused, last = await host.dma_read_spans([(TARGET, 3), (nowhere, 4), (TARGET + 8, 3)])
    assert (first, last) == (b"two", b"one")
    assert (refused.iova, refused.reason) == (nowhere, "unmapped")
    assert setup.df.function.refused.counts == {
        ("write", "permission"): 1,
        ("write", "unmapped"): 1,
        ("read", "unmapped"): 1,
    }


@pytest.mark.logs("'reason': 'bus master off'")
async def test_no_span_is_moved_without_bus_mastering(setup):
    host = setup.df.function.host
    await setup.command(MASTER_OFF)
    (error,) = await host.dma_write_spans([(TARGET, b"one"), (TARGET + 8, b"two")])
    assert error.reason == "bus master off"
    found = await host.dma_read_spans([(TARGET, 1), (TARGET, 1)])
    assert [error.reason for error in found] == ["bus master off", "bus master off"]
    assert setup.df.function.refused.counts["write", "bus master off"] == 2
    assert setup.memory[2 * PAGE : 2 * PAGE + 11] == bytes(11)
