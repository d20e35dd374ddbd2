"""Whether what was read too early shows, in the cases that take long to make with a database."""

from __future__ import annotations

from cdc.mapping.affected import Affected
from cdc.postgres.gate import Gate
from cdc.requery.consistency import Consistency
from cdc.requery.task import Task


def task(since: int, end: int, *ids: str) -> Task:
    return Task(Affected(keys={"endpoint": set(ids)}), Gate(), since, end)


def test_a_later_one_that_was_applied_before_one_that_waits() -> None:
    """The map is not the one at any position, so no position may be told for it."""
    consistency = Consistency("endpoint".__eq__)
    consistency.read(200, ["b"])
    consistency.done(200)
    assert consistency.shows(300, [task(0, 100, "a")])
    assert not consistency.shows(300, [])


def test_a_read_of_too_many_to_remember_may_have_brought_anything() -> None:
    consistency = Consistency("endpoint".__eq__)
    consistency.read(200)
    consistency.done(100)
    assert consistency.shows(200, [task(100, 200, "a")])
    assert not consistency.shows(200, [task(200, 300, "a")]), "it cannot have been seen by then"


def test_a_ripple_is_remembered_as_a_whole() -> None:
    consistency = Consistency("endpoint".__eq__)
    for start in range(0, 20_000, 5_000):
        consistency.read(200, [str(number) for number in range(start, start + 5_000)])
    consistency.done(100)
    assert consistency.shows(200, [task(100, 200, "a")])


def test_a_backlog_does_not_fill_the_memory() -> None:
    """Each of its reads is ahead of the slot, for hours perhaps."""
    consistency = Consistency("endpoint".__eq__)
    for number in range(1, 201):
        consistency.read((1 << 40) + number, [f"{number} {one}" for one in range(1_000)])
        consistency.done(number)
        assert consistency.shows(number, [])
    held = sum(len(ids or ()) for _, ids in consistency._ahead)
    assert held <= 10_000
    last = (1 << 40) + 200
    assert consistency.shows(last + 1, [task(1 << 40, last + 1, "1 1")]), (
        "what was brought first is not forgotten"
    )
    assert not consistency.shows(last + 1, [task(last, last + 1, "1 1")])


def test_without_keys_that_are_ids_nothing_can_be_told_apart() -> None:
    consistency = Consistency(lambda _: False)
    consistency.read(200, ["b"])
    consistency.done(100)
    assert consistency.shows(200, [task(100, 200, "a")])
    consistency.mend()
    assert not consistency.shows(200, [task(100, 200, "a")])
