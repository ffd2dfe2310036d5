"""The edu model against its datasheet, docs/edu.md."""

import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from iommufs.devices.edu import REGISTERS, Edu, width

PAGE = 4096
BUFFER = 0x40000
ONES4, ONES8 = 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF


@pytest.fixture
def edu(host):
    return host.plug(Edu(host, {}))


def dma(edu, source, destination, count, command):
    for register, value in ((0x80, source), (0x88, destination), (0x90, count), (0x98, command)):
        edu.write(0, register, 8, value)


# -- identification, widths ------------------------------------------------------------------------


def test_description_is_that_of_the_datasheet(edu):
    description = edu.describe()
    assert (description.vendor, description.device) == (0x1234, 0x11E8)
    assert (description.class_code, description.revision) == (0x00FF00, 0x10)
    assert description.bars[0].size == 1 << 20
    assert description.bars[0].mappable
    assert description.intx
    assert (description.msi_vectors, description.msix_vectors) == (1, 0)


def test_identification_is_version_1_0_and_cannot_be_written(edu):
    edu.write(0, 0x00, 4, 5)
    assert edu.read(0, 0x00, 4) == 0x010000ED


def test_every_word_after_power_on(edu):
    zero = {0x04, 0x08, 0x20, 0x24, 0x80, 0x88, 0x90, 0x98}
    for offset in range(4, 0x100, 4):
        assert edu.read(0, offset, 4) == (0 if offset in zero else ONES4), hex(offset)
    for offset in range(0, 0x100, 8):
        expected = 0 if offset in {0x80, 0x88, 0x90, 0x98} else ONES8
        assert edu.read(0, offset, 8) == expected, hex(offset)


@pytest.mark.parametrize("size", [4, 8])
@pytest.mark.parametrize("offset", [0x1000, 0x40000, 0xFFFF8])
def test_the_rest_of_the_bar_reads_as_ones_the_dma_buffer_too(edu, offset, size):
    assert edu.read(0, offset, size) == (1 << 8 * size) - 1


@pytest.mark.parametrize(("offset", "size"), [(0, 1), (5, 1), (4, 2), (0x80, 2), (2, 4), (0x84, 8)])
def test_narrow_and_crooked_accesses_read_zero_and_write_nothing(edu, offset, size):
    edu.write(0, 4, 4, 0)
    assert edu.read(0, offset, size) == 0
    edu.write(0, offset, size, 1)
    assert edu.read(0, 4, 4) == ONES4
    assert edu.read(0, 0x80, 8) == 0


def test_eight_bytes_at_once_below_0x80_do_nothing(edu):
    edu.write(0, 0x00, 8, 0x1111111122222222)
    assert edu.read(0, 4, 4) == 0
    edu.write(0, 0x60, 8, 3)
    assert edu.read(0, 0x24, 4) == 0


def test_liveness_inverts(edu):
    edu.write(0, 4, 4, 0x12345678)
    assert edu.read(0, 4, 4) == 0xEDCBA987


@pytest.mark.parametrize("register", [0x80, 0x88, 0x90])
def test_dma_registers_take_both_widths_and_four_bytes_clear_the_upper_half(edu, register):
    edu.write(0, register, 8, 0xFEDCBA9876543210)
    assert edu.read(0, register, 8) == 0xFEDCBA9876543210
    assert edu.read(0, register, 4) == 0x76543210
    assert edu.read(0, register + 4, 4) == ONES4
    edu.write(0, register, 4, 0x89ABCDEE)
    edu.write(0, register + 4, 4, 0x55)
    assert edu.read(0, register, 8) == 0x89ABCDEE


# -- factorial -------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1, 5, 12, 13, 20, 33, 34, 35, 1000, ONES4])
def test_factorial_keeps_32_bits(host, edu, n):
    edu.write(0, 8, 4, n)
    assert edu.read(0, 0x20, 4) == 0x01
    assert edu.read(0, 8, 4) == n
    host.finish()
    assert edu.read(0, 0x20, 4) == 0
    assert edu.read(0, 8, 4) == (math.factorial(n) % 2**32 if n < 2000 else 0)


def test_a_second_number_is_ignored_while_computing(host, edu):
    edu.write(0, 8, 4, 5)
    edu.write(0, 8, 4, 6)
    host.finish()
    assert edu.read(0, 8, 4) == 120


def test_status_keeps_only_the_interrupt_bit_of_what_is_written(edu):
    for value, expected in ((ONES4, 0x80), (0x7F, 0), (0x80, 0x80), (0, 0)):
        edu.write(0, 0x20, 4, value)
        assert edu.read(0, 0x20, 4) == expected


def test_status_written_while_computing_leaves_the_computing_bit(host, edu):
    edu.write(0, 8, 4, 5)
    edu.write(0, 0x20, 4, 0x80)
    assert edu.read(0, 0x20, 4) == 0x81
    host.finish()
    assert host.intx


def test_factorial_interrupts_only_when_asked(host, edu):
    edu.write(0, 8, 4, 5)
    host.finish()
    assert not host.intx
    edu.write(0, 0x20, 4, 0x80)
    edu.write(0, 8, 4, 5)
    host.finish()
    assert host.intx
    assert edu.read(0, 0x24, 4) == 0x001


# -- interrupts ------------------------------------------------------------------------------------


def test_raise_adds_bits_and_acknowledge_takes_them(host, edu):
    edu.write(0, 0x60, 4, 0x12)
    edu.write(0, 0x60, 4, 0x81)
    assert edu.read(0, 0x24, 4) == 0x93
    edu.write(0, 0x64, 4, 0x10)
    edu.write(0, 0x24, 4, 0xFF)
    assert edu.read(0, 0x24, 4) == 0x83
    assert host.intx
    edu.write(0, 0x64, 4, ONES4)
    assert edu.read(0, 0x24, 4) == 0
    assert not host.intx


def test_raising_nothing_on_a_quiet_device_is_silent(host, edu):
    edu.write(0, 0x60, 4, 0)
    host.msi_on = True
    edu.write(0, 0x60, 4, 0)
    assert not host.intx
    assert host.messages == []


def test_msi_is_sent_at_each_raise_and_leaves_the_line_alone(host, edu):
    host.msi_on = True
    edu.write(0, 0x60, 4, 1)
    edu.write(0, 0x60, 4, 1)
    edu.write(0, 0x60, 4, 0)
    assert host.messages == [0, 0, 0]
    edu.write(0, 0x64, 4, 1)
    assert host.messages == [0, 0, 0]
    assert not host.intx


# -- DMA -------------------------------------------------------------------------------------------


def test_the_worked_transfer_of_the_datasheet(host, edu):
    data = bytes(range(100))
    host.map(0x100000, data + bytes(PAGE - 100))
    dma(edu, 0x100000, BUFFER, 100, 1)
    assert edu.read(0, 0x98, 4) == 1
    host.finish()
    assert edu.read(0, 0x98, 4) == 0
    dma(edu, BUFFER, 0x100000 + 100, 100, 3)
    host.finish()
    assert edu.read(0, 0x98, 4) == 2
    assert host.memory(0x100000, 300) == data + data + bytes(100)
    assert not host.intx
    assert host.reports == []


def test_a_transfer_may_cross_pages_and_fill_the_buffer(host, edu):
    data = bytes(i * 7 % 251 for i in range(2 * PAGE))
    host.map(0x10000, data)
    host.map(0x20000, bytes(2 * PAGE))
    dma(edu, 0x10000 + 123, BUFFER, PAGE, 1)
    host.finish()
    dma(edu, BUFFER, 0x20000 + 3000, PAGE, 3)
    host.finish()
    assert host.memory(0x20000 + 3000, PAGE) == data[123 : 123 + PAGE]


def test_the_buffer_is_addressed_from_0x40000_on(host, edu):
    host.map(0x10000, b"abcdefgh" + bytes(PAGE - 8))
    dma(edu, 0x10000, BUFFER + PAGE - 4, 4, 1)
    host.finish()
    dma(edu, BUFFER + PAGE - 3, 0x10100, 3, 3)
    host.finish()
    assert host.memory(0x10100, 4) == b"bcd\0"


def test_dma_interrupts_only_when_asked_even_for_no_bytes(host, edu):
    dma(edu, BUFFER, 0x10000, 0, 3)
    host.finish()
    assert not host.intx
    dma(edu, BUFFER, 0x10000, 0, 7)
    host.finish()
    assert host.intx
    assert edu.read(0, 0x24, 4) == 0x100
    assert edu.read(0, 0x98, 4) == 6


def test_a_command_without_the_run_bit_is_not_even_kept(host, edu):
    edu.write(0, 0x98, 4, 6)
    host.finish()
    assert edu.read(0, 0x98, 4) == 0


def test_registers_are_locked_while_a_transfer_runs(host, edu):
    host.map(0x10000, b"x" * PAGE)
    dma(edu, 0x10000, BUFFER, 16, 1)
    dma(edu, 1, 2, 3, 7)
    assert [edu.read(0, register, 8) for register in (0x80, 0x88, 0x90, 0x98)] == [
        0x10000, BUFFER, 16, 1,
    ]  # fmt: skip
    host.finish()
    assert not host.intx


def test_a_refused_read_leaves_zeros_in_the_buffer_and_is_reported(host, edu):
    host.map(0x10000, b"x" * PAGE)
    dma(edu, 0x10000, BUFFER, 32, 1)
    host.finish()
    dma(edu, 0x50000, BUFFER, 16, 1)
    host.finish()
    assert host.reports == [("DMA refused", {"iova": "0x50000", "reason": "unmapped"})]
    assert edu.read(0, 0x98, 4) == 0
    dma(edu, BUFFER, 0x10100, 32, 3)
    host.finish()
    assert host.memory(0x10100, 32) == bytes(16) + b"x" * 16


def test_a_refused_write_moves_no_byte_and_is_reported(host, edu):
    host.map(0x10000, b"x" * PAGE, read_only=True)
    dma(edu, BUFFER, 0x10010, 16, 7)
    host.finish()
    assert host.memory(0x10000, PAGE) == b"x" * PAGE
    assert host.reports == [("DMA refused", {"iova": "0x10010", "reason": "permission"})]
    assert edu.read(0, 0x24, 4) == 0x100


def test_each_page_of_a_transfer_is_refused_on_its_own(host, edu):
    host.map(0x10000, bytes(range(256)) * 16)
    dma(edu, 0x10FF0, BUFFER, 32, 1)
    host.finish()
    assert host.reports == [("DMA refused", {"iova": "0x11000", "reason": "unmapped"})]
    dma(edu, BUFFER, 0x10000, 32, 3)
    host.finish()
    assert host.memory(0x10000, 32) == bytes(range(0xF0, 0x100)) + bytes(16)


@pytest.mark.parametrize(
    ("inside", "count"),
    [(BUFFER - 1, 1), (BUFFER, PAGE + 1), (BUFFER + PAGE, 1), (0, 8), (BUFFER, ONES8), (ONES8, 1)],
)
@pytest.mark.parametrize("command", [5, 7])
def test_outside_the_buffer_nothing_moves_but_the_command_ends(host, edu, inside, count, command):
    host.map(0x10000, b"x" * PAGE)
    addresses = (0x10000, inside) if command == 5 else (inside, 0x10000)
    dma(edu, *addresses, count, command)
    host.finish()
    assert host.reports == [("DMA outside the buffer", {"address": hex(inside), "length": count})]
    assert host.memory(0x10000, PAGE) == b"x" * PAGE
    assert edu.read(0, 0x24, 4) == 0x100


def test_addresses_are_cut_to_28_bits(host, edu):
    host.map(0x101000)
    dma(edu, BUFFER, 0xF00000101000, 8, 3)
    host.finish()
    assert host.reports == [("DMA address cut", {"address": "0xf00000101000", "iova": "0x101000"})]


def test_the_mask_is_an_option(host):
    edu = host.plug(Edu(host, {"dma_mask": ONES8}))
    host.map(0xF00000101000, b"x" * PAGE)
    dma(edu, BUFFER, 0xF00000101000, 8, 3)
    host.finish()
    assert host.reports == []
    assert host.memory(0xF00000101000, 9) == bytes(8) + b"x"


@pytest.mark.parametrize("options", [{"dma_mask": -1}, {"dma_mask": "x"}, {"dma_mask": 1 << 64}])
def test_a_mask_that_is_none_is_refused(host, options):
    with pytest.raises(ValueError, match="dma_mask must be an integer of at most 64 bits"):
        Edu(host, options)


# -- mappings --------------------------------------------------------------------------------------


def test_a_mapping_shows_every_register_and_ones_elsewhere(host, edu):
    edu.write(0, 4, 4, 1)
    edu.write(0, 8, 4, 5)
    host.finish()
    edu.write(0, 0x60, 4, 0x12)
    edu.write(0, 0x80, 8, 0x123456789A)
    for register in REGISTERS:
        size = width(register)
        assert host.load(0, register, size) == edu.read(0, register, size), hex(register)
    covered = {i for register in REGISTERS for i in range(register, register + width(register))}
    assert all(host.bars[0][i] == 0xFF for i in range(1 << 20) if i not in covered)


def test_a_mapping_sees_the_factorial_end(host, edu):
    edu.write(0, 8, 4, 5)
    assert host.load(0, 0x20, 4) == 0x01
    host.finish()
    assert host.load(0, 0x20, 4) == 0
    assert host.load(0, 8, 4) == 120


def test_every_register_is_watched_and_what_starts_something_comes_last(host, edu):
    assert [(0, register, width(register)) for register in REGISTERS] == host.watches
    order = [offset for _, offset, _ in host.watches]
    assert order.index(0x20) < order.index(0x08)
    assert order[-1] == 0x98


@pytest.mark.parametrize("register", REGISTERS)
def test_a_store_to_a_mapping_does_not_outlive_the_model_s_answer(host, edu, register):
    size = width(register)
    before = edu.read(0, register, size)
    host.store(0, register, size, 0)  # a client's, then what the watch makes of it
    edu.write(0, register, size, 0)
    after = ONES4 if register == 4 else before
    if register == 8:
        host.finish()
        after = 1
    assert host.load(0, register, size) == edu.read(0, register, size) == after


# -- reset, close ----------------------------------------------------------------------------------


def test_a_reset_lowers_the_line_and_keeps_the_registers(host, edu):
    edu.write(0, 4, 4, 0x1234)
    edu.write(0, 0x60, 4, 0x40)
    edu.write(0, 0x20, 4, 0x80)
    host.cancel()
    edu.reset()
    assert not host.intx
    assert edu.read(0, 4, 4) == 0xFFFFEDCB
    assert edu.read(0, 0x24, 4) == 0x40
    assert edu.read(0, 0x20, 4) == 0x80


def test_what_a_reset_cuts_short_is_not_running_any_more(host, edu):
    host.slow = True
    host.map(0x10000, b"x" * PAGE)
    dma(edu, 0x10000, BUFFER, 16, 5)
    host.step()
    edu.write(0, 8, 4, 5)
    host.cancel()
    edu.reset()
    assert edu.read(0, 0x20, 4) == 0
    assert edu.read(0, 0x98, 8) == 4
    assert host.load(0, 0x20, 4) == 0
    assert host.load(0, 0x98, 8) == 4
    edu.write(0, 8, 4, 4)
    dma(edu, 0x10000, BUFFER, 16, 1)
    host.finish()
    assert edu.read(0, 8, 4) == 24
    assert edu.read(0, 0x98, 8) == 0


def test_the_next_client_finds_the_registers_of_the_last(host, edu):
    edu.write(0, 4, 4, 0x1234)
    edu.write(0, 8, 4, 5)
    host.cancel()
    edu.close()
    host.plug(edu)
    assert edu.read(0, 4, 4) == 0xFFFFEDCB
    assert edu.read(0, 0x20, 4) == 0
    assert host.load(0, 4, 4) == 0xFFFFEDCB


# -- anything at all -------------------------------------------------------------------------------

registers = st.sampled_from([*REGISTERS, 0x0C, 0x28, 0x84, 0x9C, 0xA0, 0xFFFF8])
values = st.one_of(
    st.integers(0, 255),
    st.integers(BUFFER - 4, BUFFER + PAGE + 4),
    st.sampled_from([0x10000, 0x10FF0, 0x11000, 0xFFFFFFF, ONES4, ONES8]),
    st.integers(0, ONES8),
)
accesses = st.one_of(
    st.tuples(st.just("write"), registers, st.sampled_from([1, 2, 4, 8]), values),
    st.tuples(st.just("mapped"), st.sampled_from(REGISTERS), values),
    st.tuples(st.just("step")),
    st.tuples(st.just("reset")),
    st.tuples(st.just("reopen")),
    st.tuples(st.just("msi"), st.booleans()),
)


# The fixture is a function without state of its own.
@settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(sequence=st.lists(accesses, max_size=60))
def test_whatever_a_client_does_reads_and_loads_agree(make_host, sequence):
    host = make_host()
    host.slow = True
    host.map(0x10000, b"x" * PAGE)
    edu = host.plug(Edu(host, {}))
    for what, *arguments in sequence:
        if what == "write":
            offset, size, value = arguments
            edu.write(0, offset, size, value & ((1 << 8 * size) - 1))
        elif what == "mapped":
            register, value = arguments
            size = width(register)
            value &= (1 << 8 * size) - 1
            host.store(0, register, size, value)
            edu.write(0, register, size, value)
        elif what == "step":
            host.step()
        elif what == "msi":
            host.msi_on = arguments[0]
        else:
            host.cancel()
            if what == "reset":
                edu.reset()
            else:
                edu.close()
                edu.open()
        for register in REGISTERS:
            size = width(register)
            assert host.load(0, register, size) == edu.read(0, register, size)
        computing, running = edu.read(0, 0x20, 4) & 1, edu.read(0, 0x98, 8) & 1
        assert computing + running == host.running
    host.finish()
    assert edu.read(0, 0x20, 4) & 1 == edu.read(0, 0x98, 8) & 1 == 0
