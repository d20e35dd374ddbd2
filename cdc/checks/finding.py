"""Checks, their findings, and the servers that they query."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay, wait_fixed

from cdc.checks.census import Census
from cdc.checks.trial import Trial, try_plugin
from cdc.errors import PadsCdcError, SourceError, gives_way
from cdc.mapping import tables
from cdc.mapping.key_types import TEXT, of_columns
from cdc.postgres.errors import translated
from cdc.postgres.session import ask
from cdc.postgres.slot_state import SlotState
from cdc.replication.own_slot import AUTO, PLUGINS
from cdc.replication.publication import Publication, Restriction

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
    from pathlib import Path

    from cdc.mapping.key_types import KeyType
    from cdc.mapping.mapping import Rule
    from cdc.mapping.tables import Table
    from cdc.postgres.column_types import ColumnTypes
    from cdc.postgres.connection import Address
    from cdc.postgres.database import Database


class Verdict(StrEnum):
    """The result of a check."""

    PASS = "pass"  # noqa: S105 - not a password
    WARN = "warn"
    """It works, but slower or less safely than it could."""
    FAIL = "fail"
    """It does not work, or loses changes."""
    SKIP = "skip"
    """It cannot be checked before something else is fixed."""


@dataclass(frozen=True)
class Finding:
    """A finding of a check. Its texts never contain a connection string or a key."""

    verdict: Verdict
    text: str
    remedy: str = ""
    """The SQL or the setting to type, or what else to do."""


def good(text: str) -> Finding:
    """Return a finding without a fault."""
    return Finding(Verdict.PASS, text)


def warn(text: str, remedy: str) -> Finding:
    """Return a finding for something that could be better."""
    return Finding(Verdict.WARN, text, remedy)


def fail(text: str, remedy: str) -> Finding:
    """Return a finding for something that must be fixed."""
    return Finding(Verdict.FAIL, text, remedy)


@dataclass(frozen=True)
class Server:
    """The row of the query `Server`: facts about a server, and about our role on it."""

    major: int
    in_recovery: bool
    database: str
    role: str
    superuser: bool
    on_rds: bool
    client: str | None
    """Our address as the server sees it; None if we connect through a Unix socket."""
    ssl: bool
    wal_level: str
    output_plugins: str | None
    """output_plugin_libraries, the plugins that may be loaded; None if the server has no such setting."""
    slots_most: int
    slots_used: int
    senders_most: int
    senders_used: int
    keep_bytes: int | None
    """max_slot_wal_keep_size in bytes; None without a limit."""
    idle_timeout: str | None
    """idle_replication_slot_timeout, as Postgres writes it; None without one."""
    feedback: bool
    """hot_standby_feedback."""
    primary_slot: str
    """primary_slot_name; empty if there is none."""
    syncs_slots: bool
    """sync_replication_slots: whether a standby copies the primary's failover slots."""
    waited_for: str
    """synchronized_standby_slots: the standbys' slots that readers of failover slots wait for."""
    names_database: bool | None
    """Whether primary_conninfo has a dbname; None if our role may not see it."""
    open_to_public: bool
    """Whether every role may connect to the database."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """The servers and the mapping that the necessary checks look at. Answers are cached."""

    source: Address
    database: Database
    queries: dict[str, str] = field(repr=False)
    schema: str
    slot_name: str
    plugin: str = AUTO
    """One of `PLUGINS`, or `AUTO`."""
    publication_name: str
    """The publication for pgoutput."""
    failover: bool = False
    """Whether standbys are to keep the slot (SLOT_FAILOVER)."""
    service_role: str | None = None
    """The role that `serve` will have, if it is not ours."""
    makes_views: bool = False
    """Whether a check may make temporary views, which are rolled back. False for `serve`, whose checks write
    nothing.
    """

    def ask(self, query: str, **parameters: Any) -> list[tuple[Any, ...]]:
        """Run a query on the slot's server, in a session of its own.

        Raises:
            SourceError, Refusal: the server does not answer.

        """
        connection = self.source.connect()
        try:
            with translated(self.source.setting):
                return ask(connection, self.queries[query], parameters)
        finally:
            connection.close()

    def read(self, query: str, **parameters: Any) -> list[tuple[Any, ...]]:
        """Run a query on the query server, with the settings of the re-queries.

        Raises:
            SourceError, Refusal: the server does not answer.

        """
        return self.database.query(self.queries[query], parameters)

    def forget(self) -> None:
        """Forget all answers, since the tables may have changed."""
        for name, one in vars(type(self)).items():
            if isinstance(one, cached_property):
                self.__dict__.pop(name, None)
        self.database.forget_types()

    @cached_property
    def server(self) -> Server:
        """The slot's server."""
        [row] = self.ask("Server")
        return Server(*row)

    @cached_property
    def output_plugins(self) -> str | None:
        """The plugins that the service's role may load; None if there is no list, or we may not see it."""
        listed = self.server.output_plugins
        if listed is None or self.service_role is None:
            return listed
        name = "output_plugin_libraries"
        of_role = self.ask("RoleSetting", role=self.service_role, name=name)
        return str(of_role[0][0]) if of_role else listed

    def servers(self) -> Iterator[tuple[str, Server]]:
        """Yield each host of the slot's connection string that answers, with its `Server`.

        ``target_session_attrs`` is ignored.
        """
        for host, address in self.source.each():
            with suppress(PadsCdcError):
                [row] = replace(self, source=address).ask("Server")
                yield host, Server(*row)

    @cached_property
    def reader(self) -> Server:
        """The query server, and our role there."""
        [row] = self.read("Server")
        return Server(*row)

    @cached_property
    def types(self) -> ColumnTypes:
        """The types of the columns that the mapping reads."""
        return self.database.types

    @cached_property
    def kinds(self) -> dict[str, tuple[Rule, KeyType]]:
        """For each kind of key: a rule whose keys are of this kind, and the type of the keys."""
        mapping = self.database.mapping
        rules = [rule for of_table in mapping.rules.values() for rule in of_table]
        columns = sorted({rule.column for rule in rules})
        types = of_columns(
            self.read("KeyColumns", schema=self.schema, tables=list(mapping.tables), columns=columns)
        )
        kinds: dict[str, tuple[Rule, KeyType]] = {}
        for rule in rules:
            of_column = types.get((rule.table, rule.column), TEXT)
            kinds.setdefault(of_column.kind(rule.query), (rule, of_column))
        return kinds

    @cached_property
    def typed_queries(self) -> dict[str, str]:
        """The queries of the mapping, with keys of the types that their columns have."""
        return self.database.mapping.typed_queries(self.kinds)

    def described(self, column: str) -> str:
        """Return the name of a column of `Endpoints`, and of the table's column that it shows, if it shows
        one.
        """
        table, number = self.types.sources.get(column, (0, 0))
        found = self.read("ColumnName", table=table, number=number)
        return f"{column}, from {found[0][0]}," if found else column

    @cached_property
    def census(self) -> Census:
        """The counts of all rows of the mapping."""
        return Census.take(self.database, self.queries["Blocked"])

    @cached_property
    def tables(self) -> tuple[Table, ...]:
        """The mapping's tables, on the query server."""
        return tables.look(self.read, self.database.mapping, self.schema)

    @cached_property
    def slot(self) -> SlotState | None:
        """Our slot; None if it does not exist."""
        return SlotState.of(self.ask("Slot", slot=self.slot_name))

    @cached_property
    def chosen(self) -> str | None:
        """The plugin of the slot, or the plugin with which it would be created; None if none can be used."""
        if self.plugin != AUTO:
            return self.plugin
        if self.slot is not None and self.slot.plugin in PLUGINS:
            return self.slot.plugin
        first, last = PLUGINS
        if self.trial(first).loads is not False:
            return first
        return last if self.publication is not None else None

    def trial(self, plugin: str) -> Trial:
        """Make the slot's server load a plugin. It is tried only once."""
        if plugin not in self._trials:
            self._trials[plugin] = try_plugin(self.source, self.queries["TryPlugin"], plugin)
        return self._trials[plugin]

    @cached_property
    def _trials(self) -> dict[str, Trial]:
        return {}

    @cached_property
    def publication(self) -> Publication | None:
        """The publication with its tables; None if it does not exist."""
        name = self.publication_name
        return Publication.of(
            name, self.ask("Publication", publication=name, slot=self.slot_name, tables=None)
        )

    @cached_property
    def restrictions(self) -> tuple[Restriction, ...]:
        """The demands of all publications, ours and others, on the tables' replica identities."""
        rows = self.ask("Restrictions", tables=[table.oid for table in self.tables])
        return tuple(
            Restriction(oid, name, None if columns is None else tuple(columns), filtered)
            for oid, name, columns, filtered in rows
        )

    def refusing(self, table: Table, identity: Collection[str] | None) -> list[str]:
        """Return the publications that would make Postgres refuse updates of a table if it had this replica
        identity. An ``identity`` of None stands for REPLICA IDENTITY FULL.
        """
        return [
            one.publication for one in self.restrictions if one.oid == table.oid and one.refuses(identity)
        ]


@dataclass(frozen=True, kw_only=True)
class Deployment(Site):
    """A site, and further settings of the server that is to run there."""

    max_retained_wal: int
    """MAX_RETAINED_WAL, in bytes."""
    state_file: Path


At_contra = TypeVar("At_contra", bound=Site, contravariant=True)


@dataclass(frozen=True)
class Check(Generic[At_contra]):
    """A check: a name, and a function that yields at least one finding."""

    name: str
    ask: Callable[[At_contra], Iterable[Finding]]
    needs: tuple[str, ...] = ()
    """Checks that must not have failed: otherwise this one could not run, or would find the same fault."""


PATIENCE = 10.0
"""Seconds after which nothing is tried again because of other sessions' locks."""
_PAUSE = 0.5
"""Seconds between two attempts."""


def patiently(until: float, before_sleep: Callable[[RetryCallState], None] | None = None) -> Retrying:
    """Return a caller that calls again if another session holds a lock or has ended the query.

    After the monotonic time ``until``, no new attempt begins.
    """
    return Retrying(
        retry=retry_if_exception(gives_way),
        stop=stop_after_delay(until - time.monotonic()),
        wait=wait_fixed(_PAUSE),
        before_sleep=before_sleep,
        reraise=True,
    )


def run(checks: Sequence[Check[At_contra]], at: At_contra) -> Iterator[tuple[str, Finding]]:
    """Run all checks, even after a failure. Yields each finding with the name of its check.

    A check that raises an error fails with the error's text. If another session holds a lock or ended the
    query, the check is repeated for a while. Blocks while the servers answer.
    """

    def forget(_: RetryCallState) -> None:
        if isinstance(at, Site):
            at.forget()

    unmet: set[str] = set()
    until = time.monotonic() + PATIENCE
    for check in checks:
        missing = [name for name in check.needs if name in unmet]
        if missing:
            unmet.add(check.name)
            yield check.name, Finding(Verdict.SKIP, f"skipped until {missing[0]} passes")
            continue
        try:
            findings = patiently(until, forget)(lambda check=check: tuple(check.ask(at)))
        except PadsCdcError as error:
            findings = (_failed(error),)
        if any(finding.verdict is Verdict.FAIL for finding in findings):
            unmet.add(check.name)
        yield from ((check.name, finding) for finding in findings)


def _failed(error: PadsCdcError) -> Finding:
    """Turn an error, whose text is a fault, a semicolon and the remedy, into a finding."""
    text, _, remedy = str(error).partition("; ")
    if isinstance(error, SourceError):
        remedy = remedy or "run the check again once that is over"
    return fail(text, remedy)
