"""`inert`: a function that is described by data alone and does nothing.

It has the config space, the BARs and the interrupts of its description; its memory BARs are
memory without a meaning (at first and after a reset its contents, where it has no other zero, then
whatever was stored), the same through a mapping and through read and write. I/O ports that have
contents read as these; nobody answers on others: they read as ones. It never sends an interrupt and
never does DMA. The machine hands it its model.Description among the options, and the contents: BAR
number → offset → bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from iommufs.vfio.model import Description, Host, Model


class Inert(Model):
    """Config space, BARs and interrupts as described, and nothing behind them."""

    options: ClassVar = {
        "register_width": "bytes of its registers: a narrower read gives the lower part of one, "
        "whichever part was meant; 1 (all memory), 2, 4 or 8",
    }

    def __init__(self, host: Host, options: Mapping[str, Any]) -> None:
        super().__init__(host, options)
        self._description: Description = options["description"]
        self._contents: Mapping[int, Mapping[int, bytes]] = options.get("contents", {})
        self._ports = {
            region: bytearray(bar.size)
            for region, bar in self._description.bars.items()
            if region in self._contents and not bar.mappable
        }
        self._is_filled = False
        self._register_width = options.get("register_width", 1)
        if self._register_width not in (1, 2, 4, 8):
            raise ValueError("register_width: expected 1, 2, 4 or 8")

    def describe(self) -> Description:
        """Where a part of a register reads as any other, memory is not plain."""
        if self._register_width > 1:
            return self._description
        bars = self._description.bars.items()
        return replace(
            self._description,
            bars={number: replace(bar, plain=bar.mappable) for number, bar in bars},
        )

    def open(self) -> None:
        if not self._is_filled:  # by a reset, or by who opened it before
            self.reset()

    def read(self, region: int, offset: int, size: int) -> int:
        memory = self._memory(region)
        if memory is None:
            return (1 << 8 * size) - 1
        if size < self._register_width:
            offset -= offset % self._register_width
        return int.from_bytes(memory[offset : offset + size], "little")

    def write(self, region: int, offset: int, size: int, value: int) -> None:
        memory = self._memory(region)
        if memory is not None:
            memory[offset : offset + size] = value.to_bytes(size, "little")

    def _memory(self, region: int) -> memoryview | bytearray | None:
        bar = self._description.bars.get(region)  # legacy VGA is none
        if bar and bar.mappable:
            return self.host.bar(region)
        return self._ports.get(region)

    def reset(self) -> None:
        self._is_filled = True
        for region, bar in self._description.bars.items():
            memory = self._memory(region)
            if memory is None:
                continue
            memory[:] = bytes(bar.size)
            for offset, data in self._contents.get(region, {}).items():
                memory[offset : offset + len(data)] = data
