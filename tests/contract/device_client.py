"""A driver of edu that gets as far as it is told, says so, and waits to be killed.

    device_client.py MOUNT STAGE

Not a test: test_device_mounted.py runs and kills it.
"""

import asyncio
import mmap
import os
import signal
import sys
from pathlib import Path

from iommufs import uapi
from iommufs._native import ffi
from tests.contract.client import PAGE, Memory
from tests.contract.mount_client import MountClient, MountDevice, ioctl

STAGES = ("open", "bind", "attach", "map", "bar", "irqs", "dma")

TRIGGER_EVENTFD, UNMASK_EVENTFD = 0x24, 0x14
SOURCE, BUFFER = 0x100000, 0x40000
DMA_COMMAND, RUNS = 0x98, 1


def set_irqs(fd, flags, index, eventfd):
    cmd = ffi.new("char[24]")
    words = (24, flags, index, 0, 1, eventfd)
    ffi.buffer(cmd)[:] = b"".join(word.to_bytes(4, "little") for word in words)
    ioctl(fd, uapi.VFIO_DEVICE_SET_IRQS, int(ffi.cast("uintptr_t", cmd)))


async def drive(path, last):
    """Returns what must stay alive."""
    client, memory = MountClient(Path(path)), Memory(2)
    kept = [client, memory]
    file = await client.open()
    device = MountDevice(client, client._add("dev/vfio/devices/vfio0"))
    ioas = await client.ioas_alloc(file)

    async def bar():
        kept.append(mmap.mmap(device.fd, PAGE))

    async def irqs():
        eventfd = os.eventfd(0)
        for index in (0, 3, 4):
            set_irqs(device.fd, TRIGGER_EVENTFD, index, eventfd)
        set_irqs(device.fd, UNMASK_EVENTFD, 0, eventfd)

    async def dma():
        os.pwrite(device.fd, b"\x06\0", (7 << 40) + 4)
        for register, value in enumerate((SOURCE, BUFFER, PAGE, 1)):
            os.pwrite(device.fd, value.to_bytes(8, "little"), 0x80 + 8 * register)
        # Killed before that, it would be refused, as is DMA to anybody who is gone, and logged.
        while os.pread(device.fd, 4, DMA_COMMAND)[0] & RUNS:
            await asyncio.sleep(0)

    steps = {
        "open": lambda: asyncio.sleep(0),
        "bind": lambda: device.bind(file),
        "attach": lambda: device.attach(ioas),
        "map": lambda: client.map(file, ioas, memory.address, 2 * PAGE, SOURCE),
        "bar": bar,
        "irqs": irqs,
        "dma": dma,
    }
    for stage in STAGES[: STAGES.index(last) + 1]:
        await steps[stage]()
    return kept


if __name__ == "__main__":
    everything = asyncio.run(drive(*sys.argv[1:]))
    print("there", flush=True)
    while True:
        signal.pause()
