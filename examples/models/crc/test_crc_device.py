"""The model by itself, with a host that has a piece of memory and nothing else."""

import asyncio
import zlib

import pytest
from crc_device import ADDRESS, CONTROL, FAILED, LENGTH, SUM, Crc

from iommufs.vfio.model import DmaError

IOVA = 0x10000
MEMORY = bytes(i * 7 & 255 for i in range(10000))


class Host:
    """What Crc uses of iommufs.vfio.model.Host."""

    def __init__(self):
        self.started, self.messages = [], []

    async def dma_read(self, iova, length):
        if iova < IOVA or iova + length > IOVA + len(MEMORY):
            raise DmaError(iova, "unmapped")
        return MEMORY[iova - IOVA : iova - IOVA + length]

    def start(self, task):
        self.started.append(task)

    def msi(self, vector):
        self.messages.append(vector)


def run(crc, address, length):
    crc.write(0, ADDRESS, 8, address)
    crc.write(0, LENGTH, 4, length)
    crc.write(0, CONTROL, 4, 1)
    asyncio.run(crc.host.started.pop()())
    assert crc.host.messages.pop() == 0


@pytest.mark.parametrize("chunk", [1000, 4096])
@pytest.mark.parametrize("length", [0, 1, 4096, 10000])
def test_the_sum_is_right(chunk, length):
    crc = Crc(Host(), {"chunk": chunk})
    run(crc, IOVA, length)
    assert crc.read(0, CONTROL, 4) == 0
    assert crc.read(0, SUM, 4) == zlib.crc32(MEMORY[:length])


def test_memory_that_is_not_there_fails_and_a_reset_forgets_it():
    crc = Crc(Host(), {})
    run(crc, IOVA, len(MEMORY) + 1)
    assert crc.read(0, CONTROL, 4) == FAILED
    crc.reset()
    assert crc.read(0, CONTROL, 4) == 0


def test_registers_rest_while_it_works():
    crc = Crc(Host(), {})
    crc.write(0, CONTROL, 4, 1)
    crc.write(0, LENGTH, 4, 5)
    crc.write(0, CONTROL, 4, 1)
    assert crc.read(0, LENGTH, 4) == 0
    assert len(crc.host.started) == 1


def test_an_option_that_makes_no_sense():
    with pytest.raises(ValueError, match="chunk must be a number of bytes"):
        Crc(Host(), {"chunk": "big"})
