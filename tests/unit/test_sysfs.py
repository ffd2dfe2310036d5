"""Our /sys and /dev trees against those of the reference guest, entry by entry.

data/sysfs.txt has a line for each entry there: type, mode, path, then size, link target or content.
"""

import errno
import os
import re
from pathlib import Path

import pytest

from iommufs import machine, sysfs_place
from iommufs.errors import UapiError
from iommufs.fuse.attributes import OpenAttribute
from iommufs.fuse.nodes import BinaryFile, DeviceNode, Dir, Link, TextFile, lookup, walk

FACTS = Path(__file__).parent / "data" / "sysfs.txt"

# What is there and not here, and why.
LEFT_OUT = {
    r"/firmware_node$": "ACPI's view of the devices",
    r"/pci_bus($|/)": "the buses as devices",
    r"/msi_irqs($|/)|:pcie0\d\d($|/)|/virtio\d($|/)": "what the guest's own drivers add",
    r"/PNP0B00:00($|/)|/rtc($|/)": "the clock behind the ISA bridge",
    r"^/sys/bus/pci/drivers/(8250_\w+|exar_serial|mei_me|pci-stub|serial)$": "idle drivers",
    r"/power/runtime_(active|suspended)_time$": "clocks",
    r"iommufd_selftest_iommu": "the mock IOMMU of CONFIG_IOMMUFD_TEST",
}
# What is here and not there, and why.
BESIDES = {r"/numa_node$": "Linux was built without NUMA there"}
# Content that is the guest's own.
ANOTHER_MACHINE = re.compile(r"/local_cpu(s|list)$")


def facts():
    pattern = re.compile(r"(\w) (\d+) (\S+)(?: size=(\d+))?(?: (.*))?")
    for line in FACTS.read_text().splitlines():
        kind, mode, path, size, rest = pattern.fullmatch(line).groups()
        yield kind, int(mode, 8), path, int(size or 4096), rest or ""


def matches(patterns, path):
    return any(re.search(pattern, path) for pattern in patterns)


EXPECTED = {fact[2]: fact for fact in facts() if not matches(LEFT_OUT, fact[2])}


@pytest.fixture(scope="module")
def tree():
    return {f"/{path}": node for path, node in walk(machine.load(None).root)}


def show(node):
    """A node as a fact tells it, without what the fact leaves out."""
    match node:
        case Dir():
            return "d", node.mode, ""
        case Link():
            return "l", 0o777, f"-> {node.target}"
        case DeviceNode():
            return "c", node.mode, "{}:{}".format(*node.rdev)
        case BinaryFile():
            return "f", node.mode, "(binary)"
        case TextFile(read=None):
            return "f", node.mode, "(write only)"
        case TextFile():
            try:
                return "f", node.mode, repr(node.read().decode())
            except UapiError as error:
                return "f", node.mode, f"read: {os.strerror(error.errno)}"


@pytest.mark.parametrize("path", EXPECTED)
def test_entry_is_as_in_the_reference_guest(tree, path):
    kind, mode, _, size, rest = EXPECTED[path]
    assert path in tree
    node = tree[path]
    if ANOTHER_MACHINE.search(path):
        rest = show(node)[2]
    assert show(node) == (kind, mode, rest)
    if kind == "f":
        assert node.size == size


def test_nothing_is_there_that_the_reference_guest_lacks(tree):
    known = {fact[2] for fact in facts()}
    # The facts list a directory in full if they list anything in it, and it is a fact itself.
    listed = {path.rpartition("/")[0] for path in known} & known
    assert len(listed) > 100
    unknown = {path for path in tree if path.rpartition("/")[0] in listed} - known
    assert [path for path in sorted(unknown) if not matches(BESIDES, path)] == []


@pytest.mark.parametrize("pattern", LEFT_OUT)
def test_what_is_left_out_is_there_in_the_reference_guest(pattern):
    assert any(re.search(pattern, fact[2]) for fact in facts())


def test_every_link_inside_the_tree_leads_somewhere(tree):
    for path, node in tree.items():
        if isinstance(node, Link):
            target = Path(path).parent.joinpath(node.target)
            resolved = "/" + "/".join(_without_dots(target.parts[1:]))
            if not resolved.startswith(("/sys/bus/pci_express", "/sys/class/misc")):
                assert resolved in tree, f"{path} -> {node.target}"


def _without_dots(parts):
    stack = []
    for part in parts:
        if part == "..":
            stack.pop()
        else:
            stack.append(part)
    return stack


def test_registers_of_the_other_iommu_are_as_in_its_reference_guest(tmp_path):
    config = tmp_path / "machine.toml"
    config.write_text('[iommu]\nkind = "amd"\n[[function]]\nbdf = "00:01.0"\nmodel = "edu"\n')
    shown = lookup(machine.load(str(config)).root, "sys/devices/virtual/iommu/ivhd0/amd-iommu")
    assert {name: node.read() for name, node in shown.listing()} == {
        "cap": b"1f03000f\n",
        "features": b"29d7:0\n",
    }


def test_functions_are_on_a_node_where_the_machine_has_nodes(tmp_path, monkeypatch):
    def load():
        made = machine.load(None).root
        return lookup(made, "sys/devices/pci0000:00/0000:00:06.0").find("numa_node")

    monkeypatch.setattr(sysfs_place, "NODES", str(tmp_path / "nodes"))
    assert load() is None
    (tmp_path / "nodes" / "node0").mkdir(parents=True)
    node = load()
    assert node.read() == b"-1\n"
    node.write(b"0\n")
    assert node.read() == b"0\n"
    for nonsense in (b"1", b"-2", b"", b"node0"):
        with pytest.raises(UapiError) as refused:
            node.write(nonsense)
        assert refused.value.errno == errno.EINVAL
    node.write(b"-1")
    assert node.read() == b"-1\n"


def test_config_is_the_live_config_space():
    made = machine.load(None)
    node = lookup(made.root, "sys/devices/pci0000:00/0000:00:06.0/config")
    assert node.read(0, 4096)[:4] == bytes.fromhex("3412e811")
    assert len(node.read(0, 4096)) == 256
    assert node.read(254, 8) == bytes(2)
    assert node.read(256, 8) == b""
    made.functions["0000:00:06.0"].raw.write(4, 2, 0x0107)
    assert node.read(4, 2) == b"\x07\x01"


def test_attributes_follow_a_client():
    made = machine.load(None)
    nvme = made.devices[1]
    path = "sys/devices/pci0000:00/0000:00:02.0/0000:01:00.0"

    def read(name):
        return lookup(made.root, f"{path}/{name}").read()

    before = [read(name) for name in ("enable", "power_state", "power/runtime_status")]
    assert before == [b"0\n", b"D3hot\n", b"suspended\n"]
    nvme.bound = object()
    after = [read(name) for name in ("enable", "power_state", "power/runtime_status")]
    assert after == [b"1\n", b"D0\n", b"active\n"]


def test_what_the_mode_allows_can_be_done_and_nothing_else(tree):
    for path, node in tree.items():
        if isinstance(node, TextFile):
            assert bool(node.write) is bool(node.mode & 0o222), path
            assert bool(node.read) is bool(node.mode & 0o444), path


async def test_nonsense_is_refused_wherever_something_can_be_written(tree):
    """What takes any text, as Linux does, apart."""
    any_text = re.compile(r"/driver_override$|/drivers_autoprobe$")
    for path, node in tree.items():
        if isinstance(node, TextFile) and node.write and not any_text.search(path):
            with pytest.raises(UapiError) as caught:
                await OpenAttribute(node).write(0, b"%%")
            assert caught.value.errno in (errno.EINVAL, errno.ENODEV, errno.EIO), path
