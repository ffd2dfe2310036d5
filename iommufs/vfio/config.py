"""PCI config space as a client of vfio-pci sees and changes it.

Between the client and the function's own registers (hardware.py) lies, for each stretch of config
space, a pair of masks (permissions.py): some bits live here alone, for as long as the device is
open, some cannot be written, the rest is the function's. A few registers do more than keep bits;
their stretches are the classes below.

Not here: config space as a file region with an offset (regions.py).
"""

import errno
from typing import Any

from iommufs.errors import UapiError
from iommufs.fast import Fast
from iommufs.vfio import capabilities as caps
from iommufs.vfio import permissions as perms
from iommufs.vfio import rom
from iommufs.vfio.capabilities import Capability
from iommufs.vfio.hardware import (
    COMMAND,
    COMMAND_INTX_DISABLE,
    COMMAND_IO,
    COMMAND_MEMORY,
    INTERRUPT_PIN,
    STATUS,
    STATUS_CAPABILITIES,
)
from iommufs.vfio.image import BAR0, N_BARS, ROM_BAR, bar_flags

D3HOT = 3

_MSI_ENABLE = 0x01
_MSI_SIZE = 0x70


class Stretch:
    """Bytes that belong together: the header or one capability. Accesses never cross its ends."""

    def __init__(self, config: "ConfigSpace", offset: int, length: int, masks: perms.Masks) -> None:
        self.config = config
        self.offset = offset
        self.length = length
        self.masks = masks

    def _mask(self, masks: bytearray, at: int, size: int) -> int:
        start = at - self.offset
        return int.from_bytes(masks[start : start + size], "little")

    def read(self, at: int, size: int) -> int:
        virtual = self._mask(self.masks.virtual, at, size)
        own = self.config.function.raw.read(at, size)
        return own & ~virtual | self.config.get(at, size) & virtual

    def write(self, at: int, size: int, value: int) -> None:
        writable = self._mask(self.masks.writable, at, size)
        virtual = self._mask(self.masks.virtual, at, size)
        if here := writable & virtual:
            self.config.put(at, size, self.config.get(at, size) & ~here | value & here)
        if there := writable & ~virtual:
            # Read, change, write the whole chunk: bits beside it that a 1 clears are cleared too.
            raw = self.config.function.raw
            raw.write(at, size, raw.read(at, size) & ~there | value & there)


class Plain(Stretch):
    """What belongs to no capability goes to the function as it is."""

    def __init__(self, config: "ConfigSpace") -> None:
        super().__init__(config, 0, 0, perms.Masks(0))

    def read(self, at: int, size: int) -> int:
        return self.config.function.raw.read(at, size)

    def write(self, at: int, size: int, value: int) -> None:
        self.config.function.raw.write(at, size, value)


class Header(Stretch):
    """The first 64 bytes: COMMAND is followed, BARs can be sized, the rest kept or dropped."""

    def write(self, at: int, size: int, value: int) -> None:
        if at == COMMAND and not value & COMMAND_MEMORY:
            self.config.function.lose_memory()
        super().write(at, size, value)
        if at == COMMAND:
            decode = COMMAND_IO | COMMAND_MEMORY
            kept = self.config.get(COMMAND, 2) & ~decode
            self.config.put(COMMAND, 2, kept | value & decode)
            self.config.function.regain_memory()
        if COMMAND <= at <= COMMAND + 1:
            self._follow_intx_disable()
        if BAR0 <= at < BAR0 + 4 * N_BARS or ROM_BAR <= at < ROM_BAR + 4:
            self.size_bars()

    def _follow_intx_disable(self) -> None:
        disabled = bool(self.config.get(COMMAND, 2) & COMMAND_INTX_DISABLE)
        self.config.irqs.set_disabled(disabled)

    def size_bars(self) -> None:
        """Let the virtual BARs keep only what the sizes of the real ones leave writable."""
        config, description = self.config, self.config.function.description
        index = 0
        while index < N_BARS:
            at = BAR0 + 4 * index
            bar = description.bars.get(index)
            if bar is None:
                config.put(at, 4, 0)
            else:
                mask = ~(bar.size - 1)
                config.put(at, 4, config.get(at, 4) & mask & 0xFFFFFFFF | bar_flags(bar))
                if bar.bits64:
                    index += 1
                    config.put(at + 4, 4, config.get(at + 4, 4) & mask >> 32)
            index += 1
        size = rom.window(description.rom)
        mask = ~(size - 1) & 0xFFFFFFFF | 1 if size else 0
        config.put(ROM_BAR, 4, config.get(ROM_BAR, 4) & mask)


class PowerManagement(Stretch):
    """The state field is not stored but carried out."""

    def write(self, at: int, size: int, value: int) -> None:
        super().write(at, size, value)
        if at == self.offset + perms.PM_CONTROL:
            function, state = self.config.function, value & perms.PM_STATE
            if state == D3HOT:
                function.lose_memory()
            function.set_power(state)
            function.regain_memory()


class Msi(Stretch):
    """Address and data are the client's own; enabling is done by SET_IRQS."""

    def write(self, at: int, size: int, value: int) -> None:
        super().write(at, size, value)
        flags_at = self.offset + perms.MSI_FLAGS
        if at <= flags_at <= at + size:
            self._follow_flags(flags_at)
        self.config.irqs.msi_mask_changed()

    def _follow_flags(self, at: int) -> None:
        config = self.config
        flags = config.get(at, 2)
        if not config.irqs.msi_enabled:
            flags &= ~_MSI_ENABLE
        if (flags & _MSI_SIZE) >> 4 > config.irqs.msi_size_lg2:
            flags = flags & ~_MSI_SIZE | config.irqs.msi_size_lg2 << 4
        config.put(at, 2, flags)
        config.function.raw.write(at, 2, flags)


class Express(Stretch):
    """Setting the function-level-reset bit resets; it reads as 0 always."""

    def write(self, at: int, size: int, value: int) -> None:
        super().write(at, size, value)
        config, control = self.config, self.offset + perms.EXPRESS_CONTROL
        if config.get(control, 2) & perms.EXPRESS_RESET:
            config.put(control, 2, config.get(control, 2) & ~perms.EXPRESS_RESET)
            if config.function.raw.read(self.offset + 4, 4) & 1 << 28:
                config.function.reset_function()


class AdvancedFeatures(Stretch):
    """The same for conventional functions."""

    def write(self, at: int, size: int, value: int) -> None:
        super().write(at, size, value)
        config, control = self.config, self.offset + perms.AF_CONTROL
        if config.get(control, 1) & 1:
            config.put(control, 1, config.get(control, 1) & ~1)
            if config.function.raw.read(self.offset + 3, 1) & 3 == 3:
                config.function.reset_function()


_KINDS = {
    caps.PM: PowerManagement,
    caps.MSI: Msi,
    caps.EXPRESS: Express,
    caps.AF: AdvancedFeatures,
}


class ConfigSpace:
    """Config space of one open device.

    function  whose registers they are: raw, description, set_power(), reset_function()
    irqs      told of INTx disable, asked about MSI
    """

    def __init__(self, function: Any, irqs: Any) -> None:
        self.function = function
        self.irqs = irqs
        self._kept = bytearray(function.raw.data)
        self.size = len(self._kept)
        plain = Plain(self)
        self._owner: list[Stretch] = [plain] * self.size
        self._header = Header(self, 0, caps.HEADER_LENGTH, perms.header())
        self._own(self._header)
        self._link_standard()
        self._link_extended()
        self._header.size_bars()
        if not function.description.intx:
            self.put(INTERRUPT_PIN, 1, 0)
        if function.vf_ids is not None:
            self.put(0x00, 2, function.vf_ids[0])
            self.put(0x02, 2, function.vf_ids[1])
        self._virtual = self._virtual_bits()

    def get(self, at: int, size: int) -> int:
        """The bits that are kept here; meaningful where the masks say virtual."""
        return int.from_bytes(self._kept[at : at + size], "little")

    def put(self, at: int, size: int, value: int) -> None:
        self._kept[at : at + size] = value.to_bytes(size, "little")

    def _own(self, stretch: Stretch) -> None:
        end = stretch.offset + stretch.length
        self._owner[stretch.offset : end] = [stretch] * stretch.length

    def _add(self, cap: Capability) -> None:
        kind = Stretch if cap.extended else _KINDS.get(cap.id, Stretch)
        self._own(kind(self, cap.offset, cap.length, perms.of(cap, self._kept)))

    def _link_standard(self) -> None:
        """List the capabilities that clients may see, and no others."""
        link, visible = perms.CAPABILITY_LIST, 0
        for cap in list(caps.standard(self.function.raw.data)):
            if not cap.length:
                self.put(link, 1, self.get(cap.offset + 1, 1))
                continue
            self._add(cap)
            if cap.id == caps.PM:
                self.put(cap.offset + 2, 2, self.get(cap.offset + 2, 2) & ~perms.PM_SUPPORTED)
                control = cap.offset + perms.PM_CONTROL
                self.put(control, 2, self.get(control, 2) & ~perms.PM_PME)
            link = cap.offset + 1
            visible += 1
        if not visible:
            self.put(STATUS, 2, self.get(STATUS, 2) & ~STATUS_CAPABILITIES)

    def _link_extended(self) -> None:
        if not caps.find(self.function.raw.data, caps.EXPRESS):
            return
        last, visible = None, 0
        for cap in list(caps.extended(self.function.raw.data)):
            header = self.get(cap.offset, 4)
            if cap.length:
                self._add(cap)
                visible += 1
            elif last is None:
                # The head of the list cannot be skipped: it stays, without an id.
                anchor = Capability(cap.id, cap.offset, 4, 4, True)
                self._own(Stretch(self, cap.offset, 4, perms.of(anchor, self._kept)))
                self.put(cap.offset, 4, header & 0xFFC00000)
            else:
                self.put(last, 4, self.get(last, 4) & ~0xFFC00000 | header & 0xFFC00000)
                continue
            last = cap.offset
        if not visible and last is not None:
            self.put(caps.STANDARD_LENGTH, 4, 0)

    @property
    def memory_enabled(self) -> bool:
        """Whether the client may reach memory BARs now: COMMAND as it wrote it, and power.

        Memory of a virtual function is switched on and off in the physical one.
        """
        enabled = self.function.vf_ids is not None or self.get(COMMAND, 2) & COMMAND_MEMORY
        return bool(enabled) and self.function.power < D3HOT

    def publish(self, fast: Fast, position: int) -> None:
        """Let readers of the transport answer what read() would; `position` in the device file."""
        fast.add_window(position, self.size, self.function.raw.data, self._kept, self._virtual)

    def _virtual_bits(self) -> bytearray:
        bits = bytearray(self.size)
        for at, owner in enumerate(self._owner):
            here = at - owner.offset
            bits[at : at + 1] = owner.masks.virtual[here : here + 1] or b"\0"
        return bits

    def _chunk(self, at: int, left: int) -> int:
        """How many bytes from `at` are one access: aligned, one dword, one capability."""
        owner = self._owner[at]
        room = 1
        while room < left and (at + room) % 4 and self._owner[at + room] is owner:
            room += 1
        if room >= 4 and at % 4 == 0:
            return 4
        return 2 if room >= 2 and at % 2 == 0 else 1

    def _check(self, at: int, length: int) -> None:
        if at + length > self.size:
            raise UapiError(errno.EFAULT, f"config space ends at {self.size:#x}")

    def read(self, at: int, length: int) -> bytes:
        """Any stretch of bytes; EFAULT past the end, whatever lies before it."""
        self._check(at, length)
        data = bytearray()
        while len(data) < length:
            here = at + len(data)
            size = self._chunk(here, length - len(data))
            data += self._owner[here].read(here, size).to_bytes(size, "little")
        return bytes(data)

    def write(self, at: int, data: bytes) -> None:
        """Write what may be written and drop the rest; EFAULT past the end, nothing done."""
        self._check(at, len(data))
        done = 0
        while done < len(data):
            here = at + done
            size = self._chunk(here, len(data) - done)
            value = int.from_bytes(data[done : done + size], "little")
            self._owner[here].write(here, size, value)
            done += size
