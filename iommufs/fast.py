"""What readers of the transport know of an open file, to finish plain calls without Python.

Whoever changes what is said here takes it back before, so that no reader answers from the past.
What cannot be said for want of memory is not: then Python answers, as it does without a mount.
"""

from __future__ import annotations

from typing import Any

from iommufs._native import ffi, lib


class Fast:
    """One open file, or several numbers that are one."""

    def __init__(self) -> None:
        handle = lib.iofs_fast_new()
        if handle == ffi.NULL:
            raise MemoryError("no memory for an open file")
        self._handle = ffi.gc(handle, lib.iofs_fast_free)
        self._windows: dict[int, tuple[Any, ...]] = {}  # keeps what readers look at where it is

    def close(self) -> None:
        ffi.release(self._handle)
        self._windows.clear()

    def add_file(self, fh: int) -> None:
        lib.iofs_fast_add_file(self._handle, fh)

    # Of an iommufd.

    def set_iopt(self, ioas_id: int, iopt: Any) -> None:
        """The address space with an id; NULL takes it back, but a reader may be at work on it."""
        lib.iofs_fast_set_iopt(self._handle, ioas_id, iopt)

    def set_compat(self, iopt: Any) -> None:
        """Likewise the one that the VFIO container calls work on."""
        lib.iofs_fast_set_compat(self._handle, iopt)

    def set_charge_mode(self, mode: int) -> None:
        lib.iofs_fast_set_charge_mode(self._handle, mode)

    def add_source(self, tgid: int, mm: Any) -> None:
        """What this process maps, as long as it runs in it."""
        lib.iofs_fast_add_source(self._handle, tgid, mm)

    def remove_source(self, tgid: int) -> None:
        lib.iofs_fast_remove_source(self._handle, tgid)

    # Of a device.

    def add_answer(self, number: int, index: int, info: Any, chain: bytes, cap_at: int) -> None:
        """What a call that asks about an index gets: a structure that begins with argsz, its chain.

        cap_at  where the structure says where the chain begins; 0: it does not
        """
        size = ffi.sizeof(info[0])
        answer = (info, size, chain, len(chain), cap_at)
        lib.iofs_fast_add_answer(self._handle, number, index, *answer)

    def set_triggers(self, index: int, fds: list[int]) -> None:
        """The eventfds that SET_IRQS rings of itself, -1 for none; empty: Python is asked."""
        lib.iofs_fast_set_triggers(self._handle, index, fds, len(fds))

    def add_window(self, position: int, length: int, *memory: Any, ends: bool = False) -> None:
        """What reading `length` bytes of the file at `position` gives, as long as they stay that.

        memory  buffers of that length, whose contents may change, not their size: config space is
                the function's own bytes, the client's, and a mask of which bits are the client's;
                or one buffer, the contents of a region, read while set_memory() says so
        ends    a read that goes on past them ends there, instead of being Python's
        """
        views = [ffi.from_buffer(buffer) for buffer in memory]
        assert all(len(view) >= length for view in views)
        flags = (ends and lib.IOFS_WINDOW_ENDS) | (len(views) == 1 and lib.IOFS_WINDOW_MEMORY)
        own, kept, mask = views if len(views) == 3 else (views[0], ffi.NULL, ffi.NULL)
        lib.iofs_fast_add_window(self._handle, position, length, flags, own, kept, mask)
        self._windows[position] = tuple(views)

    def set_memory(self, enabled: bool) -> None:
        """Whether the memory of regions can be reached."""
        lib.iofs_fast_set_memory(self._handle, enabled)

    def read(self, position: int, size: int) -> bytes:
        """What a reader answers; nothing: it asks Python."""
        out = bytearray(lib.IOFS_MAX_FAST_READ)
        n = lib.iofs_fast_read(self._handle, position, size, ffi.from_buffer(out))
        return bytes(out[:n])

    def withdraw(self) -> None:
        """Take back all that was said of a device."""
        lib.iofs_fast_withdraw(self._handle)
        self._windows.clear()


def remove_file(fh: int) -> None:
    """The number is nobody's any more."""
    lib.iofs_fast_remove_file(fh)


def enable(enabled: bool) -> None:
    lib.iofs_fast_enable(enabled)


def counts() -> dict[str, int]:
    """Requests since the process began, by who answered them."""
    out = ffi.new("struct iofs_fast_counts *")
    lib.iofs_fast_counts(out)
    return {name: getattr(out, name) for name, _ in ffi.typeof(out).item.fields}
