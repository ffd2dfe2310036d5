"""Clients that come, work and go, one after the other; argv: where /dev is, seed, how many, KIND…

A third of them closes what it has, a third is killed when all is done, a third at any moment. Then
a line says how many of each kind got to their end.
"""

import ctypes
import fcntl
import json
import mmap
import os
import random
import select
import signal
import struct
import sys
import time
import traceback
from collections import Counter

from page_client import INVALID, Device, call

PAGE = 4096
PRI, EDU, NVME, IGB, SERIAL = range(5)
EDU_GROUP, EDU_ADDRESS = 2, b"0000:00:02.0\0"
CONFIG = 7 << 40
INTX, MSI, MSIX = 0, 1, 2  # in the order of VFIO's indexes
DATA_EVENTFD_TRIGGER = 0x24
GET, SET = 1 << 16, 1 << 17
STATE, DMA_BUF = 2, 11
PRE_COPY, STOP_COPY = 6, 3


class Bound:
    """A device that is bound and attached, and 16 pages of ours that it may reach."""

    IOVA = 0x100000

    def __init__(self, dev, index):
        self.iommu = os.open(f"{dev}/iommu", os.O_RDWR)
        self.file = os.open(f"{dev}/vfio/devices/vfio{index}", os.O_RDWR)
        self.dev_id = call(self.file, 0x3B76, "=IIiI", 0, self.iommu, 0)[3]
        self.ioas = alloc_ioas(self.iommu)
        call(self.file, 0x3B77, "=III", 0, self.ioas)
        self.memory = mmap.mmap(-1, 16 * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        map_memory(self.iommu, self.ioas, self.memory, self.IOVA)

    def write_config(self, offset, data):
        os.pwrite(self.file, data, CONFIG + offset)

    def interrupts(self, index, count=1):
        events = [os.eventfd(0) for _ in range(count)]
        layout = f"=IIIII{count}i"
        call(self.file, 0x3B6E, layout, DATA_EVENTFD_TRIGGER, index, 0, count, *events)
        return events


def address_of(memory):
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def alloc_ioas(iommu):
    return call(iommu, 0x3B81, "=III", 0, 0)[2]


def map_memory(iommu, ioas, memory, iova):
    call(iommu, 0x3B85, "=IIIIQQQ", 7, ioas, 0, address_of(memory), len(memory), iova)


def files(dev):
    nodes = ["iommu", "vfio/vfio", f"vfio/{EDU_GROUP}"]
    nodes += [f"vfio/devices/vfio{index}" for index in (PRI, NVME, IGB, SERIAL)]
    return [os.open(f"{dev}/{node}", os.O_RDWR) for node in nodes]


def maps(dev):
    """Private, shared and file memory, a part of it unmapped again, a part in a second space."""
    iommu = os.open(f"{dev}/iommu", os.O_RDWR)
    first, second = alloc_ioas(iommu), alloc_ioas(iommu)
    private = mmap.mmap(-1, 64 * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    shared = mmap.mmap(-1, 64 * PAGE)
    memfd = os.memfd_create("client")
    os.ftruncate(memfd, 64 * PAGE)
    map_memory(iommu, first, private, 0x100000)
    map_memory(iommu, first, shared, 0x200000)
    call(iommu, 0x3B8F, "=IIIiQQQ", 7, first, memfd, 0, 64 * PAGE, 0x300000)
    call(iommu, 0x3B83, "=IIIIQQQ", 7, second, first, 64 * PAGE, 0x400000, 0x200000)
    call(iommu, 0x3B86, "=IIQQ", first, 0x100000, 64 * PAGE)
    return iommu, private, shared, memfd


def edu(dev):
    """DMA from private and to shared memory, interrupts, a store to the mapped BAR."""
    bound = Bound(dev, EDU)
    shared = mmap.mmap(-1, PAGE)
    map_memory(bound.iommu, bound.ioas, shared, 0x200000)
    bound.write_config(4, b"\6\0")
    (event,) = bound.interrupts(MSI)
    bar = mmap.mmap(bound.file, 1 << 20)
    for outside, command in ((bound.IOVA, 1), (0x200000, 3)):
        source, destination = (outside, 0x40000) if command == 1 else (0x40000, outside)
        for register, value in enumerate((source, destination, PAGE, command)):
            os.pwrite(bound.file, struct.pack("=Q", value), 0x80 + 8 * register)
        while os.pread(bound.file, 4, 0x98)[0] & 1:
            pass
    bar[4:8] = told = os.urandom(4)  # what is there already would not be seen
    while bar[4:8] == told:
        pass
    os.pwrite(bound.file, struct.pack("=I", 0x80), 0x20)
    os.pwrite(bound.file, struct.pack("=I", 5), 8)
    os.eventfd_read(event)
    return bound, shared, bar


def nvme(dev):
    """A controller that is enabled and has identified itself, through its mapped BAR."""
    bound = Bound(dev, NVME)
    bound.write_config(4, b"\6\0")
    bound.interrupts(MSIX, 2)
    bar = mmap.mmap(bound.file, 2 * PAGE)
    bar[0x24:0x28] = struct.pack("=I", 0xF000F)
    bar[0x28:0x38] = struct.pack("=QQ", bound.IOVA, bound.IOVA + PAGE)
    bar[0x14:0x18] = struct.pack("=I", 0x460001)
    while not bar[0x1C] & 3:
        pass
    identify = struct.pack("=IIQQQQIIIIII", 6, 0, 0, 0, bound.IOVA + 2 * PAGE, 0, 1, 0, 0, 0, 0, 0)
    bound.memory[:64] = identify
    bar[PAGE : PAGE + 4] = struct.pack("=I", 1)
    while not bound.memory[PAGE + 14] & 1:
        pass
    return bound, bar


def igb(dev):
    bound = Bound(dev, IGB)
    bound.interrupts(MSIX, 10)
    bar = mmap.mmap(bound.file, PAGE)
    fcntl.ioctl(bound.file, 0x3B6F)
    return bound, bar


def serial(dev):
    bound = Bound(dev, SERIAL)
    call(bound.file, 0x3B6B, "=IIIII", 0, 0, 0, 0)  # or it has no interrupts, as Linux' sample
    bound.interrupts(INTX)
    os.pwrite(bound.file, b"x", 0)
    return bound, os.pread(bound.file, 1, 0)


# ---- what returns descriptors, under `iommufs run` only ------------------------------------------


def faults(dev):
    """A device waits for a page; every other time it is told that there is none."""
    device = Device()
    bar = mmap.mmap(device.file, PAGE)
    for answered in (True, False):
        bar[0:8] = struct.pack("=Q", 0xFED00000)
        bar[8:12] = struct.pack("=I", 3)
        cookie = device.asked()[3]
        if answered:
            device.respond(cookie, INVALID)
            while bar[8] & 1:
                pass
    return device, bar


def queues(dev):
    iommu = os.open(f"{dev}/iommu", os.O_RDWR)
    return iommu, [call(iommu, 0x3B8E, "=IIII", 0, 0, 0)[3] for _ in range(3)]


def group(dev):
    """A device by its group, with two descriptors, mapped by one of them and closed."""
    iommu, group = (os.open(f"{dev}/{node}", os.O_RDWR) for node in ("iommu", f"vfio/{EDU_GROUP}"))
    fcntl.ioctl(group, 0x3B68, struct.pack("=i", iommu))
    first, second = (fcntl.ioctl(group, 0x3B6A, bytearray(EDU_ADDRESS)) for _ in range(2))
    bar = mmap.mmap(first, PAGE)
    os.close(first)
    return iommu, group, second, bar


def exports(dev):
    """Parts of a BAR as dma-bufs, mapped for DMA; the device is closed before them."""
    bound = Bound(dev, EDU)
    bound.write_config(4, b"\6\0")
    kept = [bound.iommu]
    for number in range(2):
        request = bytearray(
            struct.pack("=IIIIIIQQ", 40, GET | DMA_BUF, 0, os.O_RDWR, 0, 1, 0, PAGE)
        )
        buffer = fcntl.ioctl(bound.file, 0x3B75, request)
        iova = 0x300000 + number * PAGE
        call(bound.iommu, 0x3B8F, "=IIIiQQQ", 7, bound.ioas, buffer, 0, PAGE, iova)
        kept.append(buffer)
    os.close(bound.file)
    return kept


def migrates(dev):
    """A stream of which half is read."""
    bound = Bound(dev, EDU)
    stream = call(bound.file, 0x3B75, "=IIIi", SET | STATE, PRE_COPY, -1)[3]
    os.read(stream, 16)
    call(bound.file, 0x3B75, "=IIIi", SET | STATE, STOP_COPY, -1)
    os.read(stream, 16)
    return bound, stream


KINDS = {
    work.__name__: work
    for work in (files, maps, edu, nvme, igb, serial, faults, queues, group, exports, migrates)
}

# ---- their lives ---------------------------------------------------------------------------------


def live(dev, kind, there, killed):
    """In a process of its own."""
    try:
        kept = KINDS[kind](dev)
        os.write(there, b"!")
        while killed:
            signal.pause()
        del kept
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def one(dev, kind, end, patience):
    """Whether it got to its end."""
    is_there, there = os.pipe()
    pid = os.fork()
    if pid == 0:
        live(dev, kind, there, killed=end != "closes")
    os.close(there)
    if end == "killed anywhere":
        time.sleep(patience)
    else:
        os.read(is_there, 1)
    came = end != "killed anywhere" or bool(select.select([is_there], [], [], 0)[0])
    if end != "closes":
        os.kill(pid, signal.SIGKILL)
    os.close(is_there)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status == (0 if end == "closes" else -signal.SIGKILL), (kind, end, status)
    return came


def main(dev, seed, n, *kinds):
    rng = random.Random(int(seed))
    done = Counter()
    for number in range(int(n)):
        kind = kinds[number % len(kinds)]
        end = ("closes", "killed", "killed anywhere")[number // len(kinds) % 3]
        done[kind] += one(dev, kind, end, rng.random() * 0.03)
    print(json.dumps(done))


if __name__ == "__main__":
    main(*sys.argv[1:])
