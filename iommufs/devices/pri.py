"""`pri`: a device that asks for the pages it misses, 1234:11e9 (docs/pri.md is its datasheet).

It moves one page between client memory and itself, and its config space has ATS and PRI: DMA that
meets nothing becomes a page request, if the client has given its page table a fault queue.

Not here: the requests themselves (behind the Host).
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from iommufs.vfio.model import Bar, Description, DmaError, Host, Model

PAGE = 4096

# Registers of BAR 0.
ADDRESS = 0x00  # 8 bytes
COMMAND = 0x08  # 4 bytes
STATUS = 0x0C  # 4 bytes, read-only
WIDTHS = {ADDRESS: 8, COMMAND: 4, STATUS: 4}

COMMAND_RUN = 0x1  # 0 again when it is done
COMMAND_FROM_MEMORY = 0x2

STATUS_FAILED = 0x1


def _config() -> bytes:
    """PCI Express, MSI, then ATS (whole pages) and PRI (32 requests at a time)."""
    image = bytearray(4096)

    def put(offset: int, size: int, value: int) -> None:
        image[offset : offset + size] = value.to_bytes(size, "little")

    put(0x04, 4, 0x00100102)  # memory decoding, SERR#; there is a list of capabilities
    put(0x34, 1, 0x40)
    put(0x40, 4, 0x00028010)  # an endpoint, version 2; the next one at 0x80
    put(0x44, 4, 0x00008000)  # role-based error reporting
    put(0x4C, 4, 0x00000011)  # 2.5 GT/s, one lane
    put(0x52, 2, 0x0011)
    put(0x80, 4, 0x00800005)  # MSI, 64 bits, one message
    put(0x100, 4, 0x1101000F)  # ATS, the next one at 0x110
    put(0x104, 2, 0x0020)
    put(0x110, 4, 0x00010013)  # PRI
    put(0x116, 2, 0x0100)  # stopped
    put(0x118, 4, 32)
    return bytes(image)


class Pri(Model):
    """One function; what it keeps between two transfers is one page."""

    summary = "A device that asks for the pages it misses (docs/pri.md)."

    def __init__(self, host: Host, options: Mapping[str, Any]) -> None:
        super().__init__(host, options)
        self._registers = dict.fromkeys(WIDTHS, 0)
        self._page = bytes(PAGE)

    def describe(self) -> Description:
        return Description(
            vendor=0x1234,
            device=0x11E9,
            class_code=0x00FF00,
            bars={0: Bar(size=PAGE, mappable=True, plain=True)},
            intx=False,
            msi_vectors=1,
            config=_config(),
        )

    def open(self) -> None:
        for register in WIDTHS:
            self._set(register, self._registers[register])
            self.host.watch(0, register, WIDTHS[register])

    def reset(self) -> None:
        self._page = bytes(PAGE)
        for register in WIDTHS:
            self._set(register, 0)

    def _set(self, register: int, value: int) -> None:
        self._registers[register] = value
        self.host.store(0, register, WIDTHS[register], value)

    # -- registers --------------------------------------------------------------------------------

    def write(self, region: int, offset: int, size: int, value: int) -> None:
        for register, width in WIDTHS.items():
            if register <= offset and offset + size <= register + width:
                self._write(register, offset - register, size, value)

    def _write(self, register: int, at: int, size: int, value: int) -> None:
        """Some bytes of a register. Nothing is taken while the device is busy."""
        width = WIDTHS[register]
        registers = bytearray(self._registers[register].to_bytes(width, "little"))
        registers[at : at + size] = value.to_bytes(size, "little")
        busy = self._registers[COMMAND] & COMMAND_RUN
        if register == STATUS or busy:
            self._set(register, self._registers[register])  # what a mapping shows
            return
        self._set(register, int.from_bytes(registers, "little"))
        if register == COMMAND and self._registers[COMMAND] & COMMAND_RUN:
            self.host.start(self._transfer)

    # -- DMA --------------------------------------------------------------------------------------

    async def _transfer(self) -> None:
        """One page, of which the IOMMU translates every byte alike."""
        address = self._registers[ADDRESS] & ~(PAGE - 1)
        failed = STATUS_FAILED
        with contextlib.suppress(DmaError):  # which the host reports
            if self._registers[COMMAND] & COMMAND_FROM_MEMORY:
                self._page = await self.host.dma_read(address, PAGE)
            else:
                await self.host.dma_write(address, self._page)
            failed = 0
        self._set(STATUS, failed)
        self._set(COMMAND, self._registers[COMMAND] & ~COMMAND_RUN)
        if self.host.msi_enabled():
            self.host.msi(0)
