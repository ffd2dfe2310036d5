"""The files of a function in /sys that show its registers: power, config space, BARs, ROM."""

from __future__ import annotations

import errno
from typing import Any

from iommufs.errors import UapiError
from iommufs.pci_bus import HostFunction, PciDev
from iommufs.pci_image import CAP_PM
from iommufs.sysfs_attrs import Power, boolean
from iommufs.vfio import rom

STATES = ("D0", "D1", "D2", "D3hot")
_PM_CONTROL, _PM_D3HOT = 4, 3


class FunctionPower(Power):
    """vfio-pci lets a function sleep while no client has it, if control is auto."""

    def __init__(self, dev: PciDev) -> None:
        self._dev = dev

    @property
    def control(self) -> str:
        return self._dev.power_control

    def store(self, wanted: str) -> None:
        self._dev.power_control = wanted

    def status(self) -> str:
        return "suspended" if self.is_asleep else "active"

    @property
    def is_asleep(self) -> bool:
        dev = self._dev
        idle = dev.vfio is not None and dev.vfio.bound is None and not dev.virtfns
        return idle and self.control == "auto"

    def state(self) -> str:
        """D0 to D3hot."""
        if self.is_asleep and CAP_PM in self._dev.image.capabilities:
            return STATES[3]
        is_host = isinstance(self._dev.inside, HostFunction)
        return STATES[0 if is_host else self._dev.inside.power]


class Config:
    """Config space: the function's own registers, whatever a client sees of them."""

    def __init__(self, dev: PciDev, power: FunctionPower) -> None:
        self._dev = dev
        self._power = power

    def read(self, offset: int, length: int) -> bytes:
        config = bytearray(self._dev.config)
        if self._power.is_asleep and (at := self._dev.image.capabilities.get(CAP_PM)):
            config[at + _PM_CONTROL] |= _PM_D3HOT
        return bytes(config[offset : offset + length])

    def write(self, offset: int, data: bytes) -> int:
        """In aligned pieces; a bridge keeps what it has. Source: pci_write_config()"""
        size = len(self._dev.image.data)
        if offset >= size:
            raise UapiError(errno.EFBIG, f"config space ends at {size:#x}")
        data = data[: size - offset]
        done = 0
        while done < len(data) and not isinstance(self._dev.inside, HostFunction):
            at, width = offset + done, 4
            while at % width or width > len(data) - done:
                width //= 2
            value = int.from_bytes(data[done : done + width], "little")
            self._dev.inside.raw.write(at, width, value)
            done += width
        return len(data)


class BarFile:
    """A BAR. Linux maps memory and lets ports be read and written; the way to memory is VFIO's."""

    def __init__(self, dev: PciDev, index: int, io: bool) -> None:
        self._dev = dev
        self._index = index
        self._io = io

    def _check(self, length: int) -> Any:
        """The function; EIO: memory; EINVAL: not one access of ports. Source: pci_resource_io()"""
        if not self._io or isinstance(self._dev.inside, HostFunction):
            raise UapiError(errno.EIO, "not ports")
        if length not in (1, 2, 4):
            raise UapiError(errno.EINVAL, f"{length} bytes")
        return self._dev.inside

    def read(self, offset: int, length: int) -> bytes:
        """Nothing past the end."""
        length = min(length, self._dev.bar_sizes[self._index] - offset)
        if length <= 0:
            return b""
        function = self._check(length)
        value = function.read_bar(self._index, offset, length) if function.io_enabled else -1
        return (value & (1 << 8 * length) - 1).to_bytes(length, "little")

    def write(self, offset: int, data: bytes) -> int:
        size = self._dev.bar_sizes[self._index]
        if offset >= size:
            raise UapiError(errno.EFBIG, f"the BAR ends at {size:#x}")
        data = data[: size - offset]
        function = self._check(len(data))
        if function.io_enabled:
            function.write_bar(self._index, offset, len(data), int.from_bytes(data, "little"))
        return len(data)


class Rom:
    """The expansion ROM, which can be read after a 1 was written to it."""

    def __init__(self, dev: PciDev) -> None:
        self._dev = dev
        self._enabled = False

    def read(self, offset: int, length: int) -> bytes:
        """EINVAL: it was not enabled; EIO: it has no image. Source: pci_read_rom()"""
        if not self._enabled:
            raise UapiError(errno.EINVAL, "the ROM is not enabled")
        is_host = isinstance(self._dev.inside, HostFunction)
        images = b"" if is_host else rom.images(self._dev.inside.description.rom)
        if not images:
            raise UapiError(errno.EIO, "no image is valid")
        return images[offset : offset + length]

    def write(self, offset: int, data: bytes) -> int:
        self._enabled = boolean(data)
        return len(data)
