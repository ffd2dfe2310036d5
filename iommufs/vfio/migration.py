"""Migration of one open device: its states, how it gets from one to another (version 2).

A client asks for a state; the device goes there arc by arc along the way that Linux takes, and an
arc that fails leaves it where it was. Where the state of the device leaves or enters there is a
stream, one at a time, with an open file of its own (migration_stream.py).

The device works in RUNNING and PRE_COPY only: before any other state its DMA under way is waited
for, its model's tasks end and Model.stop is called; Model.run goes on from what the registers say.

Not here: what the model saves (model.py), the structures of the calls (feature_migration.py).
"""

from __future__ import annotations

import errno
from collections import deque
from functools import partial
from typing import Any

import trio

from iommufs import jobs, uapi
from iommufs.errors import UapiError
from iommufs.vfio.migration_stream import ResumingFile, SavingFile, stop_copy_length
from iommufs.vfio.model import Migration

ERROR = uapi.VFIO_DEVICE_STATE_ERROR
STOP = uapi.VFIO_DEVICE_STATE_STOP
RUNNING = uapi.VFIO_DEVICE_STATE_RUNNING
STOP_COPY = uapi.VFIO_DEVICE_STATE_STOP_COPY
RESUMING = uapi.VFIO_DEVICE_STATE_RESUMING
RUNNING_P2P = uapi.VFIO_DEVICE_STATE_RUNNING_P2P
PRE_COPY = uapi.VFIO_DEVICE_STATE_PRE_COPY
PRE_COPY_P2P = uapi.VFIO_DEVICE_STATE_PRE_COPY_P2P

WORKING = (RUNNING, PRE_COPY)
COPYING_EARLY = (PRE_COPY, PRE_COPY_P2P)

# The arcs of a device that can do everything. Of two ways of one length Linux takes the one whose
# first arc stands first here.
_ARCS = {
    RUNNING: (RUNNING_P2P, PRE_COPY),
    RUNNING_P2P: (STOP, RUNNING, PRE_COPY_P2P),
    STOP: (RUNNING_P2P, STOP_COPY, RESUMING),
    PRE_COPY: (RUNNING, PRE_COPY_P2P),
    PRE_COPY_P2P: (RUNNING_P2P, PRE_COPY, STOP_COPY),
    STOP_COPY: (STOP,),
    RESUMING: (STOP,),
}
_NEEDS = {
    RUNNING_P2P: uapi.VFIO_MIGRATION_P2P,
    PRE_COPY: uapi.VFIO_MIGRATION_PRE_COPY,
    PRE_COPY_P2P: uapi.VFIO_MIGRATION_P2P | uapi.VFIO_MIGRATION_PRE_COPY,
}
_OPENS_STREAM = {
    (RUNNING, PRE_COPY),
    (RUNNING_P2P, PRE_COPY_P2P),
    (STOP, STOP_COPY),
    (STOP, RESUMING),
}


def flags_of(support: Migration) -> int:
    """VFIO_MIGRATION_… of what a model supports."""
    p2p = uapi.VFIO_MIGRATION_P2P if support.p2p else 0
    pre_copy = uapi.VFIO_MIGRATION_PRE_COPY if support.pre_copy else 0
    return uapi.VFIO_MIGRATION_STOP_COPY | p2p | pre_copy


def _path(state: int, target: int) -> list[int]:
    """All states on the way, the target among them; empty: there is no way."""
    ways = deque([[state]])
    seen = {state}
    while ways:
        way = ways.popleft()
        for near in _ARCS[way[-1]]:
            if near == target:
                return [*way[1:], near]
            if near not in seen:
                seen.add(near)
                ways.append([*way, near])
    return []


def next_state(flags: int, state: int, target: int) -> int:
    """The next state on the way to another one, without those that the device lacks.

    EINVAL: there is no way, the target is unknown or one that the device lacks.
    Source: vfio_mig_get_next_state()
    """
    if target not in _ARCS or state not in _ARCS or _lacks(flags, target):
        raise UapiError(errno.EINVAL, f"from state {state} to {target}")
    if state == target:
        return target
    if state == STOP_COPY and target in COPYING_EARLY:
        raise UapiError(errno.EINVAL, "copying early comes before STOP_COPY")
    return next(step for step in _path(state, target) if not _lacks(flags, step))


def _lacks(flags: int, state: int) -> bool:
    needs = _NEEDS.get(state, 0)
    return flags & needs != needs


class DeviceMigration:
    """Where one open device is, from RUNNING on.

    function  its model and host
    flags     VFIO_MIGRATION_…
    info_v2   the client knows the flags of GET_PRECOPY_INFO
    """

    def __init__(self, function: Any) -> None:
        self.function = function
        self.flags = flags_of(function.description.migration)
        self.state = RUNNING
        self.info_v2 = False
        self._moving = trio.Lock()
        self._saving: SavingFile | None = None
        self._resuming: ResumingFile | None = None
        self._resets = 0

    @property
    def copies_early(self) -> bool:
        return self.state in COPYING_EARLY

    async def settled(self) -> int:
        """The state, when no call is changing it."""
        await jobs.in_task()
        async with self._moving:
            return self.state

    def returns_file(self, target: int) -> bool:
        """Whether going to a state ends with a new stream."""
        state, opens = self.state, False
        while state != target:
            try:
                step = next_state(self.flags, state, target)
            except UapiError:
                return False
            opens = (state, step) in _OPENS_STREAM
            state = step
        return opens

    async def set_state(self, target: int) -> SavingFile | ResumingFile | None:
        """Go there; the new stream, if the last arc opens one.

        EINVAL: there is no way, or what was to be resumed is not a whole state of such a device.
        EIO: the model failed; the device is in ERROR then, until it is reset.
        """
        await jobs.in_task()
        async with self._moving:
            file = None
            while self.state != target:
                step = next_state(self.flags, self.state, target)
                file = await self._go(step)
                self.state = step
            return file

    async def _go(self, step: int) -> SavingFile | ResumingFile | None:
        resets = self._resets
        if self.state in WORKING and step not in WORKING:
            await self.function.host.pause()
        if self._resets != resets:
            raise UapiError(errno.EINVAL, "the device was reset meanwhile")
        try:
            return self._take(step)
        except UapiError as error:
            if error.errno == errno.EIO:
                self._end_streams()
                self.state = ERROR
            raise

    def _take(self, step: int) -> SavingFile | ResumingFile | None:
        """What an arc does, but for waiting."""
        function, arc = self.function, (self.state, step)
        model, file, data = function.model, None, b""
        if self.state in WORKING and step not in WORKING:
            function.guard("stop", model.stop)
        if self.state == RESUMING:
            self._resuming.load()
        if step == STOP_COPY:
            early = self._saving is not None
            data = function.guard("save", partial(model.save, after_early=early))
        if step not in (STOP_COPY, *COPYING_EARLY):
            self._end_streams()
        if step == RESUMING:
            file = self._resuming = ResumingFile(self)
        elif arc in _OPENS_STREAM:
            file = self._saving = SavingFile(self, early=step in COPYING_EARLY)
        if step == STOP_COPY:
            self._saving.finish(data)
        if self.state not in WORKING and step in WORKING:
            function.host.resume()
            function.guard("run", model.run)
        return file

    def reset(self) -> None:
        """The device was reset: it runs, and streams have nothing more to say."""
        self._resets += 1
        self._end_streams()
        self.state = RUNNING
        self.function.host.resume()

    def close(self) -> None:
        """The client is gone, with what it knew; the state stays, until somebody asks for another.

        A PCI function is made anew for the next client; a mediated device is found as it was left.
        """
        self.info_v2 = False
        self._end_streams()

    def _end_streams(self) -> None:
        for file in (self._saving, self._resuming):
            if file is not None:
                file.end()
        self._saving = self._resuming = None

    def data_size(self) -> int:
        """How long a stream of STOP_COPY would be about now."""
        early = self._saving is not None
        data = self.function.guard("save", partial(self.function.model.save, after_early=early))
        return stop_copy_length(self.function, data)
