"""Tests whether a mapping's rules find every change that alters an endpoint, by changing each column.

Everything happens in one transaction that is rolled back, on copies of some rows (`cdc.checks.copies`).

A trial begins with a savepoint, and updates one column of one row or deletes the row. A read of the whole
mapping shows which endpoints this has altered. Then the trial does what `serve` would do: it finds the keys
in the row as the slot would send it (`cdc.mapping.affected`, with the memory of parents), and re-queries
them. If an altered endpoint is still out of date after that, the change is missed. The opposite change, back
to the former row, is tried as well.
"""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Final

import psycopg2

from cdc.changes import Column, Delete, Insert, Update
from cdc.checks.copies import Copies
from cdc.checks.dependencies import rolled_back
from cdc.checks.finding import fail, good, warn
from cdc.errors import MessageError
from cdc.lsn import Lsn
from cdc.mapping.affected import Affected
from cdc.mapping.parents import Parents
from cdc.mapping.row_rule import in_short
from cdc.replication.catalog import Relations

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from psycopg2.extensions import cursor as Cursor  # noqa: N812 - it is a class

    from cdc.changes import Row
    from cdc.checks.copies import ColumnOf, Loaded, MappingRows, Values
    from cdc.checks.finding import Finding, Site
    from cdc.mapping.affects_file import Rule
    from cdc.mapping.mapping import Mapping as EndpointMapping

_ROWS_TRIED: Final = (2, 12)
"""Minimum and maximum number of rows in which a column is changed. After the minimum, the trial of a column
ends as soon as a change has altered an endpoint.
"""
_OTHERS: Final = 2
"""Number of other rows whose values are tried in a column."""


@dataclass
class _Missed:
    """The altered endpoints that changes of one column do not find."""

    ids: dict[bytes, None] = field(default_factory=dict)
    only_by_column: bool = True
    """Whether they would all be found without `key_columns`."""


@dataclass(frozen=True)
class _Followed:
    """Replica identities that the tables have or could have, and the rules for a stream with these
    identities.
    """

    identities: Mapping[str, tuple[str, ...]]
    rules: Mapping[str, tuple[Rule, ...]]

    @classmethod
    def of(cls, relations: Relations, mapping: EndpointMapping) -> _Followed:
        identities = {one.mapped: one.identity for one in relations.all if not one.partitioned}
        return cls(identities, relations.rules(mapping.rules))

    def remembering(self) -> list[Rule]:
        """Return the rules that need the memory of parents."""
        return [rule for of_table in self.rules.values() for rule in of_table if rule.parents is not None]


class Changes:
    """Tries changes on the copies, and counts the results."""

    def __init__(self, copies: Copies, cursor: Cursor, followed: Sequence[_Followed]) -> None:
        self._copies = copies
        self._cursor = cursor
        self._by_id = replace(copies.mapping, key_columns={})
        self.before = copies.all()
        self._followed = [(one, copies.parents(one.remembering())) for one in followed]
        self.tried = 0
        self.altering: Counter[tuple[str, str]] = Counter()
        self.missed: dict[tuple[str, str], _Missed] = {}
        self.failing: dict[tuple[str, str], None] = {}

    def run(self) -> None:
        """Try all changes. Results are by table and column; the column is empty for inserts and deletes."""
        least, most = _ROWS_TRIED
        for table in self._copies.tables:
            rows = self._copies.rows(table)
            for place, row in rows[:most]:
                self._try((table, ""), row, partial(self._copies.delete, table, place))
            for at, column in enumerate(self._copies.columns[table]):
                for number, (place, row) in enumerate(rows[:most] if not column.generated else ()):
                    if number >= least and self.altering[table, column.name]:
                        break
                    for value in _values(column, row[at], [one[at] for _, one in rows]):
                        change = partial(self._copies.update, table, place, row, column, value)
                        self._try((table, column.name), row, change)

    def _try(self, what: tuple[str, str], row: Values, change: Callable[[], Values | None]) -> None:
        """Make a change, see whether it is found, undo it, and see whether the opposite change is found."""
        cursor, table = self._cursor, what[0]
        cursor.execute("SAVEPOINT change")
        changed, memories = None, []
        if (then := change()) != row:
            self.tried += 1
            changed = self._all(what)
            if changed is not None and changed != self.before:
                self.altering[what] += 1
                for one, memory in self._followed:
                    message = self._message(table, one, row, then)
                    self._hold(what, message, one, memory, self.before, changed)
                    memories.append(self._copies.parents(one.remembering()))
        cursor.execute("ROLLBACK TO SAVEPOINT change; RELEASE SAVEPOINT change")
        for (one, _), memory in zip(self._followed, memories, strict=False):
            message = self._message(table, one, then, row)
            self._hold(what, message, one, memory, changed or {}, self.before)

    def _all(self, what: tuple[str, str]) -> MappingRows | None:
        """Return the mapping's current rows; None if a value makes the read fail."""
        self._cursor.execute("SAVEPOINT look")
        try:
            found = self._copies.all()
        except (psycopg2.DataError, psycopg2.errors.CardinalityViolation):
            self._cursor.execute("ROLLBACK TO SAVEPOINT look")
            self.failing.setdefault(what)
            return None
        self._cursor.execute("RELEASE SAVEPOINT look")
        return found

    def _message(self, table: str, followed: _Followed, before: Values | None, after: Values | None) -> Row:
        """Return the message that a slot would send for a change."""
        names = [one.name for one in self._copies.columns[table]]
        identity = followed.identities.get(table, ())
        old = tuple(Column(*one) for one in zip(names, before or (), strict=False) if one[0] in identity)
        new = tuple(map(Column, names, after or ()))
        if before is None:
            return Insert("", table, new)
        return Delete("", table, old) if after is None else Update("", table, new, old)

    def _hold(
        self,
        what: tuple[str, str],
        message: Row,
        followed: _Followed,
        memory: Loaded,
        held: MappingRows,
        now: MappingRows,
    ) -> None:
        """Record the endpoints that would be wrong in a server's map after it has handled a message.

        The server has the map ``held`` before the message, and should have the map ``now`` after it.
        """
        affected, parents = Affected(), Parents()
        parents.load(memory, Lsn(0))
        try:
            affected.add(message, followed.rules[message.table])
            parents.resolve(affected, Lsn(1))
        except MessageError:
            return  # a server would then reconcile
        if affected.reconcile:
            return
        missed = self._unlike(affected.keys, self._copies.mapping, held, now)
        if missed:
            of_kind = self.missed.setdefault(what, _Missed())
            of_kind.ids |= dict.fromkeys(sorted(missed))
            of_kind.only_by_column &= not self._unlike(affected.keys, self._by_id, held, now)

    def _unlike(
        self, keys: Mapping[str, Iterable[str]], mapping: EndpointMapping, held: MappingRows, now: MappingRows
    ) -> set[bytes]:
        """Return the ids whose rows in ``held`` would still differ from ``now`` after a re-query of the keys.

        A re-query that fails changes nothing.
        """
        cursor = self._cursor
        cursor.execute("SAVEPOINT requery")
        try:
            got = held | (self._copies.some(keys, mapping) if keys else {})
        except psycopg2.DataError:
            cursor.execute("ROLLBACK TO SAVEPOINT requery")
            got = held
        cursor.execute("RELEASE SAVEPOINT requery")
        return {one for one in got.keys() | now.keys() if got.get(one, []) != now.get(one, [])}


def changes(site: Site, read: frozenset[tuple[str, str]], *, trusted: bool) -> Iterator[Finding]:
    """Change each column of each table, and report the altered endpoints that affects.toml does not find.

    ``read`` are the (table, column) pairs that `Endpoints` reads. A change of such a column should alter an
    endpoint. ``trusted`` says that the database was created for this test.
    """
    database = site.database
    names = database.names()
    with (
        closing(database.address.connect()) as connection,
        rolled_back(connection, database.address.setting, "REPEATABLE READ") as cursor,
    ):
        cursor.execute(f"{names}SELECT", {})
        yield from _judged(site, Copies(site, cursor, trusted=trusted), cursor, read)


def _judged(
    site: Site, copies: Copies, cursor: Cursor, read: frozenset[tuple[str, str]]
) -> Iterator[Finding]:
    copies.make()
    found = Changes(copies, cursor, _followed(site))
    if not found.before:
        yield fail(
            "Endpoints finds no endpoint in the rows that were looked at, so no change can alter one",
            "write rows that make endpoints into sample.sql, or correct the query",
        )
        return
    found.run()
    for (table, column), missed in found.missed.items():
        yield _missing(copies.mapping, table, column, missed)
    for table, column in found.failing:
        yield warn(
            f"the query Endpoints fails after {_described(table, column)}: then no endpoint can be read",
            "write the query so that no value in the tables makes it fail",
        )
    if unseen := [
        f"{table}.{one.name}"
        for table in copies.tables
        for one in copies.columns[table]
        if (table, one.name) in read - _own_keys(copies.mapping)
        and not one.generated
        and not found.altering[table, one.name]
    ]:
        yield warn(
            f"no change of {', '.join(unseen)} altered an endpoint among the rows that were looked at, so it"
            " is unknown whether such changes are found",
            "write rows in which it matters into sample.sql",
        )
    if not found.missed:
        yield good(
            f"{found.tried:,} changes of {len(copies.tables)} tables were tried with {len(found.before)}"
            f" endpoints; {found.altering.total():,} altered some, and affects.toml finds them all"
        )


def _missing(mapping: EndpointMapping, table: str, column: str, missed: _Missed) -> Finding:
    """Return a finding that names a missed change, and its remedy."""
    rules = mapping.rules[table]
    first = in_short(next(iter(missed.ids)).decode("utf-8", "backslashreplace"))
    more = f" and {len(missed.ids) - 1} more" if len(missed.ids) > 1 else ""
    if missed.only_by_column:
        names = ", ".join(rule.query for rule in rules if rule.query in mapping.key_columns)
        remedy = f"take {names} out of key_columns, in affects.toml: it cannot find endpoints that are gone"
    else:
        entries = ", ".join(f"{rule.query} by {rule.column}" for rule in rules)
        remedy = (
            f"the entries for {table} ({entries}) have to find it: correct column or query, or add an"
            f' [[affects]] entry with table = "{table}" and the column that leads to such endpoints'
        )
    return fail(
        f"{_described(table, column)} altered the endpoint {first}{more}, which affects.toml does not find",
        remedy,
    )


def _own_keys(mapping: EndpointMapping) -> set[tuple[str, str]]:
    """Return the columns that identify rows in the memory of parents. They need not alter an endpoint."""
    return {(one.table, one.row) for of_table in mapping.rules.values() for one in of_table if one.row}


def _described(table: str, column: str) -> str:
    return f"an update of {table}.{column}" if column else f"an insert or delete of a row of {table}"


def _values(column: ColumnOf, now: str | None, of_rows: Collection[str | None]) -> dict[str | None, None]:
    """Return the values to try in place of ``now``: those of other rows, NULL, and a new one."""
    others = [one for one in dict.fromkeys(of_rows) if one is not None and one != now][:_OTHERS]
    empty = [None] if now is not None and not column.not_null else []
    return dict.fromkeys([*others, *empty, *column.fresh(now, of_rows)])


def _followed(site: Site) -> list[_Followed]:
    """Return the rules for two cases: with the current replica identities, and with the primary keys, which
    are the replica identities before `setup` has run.
    """
    mapping, tables = site.database.mapping, list(site.database.mapping.tables)
    asked = {"schema": site.schema, "tables": tables}
    columns = sorted({rule.column for of_table in mapping.rules.values() for rule in of_table})
    relations = Relations.of(
        site.read("Relations", **asked, signals=list(mapping.signals), publication=""),
        site.read("KeyColumns", **asked, columns=columns),
    )
    primary = {
        table.oid: next((index.columns for index in table.indexes if index.primary), table.identity)
        for table in site.tables
    }
    by_key = [replace(one, identity=primary.get(one.oid, one.identity)) for one in relations.all]
    kinds = dict.fromkeys((relations.all, tuple(by_key)))
    return [_Followed.of(replace(relations, all=one), mapping) for one in kinds]
