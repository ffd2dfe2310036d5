"""A CRC-32 engine: tell it where and how much, start it, wait for its interrupt.

BAR 0  0x00  8  address of the data, as the device sees memory (IOVA)
       0x08  4  how many bytes
       0x0c  4  a write of 1 starts; reads as status: 1 busy, 2 failed
       0x10  4  the sum; what is there at the start is what it goes on from
"""

import zlib

from iommufs.vfio.model import Bar, Description, DmaError, Model

ADDRESS, LENGTH, CONTROL, SUM = 0x00, 0x08, 0x0C, 0x10
BUSY, FAILED = 1, 2


class Crc(Model):
    """A CRC-32 engine."""

    options = {"chunk": "how many bytes it reads at a time (default 4096)"}  # noqa: RUF012

    def __init__(self, host, options):
        super().__init__(host, options)
        self.chunk = options.get("chunk", 4096)
        if not isinstance(self.chunk, int) or self.chunk < 1:
            raise ValueError(f"chunk must be a number of bytes, not {self.chunk!r}")
        self.reset()

    def describe(self):
        return Description(
            vendor=0x1D1D, device=0xC3C3, class_code=0x120000, bars={0: Bar(4096)}, msi_vectors=1
        )

    def reset(self):
        self.registers = {ADDRESS: 0, LENGTH: 0, CONTROL: 0, SUM: 0}

    def read(self, region, offset, size):
        return self.registers.get(offset, 0) & (1 << 8 * size) - 1

    def write(self, region, offset, size, value):
        if offset == CONTROL and value == 1 and self.registers[CONTROL] != BUSY:
            self.registers[CONTROL] = BUSY
            self.host.start(self.work)
        elif offset in (ADDRESS, LENGTH, SUM) and self.registers[CONTROL] != BUSY:
            self.registers[offset] = value

    async def work(self):
        at, end = self.registers[ADDRESS], self.registers[ADDRESS] + self.registers[LENGTH]
        try:
            while at < end:
                data = await self.host.dma_read(at, min(self.chunk, end - at))
                self.registers[SUM] = zlib.crc32(data, self.registers[SUM])
                at += len(data)
            self.registers[CONTROL] = 0
        except DmaError:  # which the host reports
            self.registers[CONTROL] = FAILED
        self.host.msi(0)
