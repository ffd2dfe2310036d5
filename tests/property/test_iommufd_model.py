"""Random sequences of calls, each answered by iommufd and by a naive model of it (model.py).

    make property STEPS=100000 [SEED=…]

makes more of them in process, and 5,000 through a mount. A failure is shrunk to a short sequence.
"""

import ctypes
import errno
import mmap
import os
import random

import pytest
import trio
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from iommufs import uapi
from iommufs._native import ffi, lib
from iommufs.iommufd.ctx import statistics
from iommufs.iommufd.hwpt import HwptPaging
from iommufs.iommufd.ioas import Ioas
from tests.contract.client import ProcessClient
from tests.contract.mount_client import MountClient, MountServer
from tests.property import model
from tests.property.model import FIXED, MSI, PAGE, READ, U64_MAX, WRITE, Model, Refused

SEQUENCE = 50  # calls
# Sequences, of which most of the time goes into making them up.
STEPS = int(os.environ.get("STEPS", 2000))
STEPS_MOUNTED = min(STEPS, 5000) if "STEPS" in os.environ else 500
SEED = int(os.environ.get("SEED") or (random.randrange(2**32) if "STEPS" in os.environ else 1))

# Where the memory of the client is: automatic IOVAs depend on it.
MEMORY, N_PAGES = 0x10000200000, 24
HOLE, READ_ONLY = range(8, 10), range(16, 18)
FILE_PAGES = 12

NAMES = errno.errorcode | {errno.EOPNOTSUPP: "EOPNOTSUPP"}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
MAP_FIXED_NOREPLACE = 0x100000


class Memory:
    """The client's memory and files; each page of them has a byte of its own everywhere."""

    def __init__(self):
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_FIXED_NOREPLACE
        assert _libc.mmap(MEMORY, N_PAGES * PAGE, 3, flags, -1, 0) == MEMORY, "mmap"
        for page in range(N_PAGES):
            ctypes.memset(MEMORY + page * PAGE, self.content("user", MEMORY + page * PAGE), PAGE)
        for page in (*HOLE, *READ_ONLY):
            prot = mmap.PROT_READ if page in READ_ONLY else 0
            assert _libc.mprotect(MEMORY + page * PAGE, PAGE, prot) == 0, "mprotect"
        self.files = [os.memfd_create("model"), os.open("/dev/null", os.O_RDWR), -1]
        for page in range(FILE_PAGES):
            os.pwrite(self.files[0], bytes([self.content("file", page * PAGE)]) * PAGE, page * PAGE)

    @staticmethod
    def content(kind, at):
        return (1 if kind == "user" else 101) + at % (1 << 20) // PAGE

    @staticmethod
    def pages():
        """As the model wants them: of the memory, of the file."""
        first = MEMORY // PAGE
        there = set(range(N_PAGES)) - set(HOLE)
        memory = {first + page: page not in READ_ONLY for page in there}
        return memory, dict.fromkeys(range(FILE_PAGES), True)

    def free(self):
        _libc.munmap(MEMORY, N_PAGES * PAGE)
        for fd in self.files[:2]:
            os.close(fd)


class Real:
    """The same calls on a client; the answers are those of the model's methods."""

    def __init__(self, client, files):
        self.client = client
        self.files = files
        self.file = trio.run(client.open)

    def ioctl(self, number, struct, **fields):
        """The structure as it is afterwards; Refused has it as its output."""
        fields.setdefault("size" if struct.startswith("iommu_") else "argsz", uapi.sizeof(struct))
        cmd = uapi.new(struct, **fields)
        try:
            trio.run(self.client.ioctl, self.file, number, int(ffi.cast("uintptr_t", cmd)))
        except OSError as error:
            raise Refused(NAMES[error.errno], cmd) from None
        return cmd

    def ioas_alloc(self):
        return self.ioctl(uapi.IOMMU_IOAS_ALLOC, "iommu_ioas_alloc").out_ioas_id

    def destroy(self, number):
        self.ioctl(uapi.IOMMU_DESTROY, "iommu_destroy", id=number)

    def map(self, number, flags, va, length, iova):
        fields = {"ioas_id": number, "flags": flags, "user_va": va, "length": length, "iova": iova}
        return self.ioctl(uapi.IOMMU_IOAS_MAP, "iommu_ioas_map", **fields).iova

    def map_file(self, number, flags, which, start, length, iova):
        fields = {"fd": self.files[which], "start": start, "length": length, "iova": iova}
        return self.ioctl(
            uapi.IOMMU_IOAS_MAP_FILE, "iommu_ioas_map_file", ioas_id=number, flags=flags, **fields
        ).iova

    def copy(self, dst, src, flags, length, to, iova):
        fields = {"dst_ioas_id": dst, "src_ioas_id": src, "dst_iova": to, "src_iova": iova}
        return self.ioctl(
            uapi.IOMMU_IOAS_COPY, "iommu_ioas_copy", flags=flags, length=length, **fields
        ).dst_iova

    def unmap(self, number, iova, length):
        fields = {"ioas_id": number, "iova": iova, "length": length}
        return self.ioctl(uapi.IOMMU_IOAS_UNMAP, "iommu_ioas_unmap", **fields).length

    def allow_iovas(self, number, ranges):
        array = ffi.new("struct iommu_iova_range[]", [list(pair) for pair in ranges])
        at = int(ffi.cast("uintptr_t", array))
        fields = {"ioas_id": number, "num_iovas": len(ranges), "allowed_iovas": at}
        self.ioctl(uapi.IOMMU_IOAS_ALLOW_IOVAS, "iommu_ioas_allow_iovas", **fields)

    def iova_ranges(self, number, room):
        array = ffi.new("struct iommu_iova_range[]", room + 1)
        at = int(ffi.cast("uintptr_t", array))
        fields = {"ioas_id": number, "num_iovas": room, "allowed_iovas": at}

        def output(cmd):
            holes = [(array[i].start, array[i].last) for i in range(min(cmd.num_iovas, room))]
            return cmd.num_iovas, cmd.out_iova_alignment, holes

        try:
            return output(
                self.ioctl(uapi.IOMMU_IOAS_IOVA_RANGES, "iommu_ioas_iova_ranges", **fields)
            )
        except Refused as refused:
            raise Refused(refused.errno, output(refused.output)) from None

    def huge_pages(self, number, value):
        op = uapi.IOMMU_OPTION_OP_GET if value is None else uapi.IOMMU_OPTION_OP_SET
        fields = {"option_id": uapi.IOMMU_OPTION_HUGE_PAGES, "op": op, "object_id": number}
        return self.ioctl(uapi.IOMMU_OPTION, "iommu_option", val64=value or 0, **fields).val64

    def hwpt_alloc(self, device, number):
        fields = {"dev_id": device, "pt_id": number}
        return self.ioctl(uapi.IOMMU_HWPT_ALLOC, "iommu_hwpt_alloc", **fields).out_hwpt_id

    def attach(self, bound, number):
        return self.of_device(bound.attach, number)

    def detach(self, bound):
        self.of_device(bound.detach)

    @staticmethod
    def of_device(method, *args):
        try:
            return trio.run(method, *args)
        except OSError as error:
            raise Refused(NAMES[error.errno]) from None

    def vfio_ioas(self, op, number=0):
        fields = {"op": op, "ioas_id": number}
        return self.ioctl(uapi.IOMMU_VFIO_IOAS, "iommu_vfio_ioas", **fields).ioas_id

    def vfio_set(self, number):
        self.vfio_ioas(uapi.IOMMU_VFIO_IOAS_SET, number)

    def vfio_get(self):
        return self.vfio_ioas(uapi.IOMMU_VFIO_IOAS_GET)

    def vfio_clear(self):
        self.vfio_ioas(uapi.IOMMU_VFIO_IOAS_CLEAR)

    def set_iommu(self, kind):
        try:
            trio.run(self.client.ioctl, self.file, uapi.VFIO_SET_IOMMU, kind)
        except OSError as error:
            raise Refused(NAMES[error.errno]) from None

    def dma_map(self, flags, va, size, iova):
        fields = {"flags": flags, "vaddr": va, "size": size, "iova": iova}
        self.ioctl(uapi.VFIO_IOMMU_MAP_DMA, "vfio_iommu_type1_dma_map", **fields)

    def dma_unmap(self, flags, iova, size):
        fields = {"flags": flags, "iova": iova, "size": size}
        try:
            return self.ioctl(
                uapi.VFIO_IOMMU_UNMAP_DMA, "vfio_iommu_type1_dma_unmap", **fields
            ).size
        except Refused as refused:
            raise Refused(refused.errno, refused.output.size) from None


# ---- what calls are about: few places, so that they meet ----------------------------------------

ODD = (1, 0x10, 0x800, PAGE - 1)
FAR = (MSI[0] - PAGE, MSI[0], MSI[1] + 1, 2**48 - PAGE, 2**48, U64_MAX - PAGE + 1, 0x200000)
PLACES = st.sampled_from([*(page * PAGE for page in range(21)), *FAR])
IOVAS = st.sampled_from(
    [page * PAGE for page in range(21)] * 6
    + [page * PAGE + odd for page in (0, 2, 7) for odd in ODD]
    + [*FAR, U64_MAX]
)
PAGES = st.sampled_from([n * PAGE for n in range(1, 7)])
LENGTHS = st.sampled_from(
    [n * PAGE for n in range(1, 7)] * 12
    + [n * PAGE - odd for n in (1, 3) for odd in ODD]
    + [0, 1, 1, 1, 16, 24 * PAGE, 2**40, 2**63, U64_MAX - PAGE, U64_MAX]
)
ADDRESSES = st.sampled_from(
    [MEMORY + page * PAGE for page in range(N_PAGES)] * 4
    + [MEMORY + page * PAGE + odd for page in (2, 14) for odd in ODD]
    + [0, 1 << 47, U64_MAX - PAGE + 1]
)
POSITIONS = st.sampled_from(
    [page * PAGE for page in range(FILE_PAGES + 1)] * 2 + [PAGE + odd for odd in ODD]
)
PROTS = st.sampled_from([READ | WRITE] * 6 + [READ, READ, WRITE, WRITE, 0])
FLAGS = st.builds(lambda prot, fixed: prot | fixed, PROTS, st.sampled_from([0, FIXED, FIXED]))
RANGES = st.one_of(
    st.lists(
        st.builds(lambda a, length: (a, min(a + length - 1, U64_MAX)), PLACES, LENGTHS), max_size=3
    ),
    # Neighbours, which are as good as one range.
    st.builds(lambda a, b, c: [(a + b, a + b + c - 1), (a, a + b - 1)], PLACES, PAGES, PAGES),
).map(lambda ranges: [r for r in ranges if 0 <= r[1] <= U64_MAX])
IDS = st.integers(0, 15)
DEVICES = st.integers(0, 1)
ENDS = st.sampled_from([0] * 4 + [PAGE, -PAGE, -PAGE, 2 * PAGE, -2 * PAGE, 1, -1])


class Machine(RuleBasedStateMachine):
    """One open /dev/iommu with two bound devices. Ids are chosen from those that there are."""

    make_client = None  # of the subclass
    server = None  # a MountServer, or the client is in process
    steps = 0  # made by all of them

    def __init__(self):
        super().__init__()
        self.memory = Memory()
        self.before = self.statistics()
        self.client = self.make_client()
        self.real = Real(self.client, self.memory.files)
        self.model = Model(*self.memory.pages())
        self.devices = []
        for index in range(2):
            device, bound = model.Device(), trio.run(self.client.bind, self.real.file, index)
            assert self.model.new(device) == bound.devid
            self.devices.append((device, bound))

    def statistics(self):
        return self.server.statistics() if self.server else statistics()

    def teardown(self):
        trio.run(self.client.close_all)
        self.memory.free()
        assert self.statistics() == self.before, "something is left"

    def outcome(self, target, name, *args):
        try:
            return "ok", getattr(target, name)(*args)
        except Refused as refused:
            output = refused.output if name in ("dma_unmap", "iova_ranges") else None
            return refused.errno, output

    def both(self, name, *args, device=None):
        type(self).steps += 1
        pair = self.devices[device] if device is not None else None
        expected = self.outcome(self.model, name, *(pair[:1] if pair else ()), *args)
        got = self.outcome(self.real, name, *(pair[1:] if pair else ()), *args)
        if expected[0] != "ok" and name == "iova_ranges" and expected[1] is None:
            got = got[0], None  # nothing was written
        assert got == expected, f"{name}{args}: {got}, the model says {expected}"

    def one_of(self, kinds, i):
        """The id of an object of such a kind; now and then of something else."""
        ids = [number for number, obj in self.model.objects.items() if isinstance(obj, kinds)]
        return ids[i % len(ids)] if ids and i < 15 else self.anything(i)

    def ioas(self, i):
        return self.one_of(model.Ioas, i)

    def anything(self, i):
        """Any id, those of devices and one that is nothing's last."""
        ids = sorted(self.model.objects, reverse=True)
        return (*ids, ids[0] + 1)[i % (len(ids) + 1)] if i < 15 else ids[0] + 1

    def near(self, ioas, k, before, after):
        """IOVA and length of an area, or of its first byte, each end moved a little."""
        areas = ioas.areas if isinstance(ioas, model.Ioas) else []
        if not areas:
            return PAGE, PAGE
        area = areas[k % len(areas)]
        start = max(area.start + before, 0)
        last = min((area.start if k > 13 else area.last) + after, U64_MAX)
        return start, max(last - start + 1, 0) % 2**64

    def id_of_device(self, i):
        return self.model.id_of(self.devices[i][0])

    # ---- rules

    @initialize(kind=st.sampled_from([1, 3]), device=DEVICES, attached=st.booleans())
    def begin(self, kind, device, attached):
        """Two address spaces; the first one for the calls of VFIO, of either version."""
        for _ in range(2):
            self.both("ioas_alloc")
        self.both("vfio_set", 3)
        self.both("set_iommu", kind)
        if attached:
            self.both("attach", 3, device=device)

    @precondition(lambda self: len(self.model.ioases()) < 2)
    @rule()
    def ioas_alloc(self):
        self.both("ioas_alloc")

    @rule(i=IDS)
    def destroy(self, i):
        # An address space with all that is in it is gone too soon.
        self.both("destroy", self.one_of(model.Hwpt if i < 13 else object, i))

    @rule(i=IDS, page=st.integers(0, 20), length=PAGES, flags=st.sampled_from([READ, READ | WRITE]))
    def map_memory(self, i, page, length, flags):
        self.both("map", self.ioas(i), flags | FIXED, MEMORY, length, page * PAGE)

    @rule(i=IDS, flags=FLAGS, va=ADDRESSES, length=LENGTHS, iova=IOVAS)
    def map(self, i, flags, va, length, iova):
        self.both("map", self.ioas(i), flags, va, length, iova)

    @rule(i=IDS, flags=FLAGS, va=ADDRESSES, length=PAGES)
    def map_automatically(self, i, flags, va, length):
        self.both("map", self.ioas(i), flags & ~FIXED, va, length, 0)

    @rule(
        i=IDS,
        flags=FLAGS,
        which=st.sampled_from([0, 0, 0, 1, 2]),
        start=POSITIONS,
        length=LENGTHS,
        iova=IOVAS,
    )
    def map_file(self, i, flags, which, start, length, iova):
        self.both("map_file", self.ioas(i), flags, which, start, length, iova)

    @rule(i=IDS, j=IDS, flags=FLAGS, length=LENGTHS, to=IOVAS, iova=IOVAS)
    def copy(self, i, j, flags, length, to, iova):
        self.both("copy", self.ioas(i), self.ioas(j), flags, length, to, iova)

    @rule(i=IDS, j=IDS, flags=FLAGS, k=IDS, before=ENDS, after=ENDS, to=IOVAS)
    def copy_an_area(self, i, j, flags, k, before, after, to):
        iova, length = self.near(self.model.objects.get(self.ioas(j)), k, before, after)
        self.both("copy", self.ioas(i), self.ioas(j), flags, length, to, iova)

    @rule(i=IDS, k=IDS, before=ENDS, after=ENDS)
    def unmap_an_area(self, i, k, before, after):
        iova, length = self.near(self.model.objects.get(self.ioas(i)), k, before, after)
        self.both("unmap", self.ioas(i), iova, length)

    @rule(i=IDS, iova=IOVAS, length=LENGTHS, everything=st.sampled_from([False] * 7 + [True]))
    def unmap(self, i, iova, length, everything):
        self.both("unmap", self.ioas(i), *((0, U64_MAX) if everything else (iova, length)))

    @rule(i=IDS, ranges=RANGES)
    def allow_iovas(self, i, ranges):
        self.both("allow_iovas", self.ioas(i), ranges)

    @rule(i=IDS, room=st.sampled_from([0, 1, 2, 5]))
    def iova_ranges(self, i, room):
        self.both("iova_ranges", self.ioas(i), room)

    @rule(i=IDS, value=st.sampled_from([None, 0, 0, 1, 2]))
    def huge_pages(self, i, value):
        self.both("huge_pages", self.ioas(i), value)

    @rule(device=DEVICES, i=IDS)
    def hwpt_alloc(self, device, i):
        self.both("hwpt_alloc", self.id_of_device(device), self.one_of((model.Ioas, model.Hwpt), i))

    @rule(device=DEVICES, i=IDS)
    def attach(self, device, i):
        self.both("attach", self.one_of((model.Ioas, model.Hwpt), i), device=device)

    @rule(device=DEVICES)
    def detach(self, device):
        self.both("detach", device=device)

    @rule(i=IDS, op=st.sampled_from(["vfio_set"] * 5 + ["vfio_get"] * 2 + ["vfio_clear"]))
    def vfio_ioas(self, i, op):
        self.both(op, *([self.ioas(i)] if op == "vfio_set" else []))

    @precondition(lambda self: self.model.vfio)
    @rule(kind=st.sampled_from([1, 1, 3, 2]))
    def set_iommu(self, kind):
        self.both("set_iommu", kind)

    @precondition(lambda self: self.model.vfio)
    @rule(flags=st.sampled_from([3, 3, 3, 1, 2, 0, 4]), va=ADDRESSES, size=LENGTHS, iova=IOVAS)
    def dma_map(self, flags, va, size, iova):
        self.both("dma_map", flags, va, size, iova)

    @precondition(lambda self: self.model.vfio)
    @rule(page=st.integers(0, 20), size=PAGES)
    def dma_map_memory(self, page, size):
        self.both("dma_map", 3, MEMORY, size, page * PAGE)

    @precondition(lambda self: self.model.vfio)
    @rule(flags=st.sampled_from([0] * 9 + [1, 2]), iova=IOVAS, size=LENGTHS)
    def dma_unmap(self, flags, iova, size):
        everything = flags == 2 and size <= 3 * PAGE
        self.both("dma_unmap", flags, *((0, 0) if everything else (iova, size)))

    @precondition(lambda self: self.model.vfio)
    @rule(k=IDS, before=ENDS, after=ENDS)
    def dma_unmap_an_area(self, k, before, after):
        self.both("dma_unmap", 0, *self.near(self.model.vfio, k, before, after))


class ProcessMachine(Machine):
    """In process the inside can be compared as well."""

    make_client = staticmethod(ProcessClient)

    @invariant()
    def counts(self):
        now, old = statistics(), self.before
        areas = [area for ioas in self.model.ioases() for area in ioas.areas]
        assert now["areas"] - old["areas"] == len(areas)
        assert now["pages"] - old["pages"] == len({id(area.source) for area in areas})
        assert now["pinned_pages"] - old["pinned_pages"] == self.model.n_pinned()

    @invariant()
    def reserved_ranges(self):
        for number, ioas in self.model.objects.items():
            if isinstance(ioas, model.Ioas):
                real = self.real.file.objects.find(number, Ioas)
                assert real.holes() == list(model.gaps(0, U64_MAX, ioas.reserved))
                assert lib.iofs_iopt_alignment(real.iopt) == ioas.alignment

    @precondition(lambda self: any(device.hwpt for device, _ in self.devices))
    @rule(device=DEVICES, iova=PLACES, length=PAGES)
    def dma_read(self, device, iova, length):
        """What a device reads is what is mapped there; the first byte that is not is told."""
        hwpt = self.devices[device][0].hwpt or self.devices[1 - device][0].hwpt
        expected, reason = bytearray(), lib.IOFS_DMA_OK
        for at in range(iova, iova + length, PAGE):
            area = next((a for a in hwpt.ioas.areas if a.start <= at <= a.last), None)
            if area is None or not area.prot & READ:
                reason = lib.IOFS_DMA_PERMISSION if area else lib.IOFS_DMA_UNMAPPED
                break
            source = area.at + at - area.start
            expected += bytes([Memory.content(area.source.kind, source)]) * PAGE
        native = self.real.file.objects.find(self.model.id_of(hwpt), HwptPaging).domain
        buffer, fault = ffi.new("char[]", length), ffi.new("struct iofs_dma_fault *")
        result = lib.iofs_dma_read(native, iova, buffer, length, fault)
        if reason == lib.IOFS_DMA_OK:
            assert (result, bytes(ffi.buffer(buffer))) == (0, expected)
        else:
            got = result, fault.iova, fault.reason
            assert got == (-errno.EFAULT, iova + len(expected), reason)


def run(machine, steps):
    machine.steps = 0
    print(f"seed {SEED}, about {steps} steps; again: make property STEPS={steps} SEED={SEED}")
    run_state_machine_as_test(
        seed(SEED)(machine),
        settings=settings(
            max_examples=max(steps // SEQUENCE, 1),
            stateful_step_count=SEQUENCE,
            deadline=None,
            database=None,
            print_blob=True,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        ),
    )
    print(f"{machine.steps} calls compared")


def test_in_process():
    run(ProcessMachine, STEPS)


@pytest.mark.mount
@pytest.mark.parametrize("fast", [True, False], ids=["by readers", "in Python"])
def test_through_a_mount(tmp_path, fast):
    class MountMachine(Machine):
        make_client = staticmethod(lambda: MountClient(tmp_path))
        server = MountServer(tmp_path, fast=fast)

    try:
        run(MountMachine, STEPS_MOUNTED)
    finally:
        MountMachine.server.end()
