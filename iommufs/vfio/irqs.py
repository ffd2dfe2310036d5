"""The interrupts of one open device: what the client has set up, and what reaches it.

INTx is a level. While it is not masked, a raised line masks itself and signals once; unmasking
while the line is still up signals again (vfio_intx_handler(), vfio_pci_intx_unmask_handler()).
MSI and MSI-X vectors are edges. Only one of the three is on at a time.

Not here: how SET_IRQS spells all this (set_irqs.py).
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from iommufs.errors import UapiError
from iommufs.vfio.eventfd import EventFd

INTX, MSI, MSIX, ERR, REQ = range(5)
N_INDEXES = 5

# Makes a fresh EventFd of a client's descriptor: EBADF, EINVAL.
Take = Callable[[int], EventFd]


class Irqs:
    """What SET_IRQS has made of one open device.

    function  asked for its line and vector counts, told what its registers show
    spawn     runs an async function in the background, returns what cancels it
    publish   gets an index and its eventfds (numbers, -1 for none), those that SET_IRQS may ring
              without asking here; nothing while that changes, or where it is not so simple
    """

    def __init__(
        self,
        function: Any,
        spawn: Callable[[Any], Callable[[], None]],
        publish: Callable[[int, list[int]], None] = lambda index, fds: None,
    ) -> None:
        self._function = function
        self._spawn = spawn
        self._publish = publish
        self.kind: int | None = None
        self.masked = False
        self.held = False  # masked by us, in low power
        self.disabled = False  # by the client's INTx disable bit
        self.msi_size_lg2 = 0
        self._trigger: EventFd | None = None
        self._unmask: EventFd | None = None
        self._stop_unmask: Callable[[], None] | None = None
        self._vectors: dict[int, EventFd] = {}
        self._n_vectors = 0
        self._singles: dict[int, EventFd] = {}  # ERR and REQ

    # ---- what SET_IRQS may ring

    @contextmanager
    def _changing(self, index: int) -> Iterator[None]:
        self._publish(index, [])
        try:
            yield
        finally:
            self._publish(index, self._triggers(index))

    def _triggers(self, index: int) -> list[int]:
        if index in (ERR, REQ):
            return [single.fd] if (single := self._singles.get(index)) else []
        if self.kind != index:
            return []
        if index == INTX:
            return [self._trigger.fd if self._trigger and not self.disabled else -1]
        fds = [-1] * self._function.n_irqs(index)
        for vector, eventfd in self._vectors.items():
            fds[vector] = eventfd.fd
        return fds

    # ---- INTx

    def enable_intx(self, trigger: EventFd | None) -> None:
        """Switch INTx on; without a trigger nobody hears it. EINVAL: MSI or MSI-X is on."""
        if self.kind not in (None, INTX):
            raise UapiError(errno.EINVAL, "another interrupt type is on")
        with self._changing(INTX):
            if self.kind == INTX:
                if self._trigger:
                    self._trigger.close()
                self._trigger = trigger
                return
            self.kind, self._trigger, self.masked = INTX, trigger, self.disabled
        self.line_changed()

    def disable_intx(self) -> None:
        self.remove_unmask()
        with self._changing(INTX):
            if self._trigger:
                self._trigger.close()
            self.kind, self._trigger = None, None

    def signal_intx(self) -> None:
        """Let the client hear an INTx, real or not."""
        if self.kind == INTX and not self.disabled and self._trigger:
            self._trigger.signal()

    def line_changed(self) -> None:
        """The function's INTx line may be up now."""
        if self.kind == INTX and not self.masked and self._function.intx_level:
            self.masked = True
            self.signal_intx()

    def mask(self) -> None:
        self.masked = True

    def unmask(self) -> None:
        if self.kind == INTX and self.masked and not self.disabled:
            if self._function.intx_level:
                self.signal_intx()
            else:
                self.masked = False

    def hold_intx(self, held: bool) -> None:
        """Asleep, the device has its line masked, unless the client has done so already."""
        if held and self.kind == INTX and not self.masked:
            self.held = self.masked = True
        elif not held and self.held:
            self.held = False
            self.unmask()

    def set_disabled(self, disabled: bool) -> None:
        """The client wrote the INTx disable bit: masks while set, unmasks when cleared."""
        if disabled == self.disabled:
            return
        with self._changing(INTX):
            self.disabled = disabled
        if self.kind == INTX:
            if disabled:
                self.mask()
            else:
                self.unmask()

    def set_unmask(self, take: Callable[[], EventFd]) -> None:
        """Unmask whenever the client writes to an eventfd; EBUSY if it has one already."""
        eventfd = take()
        if self._unmask:
            eventfd.close()
            raise UapiError(errno.EBUSY, "an unmask eventfd is set already")
        try:
            task = eventfd.events(self.unmask)
        except UapiError:
            eventfd.close()
            raise
        self._unmask = eventfd
        self._stop_unmask = self._spawn(task)

    def remove_unmask(self) -> None:
        if self._unmask:
            self._stop_unmask()
            self._unmask.take_count()  # eventfd_ctx_remove_wait_queue()
            self._unmask.close()
        self._unmask = self._stop_unmask = None

    # ---- MSI and MSI-X

    @property
    def msi_enabled(self) -> bool:
        return self.kind == MSI

    @property
    def vectors(self) -> list[int]:
        """Those that have an eventfd."""
        return list(self._vectors)

    def enable_vectors(self, kind: int, count: int) -> None:
        """Switch MSI or MSI-X on with room for `count` vectors; EINVAL, ERANGE for none.

        Only in D0. Source: __pci_enable_msi_range(), __pci_enable_msix_range()
        """
        if self.kind is not None:
            raise UapiError(errno.EINVAL, "another interrupt type is on")
        if count == 0 and (kind == MSIX or not self._function.power):
            raise UapiError(errno.ERANGE, "no vector to enable")
        if self._function.power:
            raise UapiError(errno.EINVAL, f"the function is in D{self._function.power}")
        self.kind, self._n_vectors = kind, count
        if kind == MSI:
            self.msi_size_lg2 = (count * 2 - 1).bit_length() - 1
        self._function.show_msi(kind, True)
        self._publish(kind, self._triggers(kind))

    def set_vectors(self, start: int, fds: list[int], take: Take) -> None:
        """Give vectors their eventfds, negative ones none; the first failure takes all away."""
        with self._changing(self.kind):
            for vector, fd in enumerate(fds, start):
                try:
                    self._set_vector(vector, fd, take)
                except UapiError:
                    for bad in range(start, vector + 1):
                        self._drop_vector(bad)
                    raise

    def _set_vector(self, vector: int, fd: int, take: Take) -> None:
        self._drop_vector(vector)
        if fd < 0:
            return
        if self.kind == MSI and vector >= self._n_vectors:
            raise UapiError(errno.EINVAL, f"MSI vector {vector} of {self._n_vectors}")
        eventfd = take(fd)
        if native := self._function.native:
            try:
                native.set_vector(vector, eventfd.fd)
            except UapiError:
                eventfd.close()
                raise
        self._vectors[vector] = eventfd
        if self.kind == MSI:
            self._function.mask_msi(vector, False)
            self.msi_mask_changed()

    def _drop_vector(self, vector: int) -> None:
        if eventfd := self._vectors.pop(vector, None):
            if native := self._function.native:
                native.set_vector(vector, None)
            eventfd.close()
            if self.kind == MSI:
                self._function.mask_msi(vector, True)

    def disable_vectors(self) -> None:
        kind = self.kind
        self._publish(kind, [])
        for vector in list(self._vectors):
            self._drop_vector(vector)
        self.kind = None
        self._n_vectors = 0
        self._function.show_msi(kind, False)

    def signal_vector(self, vector: int) -> None:
        """Signal a vector's eventfd, if it has one."""
        if eventfd := self._vectors.get(vector):
            eventfd.signal()

    def msi(self, vector: int) -> None:
        """The function sends a message; one that is masked waits in the pending bits."""
        if self.kind not in (MSI, MSIX):
            return
        if self.kind == MSI and self._function.hold_msi(vector):
            return
        self.signal_vector(vector)

    def msi_mask_changed(self) -> None:
        """The client wrote to the MSI capability: send what waited and is not masked now."""
        if self.kind == MSI:
            for vector in self._function.take_unmasked_msi():
                self.signal_vector(vector)

    # ---- ERR and REQ

    def single(self, index: int) -> EventFd | None:
        return self._singles.get(index)

    def set_single(self, index: int, eventfd: EventFd | None) -> None:
        with self._changing(index):
            if old := self._singles.pop(index, None):
                old.close()
            if eventfd:
                self._singles[index] = eventfd

    def release(self) -> None:
        """Close every eventfd; the client is gone."""
        if self.kind == INTX:
            self.disable_intx()
        elif self.kind is not None:
            self.disable_vectors()
        for index in (ERR, REQ):
            self.set_single(index, None)
        self.disabled = False
