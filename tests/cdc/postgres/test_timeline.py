"""Histories: which server may yet show what was read elsewhere or earlier, and which never will."""

from __future__ import annotations

import pytest

from cdc.postgres.timeline import Timeline

READ = Timeline("7", 3)


@pytest.mark.parametrize(
    ("here", "lags"),
    [
        (Timeline("7", 3, end=99), True),
        (Timeline("7", 3, end=100), False),
        (Timeline("7", 2, end=500), True),  # on its way to the switch
        (Timeline("7", 4, end=50), False),  # promoted without it
        (Timeline("8", 3, end=50), False),
    ],
)
def test_who_lags_behind_what_was_read(here: Timeline, lags: bool) -> None:
    assert here.lags(READ, 100) == lags


def test_nobody_lags_behind_nothing() -> None:
    assert not Timeline("7", 3, end=1).lags(Timeline(), 0)
