"""Random writes to /sys by several at once, with clients among them: whatever happens, the tree
tells what there is, and in the end everything can be as at the beginning."""

import contextlib
import os
import random

import pytest
import trio
import trio.testing

from iommufs import machine
from iommufs.errors import UapiError
from iommufs.fuse.attributes import OpenAttribute
from iommufs.fuse.nodes import Dir, Link, lookup, walk
from iommufs.iommufd.ctx import Ctx

SEED = int(os.environ.get("SEED") or random.randrange(1 << 32))
STEPS = int(os.environ.get("STEPS") or 8000) // 20  # each of them looks at the whole tree
WRITERS = 4
DRIVERS = ("vfio-pci", "virtio-pci", "pcieport")
IGB = "0000:05:00.0"


class Writer:
    """Does something at random, again and again; remembers the files that it has open."""

    def __init__(self, made, seed, nursery):
        self.made = made
        self.nursery = nursery
        self.random = random.Random(seed)
        self.files = []
        self.ctx = Ctx()

    def bdf(self):
        known = sorted({*self.made.bus.slots, *self.made.bus.devs})
        return self.random.choice(known)

    async def write(self, path, text):
        try:
            node = lookup(self.made.root, f"sys/{path}")
        except KeyError:
            return

        async def write() -> None:
            with contextlib.suppress(UapiError):
                await OpenAttribute(node).write(0, text.encode())

        # It may wait for a file that this writer has open.
        self.nursery.start_soon(write)

    async def write_to_function(self, name, text):
        link = self.made.root.entries["sys"].entries["bus"].entries["pci"].entries["devices"]
        found = link.entries.get(self.bdf())
        if found is not None:
            await self.write(f"{found.target.removeprefix('../../../')}/{name}", text)

    async def step(self):
        draw, bdf = self.random.random(), self.bdf()
        driver = f"bus/pci/drivers/{self.random.choice(DRIVERS)}"
        if draw < 0.2:
            await self.write(f"{driver}/bind", bdf)
        elif draw < 0.35:
            await self.write(f"{driver}/unbind", bdf)
        elif draw < 0.45:
            await self.write_to_function("driver_override", self.random.choice((*DRIVERS, "\n")))
        elif draw < 0.55:
            await self.write("bus/pci/drivers_probe", bdf)
        elif draw < 0.62:
            await self.write_to_function("remove", "1")
        elif draw < 0.70:
            await self.write("bus/pci/rescan", "1")
        elif draw < 0.78:
            await self.write_to_function("sriov_numvfs", str(self.random.randrange(4)))
        elif draw < 0.82:
            await self.write_to_function("reset", "1")
        elif draw < 0.92:
            self.open()
        elif self.files:
            self.files.pop(self.random.randrange(len(self.files))).release()

    def open(self):
        if not self.made.devices:
            return
        device = self.random.choice(self.made.devices)
        try:
            file = device.open()
        except UapiError:
            return
        self.files.append(file)
        try:
            file.bind(self.ctx)
        except UapiError:
            return

    def end(self):
        while self.files:
            self.files.pop().release()
        self.ctx.put()


def check(made):
    """What the tree tells is what there is."""
    sys, bus = made.root.entries["sys"], made.bus
    assert set(lookup(sys, "bus/pci/devices").entries) == set(bus.devs)
    for bdf, link in lookup(sys, "bus/pci/devices").entries.items():
        directory = lookup(sys, link.target.removeprefix("../../../")).entries
        dev = bus.devs[bdf]
        number = directory["iommu_group"].target.rpartition("/")[2]
        assert made.groups[int(number)] is dev.group
        assert bdf in lookup(sys, f"kernel/iommu_groups/{number}/devices").entries
        vfs = {name for name in directory if name.startswith("virtfn")}
        assert vfs == {f"virtfn{vf.vf_index}" for vf in dev.virtfns}
    assert {int(name) for name in lookup(sys, "kernel/iommu_groups").entries} == set(made.groups)
    names = {f"vfio{device.index}" for device in made.devices}
    assert set(lookup(sys, "class/vfio-dev").entries) == names
    assert set(lookup(made.root, "dev/vfio/devices").entries) == names
    groups = {str(number) for number in made.vfio_groups}
    assert set(lookup(sys, "class/vfio").entries) == groups
    assert set(lookup(made.root, "dev/vfio").entries) == groups | {"vfio", "devices"}
    for path, node in walk(made.root):
        assert not node.gone, path
        if isinstance(node, Link) and not path.startswith("sys/class/misc"):
            assert exists(made.root, path, node.target), f"{path} -> {node.target}"


def exists(root, path, target):
    """Whether a link leads somewhere in the tree."""
    parts = path.split("/")[:-1]
    for part in target.split("/"):
        if part == "..":
            parts.pop()
        else:
            parts.append(part)
    node = root
    for part in parts:
        node = node.entries.get(part) if isinstance(node, Dir) else None
        if node is None:
            return False
    return True


async def restore(made):
    """Everything bound as the topology says."""
    for dev in list(made.bus.devs.values()):
        if made.bus.devs.get(dev.address) is dev and not dev.physfn:
            await made.bus.remove(dev)
    await made.bus.rescan()
    for dev in made.bus.devs.values():
        dev.driver_override = dev.slot.driver or None
        made.bus.probe(dev)


@pytest.mark.parametrize("seed", [1, 2, SEED])
async def test_the_tree_tells_what_there_is_whatever_is_written(seed, nursery, autojump_clock):
    print(f"SEED={seed}")
    made = machine.load(None)
    at_first = {path for path, _ in walk(made.root)}
    made.vfio_pci.parameters["enable_sriov"] = True
    nursery.start_soon(made.run)
    await trio.testing.wait_all_tasks_blocked()

    async def work(writer):
        for _ in range(STEPS // WRITERS):
            await writer.step()
            check(made)
            await trio.lowlevel.checkpoint()

    with trio.fail_after(10_000):  # of the clock that jumps
        async with trio.open_nursery() as waiting:
            writers = [Writer(made, seed * WRITERS + n, waiting) for n in range(WRITERS)]
            async with trio.open_nursery() as at_work:
                for writer in writers:
                    at_work.start_soon(work, writer)
            for writer in writers:
                writer.end()
        await restore(made)
    check(made)
    assert {path for path, _ in walk(made.root)} - at_first == set()
    left = made.statistics()
    assert (left["bound"], left["owned_groups"]) == ([], [])
    nursery.cancel_scope.cancel()
