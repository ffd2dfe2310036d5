"""Functions, drivers and virtual functions as they come and go; what the programs of
tests/e2e/test_bus.py cannot see, or that no reference guest has."""

import errno
import re

import pytest
import trio
import trio.testing

from iommufs import devices, machine
from iommufs.errors import UapiError
from iommufs.fuse.attributes import OpenAttribute
from iommufs.fuse.nodes import TextFile, lookup, walk
from iommufs.iommufd.ctx import Ctx
from iommufs.vfio.bind import match_token
from iommufs.vfio.irqs import REQ, Irqs
from iommufs.vfio.low_power import LowPower
from iommufs.vfio.model import Bar, Description, Model

EDU, NVME, VIRTIO, IGB = "0000:00:06.0", "0000:01:00.0", "0000:00:1c.0", "0000:05:00.0"
NIC0, NIC1 = "0000:02:00.0", "0000:02:00.1"
TOKEN, OTHER = bytes(range(16)), bytes(16)


@pytest.fixture
async def made(nursery):
    made = machine.load(None)
    nursery.start_soon(made.run)
    await trio.testing.wait_all_tasks_blocked()
    yield made
    nursery.cancel_scope.cancel()


async def write(made, path, data):
    """What a client's write to an attribute does; 0 or an errno's name."""
    try:
        await OpenAttribute(lookup(made.root, f"sys/{path}")).write(0, data.encode())
    except UapiError as error:
        return errno.errorcode[error.errno]
    return 0


def at(made, bdf, name):
    """The path of an attribute of a function."""
    link = lookup(made.root, f"sys/bus/pci/devices/{bdf}")
    return f"{link.target.removeprefix('../../../')}/{name}"


def read(made, bdf, name):
    return lookup(made.root, f"sys/{at(made, bdf, name)}").read().decode()


async def enable_vfs(made, count):
    made.vfio_pci.parameters["enable_sriov"] = True
    return await write(made, at(made, IGB, "sriov_numvfs"), str(count))


def vfio(made, bdf):
    return made.bus.devs[bdf].vfio


# ---- drivers


async def test_a_group_that_a_host_driver_uses_is_not_for_clients(made):
    """VIABLE is the client's word for it; BIND says EPERM."""
    dev = made.bus.devs[VIRTIO]
    assert dev.group.owned
    with pytest.raises(UapiError) as caught:
        dev.group.claim(Ctx())
    assert caught.value.errno == errno.EPERM
    assert await write(made, "bus/pci/drivers/virtio-pci/unbind", VIRTIO) == 0
    assert not dev.group.owned


async def test_a_group_that_a_client_has_is_not_for_host_drivers(made):
    await write(made, "bus/pci/drivers/virtio-pci/unbind", VIRTIO)
    made.bus.devs[VIRTIO].group.claim(owner := Ctx())
    assert await write(made, "bus/pci/drivers/virtio-pci/bind", VIRTIO) == "EBUSY"
    assert await write(made, "bus/pci/drivers_probe", VIRTIO) == 0
    assert made.bus.devs[VIRTIO].driver is None
    made.bus.devs[VIRTIO].group.release()
    assert await write(made, "bus/pci/drivers/virtio-pci/bind", VIRTIO) == 0
    del owner


async def test_a_port_driver_leaves_its_group_to_clients(made):
    assert not made.bus.devs["0000:00:02.0"].group.owned


async def test_a_function_of_the_host_can_be_given_to_clients(made):
    await write(made, "bus/pci/drivers/virtio-pci/unbind", VIRTIO)
    await write(made, at(made, VIRTIO, "driver_override"), "vfio-pci")
    assert await write(made, "bus/pci/drivers_probe", VIRTIO) == 0
    device = vfio(made, VIRTIO)
    assert device.index == 7
    df = device.open()
    ctx = Ctx()
    df.bind(ctx)
    assert made.bus.devs[VIRTIO].group.owned_by_client
    df.release()
    ctx.put()
    assert not made.bus.devs[VIRTIO].group.owned


async def test_who_unbinds_waits_for_every_open_file(made, nursery):
    device = vfio(made, EDU)
    files = [device.open(), device.open()]
    done = trio.Event()

    async def unbind():
        assert await write(made, "bus/pci/drivers/vfio-pci/unbind", EDU) == 0
        done.set()

    nursery.start_soon(unbind)
    await trio.testing.wait_all_tasks_blocked()
    with pytest.raises(UapiError) as caught:
        device.open()
    assert caught.value.errno == errno.ENODEV
    files[0].release()
    await trio.testing.wait_all_tasks_blocked()
    assert not done.is_set()
    files[1].release()
    await done.wait()
    assert made.bus.devs[EDU].driver is None


async def test_a_number_is_taken_until_its_device_is_closed(made, nursery):
    file = vfio(made, EDU).open()
    nursery.start_soon(write, made, "bus/pci/drivers/vfio-pci/unbind", EDU)
    await trio.testing.wait_all_tasks_blocked()
    await write(made, "bus/pci/drivers/vfio-pci/unbind", NVME)
    await write(made, "bus/pci/drivers/vfio-pci/bind", NVME)
    assert vfio(made, NVME).index == 1
    file.release()
    await trio.testing.wait_all_tasks_blocked()
    await write(made, "bus/pci/drivers/vfio-pci/bind", EDU)
    assert vfio(made, EDU).index == 0


async def test_others_go_on_while_somebody_waits(made, nursery):
    file = vfio(made, EDU).open()
    nursery.start_soon(write, made, at(made, EDU, "remove"), "1")
    await trio.testing.wait_all_tasks_blocked()
    assert await write(made, "bus/pci/drivers/vfio-pci/unbind", NVME) == 0
    rescan = trio.Event()

    async def rescan_later():
        assert await write(made, "bus/pci/rescan", "1") == 0
        rescan.set()

    nursery.start_soon(rescan_later)
    await trio.testing.wait_all_tasks_blocked()
    assert not rescan.is_set()  # as on Linux, functions come and go one after the other
    file.release()
    await rescan.wait()
    assert EDU in made.bus.devs


async def test_a_client_is_asked_again_until_it_closes(made, nursery, autojump_clock):
    device = vfio(made, EDU)
    df, ctx, rung = device.open(), Ctx(), []
    df.bind(ctx)

    class Request:
        def signal(self):
            rung.append(trio.current_time())

    df.irqs.single = lambda index: Request() if index == REQ else None
    start = trio.current_time()
    nursery.start_soon(write, made, "bus/pci/drivers/vfio-pci/unbind", EDU)
    await trio.sleep(25)
    df.release()
    ctx.put()
    assert [round(time - start) for time in rung] == [0, 10, 20]


# ---- removal and rescan


async def test_a_function_comes_back_as_after_power_on(made):
    function = vfio(made, EDU).function
    at_first = bytes(function.raw.data)
    function.raw.write(4, 2, 0)
    function.raw.write(0xC0, 4, 0x12345678)
    await write(made, at(made, EDU, "remove"), "1")
    await write(made, "bus/pci/rescan", "1")
    assert bytes(made.bus.devs[EDU].inside.raw.data) == at_first
    assert read(made, EDU, "driver_override") == "(null)\n"


async def test_a_lone_function_can_be_reset_by_its_bus(made):
    """So the scope of resets and what can be reset alone follow what is on the bus."""
    nic = vfio(made, NIC0)
    assert nic.dev_set.scope == {NIC0: 10, NIC1: 10}
    assert await write(made, at(made, NIC0, "reset_method"), "bus") == "EINVAL"
    await write(made, at(made, NIC1, "remove"), "1")
    assert nic.dev_set.scope == {NIC0: 10}
    assert await write(made, at(made, NIC0, "reset_method"), "bus") == 0
    assert nic.function.can_reset
    await write(made, "bus/pci/rescan", "1")
    assert nic.dev_set.scope == {NIC0: 10, NIC1: 10}
    assert not nic.function.can_reset
    assert made.bus.devs[NIC1].group is made.bus.devs[NIC0].group


async def test_devices_of_one_scope_share_a_set_however_they_come(made):
    for bdf in (NIC0, NIC1):
        await write(made, "bus/pci/drivers/vfio-pci/unbind", bdf)
    for bdf in (NIC1, NIC0):
        await write(made, "bus/pci/drivers/vfio-pci/bind", bdf)
    assert vfio(made, NIC0).dev_set is vfio(made, NIC1).dev_set
    assert set(vfio(made, NIC0).dev_set.devices) == {NIC0, NIC1}


async def test_nothing_is_left_of_what_was_removed(made):
    before = {path for path, _ in walk(made.root)}
    functions = [bdf for bdf in made.bus.devs if bdf.startswith("0000:00")]
    for bdf in functions:
        assert await write(made, at(made, bdf, "remove"), "1") == 0
    names = re.compile(r"0000:\d\d:|vfio\d|iommu_groups/")
    left = [path for path, _ in walk(made.root) if names.search(path)]
    assert left == []
    assert made.devices == []
    assert made.groups == {}
    await write(made, "bus/pci/rescan", "1")
    after = {path for path, _ in walk(made.root)}
    unbound = {path for path in before - after if "vfio" in path or path.endswith("/driver")}
    assert before - after <= unbound | {path for path in before if re.search(r"(251|252):", path)}


# ---- virtual functions


async def test_virtual_functions_are_counted_in_the_registers(made):
    assert await enable_vfs(made, 3) == 0
    pf = made.bus.devs[IGB].inside
    numvfs, control = pf.raw.read(0x170, 2), pf.raw.read(0x168, 2)
    assert (numvfs, control & 0x09) == (3, 0x09)
    pf.reset_function()
    pf.reset()
    assert pf.raw.read(0x170, 2) == 3
    assert await enable_vfs(made, 0) == 0
    assert (pf.raw.read(0x170, 2), pf.raw.read(0x168, 2) & 0x09) == (0, 0)


async def test_a_virtual_function_starts_anew_each_time(made):
    await enable_vfs(made, 1)
    vf = made.bus.devs["0000:05:10.0"].inside
    vf.write_bar(0, 0, 4, 0xABCD)
    await enable_vfs(made, 0)
    await enable_vfs(made, 1)
    again = made.bus.devs["0000:05:10.0"].inside
    assert again is vf  # circuits stay
    assert again.read_bar(0, 0, 4) == 0


async def test_tokens(made):
    await enable_vfs(made, 1)
    pf, vf = vfio(made, IGB), vfio(made, "0000:05:10.0")
    first = pf.vf_token
    with pytest.raises(UapiError) as caught:
        match_token(vf, None)
    assert caught.value.errno == errno.EACCES
    match_token(pf, None)
    assert pf.vf_token == first
    match_token(pf, TOKEN)
    match_token(vf, TOKEN)
    df, ctx = vf.open(), Ctx()
    df.bind(ctx)
    for token in (None, OTHER):
        with pytest.raises(UapiError) as caught:
            match_token(pf, token)
        assert caught.value.errno == errno.EACCES
    match_token(pf, TOKEN)
    df.release()
    ctx.put()
    match_token(pf, OTHER)
    assert pf.vf_token == OTHER


async def test_a_group_gives_a_virtual_function_for_its_token(made):
    await enable_vfs(made, 1)
    group = made.vfio_groups[13]
    match_token(vfio(made, IGB), bytes.fromhex("52ac9bff3a884fbd901a0d767c3b6c97"))
    name = b"0000:05:10.0"
    with pytest.raises(UapiError) as caught:
        group.find(name)
    assert caught.value.errno == errno.EACCES
    found = group.find(name + b" vf_token=52ac9bff-3a88-4fbd-901a-0d767c3b6c97")
    assert found is vfio(made, "0000:05:10.0")


async def test_virtual_functions_go_with_what_made_them_once_closed(made, nursery):
    await enable_vfs(made, 2)
    file = vfio(made, "0000:05:10.2").open()
    done = trio.Event()

    async def unbind():
        assert await write(made, "bus/pci/drivers/vfio-pci/unbind", IGB) == 0
        done.set()

    nursery.start_soon(unbind)
    await trio.testing.wait_all_tasks_blocked()
    assert not done.is_set()
    assert "0000:05:10.0" not in made.bus.devs
    file.release()
    await done.wait()
    assert made.bus.devs[IGB].virtfns == []
    assert read(made, IGB, "sriov_numvfs") == "0\n"


async def test_a_function_with_virtual_functions_stays_awake(made):
    inside = made.bus.devs[IGB].inside
    inside.set_power(3)
    assert await enable_vfs(made, 1) == 0
    assert inside.power == 0
    inside.set_power(3)
    assert inside.power == 0
    assert await enable_vfs(made, 0) == 0
    inside.set_power(3)
    assert inside.power == 3


async def test_what_sleeps_is_woken_by_its_virtual_functions(made):
    """And stays awake until they are gone."""
    inside = made.bus.devs[IGB].inside
    low_power = inside.low_power = LowPower(inside, lambda on: None)
    inside.irqs = Irqs(inside, inside.spawn)
    low_power.enter(None)
    with low_power.awake():
        pass
    assert inside.power == 3
    for count, power in ((1, 0), (0, 3)):
        assert await enable_vfs(made, count) == 0
        with low_power.awake():
            assert inside.power == 0
        assert inside.power == power


async def test_virtual_functions_lose_their_command_with_a_reset_of_the_physical_one(made):
    assert await enable_vfs(made, 1) == 0
    pf, vf = made.bus.devs[IGB].inside, made.bus.devs["0000:05:10.0"].inside
    for reset in (pf.reset, pf.reset_function):
        vf.raw.write(4, 2, 0x0507)
        reset()
        assert vf.raw.read(4, 2) == 2
    assert await enable_vfs(made, 0) == 0
    vf.raw.write(4, 2, 0x0507)
    pf.reset_function()
    assert vf.raw.read(4, 2) == 0x0507


async def test_device_control_of_a_virtual_function_is_not_its_own(made):
    assert await enable_vfs(made, 1) == 0
    vf = made.bus.devs["0000:05:10.0"].inside
    vf.raw.write(0xA8, 2, 0xFFFF)
    assert vf.raw.read(0xA8, 2) == 0


async def test_what_is_no_register_of_a_virtual_function_stays(made):
    assert await enable_vfs(made, 1) == 0
    vf = made.bus.devs["0000:05:10.0"].inside
    for at, value in ((0x7C, 0x22), (0x0C, 0x10)):
        vf.raw.write(at, 1, value)
    for count in (0, 1):
        assert await enable_vfs(made, count) == 0
    assert [vf.raw.read(at, 1) for at in (0x7C, 0x0C)] == [0x22, 0]


SMALL = """
[[function]]
bdf = "00:01.0"
driver = "port"
config = "bridge.hex"
bars = {{ 0 = 0x1000 }}

[[function]]
bdf = "01:00.0"
{model}
config = "pf.hex"
vf_bars = {{ 0 = 0x4000 }}
"""


def load(tmp_path, model="", **changes):
    """A port with a function behind it that has the igb's capabilities, with bytes changed."""
    default = machine.load(None).topology
    bridge = bytearray(default.function("0000:00:05.0").image.data)
    bridge[0x19:0x1B] = bytes((1, 1))
    pf = bytearray(default.function(IGB).image.data)
    for place, value in changes.items():
        pf[int(place[1:], 16)] = value
    for name, data in (("bridge", bridge), ("pf", pf)):
        rows = [f"{o:03x}: {data[o : o + 16].hex(' ')}\n" for o in range(0, len(data), 16)]
        (tmp_path / f"{name}.hex").write_text("".join(rows))
    path = tmp_path / "machine.toml"
    path.write_text(SMALL.format(model=model or "bars = { 3 = 0x4000 }"))
    made = machine.load(str(path))
    made.vfio_pci.parameters["enable_sriov"] = True
    return made


async def set_count(made, count):
    return await write(made, at(made, "0000:01:00.0", "sriov_numvfs"), str(count))


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"x174": 0, "x175": 1}, "ENOMEM"),  # the first offset leads to bus 2
        ({"x16c": 7}, "EIO"),  # InitialVFs is not TotalVFs
        ({"x16c": 9}, "EIO"),
        ({}, 0),
    ],
)
async def test_a_capability_that_promises_too_much(tmp_path, changes, error):
    assert await set_count(load(tmp_path, **changes), 2) == error


async def test_without_any_virtual_functions_there_is_nothing_to_set(tmp_path):
    made = load(tmp_path, x16e=0, x16c=0)
    directory = lookup(made.root, "sys/devices/pci0000:00/0000:00:01.0/0000:01:00.0")
    assert not any("sriov" in name for name in directory.entries)


async def test_a_virtual_function_nobody_describes_can_be_found_and_reset(tmp_path):
    made = load(tmp_path)
    assert await set_count(made, 1) == 0
    vf = made.bus.devs["0000:01:10.0"]
    assert (vf.id.vendor, vf.id.device, vf.id.class_code) == (0x8086, 0x10CA, 0x020000)
    assert vf.reset_methods == ("flr",)
    assert vf.bar_sizes == {0: 0x4000}
    assert vf.inside.n_irqs(2) == 0


class Twins(Model):
    """A physical function whose virtual ones know their number."""

    def describe(self):
        return Description(0x8086, 0x10C9, 0x020000, bars={3: Bar(0x4000)})

    def make_vf(self, host, index):
        return Twin(host, {"index": index})


class Twin(Model):
    def __init__(self, host, options):
        super().__init__(host, options)
        self.index = options["index"]

    def describe(self):
        return Description(0, 0, 0x020000, bars={0: Bar(0x4000, bits64=True)}, intx=False)

    def read(self, region, offset, size):
        return self.index


async def test_a_model_makes_the_insides_of_its_virtual_functions(tmp_path, monkeypatch):
    monkeypatch.setitem(devices.MODELS, "twins", Twins)
    made = load(tmp_path, model='model = "twins"')
    assert await set_count(made, 2) == 0
    insides = [made.bus.devs[f"0000:01:10.{n}"].inside for n in (0, 2)]
    assert [inside.read_bar(0, 0, 4) for inside in insides] == [0, 1]
    assert insides[1].vf_ids == (0x8086, 0x10CA)


class Broken(Twins):
    def make_vf(self, host, index):
        if index:
            raise KeyError("a bug")
        return super().make_vf(host, index)


@pytest.mark.logs("a device model failed")
async def test_a_model_that_fails_leaves_no_virtual_function(tmp_path, monkeypatch):
    monkeypatch.setitem(devices.MODELS, "broken", Broken)
    made = load(tmp_path, model='model = "broken"')
    before = {path for path, _ in walk(made.root)}
    assert await set_count(made, 2) == "EIO"
    assert {path for path, _ in walk(made.root)} == before
    assert read(made, "0000:01:00.0", "sriov_numvfs") == "0\n"
    assert await set_count(made, 1) == 0


async def test_a_taken_address_is_refused(tmp_path):
    """A topology with a function where a virtual one would be."""
    made = load(tmp_path, x174=0, x176=1)
    assert await set_count(made, 1) == "EEXIST"
    assert read(made, "0000:01:00.0", "sriov_numvfs") == "0\n"


# ---- registers in /sys


async def test_ports_are_read_and_written_as_single_accesses(made):
    function = vfio(made, NIC0).function
    seen = []
    function.read_bar = lambda *access: seen.append(access) or 0x1234
    function.write_bar = lambda *access: seen.append(access)
    node = lookup(made.root, f"sys/{at(made, NIC0, 'resource2')}")
    assert node.read(4, 2) == b"\x34\x12"
    assert node.write(8, b"\1\2\3\4") == 4
    assert seen == [(2, 4, 2), (2, 8, 4, 0x04030201)]
    for offset, length in ((0, 3), (0, 8)):
        with pytest.raises(UapiError) as caught:
            node.read(offset, length)
        assert caught.value.errno == errno.EINVAL
    assert node.read(0x20, 4) == b""
    assert len(node.read(0x1E, 4)) == 2
    with pytest.raises(UapiError) as caught:
        node.write(0x20, b"\0")
    assert caught.value.errno == errno.EFBIG
    function.raw.write(4, 2, 0)
    assert node.read(4, 2) == b"\xff\xff"


async def test_memory_is_not_read_through_sys(made):
    node = lookup(made.root, f"sys/{at(made, NIC0, 'resource0')}")
    with pytest.raises(UapiError) as caught:
        node.read(0, 4)
    assert caught.value.errno == errno.EIO


async def test_a_function_that_sleeps_says_so_in_its_config_space(made):
    node = lookup(made.root, f"sys/{at(made, NVME, 'config')}")
    control = made.bus.devs[NVME].image.capabilities[1] + 4
    assert node.read(control, 1)[0] & 3 == 3
    assert await write(made, at(made, NVME, "power/control"), "on") == 0
    assert node.read(control, 1)[0] & 3 == 0
    assert read(made, NVME, "power_state") == "D0\n"


async def test_what_is_open_of_a_function_that_is_gone_fails(made):
    attributes = [
        OpenAttribute(node)
        for _, node in walk(lookup(made.root, f"sys/{at(made, EDU, '')}".rstrip("/")))
        if isinstance(node, TextFile)
    ]
    await write(made, at(made, EDU, "remove"), "1")
    for attribute in attributes:
        for call in (attribute.read(0, 10), attribute.write(0, b"1")):
            with pytest.raises(UapiError) as caught:
                await call
            assert caught.value.errno == errno.ENODEV
