"""What a row affects: expectations written by hand for each table, not read from the mappings."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc.changes import Begin, Column, Commit, Delete, Insert, Row, Truncate, Update
from cdc.errors import MessageError
from cdc.mapping import affected as affected_module
from cdc.mapping.affected import KEY_BYTES, Affected
from cdc.mapping.mapping import Rule, load
from cdc.mapping.parents import Parents
from cdc.replication.assembler import Assembler

APPLICATIONS, ACCOUNTS = "EndpointsOfApplications", "EndpointsOfAccounts"
PLANS, USERS = "EndpointsOfPlans", "EndpointsOfUsers"
Named = dict[str, set[str]]


@dataclass(frozen=True)
class Table:
    """What DESIGN's table says of one table, and how its rows look."""

    name: str
    kind: str
    """Keys are of this kind."""
    column: str
    """The column that holds the key."""
    primary: str
    """The primary key's column; where it is another one, a default identity does not name the key."""
    unique: tuple[str, ...]
    """A unique index that could be the identity in place of the primary key."""
    others: dict[str, str | float | None] = field(default_factory=dict)

    def row(self, key: str | None, row: int) -> dict[str, str | float | None]:
        """Return a row's columns; ``row`` is its id where that is not the key."""
        return {self.primary: row, **self.others, self.column: key}


PORTAL_APPLICATIONS = Table("portal_applications", APPLICATIONS, "id", "id", ("id",), {"account_id": "acc"})
SETTINGS = Table(
    "portal_application_settings",
    APPLICATIONS,
    "application_id",
    "id",
    ("application_id",),
    {"secret_key": "s3cr3t", "secret_key_required": True},
)
ACCOUNTS_TABLE = Table("accounts", ACCOUNTS, "id", "id", ("id",), {"plan_type": "plan"})
PAY_PLANS = Table("pay_plans", PLANS, "plan_type", "plan_type", ("plan_type",), {"throughput_limit": 1})
ACCOUNT_USERS = Table(
    "account_users", ACCOUNTS, "account_id", "id", ("user_id", "account_id"), {"user_id": "usr"}
)
USERS_TABLE = Table("users", USERS, "id", "id", ("id",))
PROVIDERS = Table(
    "user_auth_providers", USERS, "user_id", "id", ("user_id", "type"), {"type": "auth0_github"}
)

STATIC = (PORTAL_APPLICATIONS, SETTINGS, ACCOUNTS_TABLE, PAY_PLANS)
BY_USERS = (ACCOUNT_USERS, USERS_TABLE, PROVIDERS)
EXPECTED = {"grove": STATIC, "grove_soft_delete": STATIC, "grove_jwt": STATIC + BY_USERS}
CASES = [
    pytest.param(mapping, table, id=f"{mapping}-{table.name}")
    for mapping, tables in EXPECTED.items()
    for table in tables
]
IDENTITIES = ("default", "index", "full")


def columns(values: dict[str, str | float | None]) -> tuple[Column, ...]:
    return tuple(Column(name, value) for name, value in values.items())


def identity(table: Table, kind: str, row: dict[str, str | float | None]) -> tuple[Column, ...]:
    """Return what an update or a delete says of the old row."""
    names = {"default": (table.primary,), "index": table.unique, "full": tuple(row)}[kind]
    return columns({name: row[name] for name in names})


def take(mapping: str, *rows: Row, memory: dict[str, dict[str, str]] | None = None) -> Affected:
    """Run one transaction through the assembler and the memory of parents (table to row id to parent)."""
    loaded = load(mapping)
    names = {("public", table): table for table in loaded.tables}
    machine = Assembler(names, loaded.rules)
    machine.feed(Begin(xid=7, end=0x20, committed_at=0.0))
    for row in rows:
        machine.feed(row)
    done = machine.feed(Commit(xid=7, end=0x20, committed_at=0.0))
    assert done is not None
    parents = Parents()
    rules = {rule.table: rule for of_table in loaded.rules.values() for rule in of_table}
    parents.load({rules[table]: rows.items() for table, rows in (memory or {}).items()}, covered=0)
    parents.resolve(done.affected, done.end)
    return done.affected


def memory_of(table: Table, kind: str, **rows: str) -> dict[str, dict[str, str]]:
    """Return the memory that is needed: none where the identity names the key."""
    needed = table.primary != table.column and kind == "default"
    return {table.name: {row.removeprefix("row_"): parent for row, parent in rows.items()}} if needed else {}


@pytest.mark.parametrize("kind", IDENTITIES)
@pytest.mark.parametrize(("mapping", "table"), CASES)
def test_insert_update_delete(mapping: str, table: Table, kind: str) -> None:
    row = table.row("one", 5)
    old = identity(table, kind, row)
    memory = memory_of(table, kind, row_5="one")
    one: Named = {table.kind: {"one"}}
    assert take(mapping, Insert("public", table.name, columns(row))).keys == one
    assert take(mapping, Update("public", table.name, columns(row), old), memory=memory).keys == one
    assert take(mapping, Delete("public", table.name, old), memory=memory).keys == one


@pytest.mark.parametrize("kind", IDENTITIES)
@pytest.mark.parametrize(("mapping", "table"), CASES)
def test_a_changed_key_affects_the_old_and_the_new(mapping: str, table: Table, kind: str) -> None:
    """A moved row, or a renamed parent: both must be read again."""
    row = table.row("one", 5)
    moved = Update("public", table.name, columns(table.row("two", 5)), identity(table, kind, row))
    found = take(mapping, moved, memory=memory_of(table, kind, row_5="one"))
    assert found.reconcile is None
    assert found.keys == {table.kind: {"one", "two"}}


@pytest.mark.parametrize(("mapping", "table"), CASES)
def test_insert_and_delete_in_one_transaction(mapping: str, table: Table) -> None:
    """Defect 9 of the predecessor. The row was never in any memory."""
    row = table.row("one", 5)
    for kind in IDENTITIES:
        found = take(
            mapping,
            Insert("public", table.name, columns(row)),
            Delete("public", table.name, identity(table, kind, row)),
            memory=memory_of(table, kind),
        )
        assert (found.keys, found.reconcile) == ({table.kind: {"one"}}, None)


@pytest.mark.parametrize(("mapping", "table"), CASES)
def test_truncate_asks_for_everything(mapping: str, table: Table) -> None:
    found = take(
        mapping, Truncate("public", table.name), Insert("public", table.name, columns(table.row("x", 1)))
    )
    assert found.reconcile == "truncate"
    assert not len(found)


@pytest.mark.parametrize("mapping", EXPECTED)
def test_tables_that_are_not_the_mappings_are_nothing(mapping: str) -> None:
    for table in (*STATIC, *BY_USERS):
        if table not in EXPECTED[mapping]:
            found = take(mapping, Insert("public", table.name, columns(table.row("x", 1))))
            assert not len(found)
    assert {table.name for table in EXPECTED[mapping]} | {"portal_application_changes"} == set(
        load(mapping).rules
    )


@pytest.mark.parametrize("mapping", EXPECTED)
def test_the_signal_table_counts_when_rows_come_and_never_again(mapping: str) -> None:
    table = "portal_application_changes"
    row = columns({"id": 1, "portal_app_id": "app", "is_delete": True})
    assert take(mapping, Insert("public", table, row)).keys == {APPLICATIONS: {"app"}}
    for later in (
        Update("public", table, row, columns({"id": 1})),
        Delete("public", table, columns({"id": 1})),
        Truncate("public", table),
    ):
        found = take(mapping, later)
        assert (len(found), found.reconcile) == (0, None)


@pytest.mark.parametrize("table", [SETTINGS, ACCOUNT_USERS, PROVIDERS], ids=lambda table: table.name)
def test_a_row_that_no_memory_knows_asks_for_everything(table: Table) -> None:
    row = table.row("one", 5)
    for change in (
        Update("public", table.name, columns(row), columns({table.primary: 5})),
        Delete("public", table.name, columns({table.primary: 5})),
    ):
        assert take("grove_jwt", change, memory={table.name: {"4": "one"}}).reconcile == "unknown_row"
        assert take("grove_jwt", change, memory={}).reconcile == "unknown_row"


@pytest.mark.parametrize(
    "table", [PORTAL_APPLICATIONS, SETTINGS, ACCOUNTS_TABLE, PAY_PLANS], ids=lambda table: table.name
)
def test_an_identity_without_key_and_row_id_asks_for_everything(table: Table) -> None:
    row = table.row("one", 5)
    elsewhere = columns({"some_other_unique_column": 1})
    assert take("grove", Delete("public", table.name, elsewhere)).reconcile == "identity"
    assert take("grove", Update("public", table.name, columns(row), elsewhere)).reconcile == "identity"


def test_an_unchanged_key_that_was_toasted_is_in_the_identity() -> None:
    row = Update("public", "portal_applications", columns({"account_id": "a"}), columns({"id": "one"}))
    assert take("grove", row).keys == {APPLICATIONS: {"one"}}


def test_keys_that_are_numbers_are_their_digits() -> None:
    row = Insert("public", "accounts", columns({"id": 12345678901234567890}))
    assert take("grove", row).keys == {ACCOUNTS: {"12345678901234567890"}}


def test_keys_are_taken_as_they_are() -> None:
    for key in ("", " ", "a,b", "\u2028", "\x00", "\U0001d518", "'; --"):
        assert take("grove", Insert("public", "accounts", columns({"id": key}))).keys == {ACCOUNTS: {key}}


def test_a_key_that_is_null_names_nobody() -> None:
    row = columns({"id": 1, "application_id": None})
    found = take("grove", Insert("public", SETTINGS.name, row), memory={SETTINGS.name: {}})
    assert (len(found), found.reconcile) == (0, None)


def test_a_null_that_may_be_not_a_number_names_all_that_it_may_be() -> None:
    """wal2json sends null for NaN and Infinity: in the new row, in the old one, and in one that goes."""
    hidden = ("NaN", "Infinity", "-Infinity")
    rule = Rule("d", "id", "EndpointsOf", sent_as_null=hidden)
    null, five = columns({"id": None}), columns({"id": "5"})
    for row, keys in (
        (Insert("public", "d", null), {*hidden}),
        (Update("public", "d", five, null), {*hidden, "5"}),
        (Update("public", "d", null, five), {*hidden, "5"}),
        (Update("public", "d", five, five), {"5"}),
        (Update("public", "d", five, columns({"id": "5"})), {"5"}),
        (Delete("public", "d", null), {*hidden}),
    ):
        found = Affected()
        found.add(row, (rule,))
        assert (found.keys, found.reconcile, found.asked) == ({"EndpointsOf": keys}, None, set())
    found = Affected()
    signal = Rule("d", "id", "EndpointsOf", sent_as_null=hidden, only_asks=True)
    found.add(Insert("public", "d", null), (signal,))
    assert found.asked == {*hidden}, "a signal table asks for them, and changes none"
    found = Affected()
    remembered = Rule("d", "id", "EndpointsOf", row="number", parents="ParentsOf", sent_as_null=hidden)
    found.add(Insert("public", "d", columns({"number": 1, "id": None})), (remembered,))
    assert (found.keys, found.reconcile) == ({}, "identity"), "the memory cannot choose"


@pytest.mark.parametrize("value", [1.5, True, False])
def test_a_key_of_another_shape_is_an_error(value: float) -> None:
    with pytest.raises(MessageError) as refused:
        take("grove", Insert("public", "accounts", columns({"id": value})))
    assert refused.value.reason == "key_shape"


def test_a_row_without_its_key_is_an_error() -> None:
    with pytest.raises(MessageError) as refused:
        take("grove", Insert("public", "accounts", columns({"plan_type": "s3cr3t"})))
    assert refused.value.reason == "missing_column"
    assert "s3cr3t" not in str(refused.value)


@pytest.mark.parametrize(
    ("table", "row", "column", "reason"),
    [
        ("accounts", {"id": 1.5}, "id", "key_shape"),
        ("accounts", {"plan_type": "s3cr3t"}, "id", "missing_column"),
        (SETTINGS.name, {"application_id": "s3cr3t"}, "id", "missing_column"),
        (SETTINGS.name, {"application_id": "s3cr3t", "id": 1.5}, "id", "key_shape"),
        (SETTINGS.name, {"application_id": "s3cr3t", "id": None}, "id", "key_shape"),
    ],
)
def test_an_error_names_the_table_and_the_column_and_no_value(
    table: str, row: dict[str, str | float | None], column: str, reason: str
) -> None:
    with pytest.raises(
        MessageError, match=rf"\b{table}\b.*\b{column}\b|\b{column}\b.*\b{table}\b"
    ) as refused:
        take("grove", Insert("public", table, columns(row)))
    assert refused.value.reason == reason
    assert "s3cr3t" not in str(refused.value)


def moves_of(row: Row) -> list[tuple[str, str | None, bool]]:
    """Return what the memory of parents is to do with a settings row: its id, its parent, whether the WAL
    has named the parent that it left.
    """
    found = Affected()
    found.add(row, load("grove").rules[SETTINGS.name])
    assert found.reconcile is None
    return [(move.row, move.parent, move.known) for move in found.moves]


def test_the_memory_has_every_row_under_its_present_id_and_parent() -> None:
    """Whatever the identity, so that a later one may be smaller: ALTER TABLE changes it at any time."""
    one, two = columns({"id": 5, "application_id": "one"}), columns({"id": 6, "application_id": "two"})
    key, row_id = columns({"application_id": "one"}), columns({"id": 5})
    table = ("public", SETTINGS.name)
    assert moves_of(Insert(*table, one)) == [("5", "one", True)]
    assert moves_of(Update(*table, one, one)) == [("5", "one", True)], "an unchanged row, not known so far"
    assert moves_of(Update(*table, two, one)) == [("5", None, True), ("6", "two", True)]
    assert moves_of(Update(*table, two, row_id)) == [("5", None, False), ("6", "two", True)]
    assert moves_of(Update(*table, two, key)) == [("6", "two", True)]
    assert moves_of(Update(*table, columns({"application_id": "two"}), key)) == [], (
        "an unchanged id was TOASTed"
    )
    assert moves_of(Delete(*table, one)) == [("5", None, True)]
    assert moves_of(Delete(*table, row_id)) == [("5", None, False)]
    assert moves_of(Delete(*table, key)) == []


def test_beyond_the_limit_it_is_large_and_takes_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(affected_module, "LIMIT", 10)
    rule = Rule("accounts", "id", ACCOUNTS)
    for count, reason in ((10, None), (11, "large"), (1_000, "large")):
        found = Affected()
        for number in range(count):
            found.add(Insert("public", "accounts", columns({"id": number})), [rule])
        assert found.reconcile == reason
        assert len(found) == (0 if reason else count)


def test_moves_count_towards_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deletes by serial id name no key until the memory is asked."""
    monkeypatch.setattr(affected_module, "LIMIT", 10)
    found = Affected()
    for number in range(11):
        found.add(
            Delete("public", SETTINGS.name, columns({"id": number})), load("grove").rules[SETTINGS.name]
        )
    assert found.reconcile == "large"


def test_a_long_key_counts_as_several(monkeypatch: pytest.MonkeyPatch) -> None:
    """So keys of any length take the same memory at most, and the same key counts once."""
    monkeypatch.setattr(affected_module, "LIMIT", 10)
    rule = Rule("accounts", "id", ACCOUNTS)

    def taken(*lengths: int) -> Affected:
        found = Affected()
        for number, length in enumerate(lengths):
            found.add(Insert("public", "accounts", columns({"id": f"{number}".ljust(length, "k")})), [rule])
        return found

    assert taken(*[KEY_BYTES] * 10).reconcile is None
    assert taken(1, 8 * KEY_BYTES).size == KEY_BYTES * 10
    assert taken(1, 8 * KEY_BYTES).reconcile is None
    assert taken(1, 1, 8 * KEY_BYTES).reconcile == "large"
    assert taken(300_000_000).size == 0
    again = taken(8 * KEY_BYTES)
    for _ in range(3):
        again.add(Insert("public", "accounts", columns({"id": "0".ljust(8 * KEY_BYTES, "k")})), [rule])
    assert again.size == KEY_BYTES * 9


def test_long_keys_are_counted_wherever_they_go() -> None:
    found, other = Affected(), Affected()
    found.name("ids", "i" * 1_100)
    found.ask("ids", "j" * 2_200)
    other.name("plans", "p" * 4_400)
    found.merge(other)
    assert found.size == KEY_BYTES * (3 + 1 + 70)
    assert found.named().size == found.size
    taken = found.take(["ids"])
    assert (taken.size, found.size) == (KEY_BYTES * (2 + 1 + 30), KEY_BYTES * (1 + 40))
    found.give_up("large")
    assert found.size == 0


STEPS = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(("x", "y")), st.booleans()), max_size=6)


@given(st.lists(STEPS, max_size=4))
def test_only_asked_for_is_what_no_row_has_named(transactions: list[list[tuple[str, str, bool]]]) -> None:
    """Whatever the order, within a transaction and between transactions."""
    found = Affected()
    for transaction in transactions:
        one = Affected()
        for key, kind, asks in transaction:
            (one.ask if asks else one.name)(kind, key)
        found.merge(one)
    steps = [step for transaction in transactions for step in transaction]
    rows = {key for key, _, asks in steps if not asks}
    assert found.asked == {key for key, _, _ in steps} - rows
    assert {key for keys in found.keys.values() for key in keys} == {key for key, _, _ in steps}


def test_a_signal_table_only_asks() -> None:
    for table, key, asked in (
        ("portal_application_changes", "portal_app_id", {"a"}),
        ("accounts", "id", set()),
    ):
        found = Affected()
        row = Insert("public", table, columns({key: "a"}))
        found.add(row, load("grove").rules[table])
        assert (found.asked, len(found)) == (asked, 1)


def test_kinds_that_are_taken_out_take_what_was_asked_for_along() -> None:
    found = Affected()
    found.name("ids", "1")
    found.ask("ids", "2")
    found.name("plans", "p")
    taken = found.take(["ids"])
    assert (taken.keys, taken.asked) == ({"ids": {"1", "2"}}, {"2"})
    assert (found.keys, found.asked) == ({"plans": {"p"}}, set())


def test_merging_keeps_every_key_and_the_first_reason() -> None:
    one, other, reconcile = Affected(), Affected(), Affected()
    one.name("a", "1")
    other.name("a", "2")
    other.name("b", "1")
    one.merge(other)
    assert one.keys == {"a": {"1", "2"}, "b": {"1"}}
    assert len(one) == 3, "keys of every kind take memory"
    one.name("b", "9")
    assert other.keys["b"] == {"1"}, "a later transaction is not changed by an earlier one"
    reconcile.give_up("truncate")
    reconcile.give_up("large")
    one.merge(reconcile)
    one.merge(other)
    assert (one.reconcile, len(one)) == ("truncate", 0)
