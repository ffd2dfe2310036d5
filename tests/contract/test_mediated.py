"""Devices without an IOMMU: what their models do with client memory; source: iommufd's device.c."""

import pytest
import trio
import trio.testing

from iommufs import uapi
from iommufs._native import ffi
from iommufs.iommufd.iommu import IommuGroup
from iommufs.vfio.device import DevSet
from iommufs.vfio.group import VfioGroup
from iommufs.vfio.mediated import MediatedDevice, MediatedFunction
from iommufs.vfio.model import Bar, Description, DmaError, Mediated, Model
from tests.contract.client import PAGE, refused

UUID = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001"
BASE = 0x100000


class Pinning(Model):
    """Pins a page for each write of its number to register 0; lets go when told, if it is good.

    Reads fail.
    """

    good = True

    def describe(self):
        return Description(
            vendor=1, device=2, class_code=0, bars={0: Bar(16, io=True)}, config=bytes(64),
            mediated=Mediated("pinning", "1", "Pins"),
        )  # fmt: skip

    def open(self):
        self.pins = []
        self.told = []

    def write(self, region, offset, size, value):
        pin = (BASE + value * PAGE, PAGE)
        self.host.pin(*pin, write=offset == 4)
        self.pins.append(pin)

    def read(self, region, offset, size):
        raise RuntimeError("nothing to read")

    def dma_unmap(self, iova, length):
        self.told.append((iova, length))
        if self.good:
            for pin in [pin for pin in self.pins if iova <= pin[0] < iova + length]:
                self.host.unpin(*pin)
                self.pins.remove(pin)


class Setup:
    def __init__(self, vfio, memory):
        self.vfio, self.memory = vfio, memory

    async def make(self):
        self.function = MediatedFunction(UUID, self.make_model, spawn=self.vfio.spawn)
        group = VfioGroup(IommuGroup(1000), self.vfio.files)
        index = len(self.vfio.devices)
        device = MediatedDevice(index, self.function, DevSet(), group, self.vfio.files)
        self.vfio.devices.append(device)
        self.ctx, fd = self.vfio.iommufd()
        self.df = await self.vfio.bound(index, fd)
        self.ioas = await self.vfio.ioas(self.ctx)
        return self

    @staticmethod
    def make_model(host):
        return Pinning(host, {})

    @property
    def model(self):
        return self.function.model

    async def iommufd(self, number, struct, **fields):
        cmd = uapi.new(struct, size=uapi.sizeof(struct), **fields)
        await self.vfio.ioctl(self.ctx, number, int(ffi.cast("uintptr_t", cmd)))

    async def map(self, pages=4, flags=7, iova=BASE):
        await self.iommufd(
            uapi.IOMMU_IOAS_MAP, "iommu_ioas_map", ioas_id=self.ioas, flags=flags,
            user_va=self.memory.address, length=pages * PAGE, iova=iova,
        )  # fmt: skip

    async def unmap(self, iova=BASE, length=4 * PAGE):
        await self.iommufd(
            uapi.IOMMU_IOAS_UNMAP, "iommu_ioas_unmap", ioas_id=self.ioas, iova=iova, length=length
        )

    async def pin(self, page, at=0):
        await self.vfio.pwrite(self.df, page.to_bytes(4, "little"), at)


@pytest.fixture
async def setup(vfio, memory):
    return await Setup(vfio, memory).make()


async def test_memory_is_reached_through_the_access(setup):
    await setup.map()
    await setup.vfio.attach(setup.df, setup.ioas)
    setup.memory.write(PAGE - 2, b"abcd")
    assert await setup.function.host.dma_read(BASE + PAGE - 2, 4) == b"abcd"
    await setup.function.host.dma_write(BASE + 3, b"efg")
    assert setup.memory[3:6] == b"efg"
    assert await setup.function.host.dma_read_spans([(BASE + 3, 3), (BASE + 4, 1)]) == [
        b"efg",
        b"f",
    ]
    assert await setup.function.host.dma_write_spans([(BASE, b"x")]) == []


@pytest.mark.logs("DMA refused")
async def test_refusals_say_why(setup):
    host = setup.function.host
    with pytest.raises(DmaError, match="unmapped"):
        await host.dma_read(BASE, 4)
    await setup.vfio.attach(setup.df, setup.ioas)
    await setup.map(flags=5)
    with pytest.raises(DmaError, match="permission"):
        await host.dma_write(BASE, b"x")
    with pytest.raises(DmaError, match="permission"):
        host.pin(BASE, PAGE, write=True)
    host.pin(BASE, PAGE)
    host.unpin(BASE, PAGE)
    (refused,) = await host.dma_write_spans([(BASE, b"x")])
    assert refused.reason == "permission"


async def test_an_unmap_tells_the_model_which_lets_go(setup):
    await setup.map()
    await setup.vfio.attach(setup.df, setup.ioas)
    await setup.pin(1)
    await setup.pin(3)
    await setup.unmap()
    assert setup.model.pins == []
    assert setup.model.told == [(BASE, 4 * PAGE)]


async def test_without_pins_nobody_is_told(setup):
    await setup.map()
    await setup.vfio.attach(setup.df, setup.ioas)
    await setup.unmap()
    assert setup.model.told == []


@pytest.mark.logs("kept pins")
async def test_a_model_that_does_not_let_go_makes_the_unmap_fail_and_nothing_else(setup):
    setup.model.good = False
    await setup.map()
    await setup.vfio.attach(setup.df, setup.ioas)
    await setup.pin(1)
    with refused("EDEADLK"):
        await setup.unmap()
    setup.vfio.close(setup.df)
    await setup.unmap()


@pytest.mark.parametrize("how", ["detach", "move", "close"])
async def test_leaving_the_address_space_drops_all_pins(setup, how):
    await setup.map()
    await setup.vfio.attach(setup.df, setup.ioas)
    await setup.pin(1)
    await setup.pin(1, at=4)
    if how == "detach":
        await setup.vfio.detach(setup.df)
    elif how == "move":
        await setup.vfio.attach(setup.df, await setup.vfio.ioas(setup.ctx))
    else:
        setup.vfio.close(setup.df)
    assert setup.model.pins == []
    await setup.unmap()


async def test_it_is_not_attached_to_what_is_not_whole_pages(setup):
    await setup.map(iova=BASE + 1)
    with refused("EADDRINUSE"):
        await setup.vfio.attach(setup.df, setup.ioas)


@pytest.mark.logs("a device model failed")
async def test_a_model_that_fails_is_eio_or_lets_nobody_wait(setup):
    setup.model.dma_unmap = lambda iova, length: 1 / 0
    await setup.map()
    await setup.vfio.attach(setup.df, setup.ioas)
    with refused("EIO"):
        await setup.vfio.pread(setup.df, 4, 0)
    await setup.pin(1)
    with refused("EDEADLK"):
        await setup.unmap()
    setup.model.dma_unmap = lambda iova, length: Pinning.dma_unmap(setup.model, iova, length)
    await setup.unmap()


async def test_tasks_end_with_the_client(setup):
    ended = []

    async def forever():
        try:
            await trio.sleep_forever()
        finally:
            ended.append(True)

    setup.function.host.start(forever)
    await trio.testing.wait_all_tasks_blocked()
    setup.vfio.close(setup.df)
    await trio.testing.wait_all_tasks_blocked()
    assert ended == [True]
