"""The engine of an 82576: moves frames between the queues and the wire while there are any.

It is one task, started by whatever gives it work and ending when there is none. What a reset makes
of a task that waits for memory right then: the queues forget what was under way, the task notices
and ends.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from iommufs.devices.igb import registers as reg
from iommufs.devices.igb.filters import Filters, size_class
from iommufs.devices.igb.interrupts import Interrupts
from iommufs.devices.igb.rx import ReceiveQueue
from iommufs.devices.igb.tx import TransmitQueue
from iommufs.devices.igb.wire import Pcap, Wire
from iommufs.vfio.model import Host

_FCS = 4
_UNDER_WAY = 1 << 20  # bytes that are held at most while they are written to memory
_BROADCAST = b"\xff" * 6


class Engine:
    """One end of a wire (wire.End).

    wire, pcap    where frames go; looped: they come back instead
    link_changed  what to call then
    """

    def __init__(
        self,
        host: Host,
        registers: reg.Registers,
        interrupts: Interrupts,
        wire: str | None,
        link_changed: Callable[[], None],
    ) -> None:
        self._host = host
        self._registers = registers
        self._interrupts = interrupts
        self.powered = True
        self.link_changed = link_changed
        self.wire = Wire(wire, self)
        self.pcap: Pcap | None = None
        self.looped = False
        self._rx = [ReceiveQueue(registers, queue) for queue in range(reg.N_QUEUES)]
        self._tx = [TransmitQueue(registers, queue) for queue in range(reg.N_QUEUES)]
        self._task: object | None = None
        self._rx_due: set[ReceiveQueue] = set()
        self._tx_due: set[TransmitQueue] = set()

    def stop(self) -> None:
        """Forget everything that is under way."""
        for queue in (*self._rx, *self._tx):
            queue.stop()
        self._task = None
        self._rx_due.clear()
        self._tx_due.clear()

    # -- what gives it work -----------------------------------------------------------------------

    def rx_changed(self, number: int) -> None:
        """A receive queue was given descriptors, or was enabled or disabled."""
        queue = self._rx[number]
        if queue.is_enabled:
            self._rx_due.add(queue)
            self._start()
        else:
            queue.stop()

    def tx_changed(self, number: int) -> None:
        """A transmit queue was given descriptors, or was enabled or disabled."""
        queue = self._tx[number]
        if queue.is_enabled:
            self._tx_due.add(queue)
            self._start()
        else:
            queue.stop()

    def tx_all_changed(self) -> None:
        """TCTL has changed."""
        self._tx_due.update(queue for queue in self._tx if queue.is_enabled)
        self._start()

    def _room(self) -> int:
        """Bytes that may be taken in: what has descriptors, and what may wait for some."""
        promised = sum(queue.promised for queue in self._rx if queue.is_enabled)
        size = (self._registers.get(reg.RXPBS) & 0x7F) << 10
        return size + min(promised, _UNDER_WAY) - sum(queue.backlog for queue in self._rx)

    def hear(self, frames: list[bytes]) -> None:
        """Frames have come in."""
        if not self._registers.get(reg.RCTL) & reg.RCTL_EN or not frames:
            return
        filters = Filters(self._registers)
        room = self._room()
        enabled = [queue.is_enabled for queue in self._rx]
        good = []
        missed = 0
        for frame in frames:
            refusal = filters.refusal(frame)
            if refusal is not None:
                if refusal:
                    self._registers.count(refusal)
                continue
            number, arrival = filters.arrival(frame)
            room -= len(arrival.data)
            if room < 0:
                missed += 1
            elif enabled[number]:
                self._rx[number].push(arrival)
                self._rx_due.add(self._rx[number])
            good.append(frame)
        self._count_received(frames, good, missed)
        self._start()

    # -- the task ---------------------------------------------------------------------------------

    def _start(self) -> None:
        if self._task is None and (self._rx_due or self._tx_due):
            self._task = task = object()
            self._host.start(lambda: self._run(task))

    async def _run(self, task: object) -> None:
        try:
            while self._task is task and (self._rx_due or self._tx_due):
                sent = await self._transmit(task)
                received = await self._receive(task)
                if self._task is task and (received or sent):
                    self._interrupts.queues(received, sent)
        finally:
            if self._task is task:
                self._task = None

    async def _transmit(self, task: object) -> list[int]:
        """One batch of each queue that has something; the queues with something to report."""
        reported = []
        for queue in sorted(self._tx_due, key=lambda queue: queue.index):
            self._tx_due.discard(queue)
            taken = await queue.take(self._host)
            if self._task is not task:
                return []
            if taken is None:
                continue
            self._tx_due.add(queue)
            frames, report = taken
            if report:
                reported.append(queue.index)
            if frames:
                self._send(frames)
                if not self.looped:
                    await self._host.give_way()  # who hears them needs time to put them away
                    if self._task is not task:
                        return []
        return reported

    async def _receive(self, task: object) -> list[int]:
        """One batch of each queue that has something; the queues that were written to."""
        written = []
        for queue in sorted(self._rx_due, key=lambda queue: queue.index):
            self._rx_due.discard(queue)
            number = queue.index
            done = await queue.put(self._host, lambda n=number: self._interrupts.arriving(n))
            if self._task is not task:
                return []
            self._interrupts.arrived(number)
            if done:
                self._rx_due.add(queue)
                written.append(number)
        return written

    def _send(self, frames: list[bytes]) -> None:
        self._count_sent(frames)
        if self.pcap is not None:
            self.pcap.write(frames)
        if self.looped:
            self.hear(frames)
        else:
            self.wire.send(frames)

    # -- statistics -------------------------------------------------------------------------------

    def _count_received(self, frames: list[bytes], good: list[bytes], missed: int) -> None:
        count, count64 = self._registers.count, self._registers.count64
        count(reg.TPR, len(frames))
        count64(reg.TOR, _octets(frames))
        if good:
            count(reg.GPRC, len(good) - missed)
            count64(reg.GORC, _octets(good))
            self._count_kinds(good, reg.PRC64, reg.BPRC, reg.MPRC)
        if missed:
            count(reg.MPC, missed)
            self._interrupts.cause(reg.RXO)

    def _count_sent(self, frames: list[bytes]) -> None:
        count, count64 = self._registers.count, self._registers.count64
        count(reg.TPT, len(frames))
        count(reg.GPTC, len(frames))
        count64(reg.TOT, _octets(frames))
        count64(reg.GOTC, _octets(frames))
        self._count_kinds(frames, reg.PTC64, reg.BPTC, reg.MPTC)

    def _count_kinds(self, frames: list[bytes], by_size: int, broadcast: int, many: int) -> None:
        sizes = [0] * 6
        for length, n in Counter(map(len, frames)).items():
            sizes[size_class(length + _FCS)] += n
        to_many = [frame for frame in frames if frame[0] & 1]
        n_broadcast = sum(frame[:6] == _BROADCAST for frame in to_many)
        for i, n in enumerate(sizes):
            self._registers.count(by_size + 4 * i, n)
        self._registers.count(broadcast, n_broadcast)
        self._registers.count(many, len(to_many) - n_broadcast)


def _octets(frames: list[bytes]) -> int:
    return sum(map(len, frames)) + _FCS * len(frames)
