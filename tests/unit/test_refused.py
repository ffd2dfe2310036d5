"""What native models report as refused reaches the log and the statistics of their function."""

import pytest
import trio

from iommufs import machine
from iommufs._native import ffi, lib
from iommufs.vfio import refused

ADDRESS = "0000:00:06.0"


@pytest.fixture
def ledger():
    made = refused.RefusedDma(ADDRESS)
    yield made
    refused.drain()


def report(ledger, iova, write, reason, n=1):
    fault = ffi.new("struct iofs_dma_fault *", {"iova": iova, "write": write, "reason": reason})
    for _ in range(n):
        lib.iofs_refused_report(ledger.native, fault, 64)


@pytest.mark.logs("DMA refused")
def test_reports_are_logged_with_device_iova_access_and_reason(ledger, log_lines):
    report(ledger, 0x1000, 1, lib.IOFS_DMA_UNMAPPED)
    refused.drain()
    assert log_lines == [
        {
            "event": "DMA refused", "log_level": "warning", "device": ADDRESS, "count": 1,
            "iova": "0x1000", "length": 64, "access": "write", "reason": "unmapped",
        },
    ]  # fmt: skip
    assert ledger.last == (0x1000, "write", "unmapped")


@pytest.mark.logs("DMA refused")
def test_a_flood_of_reports_is_a_few_lines_and_an_exact_count(ledger, log_lines):
    for _ in range(100):
        report(ledger, 0x1000, 0, lib.IOFS_DMA_PERMISSION, 10_000)
        report(ledger, 0x2000, 1, lib.IOFS_DMA_DETACHED)
        refused.drain()
    assert ledger.counts == {("read", "permission"): 1_000_000, ("write", "not attached"): 100}
    assert len(log_lines) < 12
    ledger.sum_up()
    ledger.sum_up()
    assert log_lines[-1] == {
        "event": "DMA refused, in all", "log_level": "warning", "device": ADDRESS,
        "read, permission": 1_000_000, "write, not attached": 100,
    }  # fmt: skip
    assert [line["event"] for line in log_lines].count("DMA refused, in all") == 1


@pytest.mark.logs("DMA refused")
def test_what_is_in_the_log_already_is_not_summed_up(ledger, log_lines):
    report(ledger, 0, 0, lib.IOFS_DMA_GONE)
    ledger.sum_up()
    assert [line["event"] for line in log_lines] == ["DMA refused"]


def test_reports_of_a_function_that_is_gone_are_forgotten():
    gone = refused.RefusedDma(ADDRESS)
    report(gone, 0, 0, lib.IOFS_DMA_GONE)
    del gone
    assert lib.iofs_refused_next(ffi.new("struct iofs_refusals *")) == 0


@pytest.mark.logs("DMA refused")
def test_every_reason_has_a_name(ledger):
    for reason in range(1, lib.IOFS_N_DMA_REASONS):
        report(ledger, 0, 0, reason)
    refused.drain()
    assert len(ledger.counts) == lib.IOFS_N_DMA_REASONS - 1


@pytest.mark.logs("DMA refused")
async def test_the_machine_takes_them_in_and_has_them_in_its_statistics(nursery, log_lines):
    made = machine.load(None)
    nursery.start_soon(made.run)
    function = made.functions[ADDRESS]
    report(function.refused, 0x3000, 1, lib.IOFS_DMA_NO_MASTER)
    with trio.fail_after(10):
        while not log_lines:
            await trio.lowlevel.checkpoint()
    statistics = made.statistics()["functions"][ADDRESS]["DMA refused"]
    assert statistics["write, bus master off"] == 1
