"""iommufd as a naive model: plain lists, brute force, one rule after the other.

It knows nothing of how the product is built. What it refuses is a Refused with the errno's name;
ranges are closed. One device class only: an IOMMU of 48 bits with pages of 4 KiB and up, and an MSI
window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

PAGE = 4096
U64_MAX = 2**64 - 1
FIXED, WRITE, READ = 1, 2, 4
MSI = (0xFEE00000, 0xFEEFFFFF)
ABOVE = (2**48, U64_MAX)


class Refused(Exception):
    """A call fails; `output` is what it writes all the same."""

    def __init__(self, errno: str, output: Any = None) -> None:
        super().__init__(errno)
        self.errno = errno
        self.output = output


@dataclass(eq=False)
class Source:
    """What a map call named. pages: page address or file page → it is writable; absent: none."""

    kind: str  # user, file or other
    start: int
    writeable: bool
    pages: dict[int, bool]

    def pin(self, first: int, last: int) -> None:
        for page in range(first // PAGE, last // PAGE + 1):
            if page not in self.pages or (self.writeable and not self.pages[page]):
                raise Refused("EFAULT" if self.kind == "user" else "EINVAL")


@dataclass(eq=False)
class Area:
    start: int
    last: int
    source: Source
    at: int  # address or file position of the first byte
    prot: int

    def part(self, start: int, last: int) -> Area:
        return replace(self, start=start, last=last, at=self.at + start - self.start)

    def pin(self) -> None:
        self.source.pin(self.at, self.at + self.last - self.start)
        if not self.prot:
            raise Refused("EINVAL")

    def is_misaligned(self, alignment: int) -> bool:
        return any(n % alignment for n in (self.start, self.last + 1, self.at % PAGE))


def meets(start: int, last: int, ranges: Any) -> bool:
    return any(r[0] <= last and start <= r[1] for r in ranges)


def gaps(start: int, last: int, ranges: Any) -> Iterator[tuple[int, int]]:
    """The parts of [start, last] that no range meets, ascending."""
    for r in sorted(r[:2] for r in ranges if r[0] <= last and start <= r[1]):
        if start < r[0]:
            yield start, r[0] - 1
        start = max(start, r[1] + 1)
    if start <= last:
        yield start, last


@dataclass(eq=False)
class Ioas:
    areas: list[Area] = field(default_factory=list)  # ascending
    reserved: list[tuple[int, int, Any]] = field(default_factory=list)  # start, last, owner
    allowed: list[tuple[int, int]] = field(default_factory=list)
    small_pages: bool = False
    hwpts: list[Hwpt] = field(default_factory=list)  # in order of creation

    @property
    def alignment(self) -> int:
        return PAGE if self.small_pages or self.hwpts else 1

    @property
    def used(self) -> list[tuple[int, int]]:
        return [(area.start, area.last) for area in self.areas]

    def reserve(self, start: int, last: int, owner: Any) -> None:
        if meets(start, last, self.used) or meets(start, last, self.allowed):
            raise Refused("EADDRINUSE")
        self.reserved.append((start, last, owner))

    def release(self, owner: Any) -> None:
        self.reserved = [r for r in self.reserved if r[2] is not owner]

    def choose(self, at: int, length: int) -> int:
        """An automatic IOVA: first fit."""
        if length >= U64_MAX // 2:
            raise Refused("EOVERFLOW")
        alignment = 1 << (length - 1).bit_length()
        if at:
            alignment = min(alignment, at & -at)
        alignment = min(alignment, 2 << 20)
        if alignment < self.alignment:
            raise Refused("EINVAL")
        spans: list[tuple[int, int]] = []
        for start, last in sorted(self.allowed) or [(0, U64_MAX)]:
            if spans and spans[-1][1] + 1 == start:
                spans[-1] = (spans[-1][0], last)
            else:
                spans.append((start, last))
        taken = [*self.used, *self.reserved]
        for span in spans:
            for hole in gaps(max(span[0], PAGE), min(span[1], U64_MAX - PAGE), taken):
                start = -(-hole[0] // alignment) * alignment | at % PAGE
                if start < hole[1] and hole[1] - start >= length - 1:
                    return start
        raise Refused("ENOSPC")

    def insert(self, pieces: list[Area], prot: int, fixed: bool, iova: int) -> int:
        """Put pieces of other areas one behind the other; all or nothing."""
        length = sum(piece.last - piece.start + 1 for piece in pieces)
        if length % self.alignment:
            raise Refused("EINVAL")
        if fixed:
            if iova % self.alignment:
                raise Refused("EINVAL")
            if iova + length - 1 > U64_MAX:
                raise Refused("EOVERFLOW")
            if meets(iova, iova + length - 1, self.reserved):
                raise Refused("EINVAL")
            if meets(iova, iova + length - 1, self.used):
                raise Refused("EEXIST")
        else:
            iova = self.choose(pieces[0].at, length)
        new, at = [], iova
        for piece in pieces:
            if prot & WRITE and not piece.source.writeable:
                raise Refused("EPERM")
            if piece.at % PAGE % self.alignment:
                raise Refused("EINVAL")
            last = at + piece.last - piece.start
            new.append(replace(piece, start=at, last=last, prot=prot))
            at = last + 1
        if self.hwpts:
            for area in new:
                area.pin()
        self.areas = sorted([*self.areas, *new], key=lambda area: area.start)
        return iova

    def pieces(self, iova: int, length: int) -> list[Area]:
        if not length:
            raise Refused("EINVAL")
        last = iova + length - 1
        if last > U64_MAX:
            raise Refused("EOVERFLOW")
        hit = [area for area in self.areas if area.start <= last and iova <= area.last]
        if any(gaps(iova, last, [(area.start, area.last) for area in hit])):
            raise Refused("ENOENT")
        return [area.part(max(area.start, iova), min(area.last, last)) for area in hit]

    def unmap(self, start: int, last: int) -> int:
        """Bytes unmapped; ENOENT at the first area that sticks out, those before it being gone."""
        done = 0
        for area in list(self.areas):
            if area.last < start or last < area.start:
                continue
            if area.start < start or last < area.last:
                raise Refused("ENOENT", done)
            self.areas.remove(area)
            done += area.last - area.start + 1
        return done

    def cut(self, iova: int) -> None:
        """Let iova be the last byte of an area."""
        for i, area in enumerate(self.areas):
            if not area.start < iova < area.last:
                continue
            right = area.part(iova + 1, area.last)
            if right.start % self.alignment or right.at % PAGE % self.alignment:
                raise Refused("EINVAL")
            if self.hwpts and not self.small_pages:
                raise Refused("EINVAL")
            self.areas[i : i + 1] = [area.part(area.start, iova), right]

    def set_small_pages(self) -> None:
        if self.small_pages:
            return
        if self.hwpts and self.areas:
            raise Refused("EINVAL")
        if any(area.is_misaligned(PAGE) for area in self.areas):
            raise Refused("EADDRINUSE")
        self.small_pages = True

    def add_hwpt(self, hwpt: Hwpt) -> None:
        if any(area.is_misaligned(PAGE) for area in self.areas):
            raise Refused("EADDRINUSE")
        self.reserve(*ABOVE, hwpt)
        try:
            for area in self.areas:
                area.pin()
        except Refused:
            self.release(hwpt)
            raise
        self.hwpts.append(hwpt)


@dataclass(eq=False)
class Hwpt:
    ioas: Ioas
    auto: bool = False
    devices: list[Device] = field(default_factory=list)


@dataclass(eq=False)
class Device:
    hwpt: Hwpt | None = None


class Model:
    """One open /dev/iommu; devices are in groups of their own.

    memory, file  their pages: number → it is writable
    """

    def __init__(self, memory: dict[int, bool], file: dict[int, bool]) -> None:
        self.objects: dict[int, Any] = {}
        self.vfio: Ioas | None = None
        self._memory = memory
        self._file = file

    def new(self, obj: Any) -> int:
        number = next(n for n in range(1, U64_MAX) if n not in self.objects)
        self.objects[number] = obj
        return number

    def id_of(self, obj: Any) -> int:
        return next(number for number, other in self.objects.items() if other is obj)

    def find(self, number: int, kind: type, errno: str = "ENOENT") -> Any:
        if number not in self.objects or not isinstance(self.objects[number], kind):
            raise Refused(errno)
        return self.objects[number]

    def ioases(self) -> list[Ioas]:
        return [obj for obj in self.objects.values() if isinstance(obj, Ioas)]

    def n_pinned(self) -> int:
        """Pages of every source that some area shows to a page table."""
        pinned = {
            (id(area.source), page)
            for ioas in self.ioases()
            for area in (ioas.areas if ioas.hwpts else [])
            for page in range(area.at // PAGE, (area.at + area.last - area.start) // PAGE + 1)
        }
        return len(pinned)

    # ---- calls

    def ioas_alloc(self) -> int:
        return self.new(Ioas())

    def destroy(self, number: int) -> None:
        obj = self.find(number, object)
        if (
            isinstance(obj, Device)
            or (isinstance(obj, Ioas) and obj.hwpts)
            or (isinstance(obj, Hwpt) and obj.devices)
        ):
            raise Refused("EBUSY")
        if isinstance(obj, Hwpt):
            self._remove(obj)
            return
        if self.vfio is obj:
            self.vfio = None
        del self.objects[number]

    def _remove(self, hwpt: Hwpt) -> None:
        hwpt.ioas.hwpts.remove(hwpt)
        hwpt.ioas.release(hwpt)
        del self.objects[self.id_of(hwpt)]

    @staticmethod
    def _check_map(flags: int, *numbers: int) -> None:
        if U64_MAX in numbers:
            raise Refused("EOVERFLOW")
        if not flags & (READ | WRITE):
            raise Refused("EINVAL")

    @staticmethod
    def _insert(ioas: Ioas, source: Source, length: int, flags: int, iova: int) -> int:
        piece = Area(0, length - 1, source, source.start, 0)
        return ioas.insert([piece], flags & (READ | WRITE), bool(flags & FIXED), iova)

    def map(self, number: int, flags: int, va: int, length: int, iova: int) -> int:
        self._check_map(flags, iova, length)
        return self._map(self.find(number, Ioas), flags, va, length, iova)

    def _map(self, ioas: Ioas, flags: int, va: int, length: int, iova: int) -> int:
        if va + length > U64_MAX:
            raise Refused("EOVERFLOW")
        if not length or length > U64_MAX - PAGE:
            raise Refused("EINVAL")
        source = Source("user", va, bool(flags & WRITE), self._memory)
        return self._insert(ioas, source, length, flags, iova)

    def map_file(
        self, number: int, flags: int, which: int, start: int, length: int, iova: int
    ) -> int:
        """which: 0 memory, 1 another file, 2 none."""
        self._check_map(flags, iova, length)
        ioas = self.find(number, Ioas)
        if not length:
            raise Refused("EINVAL")
        if start + length - 1 > U64_MAX:
            raise Refused("EOVERFLOW")
        if which == 2:
            raise Refused("EBADF")
        source = Source("file", start, bool(flags & WRITE), {} if which else self._file)
        return self._insert(ioas, source, length, flags, iova)

    def copy(self, dst: int, src: int, flags: int, length: int, to: int, iova: int) -> int:
        self._check_map(flags, length, iova, to)
        pieces = self.find(src, Ioas).pieces(iova, length)
        prot, fixed = flags & (READ | WRITE), bool(flags & FIXED)
        return self.find(dst, Ioas).insert(pieces, prot, fixed, to)

    def unmap(self, number: int, iova: int, length: int) -> int:
        ioas = self.find(number, Ioas)
        if iova == 0 and length == U64_MAX:
            return ioas.unmap(0, U64_MAX)
        if U64_MAX in (iova, length):
            raise Refused("EOVERFLOW")
        done = self._unmap(ioas, iova, length)
        if not done:
            raise Refused("ENOENT")
        return done

    @staticmethod
    def _unmap(ioas: Ioas, iova: int, length: int) -> int:
        if not length:
            raise Refused("EINVAL", 0)
        if iova + length - 1 > U64_MAX:
            raise Refused("EOVERFLOW", 0)
        return ioas.unmap(iova, iova + length - 1)

    def allow_iovas(self, number: int, ranges: list[tuple[int, int]]) -> None:
        ioas = self.find(number, Ioas)
        for i, (start, last) in enumerate(ranges):
            if start >= last or meets(start, last, ranges[:i]):
                raise Refused("EINVAL")
        if any(meets(start, last, ioas.reserved) for start, last in ranges):
            raise Refused("EADDRINUSE")
        ioas.allowed = list(ranges)

    def iova_ranges(self, number: int, room: int) -> Any:
        ioas = self.find(number, Ioas)
        holes = list(gaps(0, U64_MAX, ioas.reserved))
        output = len(holes), ioas.alignment, holes[:room]
        if len(holes) > room:
            raise Refused("EMSGSIZE", output)
        return output

    def huge_pages(self, number: int, value: int | None) -> int:
        """value None: get."""
        ioas = self.find(number, Ioas)
        if value is None:
            return int(not ioas.small_pages)
        if value > 1:
            raise Refused("EINVAL")
        if value:
            ioas.small_pages = False
        else:
            ioas.set_small_pages()
        return value

    def hwpt_alloc(self, device: int, number: int) -> int:
        self.find(device, Device)
        pt = self.find(number, object, "EINVAL")
        if isinstance(pt, Hwpt):
            raise Refused("EOPNOTSUPP")
        hwpt = Hwpt(self.find(number, Ioas, "EINVAL"))
        hwpt.ioas.add_hwpt(hwpt)
        return self.new(hwpt)

    def attach(self, device: Device, number: int) -> int:
        pt = self.find(number, object)
        if isinstance(pt, Device):
            raise Refused("EINVAL")
        hwpt = pt if isinstance(pt, Hwpt) else next((h for h in pt.hwpts if h.auto), None)
        if hwpt is None:
            return self._attach_new(device, Hwpt(pt, auto=True))
        self._attach(device, hwpt)
        return self.id_of(hwpt)

    def _attach_new(self, device: Device, hwpt: Hwpt) -> int:
        """An attach reserves what the device needs before the page table is filled, a replace
        after that."""
        steps: list[Callable[[], None]] = [lambda: hwpt.ioas.add_hwpt(hwpt)]
        old = device.hwpt
        steps.insert(1 if old else 0, lambda: self._reserve(device, hwpt.ioas))
        number = self.new(hwpt)
        try:
            for step in steps:
                step()
        except Refused:
            del self.objects[number]
            if hwpt in hwpt.ioas.hwpts:
                hwpt.ioas.hwpts.remove(hwpt)
            hwpt.ioas.release(hwpt)
            if not old or old.ioas is not hwpt.ioas:
                hwpt.ioas.release(device)
            raise
        self._move(device, hwpt)
        return number

    @staticmethod
    def _reserve(device: Device, ioas: Ioas) -> None:
        if not device.hwpt or device.hwpt.ioas is not ioas:
            ioas.reserve(*MSI, device)

    def _attach(self, device: Device, hwpt: Hwpt) -> None:
        if device.hwpt is not hwpt:
            self._reserve(device, hwpt.ioas)
            self._move(device, hwpt)

    def _move(self, device: Device, hwpt: Hwpt | None) -> None:
        old, device.hwpt = device.hwpt, hwpt
        if hwpt:
            hwpt.devices.append(device)
        if old:
            old.devices.remove(device)
            if not hwpt or hwpt.ioas is not old.ioas:
                old.ioas.release(device)
            if old.auto and not old.devices:
                self._remove(old)

    def detach(self, device: Device) -> None:
        self._move(device, None)

    # ---- the calls of VFIO type1

    def vfio_set(self, number: int) -> None:
        self.vfio = self.find(number, Ioas)

    def vfio_get(self) -> int:
        return self.id_of(self._vfio())

    def vfio_clear(self) -> None:
        self.vfio = None

    def _vfio(self) -> Ioas:
        if not self.vfio:
            raise Refused("ENODEV")
        return self.vfio

    def set_iommu(self, kind: int) -> None:
        if kind not in (1, 3):
            raise Refused("EINVAL")
        ioas = self._vfio()
        if kind == 1:
            ioas.set_small_pages()

    def dma_map(self, flags: int, va: int, size: int, iova: int) -> None:
        """flags: 1 read, 2 write."""
        if flags & ~3:
            raise Refused("EINVAL")
        prot = (READ if flags & 1 else 0) | (WRITE if flags & 2 else 0)
        self._map(self._vfio(), prot | FIXED, va, size, iova)

    def dma_unmap(self, flags: int, iova: int, size: int) -> int:
        """flags: 2 everything. A Refused has as its output what is written to `size`."""
        if flags & ~2:
            raise Refused("EINVAL", size)
        if not self.vfio:
            raise Refused("ENODEV", size)
        if flags:
            if iova or size:
                raise Refused("EINVAL", size)
            return self.vfio.unmap(0, U64_MAX)
        if self.vfio.small_pages:
            try:
                self.vfio.cut((iova + size - 1) % 2**64)
                if iova:
                    self.vfio.cut(iova - 1)
            except Refused as refused:
                raise Refused(refused.errno, size) from None
        return self._unmap(self.vfio, iova, size)
