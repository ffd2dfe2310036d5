"""What the composed /sys consists of, on directories that stand for the machine's and ours."""

import os

import pytest

from iommufs.composer import MERGED, Composer, Listings


@pytest.fixture
def sys_pair(tmp_path):
    """(machine, ours): a machine with a disk behind a PCI root that we have too."""
    directories = [
        "machine/devices/pci0000:00/0000:00:02.0/virtio1/block/vda",
        "machine/devices/pci0000:80",
        "machine/devices/virtual/net/lo",
        *("machine/class/net", "machine/class/tty", "machine/bus/virtio/devices"),
        *("machine/bus/pci/devices", "machine/module/kvm", "machine/dev/block", "machine/block"),
        *("ours/bus/pci/devices", "ours/devices/pci0000:00", "ours/class/vfio-dev"),
        *("ours/module/vfio", "ours/dev/char"),
    ]
    for directory in directories:
        (tmp_path / directory).mkdir(parents=True)
    links = {
        "class/net/lo": "../../devices/virtual/net/lo",
        "class/net/eth0": "../../devices/pci0000:00/0000:00:02.0/virtio1/net/eth0",
        "class/tty/tty0": "../../devices/virtual/tty/tty0",
        "bus/virtio/devices/virtio1": "../../../devices/pci0000:00/0000:00:02.0/virtio1",
        "bus/pci/devices/0000:00:02.0": "../../../devices/pci0000:00/0000:00:02.0",
        "block/vda": "../devices/pci0000:00/0000:00:02.0/virtio1/block/vda",
        "dev/block/254:0": "../../devices/pci0000:00/0000:00:02.0/virtio1/block/vda",
    }
    for name, target in links.items():
        os.symlink(target, tmp_path / "machine" / name)
    return str(tmp_path / "machine"), str(tmp_path / "ours")


def test_only_a_root_that_ours_cover_moves(sys_pair):
    assert Composer(*map(Listings, sys_pair), MERGED["sys"]).moved == {
        "pci0000:00": "machine-pci0000:00"
    }


def test_links_follow_the_moved_root(sys_pair):
    turn = Composer(*map(Listings, sys_pair), MERGED["sys"]).turn
    assert turn("../devices/pci0000:00/0000:00:02.0/x") == (
        "../devices/machine-pci0000:00/0000:00:02.0/x"
    )
    assert turn("../../devices/pci0000:00") == "../../devices/machine-pci0000:00"
    for other in "../devices/pci0000:80/x", "../../devices/virtual/net/lo", "../pci0000:00", "x":
        assert turn(other) == other


def test_directories_are_opened_where_both_have_entries_or_links_must_turn(sys_pair):
    assert Composer(*map(Listings, sys_pair), MERGED["sys"]).opened == {
        *("", "bus", "class", "devices", "dev", "module"),
        *("class/net", "bus/virtio", "bus/virtio/devices", "block", "dev/block"),
    }


def test_nothing_is_opened_for_links_where_no_root_is_covered(sys_pair):
    machine, ours = sys_pair
    os.rmdir(f"{ours}/devices/pci0000:00")
    composer = Composer(Listings(machine), Listings(ours), MERGED["sys"])
    assert composer.moved == {}
    assert composer.opened == {"", "bus", "class", "devices", "dev", "module"}


def test_a_machine_without_a_directory_of_ours_is_fine(sys_pair, tmp_path):
    machine = tmp_path / "bare"
    machine.mkdir()
    assert Composer(Listings(str(machine)), Listings(sys_pair[1]), MERGED["sys"]).opened == {""}


def test_what_is_gone_since_it_was_listed_is_left_out(sys_pair, tmp_path, monkeypatch):
    machine, ours = map(Listings, sys_pair)
    for at in "class/net", "block":
        machine.entries(at)
    os.unlink(f"{machine.top}/class/net/eth0")
    shown = []

    def bind(source, target):
        if source == f"{machine.top}/module/kvm":
            raise FileNotFoundError(source)
        shown.append(source)

    monkeypatch.setattr("iommufs.composer.syscalls.bind", bind)
    composer = Composer(machine, ours, MERGED["sys"])
    assert "class/net" not in composer.opened  # that link was the only one to turn
    os.unlink(f"{machine.top}/block/vda")
    target = tmp_path / "composed"
    target.mkdir()
    composer.fill(str(target))
    assert sorted(os.listdir(target / "module")) == ["vfio"]
    assert os.listdir(target / "block") == []
    assert f"{machine.top}/class/net" in shown
