"""Which devices one reset of a bus or slot hits together."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any


class DevSet:
    """Devices that one bus or slot reset hits together.

    scope  addresses of all functions that it hits, in the order in which Linux tells them, whether
           they are VFIO devices or not, with the numbers of their IOMMU groups; empty: there is no
           such reset, and the device is alone
    """

    def __init__(self, scope: Mapping[str, int] | None = None) -> None:
        self.scope = dict(scope or {})
        self.devices: dict[str, Any] = {}
        self.needs_reset = False

    def add(self, device: Any) -> None:
        self.devices[device.function.address] = device

    def remove(self, device: Any) -> None:
        del self.devices[device.function.address]

    def covers_scope(self) -> bool:
        """Whether every function that the reset hits is a device of ours."""
        return all(address in self.devices for address in self.scope)

    def reset(self) -> None:
        """The reset itself, of every function; what clients wrote to config space stays."""
        with ExitStack() as stack:
            for device in self.devices.values():
                if device.bound:
                    stack.enter_context(device.bound.awake())
            for device in self.devices.values():
                device.function.reset_function()
        self.needs_reset = False

    def closed(self, device: Any) -> None:
        """A device was closed. If it could not be reset alone, all are as soon as none is open."""
        self.needs_reset |= not device.function.can_reset
        idle = not any(other.bound for other in self.devices.values())
        if self.scope and self.needs_reset and idle and self.covers_scope():
            self.reset()
