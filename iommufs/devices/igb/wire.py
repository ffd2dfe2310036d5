"""What an 82576 is plugged to: other functions, and a file that records what it sends.

A frame on a wire has no FCS: it is right by construction.
"""

from __future__ import annotations

import struct
import time
import weakref
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO, Protocol

# Wires by name. All functions whose topology names the same one hear each other.
_wires: dict[str, weakref.WeakSet[Any]] = {}


class End(Protocol):
    """A function on a wire.

    powered       its PHY is
    link_changed  is called when that of another end has changed
    """

    powered: bool
    link_changed: Callable[[], None]

    def hear(self, frames: list[bytes]) -> None:
        """Frames come in."""


class Wire:
    """The wire of one function; without a name it leads nowhere."""

    def __init__(self, name: str | None, end: End) -> None:
        self._end = end
        self._ends: Iterable[Any] = ()
        self.index = 0
        if name is not None:
            ends = _wires.setdefault(name, weakref.WeakSet())
            self.index = len(ends)  # which end of the wire this is
            ends.add(end)
            self._ends = ends

    def _others(self) -> list[End]:
        return [end for end in self._ends if end is not self._end]

    def send(self, frames: list[bytes]) -> None:
        """To all others."""
        for end in self._others():
            end.hear(frames)

    @property
    def plugged(self) -> bool:
        """Whether there is another PHY that has power."""
        return any(end.powered for end in self._others())

    def power(self, on: bool) -> None:
        """This end's PHY has power, or has not."""
        if on != self._end.powered:
            self._end.powered = on
            for end in self._others():
                end.link_changed()


_PCAP_HEADER = struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 65535, 1)  # ns, Ethernet


class Pcap:
    """A file in the format of libpcap."""

    def __init__(self, path: str, *, new: bool) -> None:
        """Begin a new file, or go on with one; OSError."""
        self._file: BinaryIO = open(path, "wb" if new else "ab")  # noqa: SIM115 (see close())
        if new:
            self._file.write(_PCAP_HEADER)
            self._file.flush()

    def write(self, frames: Iterable[bytes]) -> None:
        for frame in frames:
            seconds, nanoseconds = divmod(time.time_ns(), 10**9)
            self._file.write(struct.pack("<IIII", seconds, nanoseconds, len(frame), len(frame)))
            self._file.write(frame)
        self._file.flush()

    def close(self) -> None:
        self._file.close()
