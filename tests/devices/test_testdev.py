"""testdev as its datasheet (docs/testdev.md) has it; numbers seen in the oracle guest."""

import pytest

from iommufs.devices.testdev import Testdev as Model

MEMORY, PORTS = 0, 1
NAMES = {
    (MEMORY, 0): (b"mmio-no-eventfd", 0, 2048, 0xFA),
    (MEMORY, 1): (b"mmio-wildcard-eventfd", 1, 2049, 0xCE),
    (MEMORY, 2): (b"mmio-datamatch-eventfd", 2, 2050, 0xFA),
    (PORTS, 0): (b"portio-no-eventfd", 3, 131, 0xFA),
    (PORTS, 1): (b"portio-wildcard-eventfd", 4, 132, 0xCE),
    (PORTS, 2): (b"portio-datamatch-eventfd", 5, 133, 0xFA),
}


@pytest.fixture
def device(host):
    return host.plug(Model(host, {"membar": 0x200000}))


def start(device, bar, number):
    device.write(bar, 0, 1, number)


def count(device, bar):
    return device.read(bar, 12, 4)


@pytest.mark.parametrize(("bar", "number"), NAMES)
def test_a_test_shows_its_header_in_both_bars(device, bar, number):
    name, shown, offset, data = NAMES[bar, number]
    start(device, bar, number)
    header = bytes([shown, 1, 0, 0]) + offset.to_bytes(4, "little")
    header += bytes([data]) + bytes(7) + name
    for either in (MEMORY, PORTS):
        seen = b"".join(device.read(either, at, 4).to_bytes(4, "little") for at in range(0, 64, 4))
        assert seen == header.ljust(64, b"\0")


@pytest.mark.parametrize("bar", [MEMORY, PORTS])
@pytest.mark.parametrize("number", [3, 4, 255])
def test_an_unknown_number_ends_the_test(device, bar, number):
    start(device, bar, 0)
    start(device, bar, number)
    assert all(device.read(bar, at, 8) == 0 for at in range(0, 64, 8))


def test_matching_bytes_are_counted_whatever_the_width(device):
    start(device, MEMORY, 0)
    for size in (1, 2, 4, 8):
        device.write(MEMORY, 2048, size, 0xFA)
    device.write(MEMORY, 2048, 4, 0xFAFAFAFA)
    assert count(device, MEMORY) == 5
    for value in (0, 0xFB):
        device.write(MEMORY, 2048, 1, value)
    device.write(MEMORY, 2047, 1, 0xFA)
    device.write(MEMORY, 2049, 1, 0xFA)
    assert count(device, MEMORY) == 5


@pytest.mark.parametrize("bar", [MEMORY, PORTS])
def test_what_an_eventfd_takes_is_not_counted(device, bar):
    _, _, offset, data = NAMES[bar, 1]
    start(device, bar, 1)
    device.write(bar, offset, 1, data)
    device.write(bar, offset, 1, 0)
    assert count(device, bar) == 0
    device.write(bar, offset - 1, 2, 0)
    assert count(device, bar) == 1

    _, _, offset, data = NAMES[bar, 2]
    start(device, bar, 2)
    device.write(bar, offset, 1, data)
    device.write(bar, offset, 1, data ^ 1)
    device.write(bar, offset - 1, 2, data)
    assert count(device, bar) == 0
    device.write(bar, offset - 1, 2, data << 8)
    assert count(device, bar) == 1


def test_the_offset_counts_in_the_other_bar_too(device):
    start(device, PORTS, 2)
    device.write(MEMORY, 133, 1, 0xFA)
    assert count(device, PORTS) == 1


def test_a_start_clears_the_count_and_the_header_is_read_only(device):
    start(device, MEMORY, 0)
    device.write(MEMORY, 2048, 1, 0xFA)
    for at in range(1, 32):
        device.write(MEMORY, at, 1, 0x55)
    assert count(device, MEMORY) == 1
    assert device.read(MEMORY, 4, 4) == 2048
    start(device, MEMORY, 0)
    assert count(device, MEMORY) == 0


def test_nothing_is_there_before_a_test_or_after_a_reset(host, device):
    assert device.read(MEMORY, 0, 8) == device.read(PORTS, 0, 4) == 0
    device.write(MEMORY, 2048, 1, 0xFA)
    start(device, MEMORY, 0)
    device.reset()
    assert device.read(MEMORY, 0, 8) == host.load(MEMORY, 0, 8) == 0


def test_bar_2_has_nothing_behind_it(host, device):
    device.write(2, 0, 4, 0x1234)
    assert device.read(2, 0, 4) == 0
    host.store(2, 0, 4, 0x1234)
    device.close()
    assert host.load(2, 0, 4) == 0


def test_through_a_mapping(host, device):
    host.store(MEMORY, 0, 4, 0)
    device.write(MEMORY, 0, 4, 0)  # what the watch makes of the store
    header = bytes(host.bars[MEMORY][:0x20])
    assert header[0x10:] == b"mmio-no-eventfd\0"
    for number in (1, 2, 3):
        device.write(MEMORY, 2048, 4, 0xFA)
        assert host.load(MEMORY, 12, 4) == number
    order = [offset for _, offset, _ in host.watches]
    assert order[0] == 0
    assert order[-1] == 2048
    assert host.clearing == {(MEMORY, 2048)}


def test_the_ids_and_bars(host, device):
    description = device.describe()
    assert (description.vendor, description.device) == (0x1B36, 5)
    assert not description.intx
    assert description.bars[1].io
    assert description.bars[2].size == 0x200000
    assert 2 not in Model(host, {}).describe().bars


@pytest.mark.parametrize("membar", [-1, 8, 24, "x", True])
def test_a_membar_that_is_none_is_refused(host, membar):
    with pytest.raises(ValueError, match="membar must be 0 or a power of two"):
        Model(host, {"membar": membar})
