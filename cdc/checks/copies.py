"""Copies of some rows of a mapping's tables, on which changes can be tried (`cdc.checks.changes`).

The copies are temporary tables, so no trigger runs and no other session waits for them. The rows are read
first, one table at a time. Each table is read under a savepoint, and its rollback releases the table's lock.
The copies have the CHECK and key constraints of their tables, but no foreign keys, since only some of the
rows are copied.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import psycopg2

from cdc.errors import Refusal
from cdc.mapping.key_types import literal, parameter
from cdc.mapping.sql_text import quote_name
from cdc.postgres.column_types import as_bytes, as_printed, describe

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from psycopg2.extensions import cursor as Cursor  # noqa: N812 - it is a class

    from cdc.checks.finding import Site
    from cdc.mapping.affects_file import Rule
    from cdc.mapping.mapping import Mapping as EndpointMapping

_MOST_ROWS: Final = 60
"""Maximum number of rows of a table that are copied."""
_LONGEST_ROW: Final = 1 << 20
"""Maximum bytes of a row that is copied."""
_LONGEST_KEY: Final = 1_000
"""Maximum characters of a key that is followed."""
_ROUNDS: Final = 3
"""Number of times that the search follows keys from the rows that it found, such as from applications to
accounts, and from there to plans.
"""
_FIRST_ENDPOINTS: Final = 20
"""Number of endpoints whose keys the search begins with."""
_SCAN_SECONDS: Final = 5
"""Time limit for the search of one table, in seconds. After it, the table's first rows are copied instead."""
_TEMPORARY: Final = "pg_temp"
_LINKS: Final = ("endpoint_id", "account_id", "plan_type", "user_id")
"""Columns of `Endpoints` whose values may be keys of other tables. The API key is never one of them."""

_FRESH: Final[Mapping[str, tuple[str, ...]]] = {
    "S": ("another", "~"),
    "D": ("2001-02-03",),
    "T": ("1 day",),
    "I": ("192.0.2.1",),
    "A": ("{}",),
}
"""Values that hardly any row has, by the category of the type."""
_FRESH_BY_NAME: Final[Mapping[str, tuple[str, ...]]] = {
    "uuid": ("00000000-0000-4000-8000-00000000beef",),
    "json": ("{}",),
    "jsonb": ("{}",),
    "bytea": ("\\x00",),
}

Values = tuple["str | None", ...]
MappingRows = dict[bytes, list[str]]
"""The mapping's rows by id. They are compared and never shown."""
Loaded = dict["Rule", list[tuple[str, str | None]]]


@dataclass(frozen=True)
class ColumnOf:
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

    @classmethod
    def of(cls, row: Iterable[Any]) -> ColumnOf:
        """Read one row."""
        values: list[Any] = [tuple(value) if isinstance(value, list) else value for value in row]
        return cls(*values)

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
        """SQL for the column's value as the server prints it, in psycopg2's form."""
        name = quote_name(self.name).replace("%", "%%")
        return f"CASE WHEN {name} IS NOT NULL THEN pg_catalog.format('%%s', {name}) END"

    def fresh(self, now: str | None, of_rows: Collection[str | None]) -> Iterator[str]:
        """Yield values that differ from ``now``, if the type is known. A number also differs from those
        ``of_rows``, since the column may be a key.
        """
        if self.category == "B":
            yield "f" if now == "t" else "t"
        elif self.labels:
            yield from (label for label in self.labels if label != now)
        elif self.category == "N":
            now_and_taken = {_number(one) for one in (now, *of_rows)}
            following = (_number(now) + step for step in range(1, len(now_and_taken) + 1))
            yield from islice((str(one) for one in following if one not in now_and_taken), 1)
        else:
            yield from _FRESH_BY_NAME.get(self.type_name, _FRESH.get(self.category, ()))


def _number(text: str | None) -> Decimal:
    """Return the number that a value prints as, or 6 if it prints as none: NULL, NaN, infinity, money."""
    try:
        number = Decimal(text or "")
    except InvalidOperation:
        return Decimal(6)
    return number if number.is_finite() else Decimal(6)


class Copies:
    """Copies of rows, and the mapping over them. The copies exist until the end of the transaction."""

    def __init__(self, site: Site, cursor: Cursor, *, trusted: bool) -> None:
        """Copy nothing yet: `make` makes the copies, within the cursor's transaction.

        Unless the database is ``trusted``, no function that the tables' owners have defined may run.
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
        self.columns: dict[str, list[ColumnOf]] = {table: [] for table in self.tables}

    def make(self) -> None:
        """Read rows, release the locks of their tables, and put the rows into copies."""
        cursor, queries = self._cursor, self._site.queries
        parameters = {"schema": self._schema, "tables": list(self.tables)}
        if not self._trusted:
            cursor.execute(queries["RunsOthers"], parameters)
            if (others := cursor.fetchone()) is not None:
                raise Refusal(
                    f"a row of {others[0]} cannot be copied without running a function that is not Postgres'"
                    f" own, for the column {others[1]}, with our rights; test without --database, on a"
                    " throw-away server"
                )
        cursor.execute(queries["Definitions"], parameters)
        for row in cursor.fetchall():
            one = ColumnOf.of(row)
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

    def _sample(self) -> dict[str, list[Values]]:
        """Return some rows of each table that belong together: the rows of a few endpoints, found by their
        keys. Return all rows of a small table.
        """
        rows: dict[str, dict[Values, None]] = {}
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
        """Return the keys in the columns of a few endpoints."""
        mapping = self._site.database.mapping
        printed = ", ".join(
            f"pg_catalog.left(pg_catalog.format('%%s', first.{column}), {_LONGEST_KEY})"
            for column in _LINKS
            if column in mapping.columns
        )
        some = f"SELECT {printed} FROM (\n{mapping.queries['Endpoints']}\n) AS first LIMIT {_FIRST_ENDPOINTS}"
        found = self._released(f"{mapping.locks};\n{some}", {})
        return {value for row in found or () for value in row if value}

    def _linking(self, table: str) -> list[int]:
        """Return the positions of the columns that may refer to other rows."""
        rules = self.mapping.rules[table]
        named = {rule.column for rule in rules} | {rule.row for rule in rules}
        return [at for at, one in enumerate(self.columns[table]) if one.linking or one.name in named]

    def _rows(self, table: str, condition: str, parameters: list[Any], most: int) -> list[Values]:
        columns = self.columns[table]
        printed = ", ".join(f"{one.printed} AS value_{number}" for number, one in enumerate(columns))
        name = f"{quote_name(self._schema)}.{quote_name(table)}".replace("%", "%%")
        length = " + ".join(
            f"coalesce(pg_catalog.octet_length(value_{number}), 0)" for number in range(len(columns))
        )

        def some(condition: str) -> str:
            # With OFFSET, the server prints each value once.
            rows = f"SELECT {printed} FROM {name} WHERE {condition} OFFSET 0"
            return f"SELECT * FROM ({rows}) AS printed WHERE {length} <= {_LONGEST_ROW} LIMIT {most}"

        found = self._released(some(condition), parameters)
        if found is None:
            found = self._released(some("true"), ()) or []
        return found

    def _released(self, query: str, parameters: Any) -> list[Values] | None:
        """Run a query, release its locks, and return its rows; None if it took too long."""
        cursor = self._cursor
        cursor.execute(f"SAVEPOINT sample; SET LOCAL statement_timeout = '{_SCAN_SECONDS}s'")
        found: list[Values] | None = None
        try:
            cursor.execute(query, parameters)
            found = cursor.fetchall()
        except psycopg2.errors.QueryCanceled:
            pass
        cursor.execute("ROLLBACK TO SAVEPOINT sample; RELEASE SAVEPOINT sample")
        return found

    def rows(self, table: str) -> list[tuple[str, Values]]:
        """Return the copied rows of a table, each with its place (ctid)."""
        printed = ", ".join(one.printed for one in self.columns[table])
        self._cursor.execute(f"SELECT ctid::pg_catalog.text, {printed} FROM {self._copy(table)}", ())
        return [(place, tuple(values)) for place, *values in self._cursor.fetchall()]

    def update(self, table: str, place: str, row: Values, column: ColumnOf, value: str | None) -> Values:
        """Change a column of a row. Return the new row, or the old one if a constraint forbids the change."""
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
        """Run a statement and return its rows; None if a constraint or a type rejects a value."""
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

    def all(self) -> MappingRows:
        """Return the rows of the mapping over the copies."""
        return self._read(self.mapping.full(self.types.columns, self.types.id_type), {})

    def some(self, keys: Mapping[str, Iterable[str]], mapping: EndpointMapping | None = None) -> MappingRows:
        """Return the result of a re-query of keys, by id. An id that is gone has no rows."""
        given = {parameter(kind): [literal(kind, one) for one in values] for kind, values in keys.items()}
        mapping = mapping or self.mapping
        return self._read(mapping.compose(list(keys), self.types.columns, self.types.id_type), given)

    def _read(self, statement: str, parameters: Mapping[str, Any]) -> MappingRows:
        found: MappingRows = {}
        as_bytes(self._raw)
        self._raw.execute(statement, parameters)
        for row in self._raw.fetchall()[1:]:
            if row[2] is not None:
                rows = found.setdefault(row[2], [])
                rows += [repr(row[4:])] if row[3] else []
        for rows in found.values():
            rows.sort()
        return found

    def parents(self, rules: Iterable[Rule]) -> Loaded:
        """Return the memory of parents for the copied rows."""
        loaded: Loaded = {}
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
