"""Recorded streams become transactions; what cannot be handled becomes a reconcile, and nothing worse."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc.errors import MessageError
from cdc.mapping.mapping import Rule
from cdc.replication import wal2json
from cdc.replication.assembler import Assembler, Transaction
from tests.plugins.samples import BEGIN, COMMIT, FORMAT_2, SAMPLES, Sample, name_of

ACTIONS = {"I": "insert", "U": "update", "D": "delete", "T": "truncate"}
ROW = b'{"action":"I","schema":"public","table":"d","columns":[{"name":"id","value":5}]}'


def assembler(*tables: str, column: str = "id") -> Assembler:
    """Make one for tables of the schema public whose rows affect what ``column`` names."""
    rules = {table: (Rule(table, column, "Endpoints"),) for table in tables}
    return Assembler({("public", table): table for table in tables}, rules)


def run(machine: Assembler, stream: list[bytes]) -> list[Transaction]:
    """Do as the reader of the slot does."""
    done = []
    for raw in stream:
        try:
            transaction = machine.feed(wal2json.parse(raw))
        except MessageError as error:
            transaction = machine.spoil(error.reason, wal2json.Wal2JsonDecoder().place(raw))
        if transaction is not None:
            done.append(transaction)
    return done


@pytest.mark.parametrize("sample", FORMAT_2, ids=name_of)
def test_every_recorded_stream_becomes_its_transactions(sample: Sample) -> None:
    stream = sample.stream()
    schemas = sample.options.get("include-schemas") != "0"
    counted = Counter((row["table"], ACTIONS[row["action"]]) for row in sample.rows() if schemas)
    names = {(row.get("schema", "public"), row["table"]): row["table"] for row in sample.rows()}
    machine = Assembler(names, {})
    done = run(machine, stream)
    assert len(done) == sum(raw.startswith(b'{"action": "C"') or raw == COMMIT for raw in stream)
    assert sum((Counter(one.rows) for one in done), Counter()) == counted
    assert machine.between
    assert {one.affected.reconcile for one in done} <= ({None} if schemas else {"undecodable"})


def test_a_transaction_says_which_one_it_is() -> None:
    [done] = run(assembler("d"), SAMPLES["message transactional, include-xids/timestamp/lsn"].stream())
    assert (done.xid, done.end) == (795, 0x1976478)
    assert done.committed_at == pytest.approx(1795329471.19021)
    assert not done.rows
    assert not len(done.affected)


def test_partitions_are_their_table() -> None:
    names = {("public", leaf): "pt" for leaf in ("pt", "pt1", "pt2")}
    rules = {"pt": (Rule("pt", "id", "Endpoints"),)}
    inserted, moved, deleted = run(
        Assembler(names, rules), SAMPLES["partition move by update of PK"].stream()
    )
    assert inserted.affected.keys == {"Endpoints": {"1"}}
    assert moved.affected.keys == {"Endpoints": {"1", "12"}}
    assert moved.rows == {("pt", "delete"): 1, ("pt", "insert"): 1}
    assert deleted.affected.keys == {"Endpoints": {"12"}}
    _, emptied = run(Assembler(names, rules), SAMPLES["TRUNCATE partitioned"].stream())
    assert emptied.affected.reconcile == "truncate"


def test_foreign_tables_are_nothing_to_us() -> None:
    for foreign in (Assembler({("other", "d"): "d"}, {}), assembler("d2")):
        [done] = run(foreign, [BEGIN, ROW, COMMIT])
        assert not done.rows
        assert not len(done.affected)


@pytest.mark.parametrize("at", [0, 1, 2, 3])
def test_messages_of_others_disturb_nothing(at: int) -> None:
    note = b'{"action":"M","transactional":false,"prefix":"p","content":"\xff"}'
    stream = [BEGIN, ROW, COMMIT]
    [done] = run(assembler("d"), [*stream[:at], note, *stream[at:]])
    assert done.affected.keys == {"Endpoints": {"5"}}
    assert done.affected.reconcile is None


def test_between_is_only_where_everything_is_whole() -> None:
    machine = assembler("d")
    for raw, between in ((BEGIN, False), (ROW, False), (COMMIT, True)):
        machine.feed(wal2json.parse(raw))
        assert machine.between is between


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b'{"action":"I","schema":"public","table":"d","columns":[]}', "missing_column"),
        (ROW.replace(b"5", b"true"), "key_shape"),
        (ROW.replace(b"5", b"[5]"), "key_shape"),
        (ROW[:-1], "undecodable"),
        (b'{"action":"X"}', "unknown_action"),
    ],
)
def test_a_row_that_cannot_be_handled_makes_a_reconcile_of_its_transaction(row: bytes, reason: str) -> None:
    spoilt, good = run(assembler("d"), [BEGIN, ROW, row, ROW, COMMIT, BEGIN, ROW, COMMIT])
    assert spoilt.affected.reconcile == reason
    assert not len(spoilt.affected), "its keys are not needed any more"
    assert (spoilt.xid, spoilt.end) == (7, 0x20), "it is confirmed like any other"
    assert good.affected.reconcile is None
    assert good.affected.keys == {"Endpoints": {"5"}}


def test_a_broken_commit_ends_its_transaction_all_the_same() -> None:
    """The begin has said what the commit should."""
    for broken in (COMMIT[:-1], COMMIT.replace(b"0/20", b"bad"), b'{"action":"C"}'):
        machine = assembler("d")
        [done] = run(machine, [BEGIN, ROW, broken])
        assert done.affected.reconcile == "undecodable"
        assert (done.xid, done.end) == (7, 0x20), "the gate must wait for this one"
        assert machine.between


def test_a_broken_begin_is_named_by_its_commit() -> None:
    for broken in (BEGIN[:-1], BEGIN.replace(b"0/20", b"bad"), b'{"action":"B"}'):
        machine = assembler("d")
        assert not run(machine, [broken, ROW])
        assert not machine.between
        [done] = run(machine, [COMMIT])
        assert done.affected.reconcile == "undecodable"
        assert (done.xid, done.end) == (7, 0x20)
        assert done.committed_at == pytest.approx(1795329471.19021)


def test_a_lost_commit_costs_a_reconcile() -> None:
    cut_short, whole = run(assembler("d"), [BEGIN, ROW, BEGIN.replace(b"7", b"8", 1), ROW, COMMIT])
    assert (cut_short.xid, cut_short.affected.reconcile) == (7, "out_of_order")
    assert cut_short.committed_at == pytest.approx(1795329471.19021)
    assert whole.affected.reconcile is None
    assert whole.affected.keys == {"Endpoints": {"5"}}


def test_a_lost_begin_costs_a_reconcile() -> None:
    for stream in ([ROW, ROW, COMMIT], [COMMIT]):
        [done] = run(assembler("d"), stream)
        assert done.affected.reconcile == "out_of_order"
        assert (done.xid, done.end) == (7, 0x20)
        assert done.committed_at == pytest.approx(1795329471.19021)


def test_a_row_outside_of_transactions_is_an_error_that_names_its_table() -> None:
    with pytest.raises(MessageError, match=r"\bd\b.* outside of a transaction") as refused:
        assembler("d").feed(wal2json.parse(ROW))
    assert refused.value.reason == "out_of_order"


@pytest.mark.parametrize("raw", [b"", b"\xff", b'{"action":"X"}', b'{"change":[', b'{"action":"C"}'])
def test_what_nobody_understands_between_transactions_is_answered_at_once(raw: bytes) -> None:
    """Nothing may come after it for hours."""
    machine = assembler("d")
    [done] = run(machine, [raw])
    assert done.affected.reconcile in ("undecodable", "unknown_action")
    assert (done.xid, done.end, done.committed_at) == (0, 0, 0.0), "no gate waits for it"
    assert machine.between


@given(st.lists(st.sampled_from([BEGIN, ROW, COMMIT, b'{"action":"X"}', b"\xff", BEGIN[:-1], COMMIT[:-1]])))
def test_no_row_is_lost_whatever_is_broken(stream: list[bytes]) -> None:
    """Each row is within a transaction that names it or is a reconcile, and no transaction comes twice."""
    machine = assembler("d")
    done = run(machine, [*stream, BEGIN, COMMIT])
    assert machine.between
    rows, transactions = 0, iter(done)
    for raw in [*stream, BEGIN]:
        rows += raw == ROW
        if raw in (COMMIT, COMMIT[:-1], BEGIN) and rows:
            assert any(one.affected.reconcile or one.affected.keys for one in transactions)
            rows = 0
