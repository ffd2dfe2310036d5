"""The machine around a model: what stands behind the Host of model.py."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from iommufs import jobs
from iommufs._native import ffi, lib
from iommufs.vfio.model import DmaError
from iommufs.vfio.refused import REASONS, is_said

log = structlog.get_logger(__name__)


class FunctionHost:
    """The host of one function's model."""

    def __init__(self, function: Any) -> None:
        self._function = function
        self._cancels: set[Callable[[], None]] = set()

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
        function = self._function
        access = "read" if data == ffi.NULL else "write"
        if not function.bus_master:
            raise self._refused(iova, length, access, "bus master off")
        device = function.iommu_device
        domain = device.domain if device else None
        if not domain:
            raise self._refused(iova, length, access, "not attached")
        job = await jobs.finish(lib.iofs_job_dma(domain, iova, data, length))
        if lib.iofs_job_result(job) < 0:
            fault = lib.iofs_job_fault(job)
            bad, reason = iova, "out of memory"  # of ours
            if fault.reason != lib.IOFS_DMA_OK:
                bad, reason = fault.iova, REASONS[fault.reason]
            lib.iofs_job_free(job)
            raise self._refused(bad, length, access, reason)
        function.counters["dma_bytes"] += length
        return job

    def _refused(self, iova: int, length: int, access: str, reason: str) -> DmaError:
        self._function.refused.add(iova, length, access, reason)
        return DmaError(iova, reason)

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

    def store(self, region: int, offset: int, size: int, value: int) -> None:
        """Leave a value for clients to load."""
        self._function.bars.store(region, offset, size, value)

    def watch(self, region: int, offset: int, size: int) -> None:
        """Have Model.write called for stores of clients to this word."""
        self._function.watch_bar(region, offset, size)

    # ---- background work

    def start(self, task: Callable[[], Awaitable[None]]) -> None:
        """Run an async function until it returns, or reset or close cancels it."""

        async def run() -> None:
            try:
                await task()
            except DmaError as error:
                self.report("a DMA engine stopped", error=str(error))
            except Exception:
                self._function.counters["model_errors"] += 1
                log.exception("a device model failed", device=self._function.address, call="task")
            finally:
                self._cancels.discard(cancel)

        cancel = self._function.spawn(run)
        self._cancels.add(cancel)

    def cancel_tasks(self) -> None:
        """End what start() began."""
        for cancel in list(self._cancels):
            cancel()
        self._cancels.clear()

    def report(self, event: str, **details: Any) -> None:
        """Say something about this device in the log."""
        counters = self._function.counters
        counters[event] += 1
        count = counters[event]
        if is_said(count - 1, count):
            log.warning(event, device=self._function.address, count=count, **details)
