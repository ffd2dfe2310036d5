"""Mediated devices: those that have no IOMMU behind them, nor a PCI function.

A driver makes them up in software and shows them as PCI devices, as the kernel's sample driver mtty
does; it is told every access, config space too, and reaches memory through an access of the
iommufd. Here the driver is a model: region 7 is its config space, its description says which
other regions there are. A device outlives its clients, with all its registers.

Not here: its interrupts (mediated_irqs.py), the calls (mediated_ioctls.py).
"""

from __future__ import annotations

import contextlib
import errno
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from iommufs.caller import Caller
from iommufs.errors import UapiError
from iommufs.iommufd import emulated
from iommufs.iommufd.ctx import Ctx
from iommufs.vfio.bars import OFFSET_SHIFT
from iommufs.vfio.device import DeviceFile, VfioDevice
from iommufs.vfio.function import Spawn
from iommufs.vfio.guard import check_value, guarded
from iommufs.vfio.host import FunctionHost
from iommufs.vfio.irqs import INTX, MSI
from iommufs.vfio.mediated_irqs import MediatedIrqs
from iommufs.vfio.model import DmaError, Model
from iommufs.vfio.refused import RefusedDma
from iommufs.vfio.regions import CONFIG, N_REGIONS, OFFSET_MASK, ROM

_REASONS = {errno.ENOENT: "unmapped", errno.EPERM: "permission"}


class MediatedFunction:
    """What is behind the cdev: a model and its host. `address` is its UUID.

    info_asked  a client has called GET_INFO: before that there are no interrupts to ask about, an
                oddity of the kernel's samples
    """

    low_power = None
    dmabufs = None
    can_reset = True

    def __init__(self, uuid: str, make_model: Callable[[Any], Model], *, spawn: Spawn) -> None:
        self.address = uuid
        self.spawn = spawn
        self.counters: Counter[str] = Counter()
        self.refused = RefusedDma(uuid)
        self.host = MediatedHost(self)
        self.model = make_model(self.host)
        self.description = self.model.describe()
        self.info_asked = False
        self.irqs: MediatedIrqs | None = None
        self.config: Any = None
        self.iommu_device: emulated.EmulatedDevice | None = None
        self.migration: Any = None  # DeviceMigration
        self.dma_log: Any = None  # DmaLog

    def open(self) -> None:
        self.guard("open", self.model.open)

    def close(self) -> None:
        self.host.cancel_tasks()
        with contextlib.suppress(UapiError):  # reported; there is no client left to tell
            self.guard("close", self.model.close)
        self.refused.sum_up()

    def reset_function(self) -> None:
        """What VFIO_DEVICE_RESET does."""
        self.counters["resets"] += 1
        self.host.cancel_tasks()
        self.guard("reset", self.model.reset)
        if self.migration is not None:
            self.migration.reset()

    def dma_unmap(self, iova: int, length: int) -> None:
        with contextlib.suppress(UapiError):  # reported; pins that are left are found
            self.guard("dma_unmap", self.model.dma_unmap, iova, length)

    def guard(self, what: str, call: Callable[..., Any], *args: Any, **how: Any) -> Any:
        """Call the model; EIO if it fails."""
        return guarded(self.address, self.counters, what, call, *args, **how)

    def statistics(self) -> dict[str, Any]:
        """Counters of all that happened to it, and what it was refused."""
        return {**self.counters, "DMA refused": self.refused.statistics()}

    def region_size(self, index: int) -> int:
        if index == CONFIG:
            return len(self.description.config)
        bar = self.description.bars.get(index)
        return bar.size if bar else 0

    def n_irqs(self, index: int) -> int:
        """INTx and MSI have one each, or none."""
        if index == INTX:
            return int(self.description.intx)
        return int(index == MSI and self.description.msi_vectors > 0)


class MediatedHost(FunctionHost):
    """Memory is reached through the access, interrupts are the client's eventfds."""

    _function: MediatedFunction

    async def dma_read(self, iova: int, length: int) -> bytes:
        """Read client memory; DmaError."""
        async with self._gate:
            device = self._device(iova, length, "read")
            try:
                data = await device.read(iova, length)
            except UapiError as error:
                raise self._why(error, iova, length, "read") from error
        self._function.counters["dma_bytes"] += length
        return data

    async def dma_write(self, iova: int, data: bytes) -> None:
        """Write client memory; DmaError."""
        async with self._gate:
            device = self._device(iova, len(data), "write")
            try:
                await device.write(iova, data)
            except UapiError as error:
                raise self._why(error, iova, len(data), "write") from error
            self._log([(iova, len(data))])
        self._function.counters["dma_bytes"] += len(data)

    async def dma_read_spans(self, spans: Any) -> list[bytes | DmaError]:
        """Many reads; refusals are in the list."""
        found: list[bytes | DmaError] = []
        for iova, length in spans:
            try:
                found.append(await self.dma_read(iova, length))
            except DmaError as error:
                found.append(error)
        return found

    async def dma_write_spans(self, spans: Any) -> list[DmaError]:
        """Many writes, in this order; the refusals."""
        refused = []
        for iova, data in spans:
            try:
                await self.dma_write(iova, data)
            except DmaError as error:
                refused.append(error)
        return refused

    def pin(self, iova: int, length: int, write: bool = False) -> None:
        """Keep client memory; DmaError."""
        access = "write" if write else "read"
        try:
            self._device(iova, length, access).pin(iova, length, write)
        except UapiError as error:
            raise self._why(error, iova, length, access) from error

    def unpin(self, iova: int, length: int) -> None:
        """Let go of it."""
        assert self._function.iommu_device is not None, "pins go with the client"
        self._function.iommu_device.unpin(iova, length)

    def _device(self, iova: int, length: int, access: str) -> emulated.EmulatedDevice:
        if self._function.iommu_device is None:
            raise self._refused(iova, length, access, "not attached")
        return self._function.iommu_device

    def _why(self, error: UapiError, iova: int, length: int, access: str) -> DmaError:
        return self._refused(iova, length, access, _REASONS.get(error.errno, "memory gone"))

    def set_intx(self, level: bool) -> None:
        """An edge upwards signals, unless masked; then it is masked."""
        if level and self._function.irqs:
            self._function.irqs.signal_intx()

    def msi(self, vector: int) -> None:
        if self._function.irqs and vector == 0:
            self._function.irqs.signal_msi()

    def msi_enabled(self) -> bool:
        irqs = self._function.irqs
        return irqs is not None and irqs.kind == MSI


class MediatedFile(DeviceFile):
    """One open of a mediated device: no mapping, and any access reaches the model."""

    table = "mediated"
    has_positions = True
    function: MediatedFunction

    def _bind_iommu(self, ctx: Ctx) -> emulated.EmulatedDevice:
        return emulated.bind(ctx, self.function.dma_unmap, self.function.address)

    def _make_view(self) -> None:
        self.function.irqs = self.irqs = MediatedIrqs()

    def _offer_features(self) -> None:
        migration = self.function.migration
        self._offer_those_of_models()
        if migration is not None:  # as the last client left it
            self.function.migration = migration

    def _end_features(self) -> None:
        if self.function.migration:
            self.function.migration.close()
        self.function.dma_log = None

    def _publish(self, answers: bool) -> None:
        """All calls are answered here."""

    def check_mmap(self, caller: Caller, fd: int, length: int, prot: int, offset: int) -> None:
        raise UapiError(errno.EINVAL, "the device is not mapped")

    async def read(self, offset: int, size: int) -> bytes:
        """Any bytes of config space and BARs, those that are not there too; EFAULT, EIO.

        Source: mtty_read()
        """
        self._check_granted()
        data = b""
        for region, at, width in _pieces(offset, size):
            value = self._call("read", region, at, width)
            data += value.to_bytes(width, "little")
        return data

    async def write(self, offset: int, data: bytes) -> int:
        """EFAULT, EIO."""
        self._check_granted()
        done = 0
        for region, at, width in _pieces(offset, len(data)):
            value = int.from_bytes(data[done : done + width], "little")
            self._call("write", region, at, width, value)
            done += width
        return done

    def _call(self, what: str, region: int, at: int, width: int, *value: int) -> int:
        if region >= N_REGIONS or region in (ROM, N_REGIONS - 1):
            raise UapiError(errno.EFAULT, f"region {region}")
        function = self.function
        if at >= function.region_size(region):
            return 0  # nobody is there
        if what == "write":
            function.guard("write", function.model.write, region, at, width, *value)
            return 0
        check = {"check": lambda answer: check_value(answer, size=width)}
        answer: int = function.guard("read", function.model.read, region, at, width, **check)
        return answer


def _pieces(offset: int, size: int) -> Iterator[tuple[int, int, int]]:
    """(region, offset, width) of each aligned access of 4, 2 or 1 bytes."""
    end = offset + size
    while offset < end:
        width = 4
        while width > end - offset or offset % width:
            width //= 2
        yield offset >> OFFSET_SHIFT, offset & OFFSET_MASK, width
        offset += width


class MediatedDevice(VfioDevice):
    """One cdev of a mediated device."""

    knows_tokens = False
    has_vf_token = False
    backing_fd = None
    mappings = ()
    file_class = MediatedFile
