"""Are all changes found that alter an endpoint? Each column of each table is changed, to see.

Everything happens in one transaction that is rolled back, on temporary tables: copies of some rows of the
mapping's tables, in which no trigger runs and which nobody waits for. The rows are read first, a table at a
time, each under a savepoint, whose end lets go of the table's lock. The copies have the checks and the keys
of their tables, but no foreign keys: what those rule out may be loaded in another order, or without them.

One change is a savepoint; an UPDATE of one column of one row, or its DELETE; a read of the whole mapping,
which says what has changed; then what `serve` would do: the keys that the rules find in the row as the slot
sends it (`cdc.mapping.affected`, with the memory of parents), and the re-query of those. What the re-query
does not bring up to date is missed. The way back, from the changed row to the one before, is tried as well.
"""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field, replace
from decimal import Decimal, InvalidOperation
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import psycopg2

from cdc.changes import Column, Delete, Insert, Update
from cdc.checks.dependencies import rolled_back
from cdc.checks.finding import fail, good, warn
from cdc.errors import MessageError, Refusal
from cdc.lsn import Lsn
from cdc.mapping.affected import Affected
from cdc.mapping.key_types import literal, parameter
from cdc.mapping.parents import Parents
from cdc.mapping.row_rule import in_short
from cdc.mapping.sql_text import quote_name
from cdc.postgres.column_types import as_bytes, as_printed, describe
from cdc.replication.catalog import Relations

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from psycopg2.extensions import cursor as Cursor  # noqa: N812 - it is a class

    from cdc.changes import Row
    from cdc.checks.finding import Finding, Site
    from cdc.mapping.affects_file import Rule
    from cdc.mapping.mapping import Mapping as EndpointMapping

_MOST_ROWS: Final = 60
"""Rows of a table that are copied."""
_ROUNDS: Final = 3
"""How often rows are looked for that belong to those that were copied: plans of accounts of applications."""
_FIRST_ENDPOINTS: Final = 20
"""Endpoints whose rows are copied first."""
_SCAN_SECONDS: Final = 5
"""A table that takes longer to search gives its first rows instead."""
_ROWS_TRIED: Final = (2, 12)
"""Rows in which a column is changed: at least, and at most while no change of it has altered an endpoint."""
_OTHERS: Final = 2
"""Values of other rows that a column is changed to."""
_TEMPORARY: Final = "pg_temp"
_LINKS: Final = ("endpoint_id", "account_id", "plan_type", "user_id")
"""Columns of `Endpoints` whose values may be keys of other tables. Never the API key."""

_FRESH: Final[Mapping[str, tuple[str, ...]]] = {
    "S": ("another", "~"),
    "D": ("2001-02-03",),
    "T": ("1 day",),
    "I": ("192.0.2.1",),
    "A": ("{}",),
}
"""Values that hardly any row has, by the category of their type."""
_FRESH_BY_NAME: Final[Mapping[str, tuple[str, ...]]] = {
    "uuid": ("00000000-0000-4000-8000-00000000beef",),
    "json": ("{}",),
    "jsonb": ("{}",),
    "bytea": ("\\x00",),
}

_Values = tuple["str | None", ...]
_Map = dict[bytes, list[str]]
"""What the mapping says: by id, its rows. Compared, never shown."""
_Loaded = dict["Rule", list[tuple[str, str | None]]]


@dataclass(frozen=True)
class _ColumnOf:
    """A row of the query `Definitions`."""

    table: str
    name: str
    type_name: str
    category: str
    collation: str | None
    not_null: bool
    generated: bool
    identity: bool
    computed: str | None
    labels: tuple[str, ...]
    linking: bool

    @property
    def definition(self) -> str:
        """The column's line for a CREATE TABLE, without its default."""
        parts = [quote_name(self.name), self.type_name]
        parts += [f"COLLATE {self.collation}"] if self.collation else []
        parts += ["NOT NULL"] if self.not_null else []
        parts += [f"GENERATED ALWAYS AS ({self.computed}) STORED"] if self.generated else []
        return " ".join(parts)

    @property
    def printed(self) -> str:
        """SQL of its value as the server prints it, in psycopg2's form."""
        name = quote_name(self.name).replace("%", "%%")
        return f"CASE WHEN {name} IS NOT NULL THEN pg_catalog.format('%%s', {name}) END"

    def fresh(self, now: str | None) -> Iterator[str]:
        """Yield values that are other ones than that of a row, as far as the type is known."""
        if self.category == "B":
            yield "f" if now == "t" else "t"
        elif self.labels:
            yield from (label for label in self.labels if label != now)
        elif self.category == "N":
            try:
                yield str(Decimal(now or "6") + 1)
            except InvalidOperation:  # money, perhaps
                yield "7"
        else:
            yield from _FRESH_BY_NAME.get(self.type_name, _FRESH.get(self.category, ()))


@dataclass
class _Missed:
    """Changes of one kind that are not found."""

    ids: dict[bytes, None] = field(default_factory=dict)
    only_by_column: bool = True
    """Without `key_columns` they are."""


class Copies:
    """Copies of rows, and the mapping over them; all of it ends with the transaction."""

    def __init__(self, site: Site, cursor: Cursor, *, trusted: bool) -> None:
        """Copies are made by `make`, within the cursor's transaction.

        Unless the database is ``trusted``, no function of the tables' owners must run.
        """
        self._trusted = trusted
        self._cursor = cursor
        self._raw = cursor.connection.cursor()
        """Returns text as bytes."""
        self._site = site
        self._schema = site.schema
        mapping = site.database.mapping
        self.mapping: EndpointMapping = mapping.over_copies(_TEMPORARY)
        self.tables = mapping.reads
        self.columns: dict[str, list[_ColumnOf]] = {table: [] for table in self.tables}

    def make(self) -> None:
        """Read rows, let go of the tables, and put the rows into copies."""
        cursor, queries = self._cursor, self._site.queries
        parameters = {"schema": self._schema, "tables": list(self.tables)}
        if not self._trusted:
            cursor.execute(queries["RunsOthers"], parameters)
            if (others := cursor.fetchone()) is not None:
                raise Refusal(
                    f"a row of {others[0]} cannot be copied without running a function that is not Postgres's"
                    f" own, for the column {others[1]}: it would have our rights; test without --database, on"
                    " a throw-away server"
                )
        cursor.execute(queries["Definitions"], parameters)
        for row in cursor.fetchall():
            one = _ColumnOf(*map(_frozen, row))
            self.columns[one.table].append(one)
        rows = self._sample()
        cursor.execute(queries["Constraints"], parameters)
        demands: dict[str, list[str]] = {}
        for table, definition in cursor.fetchall():
            demands.setdefault(table, []).append(definition.removesuffix(" NOT VALID"))
        for table, columns in self.columns.items():
            lines = ", ".join([*(one.definition for one in columns), *demands.get(table, ())])
            create = f"CREATE TEMPORARY TABLE {self._copy(table)} ({lines.replace('%', '%%')})"
            cursor.execute(create, ())
            given = [number for number, one in enumerate(columns) if not one.generated]
            names = ", ".join(quote_name(columns[number].name) for number in given).replace("%", "%%")
            places = ", ".join(["%s"] * len(given))
            for values in rows[table]:
                self._attempt(
                    f"INSERT INTO {self._copy(table)} ({names}) VALUES ({places})",
                    [values[number] for number in given],
                )
        self.types = describe(self.mapping, cursor)

    def _sample(self) -> dict[str, list[_Values]]:
        """Return some rows of each table that belong together: those of a few endpoints, as far as keys lead
        to them; of a small table all.
        """
        rows: dict[str, dict[_Values, None]] = {}
        searched: list[str] = []
        for table in self.tables:
            found = self._rows(table, "true", [], _MOST_ROWS + 1)
            rows[table] = dict.fromkeys(found[:_MOST_ROWS])
            if len(found) > _MOST_ROWS:
                searched.append(table)
                rows[table].clear()
        links = self._links() if searched else set()
        for _ in range(_ROUNDS if searched else 0):
            for table in self.tables:
                linking = self._linking(table)
                if table in searched and linking:
                    names = [quote_name(self.columns[table][number].name) for number in linking]
                    having = " OR ".join(f"{name}::pg_catalog.text = ANY (%s)" for name in names)
                    found = self._rows(table, having, [sorted(links)] * len(linking), _MOST_ROWS)
                    rows[table] |= dict.fromkeys(found[: _MOST_ROWS - len(rows[table])])
                links |= {value for row in rows[table] for at in linking if (value := row[at]) is not None}
        return {table: list(of_table) for table, of_table in rows.items()}

    def _links(self) -> set[str]:
        """Return the keys that stand in a few endpoints."""
        mapping = self._site.database.mapping
        printed = ", ".join(
            f"pg_catalog.format('%%s', first.{column})" for column in _LINKS if column in mapping.columns
        )
        some = f"SELECT {printed} FROM (\n{mapping.queries['Endpoints']}\n) AS first LIMIT {_FIRST_ENDPOINTS}"
        found = self._released(f"{mapping.locks};\n{some}", {})
        return {value for row in found or () for value in row if value}

    def _linking(self, table: str) -> list[int]:
        """Return the positions of the columns that refer to other rows."""
        rules = self.mapping.rules[table]
        named = {rule.column for rule in rules} | {rule.row for rule in rules}
        return [at for at, one in enumerate(self.columns[table]) if one.linking or one.name in named]

    def _rows(self, table: str, condition: str, parameters: list[Any], most: int) -> list[_Values]:
        printed = ", ".join(one.printed for one in self.columns[table])
        name = f"{quote_name(self._schema)}.{quote_name(table)}".replace("%", "%%")
        found = self._released(f"SELECT {printed} FROM {name} WHERE {condition} LIMIT {most}", parameters)
        if found is None:
            found = self._released(f"SELECT {printed} FROM {name} LIMIT {most}", ()) or []
        return found

    def _released(self, query: str, parameters: Any) -> list[_Values] | None:
        """Run a query, and let go of its locks. None if it took too long."""
        cursor = self._cursor
        cursor.execute(f"SAVEPOINT sample; SET LOCAL statement_timeout = '{_SCAN_SECONDS}s'")
        found: list[_Values] | None = None
        try:
            cursor.execute(query, parameters)
            found = cursor.fetchall()
        except psycopg2.errors.QueryCanceled:
            pass
        cursor.execute("ROLLBACK TO SAVEPOINT sample; RELEASE SAVEPOINT sample")
        return found

    def rows(self, table: str) -> list[tuple[str, _Values]]:
        """Return the copied rows of a table, each with its place."""
        printed = ", ".join(one.printed for one in self.columns[table])
        self._cursor.execute(f"SELECT ctid::pg_catalog.text, {printed} FROM {self._copy(table)}", ())
        return [(place, tuple(values)) for place, *values in self._cursor.fetchall()]

    def update(self, table: str, place: str, row: _Values, column: _ColumnOf, value: str | None) -> _Values:
        """Change a column of a row; returns the row as it is then, the same one where that cannot be."""
        printed = ", ".join(one.printed for one in self.columns[table])
        name = quote_name(column.name).replace("%", "%%")
        update = (
            f"UPDATE {self._copy(table)} SET {name} = %s WHERE ctid = %s::pg_catalog.tid RETURNING {printed}"
        )
        found = self._attempt(update, [value, place])
        return tuple(found[0]) if found else row

    def delete(self, table: str, place: str) -> None:
        """Delete a row."""
        self._cursor.execute(f"DELETE FROM {self._copy(table)} WHERE ctid = %s::pg_catalog.tid", [place])

    def _attempt(self, statement: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]] | None:
        """Run a statement, which a value may forbid; returns its rows, or None."""
        cursor = self._cursor
        cursor.execute("SAVEPOINT attempt")
        try:
            cursor.execute(statement, parameters)
        except (psycopg2.DataError, psycopg2.IntegrityError):
            cursor.execute("ROLLBACK TO SAVEPOINT attempt")
            return None
        found = cursor.fetchall() if cursor.description else []
        cursor.execute("RELEASE SAVEPOINT attempt")
        return found

    def all(self) -> _Map:
        """Return what the mapping says of the copies."""
        return self._read(self.mapping.full(self.types.columns, self.types.id_type), {})

    def some(self, keys: Mapping[str, Iterable[str]], mapping: EndpointMapping | None = None) -> _Map:
        """Return what a re-query of keys brings: no rows for an id that is gone."""
        given = {parameter(kind): [literal(kind, one) for one in values] for kind, values in keys.items()}
        mapping = mapping or self.mapping
        return self._read(mapping.compose(list(keys), self.types.columns, self.types.id_type), given)

    def _read(self, statement: str, parameters: Mapping[str, Any]) -> _Map:
        found: _Map = {}
        as_bytes(self._raw)
        self._raw.execute(statement, parameters)
        for row in self._raw.fetchall()[1:]:
            if row[2] is not None:
                rows = found.setdefault(row[2], [])
                rows += [repr(row[4:])] if row[3] else []
        for rows in found.values():
            rows.sort()
        return found

    def parents(self, rules: Iterable[Rule]) -> _Loaded:
        """Return what the memory of parents would have of the copies."""
        loaded: _Loaded = {}
        for rule in rules:
            if rule.parents is not None:
                as_bytes(self._raw)
                self._raw.execute(self.types.list_as_printed(self.mapping.queries[rule.parents]), {})
                loaded[rule] = [
                    (as_printed(row).decode(), None if key is None else as_printed(key).decode())
                    for row, key in self._raw
                ]
        return loaded

    def _copy(self, table: str) -> str:
        return f"{_TEMPORARY}.{quote_name(table)}".replace("%", "%%")


@dataclass(frozen=True)
class _Followed:
    """The replica identities that tables have, or may have, and what that makes of the rules."""

    identities: Mapping[str, tuple[str, ...]]
    rules: Mapping[str, tuple[Rule, ...]]

    @classmethod
    def of(cls, relations: Relations, mapping: EndpointMapping) -> _Followed:
        identities = {one.mapped: one.identity for one in relations.all if not one.partitioned}
        return cls(identities, relations.rules(mapping.rules))

    def remembering(self) -> list[Rule]:
        """Return the rules whose rows' parents are remembered."""
        return [rule for of_table in self.rules.values() for rule in of_table if rule.parents is not None]


class Changes:
    """Tries changes, and counts what came of them."""

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
        """Try everything. Changes are named by table and column; a row that comes or goes has no column."""
        least, most = _ROWS_TRIED
        for table in self._copies.tables:
            rows = self._copies.rows(table)
            for place, row in rows[:most]:
                self._try((table, ""), row, partial(self._copies.delete, table, place))
            for at, column in enumerate(self._copies.columns[table]):
                for number, (place, row) in enumerate(rows[:most] if not column.generated else ()):
                    if number >= least and self.altering[table, column.name]:
                        break
                    for value in _values(column, row[at], (one[at] for _, one in rows)):
                        change = partial(self._copies.update, table, place, row, column, value)
                        self._try((table, column.name), row, change)

    def _try(self, what: tuple[str, str], row: _Values, change: Callable[[], _Values | None]) -> None:
        """Make a change, see whether it is found, take it back, and see whether that is found."""
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

    def _all(self, what: tuple[str, str]) -> _Map | None:
        """Return what the mapping says now; None if it cannot be read, because of what is in the rows."""
        self._cursor.execute("SAVEPOINT look")
        try:
            found = self._copies.all()
        except (psycopg2.DataError, psycopg2.errors.CardinalityViolation):
            self._cursor.execute("ROLLBACK TO SAVEPOINT look")
            self.failing.setdefault(what)
            return None
        self._cursor.execute("RELEASE SAVEPOINT look")
        return found

    def _message(self, table: str, followed: _Followed, before: _Values | None, after: _Values | None) -> Row:
        """Return what a slot would send."""
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
        memory: _Loaded,
        held: _Map,
        now: _Map,
    ) -> None:
        """Hold what a server that held one map would have after a message against what it should have."""
        affected, parents = Affected(), Parents()
        parents.load(memory, Lsn(0))
        try:
            affected.add(message, followed.rules[message.table])
            parents.resolve(affected, Lsn(1))
        except MessageError:
            return  # it is answered with a reconcile
        if affected.reconcile:
            return
        missed = self._unlike(affected.keys, self._copies.mapping, held, now)
        if missed:
            of_kind = self.missed.setdefault(what, _Missed())
            of_kind.ids |= dict.fromkeys(sorted(missed))
            of_kind.only_by_column &= not self._unlike(affected.keys, self._by_id, held, now)

    def _unlike(
        self, keys: Mapping[str, Iterable[str]], mapping: EndpointMapping, held: _Map, now: _Map
    ) -> set[bytes]:
        """Return the ids that are not what they should be after a re-query of keys; one that fails brings
        nothing.
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
    """Change each column of each table, and see whether affects.toml finds what that alters.

    ``read`` are the columns that `Endpoints` reads, each with its table: changes of theirs should matter. A
    database is ``trusted`` that was made for this.
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
            "Endpoints finds no endpoint in the rows that were looked at, so that no change alters one",
            "write rows into sample.sql, of which it finds some; or correct the query",
        )
        return
    found.run()
    for (table, column), missed in found.missed.items():
        yield _missing(copies.mapping, table, column, missed)
    for table, column in found.failing:
        yield warn(
            f"the query Endpoints fails after {_described(table, column)}: then nothing can be read",
            "have the query return a row whatever is in the tables",
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
            f"no change of {', '.join(unseen)} altered an endpoint among the rows that were looked at, so"
            " that nothing was seen of it",
            "write rows into sample.sql in which it matters",
        )
    if not found.missed:
        yield good(
            f"{found.tried:,} changes of {len(copies.tables)} tables were tried with {len(found.before)}"
            f" endpoints; {found.altering.total():,} altered some, and affects.toml finds them all"
        )


def _missing(mapping: EndpointMapping, table: str, column: str, missed: _Missed) -> Finding:
    """Say which change is missed, and what to type."""
    rules = mapping.rules[table]
    first = in_short(next(iter(missed.ids)).decode("utf-8", "backslashreplace"))
    more = f" and {len(missed.ids) - 1} more" if len(missed.ids) > 1 else ""
    if missed.only_by_column:
        names = ", ".join(rule.query for rule in rules if rule.query in mapping.key_columns)
        remedy = f"take {names} out of key_columns, in affects.toml: it finds no endpoint that is gone"
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
    """Return the columns by which rows are remembered, whose changes need not matter."""
    return {(one.table, one.row) for of_table in mapping.rules.values() for one in of_table if one.row}


def _described(table: str, column: str) -> str:
    return f"an update of {table}.{column}" if column else f"an insert or delete of a row of {table}"


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _values(column: _ColumnOf, now: str | None, of_rows: Iterable[str | None]) -> dict[str | None, None]:
    """Return what to change a value to: what other rows have there, NULL, and something new."""
    others = [one for one in dict.fromkeys(of_rows) if one is not None and one != now][:_OTHERS]
    empty = [None] if now is not None and not column.not_null else []
    return dict.fromkeys([*others, *empty, *column.fresh(now)])


def _followed(site: Site) -> list[_Followed]:
    """Return the tables as they are followed: by the replica identities that they have, and by their primary
    keys, which they have before anybody has chosen another one.
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
