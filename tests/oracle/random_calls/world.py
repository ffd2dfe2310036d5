"""What random calls are made with: a generator, memory at fixed addresses, what is known so far.

Needs nothing but Python, and numbers its descriptors alike wherever it runs. A call is told as one
line: its number, its name and arguments that matter, the result (a negative errno by its name), and
the bytes of the structure that are others now, `@offset=bytes`.
"""

import ctypes
import errno
import mmap
import os
import struct
import sys

PAGE = 4096
U64_MAX = 2**64 - 1
RW, SHARED, PRIVATE, FIXED, ANONYMOUS = 3, 1, 2, 0x10, 0x20

# 256 pages for DMA: 100-109 are no memory, 120-129 read-only, 150-199 a file.
MEMORY, N_PAGES = 0x10000000000, 256
# Structures lie at its start or against the page before its last, which cannot be touched.
ARGUMENTS = 0x20000000000
FENCE = ARGUMENTS + 31 * PAGE
DATA = ARGUMENTS + 16 * PAGE  # what structures point to

os.closerange(3, 100)
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p]
for _call in (libc.read, libc.write):
    _call.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
for _call in (libc.pread, libc.pwrite):
    _call.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_long]


class Random:
    """splitmix64: the same everywhere and for ever."""

    def __init__(self, seed):
        self._state = seed

    def __call__(self, n):
        z = self._state = (self._state + 0x9E3779B97F4A7C15) & U64_MAX
        z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & U64_MAX
        z = ((z ^ z >> 27) * 0x94D049BB133111EB) & U64_MAX
        return (z ^ z >> 31) % n

    def of(self, *choices):
        return choices[self(len(choices))]

    def percent(self, n):
        return self(100) < n


def outcome(result):
    return result if result >= 0 else errno.errorcode[ctypes.get_errno()]


def map_at(address, length, prot=RW, flags=PRIVATE | ANONYMOUS, fd=-1):
    assert libc.mmap(address, length, prot, flags | FIXED, fd, 0) == address


class World:
    """iommufds, devices and groups that are open, and the ids of what was made of each iommufd.

    owned   iommufd → kind of object → ids, in order
    bound   device → its iommufd
    spaces  device → what was read of its configuration space last
    odd     descriptors of other kinds
    attached  (mock device, PASID)
    care    how many times rarer than usual structures are of a wrong size or in wrong places
    cookies (fault queue, cookie) of page requests that were read and not answered
    """

    def __init__(self, seed, echo, care=1, first_iova=0x100000):
        self.random = Random(seed)
        self._care = care
        self._first_iova = first_iova
        self._echo = echo
        self.n_lines = 0
        self.iommufds = []
        self.devices = {}
        self.groups = {}
        self.queues = []
        self.event_queues = []
        self.cookies = []
        self.attached = []
        self.spaces = {}
        self.odd = []
        self.accesses = []
        self.pins = []
        self.owned = {}
        self.bound = {}
        self.current = -1
        self._make_memory()
        # Those of ioeventfds are emptied by whoever waits for them.
        self.eventfds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(4)]
        self.ioeventfds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)]
        self.null = os.open("/dev/null", os.O_RDWR)

    def _make_memory(self):
        map_at(MEMORY, N_PAGES * PAGE)
        libc.munmap(MEMORY + 100 * PAGE, 10 * PAGE)
        libc.mprotect(MEMORY + 120 * PAGE, 10 * PAGE, mmap.PROT_READ)
        self.memfd = os.memfd_create("memory")
        os.ftruncate(self.memfd, 64 * PAGE)
        map_at(MEMORY + 150 * PAGE, 50 * PAGE, RW, SHARED, self.memfd)
        ctypes.memset(MEMORY, 1, 50 * PAGE)
        map_at(ARGUMENTS, 32 * PAGE)
        libc.mprotect(FENCE, PAGE, 0)

    def say(self, *words):
        self.n_lines += 1
        print(self.n_lines, *words, flush=True)

    # ---- choices

    def iommufd(self):
        """Mostly the first one that is open; from here on the current one."""
        self.current = -1
        if self.random.percent(2):
            return self.any_fd()
        first = self.random.percent(70)
        self.current = self.iommufds[0] if first else self.random.of(*self.iommufds)
        return self.current

    def any_fd(self):
        return self.random.of(
            *(-1, -1, 999, self.null, self.memfd, self.ioeventfds[0]),
            *(self.iommufds or [-1]),
            *(list(self.devices.values()) or [-1]),
            *(list(self.groups.values()) or [-1]),
        )

    def id(self, *kinds, of=None):
        """The id of one of the latest objects of such a kind, or rarely another number."""
        owned = self.owned.get(self.current if of is None else of, {})
        case = self.random(24)
        if case < 3:
            return (0, self.random(12), 0x7FFFFFFF)[case]
        if case == 3:
            ids = [number for numbers in owned.values() for number in numbers[-6:]]
        else:
            newest = 2 if case > 10 else 6
            ids = [number for kind in kinds for number in owned.get(kind, [])[-newest:]]
        return self.random.of(*ids) if ids else 1 + self.random(4)

    def learn(self, kind, number, of=None):
        owned = self.owned.setdefault(self.current if of is None else of, {})
        owned.setdefault(kind, []).append(number)

    def forget(self, number):
        for numbers in self.owned.get(self.current, {}).values():
            while number in numbers:
                numbers.remove(number)

    def bad(self, value, percent=4):
        """A value, or rarely a bit that is not to be set."""
        wrong = (1, 2, 4, 8, 0x10, 0x80000000, 0xFFFFFFFF)
        return self.random.of(*wrong) if self.random.percent(percent) else value

    def user_va(self):
        case = self.random(10)
        page = self.random.of(0, 0, 10, 20, 96, 118, 122, 128, 148, 160, 195, 198, 255)
        if case == 1:
            odd = (0, U64_MAX, 0x7FFFFFFFF000, 0xFFFF888000000000, ARGUMENTS, 1 << 47)
            return self.random.of(*odd)
        return MEMORY + page * PAGE + (self.random(PAGE) if case == 0 else 0)

    def length(self):
        if self.random(12) == 0:
            return self.random.of(0, 1, U64_MAX, 1 << 63, PAGE + 1, 512)
        return PAGE * self.random.of(1, 1, 1, 2, 4, 8, 16, 40)

    def iova(self):
        if self.random(12) == 0:
            odd = (0, U64_MAX, 0xFEE00000, 0xFEDFF000, 1 << 48, (1 << 48) - PAGE, 1 << 57)
            return self.random.of(*odd, self.random(1 << 20))
        return self._first_iova + PAGE * self.random(64)

    # ---- calls

    def ioctl(self, name, fd, number, data, what=""):
        """Make a call with a structure and tell of it; its result, and the structure after it."""
        place = self.random(60 * self._care)
        at = {
            0: FENCE - len(data) + 4,  # its end cannot be read
            1: FENCE - len(data),
            2: 0,
        }.get(place, ARGUMENTS)
        here = min(len(data), FENCE - at) if at else 0
        ctypes.memmove(at, data, here)
        result = outcome(libc.ioctl(fd, number, at))
        after = ctypes.string_at(at, here) if at else b""
        changes = [f"@{i}={after[i : i + 4].hex()}" for i in range(0, here, 4)
                   if after[i : i + 4] != data[i : min(i + 4, here)]]  # fmt: skip
        self.say(name, fd, *([what] if what else []), result, *changes)
        if self._echo:
            print("   ", hex(number), data.hex(), hex(at), file=sys.stderr)
        return result, after

    def sized(self, name, fd, number, fields, *values):
        """A call of iommufd, whose structure begins with its size; as ioctl()."""
        body = struct.pack("<" + fields, *values)
        full = 4 + len(body)
        case = self.random(40 * self._care)
        size = {0: full - 4, 1: full - 1, 2: full + 8, 3: 0, 4: full - 8}.get(case, full)
        tail = bytes([0] * 7 + [self.random.of(0, 0, 1)]) if size > full else b""
        return self.ioctl(name, fd, number, struct.pack("<I", size) + body + tail)

    def fired(self):
        """How often each eventfd was signalled."""
        counts = []
        for fd in self.eventfds:
            try:
                counts.append(os.eventfd_read(fd))
            except BlockingIOError:
                counts.append(0)
        return counts


def word(data, offset):
    return struct.unpack_from("<I", data, offset)[0]
