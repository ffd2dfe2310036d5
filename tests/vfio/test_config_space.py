"""Config space against what the oracle answered, byte by byte (tests/data/config_bits.txt)."""

import errno

import pytest

from iommufs.errors import UapiError
from iommufs.vfio import capabilities as caps
from iommufs.vfio.config import ConfigSpace
from iommufs.vfio.irqs import Irqs
from iommufs.vfio.model import Description
from tests.vfio.facts import ALL, WINDOW

WIDTHS = (1, 2, 4, 8)


@pytest.fixture(params=ALL, ids=lambda facts: facts.address)
def facts(request):
    return request.param


@pytest.fixture
def config(facts, make_function):
    return open_config(make_function(facts.description()))


def open_config(function):
    function.open()
    function.irqs = Irqs(function, function.spawn)
    return ConfigSpace(function, function.irqs)


def test_the_facts_are_all_there():
    assert [facts.address for facts in ALL] == [
        "0000:00:06.0", "0000:01:00.0", "0000:02:00.0", "0000:02:00.1",
        "0000:04:01.0", "0000:04:02.0", "0000:05:00.0",
    ]  # fmt: skip
    assert sum(len(facts.writes) for facts in ALL) > 350


def test_after_opening_a_client_reads_what_linux_shows(facts, config):
    assert config.read(0, facts.size) == facts.after_opening()


@pytest.mark.parametrize("width", WIDTHS)
def test_writes_change_what_they_change_in_linux(facts, config, width):
    window = min(facts.size, WINDOW)
    before = config.read(0, window)
    for offset in range(0, window, width):
        ones, zeros = facts.changes(width, offset)
        for value, changes in ((b"\xff", ones), (b"\x00", zeros)):
            expected = bytearray(before)
            for at, byte in changes.items():
                expected[at] = byte
            config.write(offset, value * width)
            assert config.read(0, window) == expected, f"{value * width} at {offset:#x}"
        config.write(offset, before[offset : offset + width])
        assert config.read(0, window) == before, f"restored at {offset:#x}"


def test_bytes_of_no_capability_are_memory_that_outlives_the_client(make_function):
    function = make_function()
    open_config(function).write(0xF0, b"kept")
    function.close()
    assert open_config(function).read(0xF0, 4) == b"kept"


def test_access_past_the_end_is_efault_and_writes_nothing(make_function):
    config = open_config(make_function())
    with pytest.raises(UapiError) as error:
        config.read(254, 4)
    assert error.value.errno == errno.EFAULT
    with pytest.raises(UapiError) as error:
        config.write(252, b"\xaa" * 8)
    assert error.value.errno == errno.EFAULT
    assert config.read(252, 4) == bytes(4)


def test_memory_is_enabled_as_the_client_last_wrote_it(make_function):
    config = open_config(make_function())
    assert config.memory_enabled
    config.write(4, b"\x05\x00")
    assert not config.memory_enabled
    config.write(5, b"\x02")  # only the upper byte: not the bit
    assert not config.memory_enabled
    config.write(4, b"\x02")
    assert config.memory_enabled


def chain(*links):
    """Config space with capabilities: (id, offset) each, linked in this order."""
    image = bytearray(256)
    image[6] = 0x10
    at = 0x34
    for id, offset in links:
        image[at] = offset
        image[offset] = id
        at = offset + 1
    return image


def described(image):
    return Description(
        vendor=0x1234, device=1, class_code=0, config=bytes(image), intx=bool(image[0x3D])
    )


SLOT_ID, SHPC, AF = 0x04, 0x0C, 0x13


def test_capabilities_that_clients_may_not_see_are_skipped(make_function):
    image = chain((SLOT_ID, 0x40), (caps.PM, 0x50), (SHPC, 0x60), (AF, 0x70))
    config = open_config(make_function(described(image)))
    assert config.read(0x34, 1) == b"\x50"
    assert config.read(0x51, 1) == b"\x70"
    assert config.read(0x71, 1) == b"\x00"


def test_without_a_visible_capability_the_status_bit_goes(make_function):
    config = open_config(make_function(described(chain((SHPC, 0x40)))))
    assert config.read(6, 2) == b"\x00\x00"
    assert config.read(0x34, 1) == b"\x00"


def test_a_list_that_bites_its_tail_ends(make_function):
    image = chain((caps.PM, 0x40), (AF, 0x50))
    image[0x51] = 0x40
    config = open_config(make_function(described(image)))
    assert config.read(0x34, 1) == b"\x40"


def extended_image(*headers):
    image = bytearray(4096)
    image[:256] = chain((caps.EXPRESS, 0x40))
    image[0x42] = 2
    for offset, id, next in headers:
        image[offset : offset + 4] = (id | 1 << 16 | next << 20).to_bytes(4, "little")
    return image


def test_an_extended_capability_that_is_hidden_is_unlinked(make_function):
    pasid = 0x1B
    image = extended_image(
        (0x100, caps.X_ARI, 0x140), (0x140, pasid, 0x180), (0x180, caps.X_ATS, 0)
    )
    config = open_config(make_function(described(image)))
    header = caps.u32(config.read(0x100, 4), 0)
    assert header & 0xFFFF == caps.X_ARI
    assert header >> 20 == 0x180


def test_the_head_of_the_extended_list_stays_without_its_id(make_function):
    pasid = 0x1B
    image = extended_image((0x100, pasid, 0x140), (0x140, caps.X_ATS, 0))
    config = open_config(make_function(described(image)))
    assert caps.u32(config.read(0x100, 4), 0) == 0x140 << 20
    config.write(0x100, b"\xff" * 4)
    assert caps.u32(config.read(0x100, 4), 0) == 0x140 << 20


def test_flr_by_config_space_resets_a_function_that_has_it(make_function):
    image = chain((caps.EXPRESS, 0x40))
    image[0x42] = 2
    image[0x44:0x48] = (1 << 28).to_bytes(4, "little")
    function = make_function(described(image))
    config = open_config(function)
    function.model.calls.clear()
    config.write(0x48, b"\x00\x80")
    assert function.model.calls == [("reset",)]
    assert config.read(0x48, 2) == b"\x00\x00"


def test_flr_by_config_space_does_nothing_without_it(make_function):
    image = chain((caps.EXPRESS, 0x40))
    image[0x42] = 2
    function = make_function(described(image))
    config = open_config(function)
    function.model.calls.clear()
    config.write(0x48, b"\x00\x80")
    assert function.model.calls == []
    assert config.read(0x48, 2) == b"\x00\x00"


def test_in_d3hot_memory_is_off_and_the_way_back_resets(make_function):
    function = make_function(described(chain((caps.PM, 0x40))))
    config = open_config(function)
    config.write(4, b"\x06\x00")
    config.write(0x44, b"\x03\x00")
    assert not config.memory_enabled
    assert not function.bus_master
    function.model.calls.clear()
    config.write(0x44, b"\x00\x00")
    assert config.memory_enabled
    assert function.bus_master
    assert function.model.calls == [("reset",)]
