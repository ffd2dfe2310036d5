"""Topologies: what a file means, and the one line that a faulty one gets."""

import re
import textwrap
from pathlib import Path

import pytest

from iommufs import topology_file, topology_keys, topology_mediated
from iommufs.pci_image import ConfigImage, parse_image
from iommufs.topology import TopologyError

IMAGE = "000: 34 12 e8 11 03 01 10 00 10 00 ff 00 00 00 00 00\n"
# A bridge from bus 0 to bus 1: header type 1, secondary and subordinate bus 1.
BRIDGE = (
    "000: 36 1b 0c 00 07 01 00 00 00 00 04 06 00 00 01 00\n"
    "010: 00 00 00 00 00 00 00 00 00 01 01 00 00 00 00 00\n"
)
# MSI-X with 2 vectors, table at 0 and pending bits at 0x800 of BAR 0.
MSIX = (
    "000: 34 12 01 00 03 01 10 00 00 00 ff 00 00 00 00 00\n"
    "030: 00 00 00 00 40 00 00 00 00 00 00 00 00 01 00 00\n"
    "040: 11 00 01 00 00 00 00 00 00 08 00 00 00 00 00 00\n"
)


@pytest.fixture
def load(tmp_path):
    (tmp_path / "image.hex").write_text(IMAGE)
    (tmp_path / "bridge.hex").write_text(BRIDGE)
    (tmp_path / "msix.hex").write_text(MSIX)

    def load(text):
        path = tmp_path / "machine.toml"
        path.write_text(text)
        return topology_file.load(path)

    return load


def function(bdf="00:01.0", **keys):
    keys = {"bdf": bdf, "config": "image.hex"} | keys
    rows = [
        f"{key} = {value!r}".replace("'", '"') for key, value in keys.items() if value is not None
    ]
    return "\n".join(["[[function]]", *rows, ""])


def test_default_has_the_cdevs_groups_and_resets_of_the_reference_guest():
    default = topology_file.default()
    with_cdev = [f for f in default.functions if f.cdev is not None]
    assert [(f.cdev, f.bdf, f.model, f.group, f.reset_methods) for f in with_cdev] == [
        (0, "0000:00:06.0", "edu", 5, ()),
        (1, "0000:01:00.0", "nvme", 9, ("flr", "bus")),
        (2, "0000:02:00.0", "inert", 10, ("pm", "bus")),
        (3, "0000:02:00.1", "inert", 10, ("pm",)),
        (4, "0000:04:01.0", "edu", 11, ("bus",)),
        (5, "0000:04:02.0", "testdev", 11, ()),
        (6, "0000:05:00.0", "igb", 12, ("flr", "pm", "bus")),
    ]
    assert len(default.functions) == 18
    assert list(default.groups) == list(range(13))
    assert [f.bdf for f in default.groups[11]] == ["0000:03:00.0", "0000:04:01.0", "0000:04:02.0"]
    assert default.iommu_kind == "vtd"
    assert default.test is False


def test_default_paths_lead_through_the_bridges():
    default = topology_file.default()
    assert default.path(default.function("0000:00:06.0")) == "pci0000:00/0000:00:06.0"
    assert (
        default.path(default.function("0000:04:02.0"))
        == "pci0000:00/0000:00:04.0/0000:03:00.0/0000:04:02.0"
    )


def test_default_hot_resets_hit_whole_buses_and_nothing_on_the_root_bus():
    default = topology_file.default()
    scopes = {f.bdf: f.hot_reset for f in default.functions if f.cdev is not None}
    assert scopes["0000:00:06.0"] == ()
    assert scopes["0000:01:00.0"] == ("0000:01:00.0",)
    assert scopes["0000:02:00.1"] == ("0000:02:00.0", "0000:02:00.1")
    assert scopes["0000:04:01.0"] == ("0000:04:01.0", "0000:04:02.0")
    # The reset of a bridge's own bus goes on to the bus behind it.
    assert default.function("0000:03:00.0").hot_reset == (
        "0000:03:00.0",
        "0000:04:01.0",
        "0000:04:02.0",
    )


def test_default_descriptions_say_what_the_images_say():
    description = topology_file.default().function("0000:02:00.0").description()
    assert (description.vendor, description.device) == (0x8086, 0x10D3)
    assert description.class_code == 0x020000
    assert description.intx
    assert description.msi_vectors == 1
    assert description.msix_vectors == 5
    assert description.msix_table == (3, 0)
    assert description.msix_pba == (3, 0x2000)
    assert len(description.config) == 4096
    bar = description.bars[0]
    assert (bar.size, bar.mappable, bar.io, bar.bits64) == (0x20000, True, False, False)

    virtio = topology_file.default().function("0000:00:1c.0").description()
    assert virtio.bars[0].io
    assert not virtio.bars[0].mappable
    assert virtio.bars[4].prefetchable
    assert not topology_file.default().function("0000:00:1f.0").description().intx


def test_groups_without_a_number_get_the_lowest_free_ones(load):
    topology = load(function("00:01.0") + function("00:02.0", group=0) + function("00:03.0"))
    assert [f.group for f in topology.functions] == [1, 0, 2]


def test_only_functions_of_vfio_pci_have_a_cdev(load):
    topology = load(function("00:01.0", driver="") + function("00:02.0") + function("00:03.0"))
    assert [f.cdev for f in topology.functions] == [None, 0, 1]


def test_slot_scope_leaves_other_slots_alone(load):
    topology = load(
        function("00:02.0", config="bridge.hex", driver="pcieport")
        + function("01:00.0", reset_scope="slot")
        + function("01:00.1")
        + function("01:01.0")
        + function("01:02.0", reset_scope="none")
    )
    scope = {f.bdf[5:]: f.hot_reset for f in topology.functions}
    assert scope["01:00.0"] == ("0000:01:00.0", "0000:01:00.1")
    assert len(scope["01:00.1"]) == 4
    assert scope["01:02.0"] == ()


def test_a_model_needs_no_image_and_keeps_its_options(load):
    topology = load(
        '[[function]]\nbdf = "00:01.0"\nmodel = "edu"\noptions = { dma_mask = 15 }\n'
        "[iommufd]\ntest = true\n"
    )
    assert topology.functions[0].image is None
    assert topology.functions[0].options == {"dma_mask": 15}
    assert topology.test


FAULTS = {
    "not TOML": ("function = [", "not TOML: "),
    "a section nobody knows": ("[iomu]", "contains unknown field iomu"),
    "a key nobody knows": (function(modle="edu"), "function[0]: contains unknown field"),
    "a value of the wrong type": (function(group="x"), "function[0].group: expected int"),
    "no bdf": ('[[function]]\nmodel = "edu"', "function[0]: missing required field bdf"),
    "a bdf that is none": (function("0:1.0"), "function[0].bdf: expected domain:bus:device.funct"),
    "a bdf twice": (function() + function(), "function[1].bdf: 0000:00:01.0 is there already"),
    "a negative group": (function(group=-1), "function[0].group: expected a number from 0"),
    "a function of nothing": ('[[function]]\nbdf="00:01.0"', "function[0].config: expected the"),
    "a missing image": (function(config="no.hex"), "no.hex: No such file or directory"),
    "an image that is none": (function(config="machine.toml"), "expected rows of config space"),
    "a BAR with a name": (
        function() + "bars = { x = 16 }",
        "function[0].bars.x: expected the number of a BAR: 0, 1, 2, 3, 4, 5",
    ),
    "a BAR of an odd size": (
        function() + "bars = { 0 = 100 }",
        "function[0].bars.0: expected a power of two, 4 to 2**40",
    ),
    "BARs for a model": (
        function(model="edu") + "bars = { 0 = 16 }",
        "function[0].bars: expected none: edu knows its own",
    ),
    "an MSI-X table out of its BAR": (
        function(config="msix.hex") + "bars = { 0 = 0x800 }",
        "function[0].bars.0: expected room for the MSI-X pending bits",
    ),
    "a bus without a bridge": (function("02:00.0"), "expected one bridge that leads to bus 02"),
    "a reset of the root bus": (
        function(reset_scope="bus"),
        "function[0].reset_scope: expected none on the root bus",
    ),
    "an unknown reset": (
        function() + 'reset_methods = ["kick"]',
        "function[0].reset_methods[0]: invalid enum value 'kick'",
    ),
    "a bridge for clients": (
        function(config="bridge.hex"),
        "function[0].driver: expected another than vfio-pci for a bridge",
    ),
    "a ROM of an odd size": (function(rom=5), "function[0].rom: expected a power of two"),
    "a reserved range upside down": (
        "[iommu]\nreserved = [{ start = 2, last = 1 }]",
        "iommu.reserved[0]: expected 0 <= start <= last < 2**64",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_one_line_that_names_file_and_key(load, fault, tmp_path):
    text, expected = FAULTS[fault]
    with pytest.raises(TopologyError) as caught:
        load(text)
    message = str(caught.value).replace("[...]", "[0]")  # older msgspec tells no index
    assert message.startswith(f"{tmp_path}/machine.toml: ")
    assert expected in message
    assert "\n" not in message


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(TopologyError, match=r"^/nowhere/x\.toml: No such file"):
        topology_file.load(Path("/nowhere/x.toml"))


def test_a_binary_file_is_no_text(tmp_path):
    path = tmp_path / "x.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(TopologyError, match="not a text in UTF-8"):
        topology_file.load(path)


def test_a_loop_of_capabilities_is_refused():
    data = bytearray(256)
    data[6] = 0x10
    data[0x34] = 0x40
    data[0x41] = 0x40
    with pytest.raises(ValueError, match="does not end: 0x40 again"):
        ConfigImage(bytes(data))


def test_a_loop_of_extended_capabilities_is_refused():
    data = bytearray(4096)
    data[0x100:0x104] = (0x10010001).to_bytes(4, "little")
    with pytest.raises(ValueError, match="do not end: 0x100 again"):
        ConfigImage(bytes(data))


def test_the_output_of_lspci_is_an_image():
    lines = ["01:00.0 Class 0108: Device 1b36:0010", "00: 36 1b 10 00" + " 00" * 12, ""]
    assert parse_image(lines)[:4] == bytes.fromhex("361b1000")
    assert len(parse_image(lines)) == 256
    assert len(parse_image([*lines, "ff0:" + " 00" * 16])) == 4096


def test_the_page_about_topologies_has_every_key_and_no_other():
    page = (Path(__file__).parents[2] / "docs" / "topology.md").read_text()
    documented = re.findall(r"^\| `([\w.]+)` \|", page, re.MULTILINE)
    keys = list(topology_keys.FunctionKeys.__struct_fields__)
    keys += topology_mediated.MediatedConfig.__struct_fields__
    keys += [
        f"iommu.{key}" for key in topology_keys.IommuKeys.__struct_fields__ if key != "options"
    ]
    keys += [f"iommufd.{key}" for key in topology_keys.IommufdKeys.__struct_fields__]
    assert sorted(documented) == sorted(keys)


def test_the_examples_of_the_page_are_files_that_load(load):
    page = (Path(__file__).parents[2] / "docs" / "topology.md").read_text()
    smallest = re.search(r"The smallest useful file:\n\n((?:    .*\n)+)", page)[1]
    topology = load(textwrap.dedent(smallest))
    assert [f.model for f in topology.functions] == ["edu"]


def test_contents_are_rows_of_bars_and_rom(load, tmp_path):
    (tmp_path / "bar.hex").write_text(
        "what it is\n00ff0: 00 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f\n"
    )
    found = load(
        function() + "bars = { 0 = 0x1000 }\nrom = 2048\n"
        'contents = { 0 = "bar.hex", rom = "image.hex" }\n'
    ).functions[0]
    assert found.contents == {0: {0xFF0: bytes(range(16))}}
    rom = found.description().rom
    assert (rom[:4], rom[16:], len(rom)) == (bytes.fromhex("3412e811"), b"\xff" * 2032, 2048)


@pytest.mark.parametrize(
    ("contents", "expected"),
    [
        ('{ 1 = "bar.hex" }', "function[0].contents.1: expected one of its regions: 0"),
        ('{ rom = "bar.hex" }', "function[0].contents.rom: expected one of its regions: 0"),
        ('{ 0 = "none.hex" }', "none.hex: No such file or directory"),
        ('{ 0 = "bar.hex" }', "bar.hex: row 1000 is out of place"),
        ("{ 0 = 5 }", "function[0].contents[...]: expected str, got int"),
    ],
)
def test_faulty_contents(load, tmp_path, contents, expected):
    (tmp_path / "bar.hex").write_text("1000:" + " 00" * 16 + "\n")
    with pytest.raises(TopologyError, match=re.escape(expected)):
        load(function() + f"bars = {{ 0 = 0x1000 }}\ncontents = {contents}\n")


MEDIATED = '[[mediated]]\nuuid = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001"\nmodel = "serial"\n'
SOME_EDU = '[[function]]\nbdf = "00:01.0"\nmodel = "edu"\n'


def test_devices_without_an_iommu_have_groups_of_their_own(load):
    other = MEDIATED.replace("1001", "1002") + "group = 1\n"
    topology = load(SOME_EDU + MEDIATED + other)
    assert [mediated.group for mediated in topology.mediated] == [2, 1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (MEDIATED.replace("83b8", "83B8"), "mediated[0].uuid: expected a UUID"),
        (MEDIATED * 2, "mediated[1].uuid: 83b8f4f2-509f-382f-3c1e-e6bfe0fa1001 is there already"),
        (SOME_EDU + MEDIATED + "group = 0\n", "mediated[0].group: expected a number that no other"),
        (MEDIATED + "group = -1\n", "mediated[0].group: expected a number that no other"),
        (MEDIATED + 'bdf = "00:02.0"\n', "mediated[0]: contains unknown field"),
    ],
)
def test_faults_of_devices_without_an_iommu(load, text, expected):
    with pytest.raises(TopologyError, match=re.escape(expected)):
        load(text)
