"""A function that is described by data alone."""

from dataclasses import replace

import pytest

from iommufs.devices.inert import Inert
from iommufs.vfio.model import Bar, Description

DESCRIPTION = Description(
    vendor=1,
    device=2,
    class_code=3,
    bars={0: Bar(4096, mappable=True), 2: Bar(32, io=True)},
)


@pytest.fixture
def inert(host):
    return host.plug(Inert(host, {"description": DESCRIPTION}))


def test_it_is_what_its_description_says(inert):
    bars = {0: Bar(4096, mappable=True, plain=True), 2: Bar(32, io=True)}
    assert inert.describe() == replace(DESCRIPTION, bars=bars)


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_memory_is_zero_at_first_and_keeps_what_is_stored(host, inert, size):
    assert inert.read(0, 8, size) == 0
    value = 0x1122334455667788 & ((1 << 8 * size) - 1)
    inert.write(0, 8, size, value)
    assert inert.read(0, 8, size) == value
    assert host.load(0, 8, size) == value
    assert inert.read(0, 16, size) == 0


def test_what_a_mapping_stores_is_read(host, inert):
    host.store(0, 0xFF8, 8, 0x1122334455667788)
    assert inert.read(0, 0xFFC, 4) == 0x11223344


@pytest.mark.parametrize("size", [1, 2, 4])
def test_nobody_answers_on_io_ports(inert, size):
    inert.write(2, 0, size, 0)
    assert inert.read(2, 0, size) == (1 << 8 * size) - 1


CONTENTS = {0: {0x10: bytes(range(16)), 0xFF0: b"\xaa" * 16}, 2: {16: b"\x55" * 16}}


def test_contents_are_there_at_first_and_after_a_reset(host):
    inert = host.plug(Inert(host, {"description": DESCRIPTION, "contents": CONTENTS}))
    for _ in range(2):
        assert [inert.read(0, at, 4) for at in (0, 0x14, 0x20, 0xFFC)] == [
            0,
            0x07060504,
            0,
            0xAAAAAAAA,
        ]
        assert [inert.read(2, at, 2) for at in (0, 14, 15, 30)] == [0, 0, 0x5500, 0x5555]
        inert.write(0, 0x14, 4, 1)
        inert.write(2, 30, 2, 2)
        assert (inert.read(0, 0x14, 4), inert.read(2, 30, 2)) == (1, 2)
        inert.open()  # by somebody else; not reset in between
        assert inert.read(0, 0x14, 4) == 1
        inert.reset()


def test_registers_that_are_not_bytes(host):
    options = {"description": DESCRIPTION, "contents": CONTENTS, "register_width": 4}
    inert = host.plug(Inert(host, options))
    assert [inert.read(0, at, 1) for at in (0x14, 0x15, 0x17)] == [4] * 3
    assert [inert.read(0, at, 2) for at in (0x14, 0x16)] == [0x0504] * 2
    assert inert.read(0, 0x14, 4) == 0x07060504
    assert inert.read(0, 0x10, 8) == 0x0706050403020100


def test_a_register_has_a_size_that_an_access_can_have(host):
    with pytest.raises(ValueError, match="register_width"):
        Inert(host, {"description": DESCRIPTION, "register_width": 3})


def test_a_reset_clears_the_memory(inert):
    inert.write(0, 8, 4, 1)
    inert.reset()
    assert inert.read(0, 8, 4) == 0
