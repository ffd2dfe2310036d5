"""Object ids and who holds whom: the table behind every iommufd.

`users` counts the holders of an object; one of them is the table. A holder is another object (a
page table holds its IOAS), or a handler for as long as it works with the object. A client's DESTROY
succeeds only when the table alone is left; the owner of an object (a device's driver) removes it
from the table at once, and it ends when the last holder lets go.

An object is made in three steps, as in iommufd_object_alloc(): its id is reserved, all that can
fail is done, the answer to the client included, then it is published. Only then can it be found.
"""

import errno
import heapq
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from iommufs.errors import UapiError

T = TypeVar("T", bound="Object")


class Object:
    """What an id stands for. `id` is 0 outside of a table."""

    def __init__(self) -> None:
        self.id = 0
        self.users = 1
        self._table: ObjectTable | None = None

    def destroy(self) -> None:
        """Let go of everything; called once, also for an object that was never published."""

    def published(self) -> None:
        """A client can name it from now on."""

    def is_mapped(self) -> bool:
        """Whether a client has memory of it mapped, which holds it as another object does."""
        return False

    def get(self) -> None:
        assert self.users > 0, f"{self} is gone"
        self.users += 1

    def put(self) -> None:
        assert self.users > 0, f"{self} is gone"
        self.users -= 1
        if not self.users:
            if self._table is not None:
                self._table.ended(self)
            self.destroy()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id}, {self.users} users>"


class ObjectTable:
    """Ids of one context: 1 and up, the lowest free one is given out first."""

    def __init__(self) -> None:
        self._objects: dict[int, Object | None] = {}  # None: reserved, or a tombstone
        self._freed: list[int] = []  # a heap of free ids below _next
        self._buried: set[int] = set()
        self._next = 1

    def __len__(self) -> int:
        """Ids in use, those reserved and tombstones included."""
        return len(self._objects)

    def counts(self) -> Counter[str]:
        """Objects of each type."""
        return Counter(type(obj).__name__ for obj in self._objects.values() if obj is not None)

    def of_type(self, kind: type[T]) -> list[T]:
        """All published objects of a type, by id."""
        found = ((i, obj) for i, obj in self._objects.items() if isinstance(obj, kind))
        return [obj for _, obj in sorted(found, key=lambda item: item[0])]

    @contextmanager
    def new(self, obj: T) -> Iterator[T]:
        """Publish `obj` when the block ends well; if it fails, the id is free and obj destroyed."""
        obj.id = heapq.heappop(self._freed) if self._freed else self._next
        self._next = max(self._next, obj.id + 1)
        self._objects[obj.id] = None
        obj._table = self
        try:
            yield obj
        except BaseException:
            obj.put()
            raise
        self._objects[obj.id] = obj
        obj.published()

    def find(self, object_id: int, kind: type[T]) -> T:
        """The published object with this id; ENOENT, also if it is of another type."""
        obj = self._objects.get(object_id)
        if not isinstance(obj, kind):
            raise UapiError(errno.ENOENT, f"object {object_id} is {obj}, not a {kind.__name__}")
        return obj

    @contextmanager
    def use(self, object_id: int, kind: type[T]) -> Iterator[T]:
        """As find(), and hold the object while the block works with it."""
        obj = self.find(object_id, kind)
        obj.get()
        try:
            yield obj
        finally:
            obj.put()

    def destroy(self, object_id: int) -> None:
        """A client's DESTROY: ENOENT, or EBUSY while anything holds the object."""
        obj = self.find(object_id, Object)
        if obj.users != 1 or obj.is_mapped():
            raise UapiError(errno.EBUSY, f"{obj} is in use")
        obj.put()

    def remove(self, obj: Object) -> None:
        """Its owner lets an object go: it cannot be found any more, and ends with its last user."""
        assert self._objects[obj.id] is obj, f"{obj} is not published"
        self._objects[obj.id] = None
        obj.put()

    def remove_unused(self, obj: Object) -> None:
        """Remove an object if only the table is left; else it stays, for a client to destroy."""
        if obj.users == 1:
            self.remove(obj)

    def bury(self, obj: Object) -> None:
        """As remove(), but the id is never given out again: a tombstone stays in its place."""
        self._buried.add(obj.id)
        self.remove(obj)

    def ended(self, obj: Object) -> None:
        """Only for Object.put(): the id is free again."""
        if obj.id in self._buried:
            self._objects[obj.id] = None
        else:
            del self._objects[obj.id]
            heapq.heappush(self._freed, obj.id)

    def clear(self) -> None:
        """Destroy everything, holders before what they hold."""
        while leaves := [obj for obj in self._objects.values() if obj and obj.users == 1]:
            for obj in leaves:
                if self._objects.get(obj.id) is obj:  # else it went with another
                    obj.put()
        assert not any(self._objects.values()), f"held from outside: {self._objects}"
