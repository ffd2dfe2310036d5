"""Attributes of /sys: what is read and written as text, and how Linux understands what is written.

Not here: which attributes there are (sysfs.py, sysfs_pci.py).
"""

from __future__ import annotations

import errno
import re
from collections.abc import Awaitable, Callable
from typing import Any

from iommufs.errors import UapiError
from iommufs.fuse.nodes import Dir, TextFile
from iommufs.limits import U64_MAX

Store = Callable[[bytes], Awaitable[None] | None]

_NUMBER = re.compile(rb"\+?(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)\n?", re.ASCII)
_TRUE, _FALSE = rb"[eEyYtT1]|[oO][nN]", rb"[dDnNfF0]|[oO][fF]"
_UUID = rb"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
_ACTION = rb"(?:add|remove|change|move|online|offline|bind|unbind)"
_UEVENT = re.compile(
    _ACTION + rb"(?: " + _UUID + rb"(?: [0-9A-Za-z]+=[0-9A-Za-z]+)*)?[\n\0]?", re.ASCII
)


def string(data: bytes) -> str:
    """What was written, up to a NUL, without the newline at its end (sysfs_streq())."""
    return data.split(b"\0")[0].removesuffix(b"\n").decode("utf-8", "surrogateescape")


def number(data: bytes, last: int = U64_MAX) -> int:
    """A number in C's notation, 0 to `last`; EINVAL (kstrtoul(), kstrtou16())."""
    match = _NUMBER.fullmatch(data.split(b"\0")[0])
    digits = match[1].decode().lower() if match else ""
    if digits.startswith("0x"):
        value = int(digits, 16)
    else:
        value = int(digits, 8 if digits.startswith("0") else 10) if digits else -1
    if not 0 <= value <= last:
        raise UapiError(errno.EINVAL, f"{data!r}: expected a number up to {last}")
    return value


def boolean(data: bytes) -> bool:
    """Yes or no by the first letters; EINVAL (kstrtobool())."""
    if re.match(_TRUE, data):
        return True
    if re.match(_FALSE, data):
        return False
    raise UapiError(errno.EINVAL, f"{data!r}: expected yes or no")


def text(read: Callable[[], str] | str, mode: int = 0o444, write: Store | None = None) -> TextFile:
    """An attribute that shows a line."""
    show = read if callable(read) else lambda: read
    assert bool(mode & 0o200) is bool(write), "a mode says what can be done"
    return TextFile(lambda: f"{show()}\n".encode(errors="surrogateescape"), write, mode)


def button(write: Store, mode: int = 0o200) -> TextFile:
    """A write-only attribute."""
    return TextFile(None, write, mode)


def if_true(act: Callable[[], Any]) -> Store:
    """Act if what is written is a number other than 0."""

    def write(data: bytes) -> Any:
        return act() if number(data) else None

    return write


def flag(on: Callable[[], bool], switch: Callable[[bool], None], mode: int = 0o644) -> TextFile:
    """An attribute that is 0 or 1."""
    return text(lambda: str(int(on())), mode, lambda data: switch(bool(number(data))))


def check_uevent(data: bytes) -> None:
    """An event that somebody wants to be told once more; nobody listens here. EINVAL.

    Source: kobject_synth_uevent()
    """
    if not _UEVENT.fullmatch(data):
        raise UapiError(errno.EINVAL, f"{data!r}: expected an action, perhaps with a UUID")


def uevent(read: Callable[[], str] | str | None) -> TextFile:
    """What an event says of its object: lines, or nothing."""
    if read is None:
        return TextFile(bytes, check_uevent, 0o644)
    return text(read, 0o644, check_uevent)


class Power:
    """Runtime power management of a device that has none."""

    control = "auto"

    def set_control(self, data: bytes) -> None:
        """EINVAL."""
        wanted = string(data)
        if wanted not in ("auto", "on"):
            raise UapiError(errno.EINVAL, f"{wanted!r}: expected auto or on")
        self.store(wanted)

    def store(self, wanted: str) -> None:
        self.control = wanted

    def status(self) -> str:
        return "unsupported"

    def directory(self) -> Dir:
        return Dir(
            {
                "autosuspend_delay_ms": TextFile(_no_delay, _no_delay, 0o644),
                "control": text(lambda: self.control, 0o644, self.set_control),
                "runtime_status": text(self.status),
            }
        )


def _no_delay(*args: bytes) -> bytes:
    raise UapiError(errno.EIO, "autosuspend is not in use")
