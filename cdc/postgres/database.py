"""The query server: composes the statements of reads, and decides how each read is made.

`cdc.postgres.read` describes a read.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from cdc.errors import PadsCdcError, Refusal, SourceError
from cdc.mapping.key_types import literal, parameter
from cdc.mapping.outside_types import OutsideType, search_path
from cdc.mapping.sql_text import tables
from cdc.postgres import statements
from cdc.postgres.column_types import ColumnTypes, as_bytes, as_printed, describe
from cdc.postgres.connections import Connections
from cdc.postgres.encoding import Encoding
from cdc.postgres.errors import LOCKED
from cdc.postgres.prepared import MOST_KEYS, blames, forbids
from cdc.postgres.read import FIRST_CHUNK, Read, most_at_once

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from psycopg2.extensions import cursor as Cursor  # noqa: N812 - it is a class

    from cdc.mapping.mapping import Mapping as EndpointMapping
    from cdc.mapping.mapping import Rule
    from cdc.postgres.connection import Address
    from cdc.postgres.gate import Evidence

_Result = TypeVar("_Result")

_ONE_BY_ONE = 60.0
"""If a statement failed because it was prepared, it is planned for each read during this number of seconds.
"""


@dataclass(frozen=True)
class ParentRows:
    """The pairs of row id and parent that a query lists, and the server that listed them."""

    rows: Sequence[tuple[str, str | None]]
    before: Evidence
    """The evidence of a snapshot that may be older than that of the rows, from the same transaction."""
    after: Evidence
    """The evidence of a snapshot that may be newer, from the same transaction."""


class Database:
    """The query server, from which the mapping is read. Only one thread reads; other threads fetch rows for
    it in advance. Any thread may end a statement that runs on the `connections`.
    """

    def __init__(
        self,
        address: Address,
        mapping: EndpointMapping,
        schema: str,
        encode: Callable[[tuple[Any, ...]], bytes],
        wake: Callable[[], object] = lambda: None,
    ) -> None:
        """``encode`` makes the payload from the mapping's fixed columns.

        ``wake`` is called from another thread when a read no longer has to wait (`Read.waiting`).
        """
        self.address = address
        self.connections = Connections(address)
        self.mapping = mapping.within(schema)
        self.schema = schema
        self._names: str | None = None
        self.encode = encode
        self.wake = wake
        self._not_kept: dict[str, float] = {}
        """Statements that failed because they were prepared, each with the monotonic time until which it is
        not prepared again.
        """
        self._composed: dict[tuple[str, ...], str] = {}
        """Statements by the kinds of their keys. They are valid for the current `types`."""
        self._types: ColumnTypes | None = None

    def read(self, keys: Mapping[str, Collection[str]] | None = None, *, at_once: bool = True) -> Read:
        """Read the endpoints that keys stand for, or the whole mapping if ``keys`` is None. ``keys`` are by
        kind.

        Blocks until the first rows arrive. Without ``at_once``, blocks only until the snapshot is known (see
        `Read.waiting`). The caller must check the evidence against its gate before it uses a row, and must
        close the read.

        Raises:
            SourceError, Refusal: nothing was read. This does not mean that the endpoints are deleted.

        """
        return self._patiently(partial(self._begin_for, keys, at_once=at_once))

    def _begin_for(self, keys: Mapping[str, Collection[str]] | None, *, at_once: bool) -> Read:
        if keys is None:
            self._names = None
        types = self.types
        if keys is None:
            statement, parameters = self.mapping.full(types.columns, types.id_type), {}
        else:
            kinds = tuple(sorted(keys))
            if kinds not in self._composed:
                self._composed[kinds] = self.mapping.compose(kinds, types.columns, types.id_type)
            statement = self._composed[kinds]
            parameters = {parameter(kind): [literal(kind, value) for value in keys[kind]] for kind in kinds}
            if at_once and sum(map(len, keys.values())) <= MOST_KEYS:
                return self._read_few(statement, parameters)
        return self._begin(statement, parameters, first=FIRST_CHUNK if at_once else 0)

    def _read_few(
        self, statement: str, parameters: Mapping[str, Sequence[str]], *, locks: bool = True
    ) -> Read:
        """Read a few rows with a prepared statement, or with an ordinary one if it cannot be prepared."""
        if time.monotonic() < self._not_kept.get(statement, 0.0):
            return self._begin(statement, parameters, locks=locks)
        try:
            read = self._begin(statement, parameters, keep=True, locks=locks)
        except PadsCdcError as error:
            if not blames(error):
                raise
            read = self._begin(statement, parameters, locks=locks)
            if forbids(error):
                self._not_kept[statement] = time.monotonic() + _ONE_BY_ONE
        if read.complete:
            return read
        read.close()  # an id has very many rows, which need a cursor
        return self._begin(statement, parameters, locks=locks)

    def _begin(
        self,
        statement: str,
        parameters: Mapping[str, Any],
        *,
        first: int = FIRST_CHUNK,
        keep: bool = False,
        locks: bool = True,
    ) -> Read:
        """Begin a read. Only a statement that reads no table may do without ``locks``."""
        return Read(
            self.connections,
            statement,
            parameters,
            locks=self.mapping.locks if locks else "",
            names=self.names() if locks else "",  # may query the server, on another connection
            encode=self.encode,
            in_thread=self.in_thread,
            first=first,
            keep=keep,
        )

    def _patiently(self, work: Callable[[], _Result]) -> _Result:
        """Return the result of ``work``, which reads tables of the mapping and waits for no lock (`AT_ONCE`).

        If another session holds a lock, wait for our locks one after the other, while none of them is held,
        and then repeat the work once. The wait ends at the first lock that is not available within 0.4 s.
        """
        try:
            return work()
        except SourceError as error:
            if error.reason != LOCKED:
                raise
        with suppress(PadsCdcError):
            parameters = {"schema": self.mapping.db_schema, "tables": list(self.mapping.reads)}
            self.query(self.mapping.wait_for_locks, parameters)
        return work()

    def open(self) -> Future[Read]:
        """Open a read of the whole mapping in another thread, because its first rows may take long.

        If another read starts before the result is available, the order of the two snapshots is unknown.
        """
        return self.in_thread("open", self.read)

    def in_thread(self, name: str, work: Callable[[], _Result]) -> Future[_Result]:
        """Run ``work`` in a new thread, and call `wake` when it is done.

        The thread is a daemon, so that a frozen server cannot keep the process from ending.
        """
        done: Future[_Result] = Future()

        def run() -> None:
            try:
                done.set_result(work())
            except BaseException as error:  # noqa: BLE001 - the future raises it
                done.set_exception(error)
            self.wake()

        threading.Thread(target=run, name=name, daemon=True).start()
        return done

    @property
    def at_once(self) -> int:
        """A read of fewer rows than this number needs only one round trip."""
        return min(FIRST_CHUNK, most_at_once(self.connections))

    def evidence(self) -> Evidence:
        """Return the evidence that a read would have now.

        Raises:
            SourceError, Refusal: the server does not answer.

        """
        with self._read_few(self.mapping.header, {}, locks=False) as read:
            return read.evidence

    def parents(self, rules: Collection[Rule]) -> dict[Rule, ParentRows]:
        """Read the pairs of row id and parent for each rule. Blocks until all pairs are read.

        Raises:
            SourceError, Refusal: nothing was read.

        """
        found: dict[Rule, ParentRows] = {}
        for rule in rules:
            if rule.parents is not None:
                query = self.mapping.queries[rule.parents]
                found[rule] = self._patiently(partial(self._all_parents, query))
        return found

    def _all_parents(self, query: str) -> ParentRows:
        """Return the row ids and parents that a query lists, printed as the slot prints them. A parent that
        is NULL is None.
        """
        locks = self.names() + statements.lock(self.mapping.locks)
        declare = statements.declare(self.types.list_as_printed(query))
        connections = self.connections
        connection = connections.take()
        found: list[tuple[str, str | None]] = []
        with connections.or_closed(connection):
            encoding = Encoding.of(connection)
            begin, key = statements.begin(connection) + statements.unconverted(encoding), encoding.key
            with connections.running(connection) as cursor:
                before = self._present(cursor, begin + locks)
                cursor.execute(declare, {})
            more = True
            while more:
                with connections.running(connection) as cursor:
                    as_bytes(cursor)
                    cursor.execute(statements.fetch(most_at_once(connections)))
                    found += (
                        (key(as_printed(row)), None if parent is None else key(as_printed(parent)))
                        for row, parent in cursor
                    )
                    more = cursor.rowcount > 0
            with connections.running(connection) as cursor:
                after = self._present(cursor)
                cursor.execute("COMMIT")
        connections.give_back(connection)
        return ParentRows(found, before, after)

    def _present(self, cursor: Cursor, begin: str = "") -> Evidence:
        """Return the evidence of a new snapshot within a transaction. ``begin`` are its first statements."""
        as_bytes(cursor)
        cursor.execute(begin + self.mapping.header, {})
        return statements.evidence(cursor.fetchone() or (None,))

    def names(self) -> str:
        """Return the statement that sets the search path for types of other schemas. It is empty if there are
        no such types.

        The types are looked up again for each read of the whole mapping.

        Raises:
            Refusal: another role could replace an operator in such a schema.
            SourceError: the server does not answer.

        """
        names = self._names
        if names is None:
            types = self.outside_types()
            for one in types:
                if one.fault is not None:
                    raise Refusal(f"{one}; {one.remedy}")
            path = search_path(types)
            names = self._names = f"SET LOCAL search_path = {path};\n".replace("%", "%%") if path else ""
        return names

    def outside_types(self) -> list[OutsideType]:
        """Return the types of the mapping's columns whose operators are in other schemas than ``pg_catalog``.

        Raises:
            SourceError, Refusal: nothing was read.

        """
        columns = tables(self.mapping.schema)
        parameters = {
            "schema": self.mapping.db_schema,
            "tables": list(self.mapping.reads),
            "columns": [f"{table}.{column}" for table in self.mapping.reads for column in columns[table]],
        }
        return [OutsideType(*row) for row in self.query(self.mapping.outside_types, parameters)]

    def query(self, statement: str, parameters: Mapping[str, Any] | None = None) -> list[tuple[Any, ...]]:
        """Run a statement that reads no table of the mapping, with the settings of a read. Return all rows.

        Raises:
            SourceError, Refusal: nothing was read.

        """
        with self.connections.transaction() as cursor:
            cursor.execute(statements.begin(cursor.connection) + statement, {**(parameters or {})})
            rows: list[tuple[Any, ...]] = cursor.fetchall()
        return rows

    def query_tables(
        self, statement: str, parameters: Mapping[str, Any] | None = None
    ) -> list[tuple[Any, ...]]:
        """Run a statement that reads tables of the mapping, and return all rows. It waits for no lock
        (`AT_ONCE`), so the caller has to repeat it.

        Raises:
            SourceError, Refusal: nothing was read.

        """
        return self.query(f"{statements.AT_ONCE};{statement}", parameters)

    def plan(self, statement: str, parameters: Mapping[str, Any]) -> None:
        """Make the server plan a statement as it would for a read, without reading any row.

        Raises:
            SourceError, Refusal: the server cannot plan it.

        """
        self._patiently(partial(self._plan, statement, parameters))

    def _plan(self, statement: str, parameters: Mapping[str, Any]) -> None:
        names = self.names()
        with self.connections.transaction() as cursor:
            begin = statements.begin(cursor.connection) + names + statements.lock(self.mapping.locks)
            cursor.execute(begin + statements.declare(statement), {**parameters})

    @property
    def types(self) -> ColumnTypes:
        """The types of the mapping's columns, which decide how statements are composed.

        They are looked up before the first read, and again after `forget_types`.

        Raises:
            SourceError, Refusal: the types cannot be looked up.

        """
        if (known := self._types) is not None:
            return known
        names = self.names()
        with self.connections.transaction() as cursor:
            begin = statements.begin(cursor.connection) + names + statements.lock(self.mapping.locks)
            cursor.execute(begin, {})
            types = self._types = describe(self.mapping, cursor)
        return types

    def forget_types(self) -> None:
        """Look up `types` and `names` again at the next read, since the tables may have changed."""
        self._types = self._names = None
        self._composed.clear()
        self._not_kept.clear()

    def close(self) -> None:
        """Close all connections, because the server has changed or is shutting down. A connection in use is
        closed after its read.
        """
        self.connections.close()
