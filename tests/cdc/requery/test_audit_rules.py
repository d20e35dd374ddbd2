"""The rules of an audit, without a database: which differences it finds, skips, and waits for."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import pytest

from cdc.mapping.row_rule import Oddity
from cdc.requery import audit as audit_module
from cdc.requery.audit import Audit
from cdc.requery.odd_rows import OddRows
from cdc.store.store import Store
from server.observe.fanout import Listener

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from cdc.postgres.read import Read, Row

FRACTION = Oddity("fraction", "throughput_limit is 1.5")
SEEN = 100
"""The read's snapshot shows no transaction beyond this position."""


@dataclass
class Positions:
    """The part of a read's evidence that an audit uses."""

    seen: int = SEEN
    bound: int = SEEN
    shown: int = SEEN


@dataclass
class Rows:
    """A read whose rows are given, in the chunks in which they arrive."""

    rows: list[list[Row]]
    evidence: Positions = field(default_factory=Positions)
    odd: dict[str, Oddity | None] = field(default_factory=dict)
    again: set[str] = field(default_factory=set)
    passed: set[str] = field(default_factory=set)
    waiting: bool = False
    closed: bool = False
    size: int = 0

    def chunks(self, size: int) -> Iterator[list[Row]]:
        self.size = size
        for chunk in self.rows:
            yield [row for row in chunk if row[0] not in self.passed]

    def pass_over(self, ids: Collection[str]) -> None:
        self.passed.update(ids)

    def close(self) -> None:
        self.closed = True


class Run:
    """An audit over a store in which some endpoints are served."""

    def __init__(self, held: dict[str, bytes], *rows: list[Row], doubtful: Collection[str] = ()) -> None:
        self.store = Store()
        self.store.publish(self.store.prepare(held.items(), 1), consistent=True)
        self.odd_rows = OddRows(Listener())
        self.read = Rows(list(rows))
        self.opening: Future[Any] = Future()
        self.checked: list[object] = []
        self.audit = Audit(self.opening, self.store, self.odd_rows, self._check, frozenset(doubtful))

    def _check(self, read: Read) -> Read:
        self.checked.append(read)
        return read

    def open(self) -> None:
        self.opening.set_result(self.read)

    def compare(self, applied: int = 0) -> None:
        """Compare every chunk, and note the missing endpoints."""
        if not self.opening.done():
            self.open()
        for _ in range(len(self.read.rows) + 1):
            if self.audit.reading:
                assert self.audit.step(applied, applied) is None
        assert not self.audit.reading

    def end(self, applied: int = SEEN) -> dict[str, bytes | None] | None:
        """Return the differences that remain once the map has everything up to ``applied``."""
        found = self.audit.step(applied, applied)
        return None if found is None else dict(found)


def drift(
    held: dict[str, bytes], *rows: list[Row], doubtful: Collection[str] = ()
) -> dict[str, bytes | None]:
    run = Run(held, *rows, doubtful=doubtful)
    run.compare()
    found = run.end()
    assert found is not None
    return found


HELD = {"same": b"1", "other": b"1", "gone": b"1"}


def test_drift_is_what_differs_what_is_missing_and_what_is_new() -> None:
    rows: list[Row] = [("same", b"1"), ("other", b"2"), ("new", b"1")]
    expected = {"other": b"2", "new": b"1", "gone": None}
    assert drift(HELD, rows) == expected
    assert drift(HELD, *([row] for row in rows)) == expected, "however the rows are cut"
    assert drift(HELD, [*HELD.items()]) == {}


def test_a_row_that_is_left_out_is_drift_only_if_the_map_has_it() -> None:
    assert drift({"odd": b"1"}, [("odd", None)]) == {"odd": None}
    assert drift({}, [("odd", None)]) == {}
    assert drift({}, [("twice", b"1"), ("twice", b"2")]) == {}


@pytest.mark.parametrize("together", [True, False])
def test_of_two_rows_of_one_id_that_differ_neither_counts(*, together: bool) -> None:
    for first, second, kept in (
        (b"1", b"2", {"same": None}),
        (b"2", b"1", {"same": None}),
        (b"1", b"1", {}),
        (b"2", b"2", {"same": b"2"}),
    ):
        rows: list[Row] = [("same", first), ("same", second)]
        run = Run({"same": b"1"}, *([rows] if together else ([row] for row in rows)))
        run.compare()
        assert run.end() == kept
        assert run.odd_rows.doubtful == {"same"}, "a read by id has to decide"
        assert len(run.odd_rows) == (first != second)
        assert run.read.passed == {"same"}, "no third row counts"


def test_an_id_of_one_row_is_not_in_doubt() -> None:
    run = Run(HELD, [("same", b"1")], [("other", b"2")], [("new", b"1")])
    run.compare()
    assert not run.odd_rows.doubtful


def test_rows_behind_one_that_comes_again_are_compared() -> None:
    assert drift(HELD, [("same", b"1"), ("same", b"1"), ("other", b"2"), ("gone", b"1")]) == {"other": b"2"}


def test_doubtful_ids_are_left_to_reads_by_id() -> None:
    """Neither their rows nor that none comes is a difference, and their odd rows stay listed."""
    run = Run(HELD, [("same", b"1"), ("other", b"2")], doubtful={"other", "gone"})
    run.odd_rows.take([], {"other": FRACTION, "mended": FRACTION}, 0)
    run.compare()
    assert run.end() == {}
    assert run.odd_rows._known.keys() == {"other"}, "an audit removes those that it does not find"


def test_odd_rows_are_listed_unless_another_read_has_returned_them() -> None:
    run = Run({}, [("a", b"1"), ("b", b"1")])
    run.read.odd = {"a": FRACTION, "b": FRACTION}
    run.audit.overtake([("b", b"2")])
    run.compare()
    assert run.odd_rows._known.keys() == {"a"}


def test_more_odd_rows_than_are_listed_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cdc.requery.odd_rows._MOST", 1)
    run = Run({}, [("a", b"1"), ("b", b"1"), ("c", b"1")])
    run.read.odd = dict.fromkeys("abc", FRACTION)
    run.compare()
    assert len(run.odd_rows) == 3


def test_what_other_reads_return_is_no_drift() -> None:
    """Before the audit's read is open, while its rows come, and while differences wait."""
    run = Run(HELD, [("same", b"2")], [("other", b"2")])
    run.audit.overtake([("same", b"3"), ("unknown", b"1")])
    run.open()
    assert run.audit.step(0, 0) is None
    run.audit.overtake([("other", b"1")])
    run.compare()
    run.audit.overtake([("gone", b"1"), ("unknown", b"1")])
    assert run.end() == {}


def test_a_younger_reading_is_not_forgotten() -> None:
    """A ripple that reads beside the audit has returned the endpoint: its number stays, for its own end."""
    run = Run({"same": b"1"}, [("same", b"1")])
    ripple = run.store.begin_reading()
    run.store.prepare([("same", b"1")], 2, reading=ripple)
    run.compare()
    assert run.store.entries["same"].reading == ripple
    assert run.end() == {}


def test_a_difference_remains_until_the_map_has_what_the_snapshot_showed() -> None:
    run = Run(HELD, [("same", b"1"), ("gone", b"1"), ("other", b"2")])
    run.compare(SEEN - 1)
    assert run.audit.seen == SEEN
    for _ in range(20):
        assert run.end(SEEN - 1) is None
    assert run.end() == {"other": b"2"}


def test_a_difference_outlives_what_was_read_meanwhile_for_each_table_of_a_join() -> None:
    """Each transaction that explains it may be found by a read that shows the next one early."""
    run = Run(HELD, [("same", b"1"), ("gone", b"1"), ("other", b"2")])
    run.compare()
    for applied in range(SEEN, SEEN + 50, 10):  # four tables between an endpoint and a change, and one more
        assert run.audit.step(applied, applied + 10) is None
        assert run.audit.step(applied + 9, applied + 99) is None, "those are not applied yet"
    assert run.audit.step(SEEN + 50, SEEN + 60) == [("other", b"2")]


def test_a_position_that_is_older_asks_for_no_less() -> None:
    run = Run(HELD, [])
    run.compare()
    assert run.audit.step(SEEN, 0) is not None, "the earlier reads are older than its snapshot"
    run = Run(HELD, [])
    run.compare()
    assert run.audit.step(SEEN, SEEN + 10) is None
    assert run.audit.step(SEEN + 9, 0) is None


def test_without_differences_nothing_is_waited_for_beyond_the_snapshot() -> None:
    run = Run({"same": b"1"}, [("same", b"1")])
    run.compare()
    assert run.audit.step(SEEN, SEEN + 10) == []


def test_a_standby_may_show_what_it_has_received_for_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    for applied, after, ends in (
        (SEEN + 49, 9.5, False),
        (SEEN + 49, 10.0, True),
        (SEEN + 50, 0.0, True),
        (SEEN - 1, 11.0, False),
    ):
        now = 1_000.0
        run = Run({"same": b"1"}, [("same", b"1")])
        run.read.evidence = Positions(bound=SEEN + 50)
        now += 500.0
        run.compare()
        now += after
        assert (run.audit.step(applied, applied) is not None) == ends
        assert run.audit.seconds == 500.0 + after


def test_an_audit_waits_for_its_read_to_open_and_for_rows_to_arrive() -> None:
    run = Run({}, [("a", b"1")])
    assert run.audit.waiting
    run.open()
    assert not run.audit.waiting
    run.read.waiting = True
    assert not run.audit.waiting, "the evidence has arrived, so a step can begin"
    assert run.audit.step(0, 0) is None
    assert run.audit.waiting
    run.read.waiting = False
    assert not run.audit.waiting


def test_the_evidence_decides_before_any_row_is_compared() -> None:
    class NotEnoughError(Exception):
        """The read does not count."""

    def refuse(read: Read) -> Read:
        assert cast("Any", read) is run.read
        raise NotEnoughError

    run = Run({}, [("a", b"1")])
    run.audit = Audit(run.opening, run.store, run.odd_rows, refuse)
    run.open()
    with pytest.raises(NotEnoughError):
        run.audit.step(0, 0)
    assert run.read.size == 0
    run = Run({}, [("a", b"1")])
    run.compare()
    assert run.checked == [run.read], "once"
    assert run.read.size == audit_module._CHUNK


def test_a_read_that_was_given_up_is_closed_once_it_is_open() -> None:
    run = Run({})
    run.audit.close()
    assert not run.read.closed
    run.open()
    assert run.read.closed
    failed = Run({})
    failed.audit.close()
    failed.opening.set_exception(OSError("refused"))
