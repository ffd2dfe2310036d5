"""One PCI function: a model, the registers around it, its power, its way to memory and interrupts.

It lives as long as the machine. While a client has it open, `irqs` and `config` are the client's
view of it, `iommu_device` is what its DMA goes through, and `migration`, `dma_log`, `low_power`,
`dmabufs` are what the client has asked for by VFIO_DEVICE_FEATURE.
"""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from iommufs.errors import UapiError
from iommufs.vfio import capabilities as caps
from iommufs.vfio import image, irqs, permissions, watch
from iommufs.vfio.bars import BarMemory
from iommufs.vfio.config import D3HOT, ConfigSpace
from iommufs.vfio.guard import check_value, guarded
from iommufs.vfio.hardware import (
    COMMAND,
    COMMAND_IO,
    COMMAND_MASTER,
    COMMAND_MEMORY,
    STATUS,
    STATUS_INTERRUPT,
    RawConfig,
)
from iommufs.vfio.host import FunctionHost
from iommufs.vfio.model import Model
from iommufs.vfio.native import NativeDevice
from iommufs.vfio.refused import RefusedDma

Spawn = Callable[[Callable[[], Awaitable[None]]], Callable[[], None]]

_NO_SOFT_RESET = 0x08
VGA_CLASS = 0x0300


def _nothing(*_: Any) -> None:
    pass


class PciFunction:
    """A function of the machine.

    address      "0000:01:00.0"
    make_model   gets the host and returns the model
    spawn        runs an async function in the background, returns what cancels it
    config       bytes of config space that the model's own description lacks
    can_reset    it can be reset without others (reset.works_alone())
    has_vga      clients reach legacy VGA memory and ports through it, as region 8 of the model
    iommu, group   what its DMA passes, and who shares that (iommufd/iommu.py)
    vf_ids       vendor and device of a virtual function, whose own registers do not say them
    """

    def __init__(
        self,
        address: str,
        make_model: Callable[[Any], Model],
        *,
        spawn: Spawn,
        config: bytes = b"",
        can_reset: bool = False,
        iommu: Any = None,
        group: Any = None,
        vf_ids: tuple[int, int] | None = None,
        has_vga: bool = False,
    ) -> None:
        self.address = address
        self.spawn = spawn
        self.changed: Callable[[], None] = _nothing  # called when what the function can do changes
        self.memory_changed: Callable[[bool], None] = _nothing  # whether clients reach its BARs
        self.can_reset = can_reset
        self.iommu = iommu
        self.group = group
        self.vf_ids = vf_ids
        self.counters: Counter[str] = Counter()
        self.refused = RefusedDma(address)
        self.native: NativeDevice | None = None  # the inside, if it is C
        self.host = FunctionHost(self)
        self.model = make_model(self.host)
        self.description = self.model.describe()
        image.check(self.description)
        if self.native and (self.description.migration or self.description.dma_logging):
            raise image.BadDescription("models in C cannot be migrated, nor is their DMA logged")
        self.has_vga = has_vga
        if has_vga and self.description.class_code >> 8 != VGA_CLASS:
            raise image.BadDescription("it is no VGA controller")
        if config:
            self.description = replace(self.description, config=config)
        registers = image.power_on(self.description)
        writable = self.description.writable
        if vf_ids is not None:
            registers = image.of_vf(registers)
            writable = image.writable_of_vf(registers) | dict(writable)
        self.raw = RawConfig(registers, writable)
        self.bars = BarMemory(self.description.bars)
        self.power = 0
        self.stays_awake = False
        self.virtual_functions: list[PciFunction] = []  # those that are enabled
        self._before_d3hot = b""
        self.intx_level = False
        self.irqs: irqs.Irqs | None = None
        self.config: ConfigSpace | None = None
        self.iommu_device: Any = None
        self.migration: Any = None  # DeviceMigration
        self.dma_log: Any = None  # DmaLog
        self.low_power: Any = None  # LowPower
        self.dmabufs: Any = None  # BarDmabufs
        self._capabilities = {cap.id: cap for cap in self.raw.owned if not cap.extended}
        self.requests_pages = caps.X_PRI in {cap.id for cap in self.raw.owned if cap.extended}
        if self.native:
            self.native.connect()
            self.raw.changed = self.native.registers_changed

    @property
    def can_reset(self) -> bool:
        return self._can_reset

    @can_reset.setter
    def can_reset(self, can_reset: bool) -> None:
        self._can_reset = can_reset
        self.changed()

    # ---- life with a client

    def open(self) -> None:
        """A client has bound the device: it starts from a defined state."""
        self.reset()
        if self.vf_ids is not None:
            self.raw.set_bits(COMMAND, 2, COMMAND_MEMORY, True)
        self.guard("open", self.model.open)

    def close(self) -> None:
        """The client is gone: no DMA, no task, no interrupt of its time is left."""
        self.raw.set_bits(COMMAND, 2, COMMAND_MASTER, False)
        self.host.cancel_tasks()
        self.bars.forget_watches()
        with contextlib.suppress(UapiError):  # reported; there is no client left to tell
            self.guard("close", self.model.close)
        with contextlib.suppress(UapiError):
            self.reset()
        self.refused.sum_up()

    def statistics(self) -> dict[str, Any]:
        """Counters of all that happened to it, and what the IOMMU refused it."""
        return {**self.counters, "DMA refused": self.refused.statistics()}

    def reset(self) -> None:
        """What opening and closing do: registers as after boot; the model too, if it can be."""
        if self.can_reset:
            self.reset_model()
        self.power = 0
        kept = self._power_control() if self.stays_awake else 0  # nobody writes it on the way
        self.raw.reset()
        self.raw.set_bits(COMMAND, 2, COMMAND_MASTER, False)
        self._set_power_bits(kept)
        self._show_level()
        self._reset_virtual_functions()

    def reset_function(self) -> None:
        """A reset that the client asked for; its config space is restored after it."""
        self.lose_memory()
        if self.power == D3HOT:
            self.set_power(0)
        self.power = 0
        self._set_power_bits(0)
        if at := self._msi_masks():
            self.raw.set_bits(at, 8, (1 << 64) - 1, False)
            if self.irqs is not None and self.irqs.msi_enabled:  # pci_restore_msi_state()
                self._mask_all_msi(True)
                for vector in self.irqs.vectors:
                    self.mask_msi(vector, False)
        self.counters["resets"] += 1
        self.reset_model()
        self._reset_virtual_functions()
        if self.migration is not None:
            self.migration.reset()
        self.regain_memory()

    def _reset_virtual_functions(self) -> None:
        """They are gone for a moment: Linux enables them again. Memory decoding is not theirs.

        Of the rest of their registers the reference guest keeps all.
        """
        for vf in self.virtual_functions:
            vf.raw.set_bits(COMMAND, 2, 0xFFFF & ~COMMAND_MEMORY, False)
            vf.reset_model()

    def power_cycle(self) -> None:
        """As when the machine is switched on; nobody uses it."""
        self.raw.power_on_again()
        self.power = 0
        with contextlib.suppress(UapiError):  # reported; there is nobody to tell
            self.reset_model()

    def reset_model(self) -> None:
        """The inside of the function back to power-on state."""
        self.host.cancel_tasks()
        self.set_intx(False)
        self.guard("reset", self.model.reset)

    # ---- power

    def _power_control(self) -> int:
        cap = self._capabilities.get(caps.PM)
        return self.raw.read(cap.offset + permissions.PM_CONTROL, 2) if cap else 0

    def _set_power_bits(self, state: int) -> None:
        """`state`, and what else is set of the register."""
        if cap := self._capabilities.get(caps.PM):
            at = cap.offset + permissions.PM_CONTROL
            self.raw.set_field(at, 2, permissions.PM_STATE, state)

    def set_power(self, state: int) -> None:
        """Go to D0 … D3hot, if the function can from where it is.

        Most functions forget their state on the way back from D3hot; Linux restores config space.
        """
        if state and self.stays_awake:
            return
        cap = self._capabilities[caps.PM]
        supported = self.raw.read(cap.offset + 2, 2)
        if state in (1, 2) and not supported & 0x100 << state:
            return
        if state == self.power or 0 < state < self.power:
            return
        was, self.power = self.power, state
        control = self.raw.read(cap.offset + permissions.PM_CONTROL, 2)
        forgets = was == D3HOT and not control & _NO_SOFT_RESET
        if state == D3HOT:
            self._before_d3hot = self.raw.save()
        if forgets:
            enabled = self._enabled_msi()
            self.raw.restore(self._before_d3hot)
            self.raw.set_field(cap.offset + permissions.PM_CONTROL, 2, 0xFFFF, control)
            for at, bit, on in enabled:  # pci_restore_msi_state(): as SET_IRQS has it by now
                self.raw.set_bits(at, 2, bit, on)
        if state:
            self._set_power_bits(state)
        else:
            self.raw.write(cap.offset + permissions.PM_CONTROL, 2, 0)  # all of it: pci_power_up()
        if forgets:
            self.reset_model()
        if D3HOT in (was, state):
            self.changed()

    def sleep(self) -> None:
        """Nobody uses it, and its client lets it sleep (vfio_pci_core_runtime_suspend())."""
        self.set_power_if_it_can(0)
        self.irqs.hold_intx(True)
        self.set_power_if_it_can(D3HOT)

    def wake_up(self) -> None:
        self.set_power_if_it_can(0)
        self.irqs.hold_intx(False)

    def stay_awake(self, on: bool) -> None:
        """In D0 for as long as it has virtual functions, whatever its client writes and wants.

        Source: vfio_pci_core_sriov_configure(), vfio_pci_set_power_state()
        """
        self.stays_awake = on
        if self.low_power is not None:
            (self.low_power.wake if on else self.low_power.rest)()
        if on:
            self.set_power_if_it_can(0)
            self.regain_memory()

    def set_power_if_it_can(self, state: int) -> None:
        if caps.PM in self._capabilities:
            self.set_power(state)

    # ---- memory that clients reach

    def lose_memory(self) -> None:
        """Before its BARs cannot be reached any more."""
        self.memory_changed(False)
        if self.dmabufs is not None:
            self.dmabufs.withdraw()

    def regain_memory(self) -> None:
        """Its BARs can be reached again, if memory decoding is on."""
        if self.config is None or not self.config.memory_enabled:
            return
        self.memory_changed(True)
        if self.dmabufs is not None:
            self.dmabufs.restore()

    # ---- registers

    def bar_address(self, index: int) -> int:
        """Where the firmware has put a memory BAR."""
        width = 8 if self.description.bars[index].bits64 else 4
        return self.raw.read(image.BAR0 + 4 * index, width) & ~0xF

    @property
    def bus_master(self) -> bool:
        return bool(self.raw.read(COMMAND, 2) & COMMAND_MASTER) and self.power < D3HOT

    @property
    def decodes_memory(self) -> bool:
        return bool(self.raw.read(COMMAND, 2) & COMMAND_MEMORY) and self.power < D3HOT

    @property
    def io_enabled(self) -> bool:
        return bool(self.raw.read(COMMAND, 2) & COMMAND_IO)

    def guard(self, what: str, call: Callable[..., Any], *args: Any, **how: Any) -> Any:
        """Call the model; what goes wrong in it is its device's trouble: EIO."""
        return guarded(self.address, self.counters, what, call, *args, **how)

    def read_bar(self, index: int, offset: int, size: int) -> int:
        """One access of a BAR; EIO if the model fails."""
        check = functools.partial(check_value, size=size)
        return self.guard("read", self.model.read, index, offset, size, check=check)

    def write_bar(self, index: int, offset: int, size: int, value: int) -> None:
        self.guard("write", self.model.write, index, offset, size, value)

    def store_bar(self, index: int, stores: list[tuple[int, int, int]]) -> None:
        """Stores of a client to a mapped BAR: (offset, size, value) of those seen together."""
        self.guard("stores", self.model.stores, index, stores)

    def watch_bar(self, index: int, offset: int, size: int, clears: bool) -> None:
        """Have store_bar() called for stores of clients to a word of a mapped BAR."""
        self.bars.watch(index, offset, size, watch.cookie(self, index), clears)

    # ---- interrupts

    def _show_level(self) -> None:
        self.raw.set_bits(STATUS, 2, STATUS_INTERRUPT, self.intx_level)

    def set_intx(self, level: bool) -> None:
        self.intx_level = level
        self._show_level()
        if self.irqs:
            self.irqs.line_changed()

    def send_msi(self, vector: int) -> None:
        """A message is a write to memory: it needs bus mastering."""
        if not self.bus_master or not self.msi_enabled:
            self.counters["msi_dropped"] += 1
        elif self.irqs:
            self.irqs.msi(vector)

    def _enabled_msi(self) -> list[tuple[int, int, bool]]:
        """Where MSI and MSI-X are enabled, by which bit, and whether they are."""
        found = []
        for id, bit in ((caps.MSI, 0x0001), (caps.MSIX, 0x8000)):
            if cap := self._capabilities.get(id):
                at = cap.offset + permissions.MSI_FLAGS  # of MSI-X, too
                found.append((at, bit, bool(self.raw.read(at, 2) & bit)))
        return found

    @property
    def msi_enabled(self) -> bool:
        """Whether MSI or MSI-X is on as the registers say it, which a client can write too."""
        return any(on for _, _, on in self._enabled_msi())

    def show_msi(self, kind: int, on: bool) -> None:
        """Registers show what SET_IRQS switched on."""
        if kind == irqs.MSI and (cap := self._capabilities.get(caps.MSI)):
            self.raw.set_bits(cap.offset + permissions.MSI_FLAGS, 2, 0x0001, on)
            self._mask_all_msi(on)
        if kind == irqs.MSIX and (cap := self._capabilities.get(caps.MSIX)):
            self.raw.set_bits(cap.offset + 2, 2, 0x8000, on)

    def _msi_masks(self) -> int | None:
        """Where the mask bits of MSI lie, pending bits behind them; None without them."""
        cap = self._capabilities.get(caps.MSI)
        if not cap:
            return None
        flags = self.raw.read(cap.offset + permissions.MSI_FLAGS, 2)
        return cap.offset + (16 if flags & 0x80 else 12) if flags & 0x100 else None

    def _mask_all_msi(self, on: bool) -> None:
        """Linux begins with all vectors masked, and ends with none."""
        at = self._msi_masks()
        if at is not None:
            self.raw.set_bits(at, 4, (1 << self.n_irqs(irqs.MSI)) - 1, on)

    def mask_msi(self, vector: int, on: bool) -> None:
        """Linux masks a vector that nobody has an eventfd for (pci_msi_mask_irq())."""
        at = self._msi_masks()
        if at is not None:
            self.raw.set_bits(at, 4, 1 << vector, on)

    @property
    def masks_msi(self) -> bool:
        """Whether MSI has mask bits."""
        return self._msi_masks() is not None

    def hold_msi(self, vector: int) -> bool:
        """Whether a vector is masked; if so it is pending now."""
        at = self._msi_masks()
        if at is None or not self.raw.read(at, 4) >> vector & 1:
            return False
        self.raw.set_bits(at + 4, 4, 1 << vector, True)
        return True

    def take_unmasked_msi(self) -> list[int]:
        """The pending vectors that are not masked any more; they are pending no longer."""
        at = self._msi_masks()
        if at is None:
            return []
        due = self.raw.read(at + 4, 4) & ~self.raw.read(at, 4)
        self.raw.set_bits(at + 4, 4, due, False)
        return [vector for vector in range(32) if due >> vector & 1]

    def n_irqs(self, index: int) -> int:
        """How many interrupts an index of VFIO has (vfio_pci_get_irq_count())."""
        if index == irqs.INTX:
            return 1 if self.description.intx else 0
        if index == irqs.MSI:
            cap = self._capabilities.get(caps.MSI)
            return 1 << (self.raw.read(cap.offset + 2, 2) >> 1 & 7) if cap else 0
        if index == irqs.MSIX:
            cap = self._capabilities.get(caps.MSIX)
            return (self.raw.read(cap.offset + 2, 2) & 0x7FF) + 1 if cap else 0
        return 1

    @property
    def msix_table(self) -> tuple[int, int, int] | None:
        """BAR, start and end of the MSI-X table, which clients do not get to see."""
        cap = self._capabilities.get(caps.MSIX)
        if not cap:
            return None
        place = self.raw.read(cap.offset + 4, 4)
        return place & 7, place & ~7, (place & ~7) + 16 * self.n_irqs(irqs.MSIX)
