"""The streams of migration: the open files that the state of a device is read from or written to.

A stream is a row of chunks, each a head (magic, kind, length) and its bytes. The first names the
function, so that only one of the same kind takes it; early ones, from while the device worked, are
what Model.save_early gave; the last is what Model.save gave.

    offset  bytes
    0       4      "iofs"
    4       4      kind: 0 the function, 1 early, 2 the last
    8       8      length of what follows
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from iommufs.errors import UapiError
from iommufs.limits import DEFAULT_POLLMASK, MAX_MIGRATION_LENGTH
from iommufs.ucmd import Ucmd

_HEAD = struct.Struct("<4sIQ")
_MAGIC = b"iofs"
_FUNCTION, _EARLY, _LAST = range(3)
_IDENTITY = struct.Struct("<HHHHI")


def _chunk(kind: int, data: bytes) -> bytes:
    return _HEAD.pack(_MAGIC, kind, len(data)) + data


def _first_chunk(function: Any) -> bytes:
    """What a function must be to take the state of another one."""
    d = function.description
    subsystem = d.subsystem_vendor, d.subsystem_device
    identity = _IDENTITY.pack(d.vendor, d.device, *subsystem, d.class_code << 8 | d.revision)
    return _chunk(_FUNCTION, identity)


def stop_copy_length(function: Any, data: bytes) -> int:
    """How long a stream is that holds nothing but these last bytes of a model."""
    return len(_first_chunk(function)) + len(_chunk(_LAST, data))


class _Stream:
    """What both kinds have in common: nothing goes through once the device has left their states.

    access_mode  os.O_…, as the client gets it
    """

    table: str | None = None

    def __init__(self, migration: Any) -> None:
        self.migration = migration
        self._ended = False

    def end(self) -> None:
        self._ended = True

    def check(self) -> None:
        """ENODEV."""
        if self._ended:
            raise UapiError(errno.ENODEV, "the stream has ended")

    def poll(self) -> int:
        return DEFAULT_POLLMASK

    def release(self) -> None:
        """The client has closed it; the device stays in its state."""
        self.end()


class SavingFile(_Stream):
    """Read once, from its beginning.

    early  the device works still: at the end of what there is more may come, ENOMSG
    """

    table = "migration"
    access_mode = os.O_RDONLY

    def __init__(self, migration: Any, *, early: bool) -> None:
        super().__init__(migration)
        self._left = bytearray(_first_chunk(migration.function))
        self._finished = False
        if early:
            self._add_early(first=True)
        self._initial = len(self._left)  # of what is left, how much is of the beginning

    def _add_early(self, *, first: bool = False) -> None:
        function = self.migration.function
        save = partial(function.model.save_early, first=first)
        if data := function.guard("save_early", save):
            self._left += _chunk(_EARLY, data)

    def finish(self, data: bytes) -> None:
        """The device stopped: what its model saved is the end."""
        self._left += _chunk(_LAST, data)
        self._finished = True

    def pending(self) -> tuple[int, int]:
        """Bytes left of the beginning, and of what was added since."""
        if not self._left:
            self._add_early()
        return self._initial, len(self._left) - self._initial

    async def read(self, offset: int, size: int) -> bytes:
        """ENODEV: the stream has ended; ENOMSG: nothing more for now; EIO: the model failed."""
        self.check()
        if not self._left and not self._finished:
            self._add_early()
        if size and not self._left and not self._finished:
            raise UapiError(errno.ENOMSG, "nothing to copy early for now")
        data = bytes(self._left[:size])
        del self._left[:size]
        self._initial = max(self._initial - len(data), 0)
        return data

    async def write(self, offset: int, data: bytes) -> int:
        raise UapiError(errno.EBADF, "a stream that is read")


class ResumingFile(_Stream):
    """Written once, from its beginning; what has been written is loaded when RESUMING ends."""

    access_mode = os.O_WRONLY

    def __init__(self, migration: Any) -> None:
        super().__init__(migration)
        self._data = bytearray()

    async def read(self, offset: int, size: int) -> bytes:
        raise UapiError(errno.EBADF, "a stream that is written")

    async def write(self, offset: int, data: bytes) -> int:
        """ENODEV: the stream has ended; EINVAL: of another kind of device; ENOMEM: too long."""
        self.check()
        if len(self._data) + len(data) > MAX_MIGRATION_LENGTH:
            raise UapiError(errno.ENOMEM, f"more than {MAX_MIGRATION_LENGTH} bytes")
        first = _first_chunk(self.migration.function)
        known = len(self._data)
        if known < len(first) and not first.startswith(data[: len(first) - known], known):
            raise UapiError(errno.EINVAL, "not the stream of such a device")
        self._data += data
        return len(data)

    def load(self) -> None:
        """Give it to the model; EINVAL: it is not whole, or the model does not take it; EIO."""
        function = self.migration.function
        kinds = {_EARLY: function.model.load_early, _LAST: function.model.load}
        chunks = list(self._chunks())
        if [kind for kind, _ in chunks].count(_LAST) != 1 or chunks[-1][0] != _LAST:
            raise UapiError(errno.EINVAL, "the stream is not whole")
        for kind, data in chunks:
            refused = function.guard("load", _refusal, kinds[kind], data)
            if refused is not None:
                raise UapiError(errno.EINVAL, f"the model refuses it: {refused}")

    def _chunks(self) -> Iterator[tuple[int, bytes]]:
        """Kind and bytes of all but the first; EINVAL."""
        at = len(_first_chunk(self.migration.function))
        while at < len(self._data):
            if len(self._data) - at < _HEAD.size:
                raise UapiError(errno.EINVAL, "a head that is cut off")
            magic, kind, length = _HEAD.unpack_from(self._data, at)
            at += _HEAD.size
            if magic != _MAGIC or kind not in (_EARLY, _LAST) or length > len(self._data) - at:
                raise UapiError(errno.EINVAL, f"a chunk of kind {kind}, {length} bytes")
            yield kind, bytes(self._data[at : at + length])
            at += length


def _refusal(load: Callable[[bytes], None], data: bytes) -> ValueError | None:
    try:
        load(data)
    except ValueError as error:
        return error
    return None


async def mig_get_precopy_info(ucmd: Ucmd) -> None:
    """How much there is to copy early (VFIO_MIG_GET_PRECOPY_INFO, on the stream).

    Out:    initial_bytes  left of the beginning; dirty_bytes: of what changed since
            flags          0, if the client knows them (feature MIG_PRECOPY_INFOv2)
    Errors: EINVAL  the device is in another state than those of copying early
            ENODEV  it has left that of this stream since
    Source: vfio_check_precopy_ioctl(), mtty_precopy_ioctl()
    """
    file, cmd = ucmd.file, ucmd.cmd
    migration = file.migration
    if not migration.copies_early:
        raise UapiError(errno.EINVAL, f"in state {migration.state}")
    file.check()
    if migration.info_v2:
        cmd.flags = 0
    cmd.initial_bytes, cmd.dirty_bytes = file.pending()
    await ucmd.respond()
