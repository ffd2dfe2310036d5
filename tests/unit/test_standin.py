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


def test_what_was_taken_and_not_answered_is_known(pair):
    mine, theirs = pair
    mine.words[0], mine.words[1] = 11, 13
    assert {11, 12, 13} <= set(theirs.unanswered())
    assert 10 not in theirs.unanswered()
    mine.words[0] = 13
    assert 12 not in theirs.unanswered()
    assert 13 in theirs.unanswered()


def test_what_may_have_been_taken_unnoted_is_among_them(pair):
    mine, theirs = pair
    mine.words[0], mine.words[1] = 0, 10
    assert 11 in theirs.unanswered()


def test_numbers_go_round(pair):
    mine, theirs = pair
    last = (1 << 64) - 1
    mine.words[0], mine.words[1] = last, 1
    assert theirs.unanswered()[:4] == [last, 0, 1, 2]
