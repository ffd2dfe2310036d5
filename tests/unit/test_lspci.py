"""Dumps of lspci as functions of a topology; the texts are in the form of lspci 3.9."""

import re

import pytest

from iommufs import lspci
from iommufs.topology import TopologyError
from iommufs.topology_file import load

ZEROS = " 00" * 16
NIC = (
    "00: 86 80 d3 10 07 01 10 00 00 00 00 02 00 00 80 00\n"
    "10: 00 00 60 fe 00 00 62 fe 81 d0 00 00 00 00 64 fe\n"
    f"20:{ZEROS}\n"
    "30: 00 00 66 fe c8 00 00 00 00 00 00 00 0b 01 00 00\n"
    "c0: 00 00 00 00 00 00 00 00 01 00 22 c8 00 00 00 00\n"
)
TOLD = """\
	Subsystem: Intel Corporation Device 0000
	Region 0: Memory at fe600000 (32-bit, non-prefetchable) [size=128K]
	Region 1: Memory at fe620000 (32-bit, non-prefetchable) [disabled] [size=128K]
	Region 2: I/O ports at d080 [size=32]
	Region 3: Memory at fe640000 (32-bit, non-prefetchable) [size=16K]
	Expansion ROM at fe660000 [disabled] [size=256K]
	Capabilities: [c8] Power Management version 2
		Region 0: Memory at 00000000fe000000 (64-bit, non-prefetchable)
	Kernel driver in use: e1000e
"""
EDU = (
    "00: 34 12 e8 11 03 01 10 00 10 00 ff 00 00 00 00 00\n"
    "10: 00 00 a0 fe 00 00 00 00 00 00 00 00 00 00 00 00\n"
    f"ff0:{ZEROS}\n"
)
NIC_LINE = "02:00.0 Ethernet controller: Intel Corporation 82574L (prog-if 00 [Größe])\n"
EDU_LINE = "0000:00:06.0 Unclassified device [00ff]: Device 1234:11e8 (rev 10)\n"
MACHINE = f"{EDU_LINE}{EDU}\n{NIC_LINE}{TOLD}{NIC}\n"
SIZES = {0: 0x20000, 1: 0x20000, 2: 0x20, 3: 0x4000}


def test_the_function_of_an_address_is_found_among_others():
    dump = lspci.parse(MACHINE, "0000:02:00.0")
    assert (dump.image.vendor, dump.image.device, len(dump.image.data)) == (0x8086, 0x10D3, 256)
    assert (dump.bars, dump.rom) == (SIZES, 0x40000)
    dump = lspci.parse(MACHINE, "0000:00:06.0")
    assert (dump.image.device, len(dump.image.data)) == (0x11E8, 4096)
    assert (dump.bars, dump.rom) == ({}, 0)


@pytest.mark.parametrize("text", [NIC, NIC_LINE + NIC, f"{NIC_LINE}{TOLD}{NIC}"])
def test_the_only_function_may_have_been_elsewhere(text):
    assert lspci.parse(text, "0000:00:01.0").image.device == 0x10D3


def test_regions_without_numbers_are_known_by_their_addresses():
    told = re.sub(r"^\tRegion \d: ", "\t", TOLD, flags=re.MULTILINE)
    assert lspci.parse(NIC_LINE + told + NIC, "0000:02:00.0").bars == SIZES


@pytest.mark.parametrize(
    ("unit", "bytes_"), [("", 1), ("K", 1 << 10), ("M", 1 << 20), ("G", 1 << 30)]
)
def test_units(unit, bytes_):
    told = f"\tRegion 0: Memory at <unassigned> (64-bit, prefetchable) [virtual] [size=4{unit}]\n"
    assert lspci.parse(NIC_LINE + told + NIC, "").bars == {0: 4 * bytes_}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (MACHINE, "expected 0000:09:00.0 among the functions in it: 0000:00:06.0, 0000:02:00.0"),
        (NIC_LINE + NIC + NIC_LINE + NIC, "0000:02:00.0 is in it twice"),
        (NIC_LINE + TOLD, "expected rows of config space"),
        (
            NIC_LINE + "\tCapabilities: <access denied>\n" + NIC,
            "expected what lspci prints to root",
        ),
        (NIC_LINE + "\tMemory at 1000 (32-bit) [size=4K]\n" + NIC, "expected the address of a BAR"),
        (NIC_LINE + NIC + NIC, "row 00 is out of place"),
        ("", "expected rows of config space"),
    ],
)
def test_faults(text, why):
    with pytest.raises(ValueError, match=re.escape(why)):
        lspci.parse(text, "0000:09:00.0")


@pytest.fixture
def topology(tmp_path):
    (tmp_path / "machine.lspci").write_text(MACHINE)

    def make(**keys):
        lines = [f"{key} = {value}" for key, value in keys.items()]
        (tmp_path / "machine.toml").write_text("[[function]]\n" + "\n".join(lines))
        (function,) = load(tmp_path / "machine.toml").functions
        return function

    return make


def test_sizes_of_the_dump_are_those_of_the_function(topology):
    function = topology(bdf='"00:01.0"', config='"machine.lspci"', config_bdf='"02:00.0"')
    assert function.image.device == 0x10D3
    assert (function.bars, function.rom) == (SIZES, 0x40000)
    bars = function.description().bars
    assert (bars[2].io, bars[2].size, bars[0].mappable) == (True, 32, True)


def test_the_file_says_otherwise_where_it_says_something(topology):
    function = topology(
        bdf='"00:01.0"', config='"machine.lspci"', config_bdf='"0000:02:00.0"',
        bars="{ 3 = 0x1000 }", rom=2048,
    )  # fmt: skip
    assert (function.bars, function.rom) == ({**SIZES, 3: 0x1000}, 2048)


def test_a_model_knows_its_own_sizes(topology):
    function = topology(bdf='"00:06.0"', config='"machine.lspci"', model='"edu"')
    assert (function.bars, function.image.device) == ({}, 0x11E8)


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"bdf": '"00:01.0"'}, "machine.lspci: expected 0000:00:01.0 among the functions"),
        ({"bdf": '"00:01.0"', "config_bdf": '"nowhere"'}, "expected 0000:nowhere among"),
    ],
)
def test_faults_are_one_line_that_names_the_file(topology, keys, why):
    with pytest.raises(TopologyError) as info:
        topology(config='"machine.lspci"', **keys)
    message = str(info.value)
    assert "function[0].config: " in message
    assert why in message
    assert "\n" not in message
