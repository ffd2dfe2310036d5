"""QEMU passes devices of ours through to its guest: without a guest system, by its own hands."""

import re

import pytest

from iommufs import machine

pytestmark = pytest.mark.mount

EDU, NVME, NIC, TESTDEV = "0000:00:06.0", "0000:01:00.0", "0000:02:00.0", "0000:04:02.0"
IGB = "0000:05:00.0"
IDENTIFICATION, BUFFER = 0x010000ED, 0x40000  # of edu
WORD = 0x0F00  # of igb: keeps what is written, until a reset
PAGE = 4096


@pytest.fixture(scope="module")
def ours():
    return machine.load(None)


def cdev(ours, bdf):
    return f"/dev/vfio/devices/vfio{ours.topology.function(bdf).cdev}"


@pytest.fixture(params=["fd", "host"])
def name(request, ours):
    """How QEMU is told which device: by a descriptor, or by its address, which it looks up."""
    return lambda bdf: cdev(ours, bdf) if request.param == "fd" else bdf


def bars(function):
    return {region["bar"]: region for region in function["regions"]}


@pytest.mark.parametrize("bdf", [EDU, NVME, NIC, TESTDEV, IGB])
def test_firmware_finds_the_device_and_sizes_its_bars(start_qemu, ours, name, bdf):
    qemu = start_qemu(name(bdf))
    qemu.wait_for_firmware()
    found = qemu.function("device0")
    expected = ours.functions[bdf].description
    assert (found["id"]["vendor"], found["id"]["device"]) == (expected.vendor, expected.device)
    assert found["class_info"]["class"] == expected.class_code >> 8
    regions = bars(found)
    rom = {6: len(expected.rom)} if expected.rom else {}
    sizes = {index: region["size"] for index, region in regions.items()}
    assert sizes == {index: bar.size for index, bar in expected.bars.items()} | rom
    addresses = [region["address"] for region in regions.values() if region["bar"] < 6]
    assert all(address not in (-1, 0) for address in addresses), regions
    assert qemu.quit() == 0
    assert_quiet(qemu)


def assert_quiet(qemu):
    """Nobody has complained, QEMU about something that it complains about on Linux too aside."""
    lines = qemu.messages().splitlines()
    # Mappings of BARs are no memory that could be mapped at an IOVA, on Linux neither.
    fine = re.compile(
        r"vfio_container_dma_map\(.* = -14|IOMMU_IOAS_MAP failed: Bad address, PCI BAR\?"
        r"|PCI peer-to-peer transactions|no available reset mechanism"
    )
    assert [line for line in lines if not fine.search(line)] == []


@pytest.mark.parametrize("properties", ["", ",x-no-mmap=on"], ids=["mmap", "no-mmap"])
def test_guest_drives_edu(start_qemu, name, properties):
    qemu = start_qemu(name(EDU) + properties)
    qemu.wait_for_firmware()
    found = qemu.function("device0")
    base = bars(found)[0]["address"]
    qemu.switch_on(found["slot"])
    assert qemu.load(base) == IDENTIFICATION
    qemu.store(base + 4, 0x12345678)
    wait_until(lambda: qemu.load(base + 4) == ~0x12345678 & 0xFFFFFFFF)
    qemu.store(base + 8, 10)
    wait_until(lambda: qemu.load(base + 8) == 3628800)
    # Guest memory is where the guest says it is: QEMU has mapped it for the device.
    data = bytes(i * 7 & 255 for i in range(PAGE))
    qemu.store_bytes(0x100000, data)
    for source, target, command in ((0x100000, BUFFER, 1), (BUFFER, 0x200000, 3)):
        for register, value in enumerate((source, target, PAGE, command)):
            qemu.store8(base + 0x80 + 8 * register, value)
        wait_until(lambda: not qemu.load(base + 0x98) & 1)
    assert qemu.load_bytes(0x200000, PAGE) == data
    assert qemu.quit() == 0
    assert_quiet(qemu)


def wait_until(is_so):
    """Each look is a question to QEMU, which has its own limit of time."""
    for _ in range(10000):
        if is_so():
            return
    raise AssertionError("does not happen")


def test_reset_of_the_guest_resets_the_function(start_qemu, name):
    qemu = start_qemu(name(IGB))
    qemu.wait_for_firmware()
    found = qemu.function("device0")
    base = bars(found)[0]["address"]
    qemu.switch_on(found["slot"])
    qemu.store(base + WORD, 0x12345678)
    wait_until(lambda: qemu.load(base + WORD) == 0x12345678)
    qemu.monitor("system_reset")
    qemu.wait_for_firmware()
    qemu.switch_on(found["slot"])
    assert bars(qemu.function("device0"))[0]["address"] == base
    assert qemu.load(base + WORD) == 0
    assert qemu.quit() == 0
    assert "no available reset mechanism" not in qemu.messages()


def test_two_functions_of_a_group_in_one_guest(start_qemu, ours, name):
    other = "0000:02:00.1"
    qemu = start_qemu(name(NIC), name(other))
    qemu.wait_for_firmware()
    for device in ("device0", "device1"):
        assert qemu.function(device)["id"]["device"] == ours.functions[NIC].description.device
    assert qemu.quit() == 0
    assert_quiet(qemu)


def test_host_that_does_not_exist_is_qemus_own_error(run, debian):
    command = debian.command("usr/bin/qemu-system-x86_64")
    result = run(
        *command, "-machine", "q35", "-display", "none", "-nodefaults",
        "-L", debian.root / "usr/share/qemu", "-L", debian.root / "usr/share/seabios",
        "-object", "iommufd,id=i", "-device", "vfio-pci,host=0000:77:00.0,iommufd=i",
    )  # fmt: skip
    assert result.returncode == 1
    assert "no such host device" in result.stderr
