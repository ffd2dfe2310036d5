"""`inert`: a function that is described by data alone and does nothing.

It has the config space, the BARs and the interrupts of its description; its memory BARs are
memory without a meaning (zero at first and after a reset, then whatever was stored), the same
through a mapping and through read and write. Nobody answers on its I/O ports: they read as ones.
It never sends an interrupt and never does DMA. The machine hands it its model.Description among
the options.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from iommufs.vfio.model import Description, Host, Model


class Inert(Model):
    """Config space, BARs and interrupts as described, and nothing behind them."""

    def __init__(self, host: Host, options: Mapping[str, Any]) -> None:
        super().__init__(host, options)
        self._description: Description = options["description"]

    def describe(self) -> Description:
        return self._description

    def read(self, region: int, offset: int, size: int) -> int:
        if not self._description.bars[region].mappable:
            return (1 << 8 * size) - 1
        return int.from_bytes(self.host.bar(region)[offset : offset + size], "little")

    def write(self, region: int, offset: int, size: int, value: int) -> None:
        if self._description.bars[region].mappable:
            self.host.bar(region)[offset : offset + size] = value.to_bytes(size, "little")

    def reset(self) -> None:
        for region, bar in self._description.bars.items():
            if bar.mappable:
                self.host.bar(region)[:] = bytes(bar.size)
