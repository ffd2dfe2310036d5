"""The ledger of notices, as the process that takes over reads it."""

import pytest

from iommufs.standin import Ledger


@pytest.fixture
def pair():
    """The server's ledger, and what another process makes of the same memory."""
    mine = Ledger()
    return mine, Ledger(mine.fd)


def test_nothing_was_taken(pair):
    assert pair[1].unanswered() == []


def test_what_was_taken_and_not_answered_is_known_in_any_order_of_answers(pair):
    mine, theirs = pair
    for notice in (10, 11, 12, 13):
        mine.take(notice)
    for notice in (12, 10):
        mine.answer(notice)
    assert {11, 13} <= set(theirs.unanswered())
    assert 10 not in theirs.unanswered()
    mine.answer(11)
    assert 11 not in theirs.unanswered()
    assert 13 in theirs.unanswered()


def test_what_may_have_been_taken_unnoted_is_among_them(pair):
    mine, theirs = pair
    mine.take(10)
    mine.answer(10)
    assert 11 in theirs.unanswered()


def test_numbers_go_round(pair):
    mine, theirs = pair
    last = (1 << 64) - 1
    for notice in (last, 0, 1):
        mine.take(notice)
    assert theirs.unanswered()[:4] == [last, 0, 1, 2]
