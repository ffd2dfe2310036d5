"""The machine around a model: what stands behind the Host of model.py."""

from __future__ import annotations

import struct
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import trio

from iommufs import baton, jobs, logs, uapi
from iommufs._native import ffi, lib
from iommufs.vfio import guard
from iommufs.vfio.dma_gate import DmaGate
from iommufs.vfio.model import DmaError
from iommufs.vfio.native import N_PAGE_REQUESTS, NativeDevice
from iommufs.vfio.refused import REASONS, is_said

log = logs.get(__name__)

CURABLE = ("unmapped", "permission")  # what a page request may mend

# Seconds that a model's engine goes on while nothing makes it wait.
TURN = 0.0005


class FunctionHost:
    """The host of one function's model."""

    def __init__(self, function: Any) -> None:
        self._function = function
        self._cancels: set[Callable[[], None]] = set()
        self._turn_ends = 0.0
        self._page_requests = 0
        self._gate = DmaGate()

    # ---- DMA

    async def dma_read(self, iova: int, length: int) -> bytes:
        """Read client memory through the device's page table; DmaError."""
        job = await self._dma(iova, ffi.NULL, length)
        try:
            return bytes(ffi.buffer(lib.iofs_job_data(job), length))
        finally:
            lib.iofs_job_free(job)

    async def dma_write(self, iova: int, data: bytes) -> None:
        """Write client memory through the device's page table; DmaError."""
        lib.iofs_job_free(await self._dma(iova, data, len(data)))

    async def _dma(self, iova: int, data: Any, length: int) -> Any:
        """A finished job without a fault, to be freed by the caller; DmaError."""
        access = "read" if data == ffi.NULL else "write"
        while True:
            async with self._gate:
                job = await self._dma_now(iova, data, length, access)
            if not isinstance(job, DmaError):
                return job
            if not await self._page_comes(job, access):
                raise self._refused(job.iova, length, access, job.reason)

    async def _page_comes(self, error: DmaError, access: str) -> bool:
        """Ask for the page that was missed, if the device can: whether to try again."""
        device = self._function.iommu_device
        if error.reason not in CURABLE or not self._function.requests_pages or device is None:
            return False
        answered, answers = trio.Event(), []

        def respond(code: int) -> None:
            answers.append(code)
            baton.in_loop(answered.set)

        self._page_requests = (self._page_requests + 1) % N_PAGE_REQUESTS
        if not device.request_page(error.iova, access == "write", self._page_requests, respond):
            return False
        await answered.wait()
        return answers[0] == uapi.IOMMUFD_PAGE_RESP_SUCCESS

    async def _dma_now(self, iova: int, data: Any, length: int, access: str) -> Any:
        domain, why = self._domain()
        if not domain:
            return DmaError(iova, why)
        job = await jobs.finish(lib.iofs_job_dma(domain, iova, data, length))
        if lib.iofs_job_result(job) < 0:
            fault = lib.iofs_job_fault(job)
            bad, reason = iova, "out of memory"  # of ours
            if fault.reason != lib.IOFS_DMA_OK:
                bad, reason = fault.iova, REASONS[fault.reason]
            lib.iofs_job_free(job)
            return DmaError(bad, reason)
        self._function.counters["dma_bytes"] += length
        if access == "write":
            self._log([(iova, length)])
        return job

    def _log(self, spans: Iterable[tuple[int, int]]) -> None:
        """Note what was written, for a client that logs DMA."""
        if self._function.dma_log is not None:
            for iova, length in spans:
                self._function.dma_log.wrote(iova, length)

    async def dma_read_spans(self, spans: Sequence[tuple[int, int]]) -> list[bytes | DmaError]:
        """Many reads at once; refusals are in the list."""
        lengths = [length for _, length in spans]
        flat = [number for span in spans for number in span]
        async with self._gate:
            job = await self._dma_spans(flat, ffi.NULL, sum(lengths))
        if not isinstance(job, DmaError):
            try:
                data = bytes(ffi.buffer(lib.iofs_job_data(job), sum(lengths)))
                found: list[bytes | DmaError] = []
                at = 0
                for length in lengths:
                    found.append(data[at : at + length])
                    at += length
                for i, error in self._span_errors(job, lengths, "read"):
                    found[i] = error
                return found
            finally:
                lib.iofs_job_free(job)
        return [job] * len(lengths)

    async def dma_write_spans(self, spans: Sequence[tuple[int, bytes]]) -> list[DmaError]:
        """Many writes at once, in this order; the refusals."""
        written = [(iova, len(data)) for iova, data in spans]
        lengths = [length for _, length in written]
        flat = [number for span in written for number in span]
        data = b"".join([data for _, data in spans])
        async with self._gate:
            job = await self._dma_spans(flat, data, sum(lengths))
        if isinstance(job, DmaError):
            return [job]
        try:
            errors = dict(self._span_errors(job, lengths, "write"))
            self._log((iova, n) for i, (iova, n) in enumerate(written) if i not in errors)
            return list(errors.values())
        finally:
            lib.iofs_job_free(job)

    async def _dma_spans(self, flat: list[int], data: Any, length: int) -> Any:
        """A finished job, to be freed by the caller, or why there was none."""
        # An engine that always has something to move lets the others go on.
        if time.monotonic() > self._turn_ends:
            await trio.lowlevel.checkpoint()
            self._turn_ends = time.monotonic() + TURN
        access = "read" if data == ffi.NULL else "write"
        domain, why = self._domain()
        if not domain:
            return self._refused(flat[0], length, access, why, len(flat) // 2)
        numbers = struct.pack(f"={len(flat)}Q", *flat)
        job = lib.iofs_job_dma_spans(domain, numbers, len(flat) // 2, data, length)
        job = await jobs.finish(job)
        if lib.iofs_job_result(job) < 0:
            lib.iofs_job_free(job)
            return self._refused(flat[0], length, access, "out of memory")  # ours
        self._function.counters["dma_bytes"] += length
        return job

    def _span_errors(self, job: Any, lengths: list[int], access: str) -> list[tuple[int, DmaError]]:
        """(position, error) of each span that was refused."""
        if not lib.iofs_job_result(job):
            return []
        faults = lib.iofs_job_faults(job)
        return [
            (i, self._refused(faults[i].iova, length, access, REASONS[faults[i].reason]))
            for i, length in enumerate(lengths)
            if faults[i].reason != lib.IOFS_DMA_OK
        ]

    def _domain(self) -> tuple[Any, str]:
        """What the device's DMA goes through; without that, why there is none."""
        if not self._function.bus_master:
            return None, "bus master off"
        device = self._function.iommu_device
        domain = device.domain if device else None
        return domain, "" if domain else "not attached"

    def _refused(self, iova: int, length: int, access: str, reason: str, n: int = 1) -> DmaError:
        self._function.refused.add(iova, length, access, reason, n)
        return DmaError(iova, reason)

    async def give_way(self) -> None:
        """Let all others go on."""
        await trio.lowlevel.checkpoint()

    def pin(self, iova: int, length: int, write: bool = False) -> None:
        """Only devices without an IOMMU have something to pin."""
        raise DmaError(iova, "the device has an IOMMU")

    def unpin(self, iova: int, length: int) -> None:
        """Nothing can be pinned."""
        raise AssertionError("nothing is pinned")

    # ---- interrupts

    def set_intx(self, level: bool) -> None:
        """Drive the INTx line."""
        self._function.set_intx(bool(level))

    def msi(self, vector: int) -> None:
        """Send a message-signalled interrupt."""
        self._function.send_msi(vector)

    def msi_enabled(self) -> bool:
        """True while MSI or MSI-X is on."""
        return self._function.msi_enabled

    # ---- BAR memory

    def bar(self, region: int) -> memoryview:
        """The memory behind a mappable BAR."""
        return self._function.bars.view(region)

    def store(self, region: int, offset: int, size: int, value: int) -> int:
        """Leave a value for clients to load; what was there."""
        return self._function.bars.store(region, offset, size, value)

    def watch(self, region: int, offset: int, size: int, *, clears: bool = False) -> None:
        """Have Model.write called for stores of clients to this word."""
        self._function.watch_bar(region, offset, size, clears)

    def wake(self) -> None:
        """Ask for power."""
        if self._function.low_power is not None:
            self._function.low_power.wake()

    # ---- background work

    async def pause(self) -> None:
        """Wait for DMA under way and let none begin; then end tasks and start none until resume().

        Cancelled, it is undone.
        """
        await self._gate.close()
        self.cancel_tasks()

    def resume(self) -> None:
        """Undo pause(), done or not."""
        self._gate.open()

    def start(self, task: Callable[[], Awaitable[None]]) -> None:
        """Run an async function until it returns, or reset, close or a pause cancels it."""
        if self._gate.paused:
            return

        async def run() -> None:
            try:
                await guard.Steps(task())
            except DmaError as error:
                self.report("a DMA engine stopped", error=str(error))
            except guard.FAILURES:
                guard.report(self._function.address, self._function.counters, "task")
            finally:
                self._cancels.discard(cancel)

        cancel = self._function.spawn(run)
        self._cancels.add(cancel)

    def cancel_tasks(self) -> None:
        """End what start() began."""
        for cancel in list(self._cancels):
            cancel()
        self._cancels.clear()

    def load_native(self, library: str | None, name: str, options: Sequence[str]) -> NativeDevice:
        """The function's model in C; ValueError."""
        self._function.native = NativeDevice(self._function, library, name, options)
        return self._function.native

    def report(self, event: str, **details: Any) -> None:
        """Say something about this device in the log."""
        counters = self._function.counters
        counters[event] += 1
        count = counters[event]
        if is_said(count - 1, count):
            log.warning(event, device=self._function.address, count=count, **details)
