"""An NVMe driver for tests: this process is the client, its memory is what the device reaches."""

import mmap
import os
import struct
import time

from iommufs import uapi
from iommufs._native import ffi
from iommufs.devices.nvme import Nvme
from tests.contract.vfio_client import CONFIG

PAGE = 4096
IOVA = 0x100000
ARENA_PAGES = 1024
LONG = 20  # seconds after which something hangs
DEPTH = 16

CAP, VS, INTMS, INTMC, CC, CSTS = 0x00, 0x08, 0x0C, 0x10, 0x14, 0x1C
NSSR, AQA, ASQ, ACQ, DOORBELLS = 0x20, 0x24, 0x28, 0x30, 0x1000
ENABLE = 4 << 20 | 6 << 16 | 1
MSIX = 2

DELETE_SQ, CREATE_SQ, GET_LOG, DELETE_CQ, CREATE_CQ, IDENTIFY = 0, 1, 2, 4, 5, 6
ABORT, SET_FEATURES, GET_FEATURES, EVENT, KEEP_ALIVE, FORMAT = 8, 9, 10, 12, 0x18, 0x80
FLUSH, WRITE, READ, COMPARE, ZEROES, DATASET, VERIFY = 0, 1, 2, 5, 8, 9, 12


class Completion:
    def __init__(self, data):
        self.result, _, self.sqhd, self.sqid, self.cid, status = struct.unpack("<IIHHHH", data)
        self.phase = status & 1
        self.status = status >> 1 & 0x7FF
        self.dnr = bool(status & 0x8000)


class Queue:
    """A pair of queues with one id."""

    def __init__(self, client, number, depth=DEPTH):
        self.client, self.number, self.depth = client, number, depth
        self.sq = client.take(-(-depth * 64 // PAGE))
        self.cq = client.take(-(-depth * 16 // PAGE))
        self.tail = self.head = 0
        self.phase = 1
        self.cid = 0

    def put(self, opcode, **fields):
        """A command into the queue, without telling the device; its id."""
        self.cid += 1
        f = {"nsid": 0, "flags": 0, "prp1": 0, "prp2": 0, **fields}
        dwords = [f.get(f"cdw{n}", 0) for n in range(10, 16)]
        command = struct.pack(
            "<BBHIQQQQ6I", opcode, f["flags"], self.cid, f["nsid"], 0, 0, f["prp1"], f["prp2"],
            *dwords,
        )  # fmt: skip
        self.client.write(self.sq + 64 * self.tail, command)
        self.tail = (self.tail + 1) % self.depth
        return self.cid

    def ring(self):
        self.client.write32(DOORBELLS + 8 * self.number, self.tail)

    def poll(self):
        """The next completion; None."""
        completion = Completion(self.client.read(self.cq + 16 * self.head, 16))
        if completion.phase != self.phase:
            return None
        self.head = (self.head + 1) % self.depth
        self.phase ^= self.head == 0
        return completion

    def take_back(self):
        """Tell the device how far the completions were read."""
        self.client.write32(DOORBELLS + 8 * self.number + 4, self.head)

    def wait(self):
        found = self.client.until(self.poll)
        self.take_back()
        return found

    def run(self, opcode, **fields):
        cid = self.put(opcode, **fields)
        self.ring()
        completion = self.wait()
        assert completion.cid == cid
        return completion


class NvmeClient:
    """A controller of these options, bound and attached, with an arena of memory at IOVA."""

    @classmethod
    async def make(cls, vfio, options):
        vfio.add("0000:09:00.0", lambda host: Nvme(host, options))
        return await cls().open(vfio, len(vfio.devices) - 1)

    async def open(self, vfio, index):
        self.vfio = vfio
        self.ctx, fd = vfio.iommufd()
        self.df = await vfio.bound(index, fd)
        self.function = self.df.function
        self.ioas = await vfio.ioas(self.ctx)
        await vfio.attach(self.df, self.ioas)
        self.memory = mmap.mmap(-1, ARENA_PAGES * PAGE)  # shared
        self.address = int(ffi.cast("uintptr_t", ffi.from_buffer(self.memory)))
        await self.map(0, ARENA_PAGES)
        self.used = 0
        await self.set_master(True)
        return self

    async def _call(self, number, name, **fields):
        cmd = uapi.new(name, size=uapi.sizeof(name), ioas_id=self.ioas, **fields)
        await self.vfio.ioctl(self.ctx, number, int(ffi.cast("uintptr_t", cmd)))

    async def map(self, page, n):
        await self.map_at(self.address + page * PAGE, IOVA + page * PAGE, n * PAGE)

    async def map_at(self, address, iova, length):
        await self._call(
            uapi.IOMMU_IOAS_MAP, "iommu_ioas_map", flags=7, iova=iova, user_va=address,
            length=length,
        )  # fmt: skip

    async def unmap_all(self):
        await self._call(uapi.IOMMU_IOAS_UNMAP, "iommu_ioas_unmap", iova=0, length=(1 << 64) - 1)

    async def set_master(self, on):
        await self.vfio.pwrite(self.df, bytes([6 if on else 2, 0]), CONFIG + 4)

    async def vectors(self, n):
        """Switch MSI-X on, with so many eventfds."""
        fds = [self.vfio.eventfd() for _ in range(n)]
        flags = uapi.VFIO_IRQ_SET_DATA_EVENTFD | uapi.VFIO_IRQ_SET_ACTION_TRIGGER
        await self.vfio.set_irqs(self.df, flags, MSIX, 0, n, struct.pack(f"<{n}i", *fds))
        return fds

    # -- memory, by IOVA

    def take(self, n_pages=1):
        self.used += n_pages
        assert self.used <= ARENA_PAGES
        return IOVA + (self.used - n_pages) * PAGE

    def read(self, iova, length):
        return self.memory[iova - IOVA : iova - IOVA + length]

    def write(self, iova, data):
        self.memory[iova - IOVA : iova - IOVA + len(data)] = data

    # -- registers, as pread and pwrite reach them

    def read32(self, offset):
        return self.function.read_bar(0, offset, 4)

    def read64(self, offset):
        return self.function.read_bar(0, offset, 8)

    def write32(self, offset, value):
        self.function.write_bar(0, offset, 4, value)

    def write64(self, offset, value):
        self.function.write_bar(0, offset, 8, value)

    @staticmethod
    def until(condition):
        """What the condition says once it says something."""
        end = time.monotonic() + LONG
        while not (found := condition()):
            assert time.monotonic() < end, "the device does not answer"
            os.sched_yield()
        return found

    # -- a controller

    def configure(self, depth=DEPTH):
        self.admin = Queue(self, 0, depth)
        self.write32(AQA, (depth - 1) << 16 | depth - 1)
        self.write64(ASQ, self.admin.sq)
        self.write64(ACQ, self.admin.cq)

    def enable(self, cc=ENABLE):
        """Wait until it is ready, or has failed: CSTS."""
        self.write32(CC, cc)
        return self.until(lambda: self.read32(CSTS) & 3)

    def disable(self):
        self.write32(CC, 0)
        self.until(lambda: not self.read32(CSTS) & 1)

    def start(self):
        self.configure()
        assert self.enable() == 1
        return self

    def create_cq(self, queue, **fields):
        fields = {
            "prp1": queue.cq, "cdw10": (queue.depth - 1) << 16 | queue.number, "cdw11": 1, **fields,
        }  # fmt: skip
        return self.admin.run(CREATE_CQ, **fields).status

    def create_sq(self, queue, **fields):
        fields = {
            "prp1": queue.sq, "cdw10": (queue.depth - 1) << 16 | queue.number,
            "cdw11": queue.number << 16 | 1, **fields,
        }  # fmt: skip
        return self.admin.run(CREATE_SQ, **fields).status

    def io_queue(self, number=1, depth=DEPTH, vector=None):
        queue = Queue(self, number, depth)
        interrupts = 1 if vector is None else vector << 16 | 3
        assert self.create_cq(queue, cdw11=interrupts) == 0
        assert self.create_sq(queue) == 0
        return queue

    def identify(self, cns, nsid=0, **fields):
        """The data, or the status."""
        page = self.take()
        done = self.admin.run(IDENTIFY, nsid=nsid, prp1=page, cdw10=cns, **fields)
        return done.status or self.read(page, PAGE)

    def log(self, page, length, flags=0):
        data = self.take()
        done = self.admin.run(GET_LOG, prp1=data, cdw10=(length // 4 - 1) << 16 | flags | page)
        return done.status or self.read(data, length)
