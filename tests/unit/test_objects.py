"""Ids, users, and the three steps by which an object comes to be."""

import errno

import pytest

from iommufs.errors import UapiError
from iommufs.iommufd.objects import Object, ObjectTable


class Thing(Object):
    def __init__(self, *held):
        super().__init__()
        self.held = held
        self.destroyed = 0
        for other in held:
            other.get()

    def destroy(self):
        self.destroyed += 1
        for other in self.held:
            other.put()


class OtherThing(Thing):
    pass


@pytest.fixture
def table():
    return ObjectTable()


def publish(table, obj):
    with table.new(obj):
        pass
    return obj


def refused(name):
    return pytest.raises(UapiError, match=name)


def test_an_object_is_found_once_it_is_published(table):
    with table.new(Thing()) as thing:
        assert thing.id == 1
        with refused("ENOENT"):
            table.find(1, Thing)
        with refused("ENOENT"):
            table.destroy(1)
        assert len(table) == 1
    assert table.find(1, Thing) is table.find(1, Object) is thing
    with refused("ENOENT"):
        table.find(1, OtherThing)


def test_one_that_fails_is_destroyed_and_its_id_free(table):
    thing = Thing()
    with pytest.raises(RuntimeError, match="no answer"), table.new(thing):
        raise RuntimeError("no answer")
    assert (thing.destroyed, len(table)) == (1, 0)
    assert publish(table, Thing()).id == 1


def test_two_under_construction_have_ids_of_their_own(table):
    with table.new(Thing()) as first:
        with table.new(Thing()) as second:
            assert (first.id, second.id) == (1, 2)
        assert table.find(2, Thing) is second


def test_the_lowest_free_id_is_next(table):
    for i in range(1, 9):
        assert publish(table, Thing()).id == i
    for i in (5, 2, 7):
        table.destroy(i)
    assert [publish(table, Thing()).id for _ in range(4)] == [2, 5, 7, 9]


def test_an_object_in_use_is_ebusy(table):
    held = publish(table, Thing())
    holder = publish(table, Thing(held))
    with refused("EBUSY"):
        table.destroy(held.id)
    with table.use(holder.id, Thing), refused("EBUSY"):
        table.destroy(holder.id)
    table.destroy(holder.id)
    table.destroy(held.id)
    assert (held.destroyed, holder.destroyed, len(table)) == (1, 1, 0)


def test_its_owner_removes_an_object_at_once_but_it_ends_with_its_last_user(table):
    thing = publish(table, Thing())
    with table.use(thing.id, Thing):
        table.remove(thing)
        with refused("ENOENT"):
            table.find(thing.id, Thing)
        assert (thing.destroyed, publish(table, Thing()).id) == (0, 2)
    assert (thing.destroyed, publish(table, Thing()).id) == (1, 1)


def test_only_what_is_unused_is_removed_automatically(table):
    thing = publish(table, Thing())
    with table.use(thing.id, Thing):
        table.remove_unused(thing)
        assert table.find(thing.id, Thing) is thing
    table.remove_unused(thing)
    assert thing.destroyed == 1


def test_a_tombstone_keeps_the_id(table):
    thing = publish(table, Thing())
    table.bury(thing)
    assert thing.destroyed == 1
    with refused("ENOENT"):
        table.destroy(1)
    assert publish(table, Thing()).id == 2
    assert len(table) == 2, "a tombstone counts as an object"
    table.clear()


def test_clear_ends_holders_before_what_they_hold(table):
    base = publish(table, Thing())
    middle = [publish(table, Thing(base)) for _ in range(3)]
    top = publish(table, Thing(base, *middle))
    table.clear()
    assert [thing.destroyed for thing in (base, *middle, top)] == [1] * 5
    assert len(table) == 0


def test_counts_and_types(table):
    things = [publish(table, Thing()), publish(table, OtherThing()), publish(table, Thing())]
    with table.new(Thing()):
        assert table.counts() == {"Thing": 2, "OtherThing": 1}
    assert table.of_type(OtherThing) == [things[1]]
    assert table.of_type(Thing)[:3] == things


def test_an_error_names_the_errno():
    with pytest.raises(UapiError) as info:
        ObjectTable().find(7, Thing)
    assert info.value.errno == errno.ENOENT
    assert str(info.value) == "ENOENT: object 7 is None, not a Thing"
