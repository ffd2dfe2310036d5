"""Who has a capability where the container withholds one from everybody."""

import os

import pytest

from iommufs import caller

WITHHELD, LAID_DOWN, KEPT = 24, 14, 21
OBTAINABLE = 0x1FFFEFFFFFF
LESS = OBTAINABLE & ~(1 << LAID_DOWN)


@pytest.mark.parametrize(
    ("effective", "permitted", "has"),
    [
        (OBTAINABLE, OBTAINABLE, {WITHHELD, LAID_DOWN, KEPT}),
        (LESS, OBTAINABLE, {WITHHELD, KEPT}),  # capset() of a moment, as selftests do
        (LESS, LESS, {KEPT}),  # given up for good
        (0, OBTAINABLE, set()),  # seteuid()
        (0, 0, set()),
    ],
)
def test_what_is_withheld_belongs_to_whoever_may_use_all_the_others(
    monkeypatch, effective, permitted, has
):
    words = {"CapEff": effective, "CapPrm": permitted, "CapBnd": OBTAINABLE}
    text = "Name:\tx\n" + "".join(f"{key}:\t{value:016x}\n" for key, value in words.items())
    monkeypatch.setattr(caller, "_read_status", lambda thread: text)
    client = caller.Caller(os.getpid())
    assert {bit for bit in (WITHHELD, LAID_DOWN, KEPT) if client.capable(bit)} == has
