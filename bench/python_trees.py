"""Interval sets from PyPI as peers of the tree of areas: nanoseconds of one operation."""

import random
import time
from collections.abc import Callable, Iterable

from intervaltree import IntervalTree
from sortedcontainers import SortedDict

N = 100_000
PAGE = 4096
OPERATIONS = ("insert", "lookup", "erase")


class Sorted:
    """start → last, as one would write it."""

    def __init__(self) -> None:
        self._last: SortedDict = SortedDict()

    def insert(self, start: int, last: int) -> None:
        self._last[start] = last

    def lookup(self, at: int) -> bool:
        i = self._last.bisect_right(at) - 1
        return i >= 0 and self._last.peekitem(i)[1] >= at

    def erase(self, start: int, last: int) -> None:
        del self._last[start]


class Tree:
    def __init__(self) -> None:
        self._tree = IntervalTree()

    def insert(self, start: int, last: int) -> None:
        self._tree.addi(start, last + 1)

    def lookup(self, at: int) -> bool:
        return bool(self._tree[at])

    def erase(self, start: int, last: int) -> None:
        self._tree.removei(start, last + 1)


def _time(call: Callable[..., object], arguments: Iterable[tuple[int, ...]]) -> float:
    start = time.perf_counter_ns()
    for each in arguments:
        call(*each)
    return (time.perf_counter_ns() - start) / N


def measure(n_rounds: int) -> dict[str, dict[str, list[float]]]:
    """By operation and name of the library; in random order."""
    made: dict[str, dict[str, list[float]]] = {operation: {} for operation in OPERATIONS}
    ranges = [(2 * i * PAGE, (2 * i + 1) * PAGE - 1) for i in range(N)]
    random.Random(1).shuffle(ranges)
    points = [(start + 5,) for start, _ in ranges]
    for name, kind in {"sortedcontainers": Sorted, "intervaltree": Tree}.items():
        for _ in range(n_rounds):
            subject = kind()
            for operation in OPERATIONS:
                arguments = points if operation == "lookup" else ranges
                ns = _time(getattr(subject, operation), arguments)
                made[operation].setdefault(name, []).append(ns)
    return made
