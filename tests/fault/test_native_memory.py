"""Calls with the nth allocation of the native core failing, for n = 1, 2, 3 … until none does.

A call that fails so has done nothing.
"""

import errno

import pytest

from iommufs._native import lib
from tests.contract.client import PAGE, ProcessClient
from tests.fault.scene import CASES, Scene, errno_of


@pytest.fixture
async def scene():
    scene = Scene(ProcessClient())
    await scene.open()
    yield scene
    lib.iofs_fail_allocation(0)
    await scene.close()


async def nothing(scene):
    pass


async def detach(scene):
    await scene.bound.detach()


async def bind_siblings(scene):
    scene.first, scene.second = [await scene.client.bind(scene.file, i) for i in (2, 3)]
    await scene.first.attach(scene.ioas)
    await scene.second.attach(scene.ioas)


async def make_page_table(scene):
    scene.hwpt = await scene.client.hwpt_alloc(scene.file, scene.bound.devid, scene.ioas)


async def map_far_away(scene):
    address = scene.memory.address
    await scene.client.map(scene.file, scene.ioas, address, 4 * PAGE, (1 << 46) - 2 * PAGE)


# What comes before, and the call.
CALLS = {
    **{name: (nothing, lambda scene, name=name: scene.call(name)) for name in CASES},
    "map far away": (nothing, map_far_away),
    "attach": (detach, lambda scene: scene.bound.attach(scene.ioas)),
    "replace": (nothing, lambda scene: scene.bound.attach(scene.spare)),
    "replace of siblings": (bind_siblings, lambda scene: scene.second.attach(scene.spare)),
    "replace by a page table": (make_page_table, lambda scene: scene.bound.attach(scene.hwpt)),
}


@pytest.mark.parametrize("name", CALLS)
async def test_the_nth_allocation_fails(scene, name):
    prepare, call = CALLS[name]
    await prepare(scene)
    for n in range(1, 500):
        before = scene.state()
        lib.iofs_fail_allocation(n)
        result = await errno_of(call(scene))
        if lib.iofs_fail_allocation(0):
            assert result == 0
            return
        if result:
            assert result == errno.ENOMEM
            assert scene.state() == before, f"something is left by failure {n}"
        else:  # it could do without: begin anew
            await scene.client.close_all()
            await scene.open()
            await prepare(scene)
    raise AssertionError("allocations never end")
