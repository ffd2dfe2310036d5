"""A userspace driver for the educational PCI device 1234:11e8 (docs/edu.md), in plain Python.

The same steps as edu_driver.c: it knows paths in /sys and /dev, and the numbers and structures of
iommufd and VFIO. Each step is printed with what was seen; exit status 0: all of it was right.

    python3 edu_driver.py [ADDRESS]     such as 0000:00:06.0; without it the first edu found
"""

import contextlib
import ctypes
import errno
import fcntl
import math
import mmap
import os
import select
import struct
import sys
import time
from pathlib import Path

DEVICES = Path("/sys/bus/pci/devices")
VENDOR, DEVICE = 0x1234, 0x11E8

# ioctl numbers, each with the layout of its structure.
IOAS_ALLOC = 0x3B81, "=III"  # size, flags, ioas id
IOAS_MAP = 0x3B85, "=IIIIQQQ"  # size, flags, ioas id, 0, address, length, iova
IOAS_UNMAP = 0x3B86, "=IIQQ"  # size, ioas id, iova, length
GET_REGION_INFO = 0x3B6C, "=IIIIQQ"  # argsz, flags, index, capabilities, size, offset
SET_IRQS = 0x3B6E, "=IIIIIi"  # argsz, flags, index, start, count, eventfd
BIND_IOMMUFD = 0x3B76, "=IIiI"  # argsz, flags, iommufd, device id
ATTACH_IOMMUFD_PT = 0x3B77, "=III"  # argsz, flags, ioas id in, page table id out
DETACH_IOMMUFD_PT = 0x3B78, "=II"  # argsz, flags

MAP_WRITEABLE, MAP_READABLE = 2, 4
BAR0_REGION, CONFIG_REGION = 0, 7
REGION_MMAP = 4
INTX, MSI = 0, 1
DATA_NONE, DATA_EVENTFD, UNMASK, TRIGGER = 1, 4, 16, 32

# Registers in BAR 0.
ID, LIVENESS, FACTORIAL = 0x00, 0x04, 0x08
STATUS, STATUS_IRQ = 0x20, 0x80
IRQ_STATUS, IRQ_ACK = 0x24, 0x64
DMA_SOURCE, DMA_DESTINATION, DMA_COUNT, DMA_COMMAND = 0x80, 0x88, 0x90, 0x98
DMA_RUN, DMA_TO_MEMORY, DMA_IRQ = 1, 2, 4
FACTORIAL_DONE, DMA_DONE = 0x001, 0x100

BUFFER, BUFFER_SIZE = 0x40000, 4096  # the device's own memory, as its DMA engine calls it
DMA_BITS = 28

PCI_COMMAND, PCI_COMMAND_MEMORY, PCI_COMMAND_MASTER = 0x04, 2, 4

TIMEOUT = 10


class Wrong(Exception):
    """Something is not as it should be; one line."""


def call(what, fd, request, *fields):
    """An ioctl on a structure that begins with its own size; the structure after it."""
    number, layout = request
    argument = bytearray(struct.pack(layout, struct.calcsize(layout), *fields))
    with explained(what):
        fcntl.ioctl(fd, number, argument)
    return struct.unpack(layout, argument)


@contextlib.contextmanager
def explained(what):
    try:
        yield
    except OSError as error:
        raise Wrong(f"{what}: {os.strerror(error.errno)}") from None


def find(wanted):
    """The address of the first edu, or of the one asked for."""
    with explained(f"cannot read {DEVICES}"):
        for address in sorted(os.listdir(DEVICES)):
            ids = [int((DEVICES / address / name).read_text(), 16) for name in ("vendor", "device")]
            if ids == [VENDOR, DEVICE] and wanted in (None, address):
                return address
    raise Wrong(f"no PCI device {VENDOR:04x}:{DEVICE:04x}" + (f" at {wanted}" if wanted else ""))


class Edu:
    """The device, opened, bound and attached."""

    def __init__(self, address):
        group = (DEVICES / address / "iommu_group").readlink().name
        with explained(f"{address} is not bound to vfio-pci"):
            name = next(name for name in os.listdir(DEVICES / address / "vfio-dev"))
        path = f"/dev/vfio/devices/{name}"
        with explained(f"cannot open {path}"):
            self.fd = os.open(path, os.O_RDWR)
        print(f"found     {address} is {VENDOR:04x}:{DEVICE:04x}, IOMMU group {group}, {path}")
        with explained("cannot open /dev/iommu"):
            self.iommufd = os.open("/dev/iommu", os.O_RDWR)
        bound = call(f"cannot bind {address}", self.fd, BIND_IOMMUFD, 0, self.iommufd, 0)
        print(f"bound     the iommufd calls it device {bound[3]}")
        self.ioas = call("no I/O address space", self.iommufd, IOAS_ALLOC, 0, 0)[2]
        attached = call(f"cannot attach {address}", self.fd, ATTACH_IOMMUFD_PT, 0, self.ioas)
        print(f"attached  to I/O address space {self.ioas}, page table {attached[2]}")
        self._open_regions()

    def _region(self, index):
        info = call(f"no region {index}", self.fd, GET_REGION_INFO, 0, index, 0, 0, 0)
        return info[1], info[4], info[5]

    def _open_regions(self):
        flags, size, self.bar_offset = self._region(BAR0_REGION)
        self.config_offset = self._region(CONFIG_REGION)[2]
        if not flags & REGION_MMAP:
            raise Wrong("BAR 0 cannot be mapped")
        with explained("cannot map BAR 0"):
            self.bar = mmap.mmap(self.fd, size, offset=self.bar_offset)
        identification = self.load(ID)
        print(
            f"BAR 0     {size} bytes, mapped; identification {identification:#010x}: "
            f"version {identification >> 24}.{identification >> 16 & 0xFF}"
        )
        if identification & 0xFFFF != 0x00ED:
            raise Wrong("this is no edu")

    def close(self):
        call("cannot detach", self.fd, DETACH_IOMMUFD_PT, 0)
        self.bar.close()
        os.close(self.fd)
        os.close(self.iommufd)

    # -- registers: by calls, which the device answers at once; by loads and stores of the mapping

    def read(self, offset):
        with explained(f"cannot read register {offset:#x}"):
            return int.from_bytes(os.pread(self.fd, 4, self.bar_offset + offset), "little")

    def write(self, offset, value):
        with explained(f"cannot write register {offset:#x}"):
            os.pwrite(self.fd, struct.pack("<I", value), self.bar_offset + offset)

    def _register(self, offset):
        # ctypes loads and stores a word at once, by its own width.
        kind = ctypes.c_uint32 if offset < DMA_SOURCE else ctypes.c_uint64
        return kind.from_buffer(self.bar, offset)

    def load(self, offset):
        return self._register(offset).value

    def store(self, offset, value):
        self._register(offset).value = value

    def enable_dma(self):
        at = self.config_offset + PCI_COMMAND
        with explained("cannot access config space"):
            (command,) = struct.unpack("<H", os.pread(self.fd, 2, at))
            wanted = command | PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER
            os.pwrite(self.fd, struct.pack("<H", wanted), at)
            (now,) = struct.unpack("<H", os.pread(self.fd, 2, at))
        state = "on" if now & PCI_COMMAND_MASTER else "off"
        print(f"config    command was {command:#06x}, is {now:#06x}: bus mastering {state}")
        if now != wanted:
            raise Wrong("bus mastering cannot be switched on")

    def check_liveness(self):
        value = 0x12345678
        self.write(LIVENESS, value)
        answer = self.read(LIVENESS)
        print(f"liveness  wrote {value:#x}, read {answer:#x}")
        if answer != value ^ 0xFFFFFFFF:
            raise Wrong(f"the device should have answered {value ^ 0xFFFFFFFF:#x}")

    # -- interrupts

    def set_irqs(self, index, flags, count, event=-1):
        call(f"cannot set up interrupts of index {index}", self.fd, SET_IRQS,
             flags, index, 0, count, event)  # fmt: skip

    @contextlib.contextmanager
    def connected(self, index):
        """An eventfd that counts the interrupts of an index."""
        event = os.eventfd(0)
        self.set_irqs(index, DATA_EVENTFD | TRIGGER, 1, event)
        yield event
        self.set_irqs(index, DATA_NONE | TRIGGER, 0)
        os.close(event)

    def acknowledge(self, expected):
        reason = self.read(IRQ_STATUS)
        if reason != expected:
            raise Wrong(f"the interrupt's reason is {reason:#x}, not {expected:#x}")
        self.write(IRQ_ACK, reason)
        if self.read(IRQ_STATUS):
            raise Wrong("the interrupt was not acknowledged")

    def check_factorial(self, how, n, irqs):
        result, expected = self.load(FACTORIAL), math.factorial(n) & 0xFFFFFFFF
        plural = "" if irqs == 1 else "s"
        print(f"factorial {n}! = {result}, {how}: {irqs} interrupt{plural}, "
              f"reason {self.read(IRQ_STATUS):#05x}")  # fmt: skip
        if (result, irqs) != (expected, 1):
            raise Wrong(f"it should have been {expected} and 1 interrupt")
        self.acknowledge(FACTORIAL_DONE)

    def factorials_by_msi(self):
        """A message for each result; the number goes in through the mapping."""
        with self.connected(MSI) as event:
            self.write(STATUS, STATUS_IRQ)
            for n in (5, 10):
                self.store(FACTORIAL, n)
                self.check_factorial("MSI", n, wait_irq(event))

    def factorials_by_intx(self):
        """INTx is a level: Linux masks it when it fires, we unmask it when the device is quiet."""
        with self.connected(INTX) as event:
            for n in (11, 12):
                self.write(FACTORIAL, n)
                self.check_factorial("INTx", n, wait_irq(event))
                self.set_irqs(INTX, DATA_NONE | UNMASK, 1)
        self.write(STATUS, 0)

    # -- DMA

    def start_dma(self, source, destination, count, how):
        self.store(DMA_SOURCE, source)
        self.store(DMA_DESTINATION, destination)
        self.store(DMA_COUNT, count)
        self.store(DMA_COMMAND, DMA_RUN | how)

    def dma(self, source, destination, count, how=0):
        self.start_dma(source, destination, count, how)
        deadline = time.monotonic() + TIMEOUT
        while self.load(DMA_COMMAND) & DMA_RUN:
            if time.monotonic() > deadline:
                raise Wrong("the DMA does not end")


def wait_irq(event):
    """Wait for an interrupt; how many came."""
    if not select.select([event], [], [], TIMEOUT)[0]:
        raise Wrong(f"no interrupt in {TIMEOUT} seconds")
    return os.eventfd_read(event)


class Memory:
    """Two pages of ours that the device may reach."""

    LENGTH = 2 * BUFFER_SIZE

    def __init__(self, edu):
        # Linux chooses the IOVA by the alignment of the memory.
        whole = mmap.mmap(-1, 2 * self.LENGTH)
        address = ctypes.addressof(ctypes.c_char.from_buffer(whole))
        start = -address % self.LENGTH
        self.view = memoryview(whole)[start : start + self.LENGTH]
        self.edu = edu
        self.iova = call(
            f"cannot map {self.LENGTH} bytes", edu.iommufd, IOAS_MAP, MAP_READABLE | MAP_WRITEABLE,
            edu.ioas, 0, address + start, self.LENGTH, 0,
        )[6]  # fmt: skip
        if self.iova + self.LENGTH > 1 << DMA_BITS:
            raise Wrong(f"the IOVA {self.iova:#x} is beyond the device's {DMA_BITS} bits")
        print(f"mapped    {self.LENGTH} bytes of memory at IOVA {self.iova:#x}")

    def unmap(self):
        unmapped = call(f"cannot unmap IOVA {self.iova:#x}", self.edu.iommufd, IOAS_UNMAP,
                        self.edu.ioas, self.iova, self.LENGTH)  # fmt: skip
        print(f"unmapped  {unmapped[3]} bytes")

    def fill(self, value):
        self.view[:] = bytes([value]) * self.LENGTH

    def is_all(self, value, start=0, end=LENGTH):
        return self.view[start:end] == bytes([value]) * (end - start)


def copy_by_dma(edu, memory):
    """Memory to the device's buffer, and from there to another place in memory."""
    data = bytes((i * 7 + i // 256) & 0xFF for i in range(BUFFER_SIZE))
    memory.fill(0)
    memory.view[:BUFFER_SIZE] = data
    edu.dma(memory.iova, BUFFER, BUFFER_SIZE)
    print(f"DMA       {BUFFER_SIZE} bytes from IOVA {memory.iova:#x} to the device")
    with edu.connected(MSI) as event:
        back = memory.iova + BUFFER_SIZE
        edu.start_dma(BUFFER, back, BUFFER_SIZE, DMA_TO_MEMORY | DMA_IRQ)
        irqs = wait_irq(event)
        same = memory.view[BUFFER_SIZE:] == data
        print(f"DMA       {BUFFER_SIZE} bytes from the device to IOVA {back:#x}, {irqs} interrupt: "
              f"{'the same bytes' if same else 'OTHER BYTES'}")  # fmt: skip
        if not same or irqs != 1:
            raise Wrong("the copy is wrong")
        edu.acknowledge(DMA_DONE)


def refused_to(edu, memory, iova, why):
    """A DMA that must not arrive anywhere."""
    memory.fill(0xA5)
    edu.dma(BUFFER, iova, BUFFER_SIZE, DMA_TO_MEMORY)
    untouched = memory.is_all(0xA5)
    print(f"refused   DMA to IOVA {iova:#x}, {why}: "
          f"{'no byte of memory has changed' if untouched else 'MEMORY HAS CHANGED'}")  # fmt: skip
    if not untouched:
        raise Wrong("a DMA went where it must not")


def refused_from(edu, memory, iova):
    memory.fill(0xA5)
    edu.dma(iova, BUFFER, 16)
    edu.dma(BUFFER, memory.iova, 16, DMA_TO_MEMORY)
    empty = memory.is_all(0, 0, 16) and memory.is_all(0xA5, 16)
    got = "the device got nothing but zeros" if empty else "THE DEVICE GOT SOMETHING"
    print(f"refused   DMA from IOVA {iova:#x}, not mapped: {got}")
    if not empty:
        raise Wrong("a DMA came from where it must not")


def main(wanted=None):
    edu = Edu(find(wanted))
    edu.enable_dma()
    edu.check_liveness()
    edu.factorials_by_msi()
    edu.factorials_by_intx()
    memory = Memory(edu)
    copy_by_dma(edu, memory)
    nowhere = (1 << DMA_BITS) - memory.LENGTH
    refused_to(edu, memory, nowhere, "not mapped")
    refused_from(edu, memory, nowhere)
    memory.unmap()
    refused_to(edu, memory, memory.iova, "unmapped")
    edu.close()
    print("done      all as it should be")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:2])
    except Wrong as wrong:
        sys.exit(f"edu_driver.py: {wrong}")
    except BrokenPipeError:
        sys.exit(errno.EPIPE)
