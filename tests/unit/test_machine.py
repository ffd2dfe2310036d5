"""Machines made of topologies: what is shared, what is refused, what runs in the background."""

import errno
import os
from types import SimpleNamespace

import pytest
import trio
import trio.testing

from iommufs import machine, topology_file
from iommufs.devices import MODELS
from iommufs.errors import UapiError
from iommufs.fuse.nodes import DeviceNode, lookup
from iommufs.iommufd.iommu import RegionType
from iommufs.topology import TopologyError
from iommufs.vfio import watch


@pytest.fixture
def load(tmp_path):
    def load(text):
        path = tmp_path / "machine.toml"
        path.write_text(text)
        return machine.load(str(path))

    return load


EDU = '[[function]]\nbdf = "00:01.0"\nmodel = "edu"\n'


def test_default_machine_has_the_nodes_of_its_cdevs():
    made = machine.load(None)
    node = lookup(made.root, "dev/iommu")
    assert isinstance(node, DeviceNode)
    assert (node.mode, node.rdev, node.backing_fd) == (0o660, (10, 258), None)
    for device in made.devices:
        node = lookup(made.root, f"dev/vfio/devices/vfio{device.index}")
        assert (node.mode, node.rdev) == (0o600, (251, device.index))
        assert node.backing_fd == device.backing_fd
    assert [device.function.address for device in made.devices] == [
        "0000:00:06.0",
        "0000:01:00.0",
        "0000:02:00.0",
        "0000:02:00.1",
        "0000:04:01.0",
        "0000:04:02.0",
        "0000:05:00.0",
    ]


def test_devices_that_are_reset_together_share_a_set_and_others_do_not():
    sets = [device.dev_set for device in machine.load(None).devices]
    assert sets[2] is sets[3]
    assert sets[4] is sets[5]
    assert len({id(dev_set) for dev_set in sets}) == 5
    assert sets[4].scope == {"0000:04:01.0": 11, "0000:04:02.0": 11}
    assert sets[0].scope == {}


def test_members_of_a_group_share_it_with_those_that_have_no_cdev():
    made = machine.load(None)
    members = ("0000:03:00.0", "0000:04:01.0", "0000:04:02.0")
    assert {id(made.functions[bdf].group) for bdf in members} == {id(made.groups[11])}


@pytest.mark.parametrize(
    ("index", "can_reset"),
    [(0, False), (1, True), (2, True), (3, True), (4, False), (5, False), (6, True)],
)
def test_what_can_be_reset_alone(index, can_reset):
    assert machine.load(None).devices[index].function.can_reset is can_reset


@pytest.mark.parametrize("function", topology_file.default().functions, ids=lambda f: f.bdf)
def test_config_space_starts_as_the_image(function):
    made = machine.load(None).functions[function.bdf]
    if isinstance(made, machine.HostFunction):
        assert function.cdev is None
    else:
        assert bytes(made.raw.data) == function.image.data


def test_an_edu_without_an_image_is_one_all_the_same(load):
    made = load(EDU)
    config = bytes(made.devices[0].function.raw.data)
    assert config[:4] == bytes.fromhex("3412e811")
    assert len(config) == 256
    read = lookup(made.root, "sys/bus/pci/devices")
    assert list(read.entries) == ["0000:00:01.0"]


def test_reserved_regions_of_the_firmware_come_on_top_of_the_iommus(load):
    made = load(EDU + '[iommu]\nreserved = [{ start = 4096, last = 8191, type = "direct" }]')
    regions = made.iommu.reserved_regions(made.devices[0].function)
    assert {(r.start, r.last, r.type) for r in regions} == {
        (0xFEE00000, 0xFEEFFFFF, RegionType.MSI),
        (0x1000, 0x1FFF, RegionType.DIRECT),
    }
    shown = lookup(made.root, "sys/kernel/iommu_groups/0/reserved_regions").read()
    assert shown == (
        b"0x0000000000001000 0x0000000000001fff direct\n0x00000000fee00000 0x00000000feefffff msi\n"
    )


def test_the_iommu_of_amd_has_its_own_name_and_holes(load):
    made = load(EDU + '[iommu]\nkind = "amd"')
    assert list(lookup(made.root, "sys/class/iommu").entries) == ["ivhd0"]
    link = lookup(made.root, "sys/devices/pci0000:00/0000:00:01.0/iommu")
    assert link.target.endswith("/iommu/ivhd0")
    # As /sys of the oracle's guest shows them.
    assert lookup(made.root, "sys/kernel/iommu_groups/0/reserved_regions").read() == (
        b"0x00000000fee00000 0x00000000feefffff msi\n"
        b"0x000000fd00000000 0x000000ffffffffff reserved\n"
    )
    # What the guest's VFIO_IOMMU_GET_INFO says of an attached IOAS.
    domain = made.iommu.domain_alloc_paging(made.devices[0].function, 0)
    assert domain.page_sizes == 0x000FFF7FFFFFF000


def test_test_ops_are_off_unless_switched_on(load):
    assert not lookup(machine.load(None).root, "dev/iommu").open(0).test_ops
    assert lookup(load("[iommufd]\ntest = true\n").root, "dev/iommu").open(0).test_ops


FAULTS = {
    "a model nobody knows": (
        '[[function]]\nbdf = "00:01.0"\nmodel = "nvme9"\n',
        f"function[0]: model: expected one of {', '.join(sorted(MODELS))}, got 'nvme9'",
    ),
    "an option nobody knows": (
        EDU + "options = { mask = 1 }",
        "function[0]: options.mask: no option of edu; there is: dma_mask, migration",
    ),
    "a PCI function that is none": (
        EDU.replace('"edu"', '"serial"'),
        "function[0]: serial: it is no PCI function: it goes under [[mediated]]",
    ),
    "a PCI function among those without an IOMMU": (
        '[[mediated]]\nuuid = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001"\nmodel = "edu"\n',
        "mediated[0]: edu: it is a PCI function: it goes under [[function]]",
    ),
    "an option of the wrong type": (
        EDU + 'options = { dma_mask = "x" }',
        "function[0]: edu: dma_mask must be an integer of at most 64 bits, not 'x'",
    ),
    "an option for what has none": (
        EDU.replace("edu", "inert") + 'config = "x.hex"\noptions = { mask = 1 }',
        "function[0]: options.mask: no option of inert; there is: register_width",
    ),
    "an IOMMU nobody knows": (
        '[iommu]\nkind = "apple"',
        "iommu.kind: expected one of vtd, amd, got 'apple'",
    ),
    "options of an IOMMU without any": (
        "[iommu]\noptions = { a = 1 }",
        "iommu.options: expected none for vtd",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_one_line_that_names_the_file(load, fault, tmp_path):
    text, expected = FAULTS[fault]
    (tmp_path / "x.hex").write_text("000: 34 12 01 00" + 12 * " 00")
    with pytest.raises(TopologyError) as caught:
        load(text)
    assert str(caught.value) == f"{tmp_path}/machine.toml: {expected}"


async def test_background_work_runs_and_can_be_cancelled(nursery):
    made = machine.load(None)
    nursery.start_soon(made.run)
    await trio.testing.wait_all_tasks_blocked()
    done, ended = [], trio.Event()

    async def work():
        done.append("work")

    async def wait():
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    made.spawn(work)
    cancel = made.spawn(wait)
    await trio.testing.wait_all_tasks_blocked()
    assert done == ["work"]
    assert not ended.is_set()
    cancel()
    await ended.wait()
    nursery.cancel_scope.cancel()


async def test_stores_of_a_client_reach_the_model_through_the_poller(nursery):
    made = machine.load(None)
    nursery.start_soon(made.run)
    await trio.testing.wait_all_tasks_blocked()
    function = made.devices[0].function
    answered = trio.Event()
    function.config = SimpleNamespace(memory_enabled=True)  # as if a client had it open
    write = function.model.write

    def write_and_tell(*args):
        write(*args)
        answered.set()

    function.model.write = write_and_tell
    function.model.open()
    function.host.bar(0)[4:8] = (0x12345678).to_bytes(4, "little")
    with trio.fail_after(60):
        await answered.wait()
    assert int.from_bytes(function.host.bar(0)[4:8], "little") == 0xEDCBA987
    function.bars.forget_watches()
    nursery.cancel_scope.cancel()


def test_a_storm_of_stores_is_taken_in_by_and_by():
    """So that a client which never rests does not stop the others."""
    function = machine.load(None).devices[0].function
    function.config = SimpleNamespace(memory_enabled=True)
    function.model.open()
    written = []
    function.model.write = lambda *args: written.append(args)
    for value in range(1, 101):
        # A client's store, found out by the model's own over it at the latest.
        function.host.bar(0)[4:8] = value.to_bytes(4, "little")
        function.host.store(0, 4, 4, 0)
    watch.drain(64)
    assert len(written) == 64
    watch.drain(64)
    assert written == [(0, 4, 4, value) for value in range(1, 101)]
    function.bars.forget_watches()


def test_the_memory_behind_bars_cannot_be_cut_short():
    device = machine.load(None).devices[0]
    with pytest.raises(PermissionError):
        os.ftruncate(device.backing_fd, 4096)


def test_statistics_name_what_lives():
    made = machine.load(None)
    before = made.statistics()
    assert before["bound"] == []
    assert before["owned_groups"] == []
    assert before["files"] == 0
    assert set(before["functions"]) == {device.function.address for device in made.devices}
    made.groups[5].claim(made)
    made.files.add(object())
    after = made.statistics()
    assert after["owned_groups"] == [5]
    assert after["files"] == 1
    assert after["iommufd"] == before["iommufd"]
    with pytest.raises(UapiError) as caught:
        made.groups[5].claim(object())
    assert caught.value.errno == errno.EPERM
