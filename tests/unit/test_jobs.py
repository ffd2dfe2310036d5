"""Calls that are over without a wait need no task; the others get one where they wait."""

import pytest
import trio

from iommufs import jobs


async def add(a, b, *, waits=False):
    if waits:
        await jobs.let_others()
        assert trio.lowlevel.current_task() is not None
    return a + b


async def test_what_does_not_wait_is_over_at_once():
    assert jobs.begin(add(1, 2)) == (3, None)


async def test_what_waits_goes_on_in_a_task():
    _, rest = jobs.begin(add(1, 2, waits=True))
    assert await rest == 3


async def test_in_a_task_there_is_nothing_to_ask_for():
    assert await add(1, 2, waits=True) == 3


async def test_an_exception_comes_out_in_either_place():
    with pytest.raises(TypeError):
        jobs.begin(add(1, "2"))
    _, rest = jobs.begin(add(1, "2", waits=True))
    with pytest.raises(TypeError):
        await rest


async def test_a_wait_that_did_not_ask_is_an_error():
    async def waits():
        await trio.lowlevel.checkpoint()

    with pytest.raises(RuntimeError, match="in_task"):
        jobs.begin(waits())


async def test_a_task_that_is_cancelled_ends_what_is_left():
    ended = []

    async def waits():
        try:
            await jobs.in_task()
            await trio.sleep_forever()
        finally:
            ended.append(True)

    _, rest = jobs.begin(waits())
    with trio.move_on_after(0):
        await rest
    assert ended
