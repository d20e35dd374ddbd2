"""Plans the SQL that makes `check` pass, based on the catalog. Nothing here runs the SQL.

Only missing things are planned, so a second `setup` has nothing to do. The GRANT and CREATE INDEX statements
are from the mapping's ``setup.sql``; replica identities follow from its rules. No statement reads or writes
rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cdc.mapping.sql_text import quote_name
from cdc.mapping.tables import column_to_name, followed, wanted_indexes
from cdc.postgres.session import SEARCH_PATH
from cdc.replication import wal2json
from cdc.replication.publication_plan import Kind, repairs
from server.commands.setup_marks import (
    MADE,
    comment_on,
    identity_before,
    made,
    role_name,
    with_choice,
    without_choice,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence
    from collections.abc import Mapping as Map

    from cdc.checks import Site
    from cdc.mapping.tables import Index, Table

_LOCK_TIMEOUT = "SET lock_timeout = '2s';"
"""ALTER TABLE takes a short lock that excludes readers. With this limit it fails, instead of making other
sessions wait behind it for a long time.
"""


@dataclass(frozen=True)
class DatabaseRole:
    """The current state of the service's role."""

    may_login: bool
    may_replicate: bool
    bypasses_row_security: bool
    may_connect: bool
    may_use_schema: bool
    unreadable: tuple[str, ...]
    comment: str | None

    @classmethod
    def ask(cls, site: Site, name: str) -> DatabaseRole | None:
        """Look up the role; return None if it does not exist."""
        mapping = site.database.mapping
        tables = [table.name for table in site.tables if table.top and table.mapped in mapping.reads]
        rows = site.ask("Role", role=name, schema=site.schema, tables=tables)
        if not rows:
            return None
        may_login, may_replicate, bypasses, may_connect, may_use_schema, unreadable, comment = rows[0]
        return cls(
            may_login, may_replicate, bypasses, may_connect, may_use_schema, tuple(unreadable), comment
        )


@dataclass(frozen=True)
class Statement:
    """A statement to run. If it contains a secret, ``shown`` is printed instead."""

    sql: str
    shown: str | None = None

    def __str__(self) -> str:
        return self.shown or self.sql


def setup(
    site: Site, name: str, role: DatabaseRole | None, password: Statement | None
) -> Iterator[Statement]:
    """Yield the statements that are needed, in an order in which they can run. ``password`` sets the
    password.
    """
    steps: list[str | Statement] = [*_role(site, name, role)]
    steps += [password] if password else []
    steps += _grants(site, name, role)
    steps += _indexes(site)
    yield from _session(steps, [*_identities_and_publication(site)])


def publishes(site: Site) -> bool:
    """Return whether `setup` maintains the publication.

    `setup` maintains it if wal2json is not loaded or could not be tried. It also does so if an earlier
    `setup` has made a publication: after a change of an identity, Postgres could refuse updates because of
    that publication.
    """
    ours = site.publication is not None and made(site.publication.comment)
    return site.chosen != wal2json.NAME or ours


def teardown(site: Site, name: str, role: DatabaseRole | None) -> Iterator[Statement]:
    """Yield the statements that undo `setup`. They do not drop the slot, which may be on another server."""
    steps, identities = [*_indexes_back(site.tables)], [*_identities_back(site)]
    if site.publication is not None and made(site.publication.comment):
        # The publication is dropped before identities change, since its column lists may lack the earlier
        # ones.
        identities.insert(0, f"DROP PUBLICATION {quote_name(site.publication_name)};")
    if role is not None and made(role.comment):
        steps += [statement for (statement,) in site.ask("Grants", role=name)]
        if not site.ask("Belongings", role=name):
            steps.append(f"DROP ROLE {quote_name(name)};")
    yield from _session(steps, identities)


def _role(site: Site, name: str, role: DatabaseRole | None) -> Iterator[str]:
    quoted = quote_name(name)
    grants = site.server.on_rds  # on RDS, no role can set the attribute
    if role is None:
        yield f"CREATE ROLE {quoted} LOGIN{'' if grants else ' REPLICATION'};"
        yield comment_on(role_name(name), MADE)
    elif not role.may_login:
        yield f"ALTER ROLE {quoted} LOGIN;"
    if role is None or not role.may_replicate:
        if grants:
            yield f"GRANT rds_replication TO {quoted};"
        elif role is not None:
            yield f"ALTER ROLE {quoted} REPLICATION;"
    mapping = site.database.mapping
    secured = any(t.row_security for t in site.tables if t.top and t.mapped in mapping.reads)
    if secured and not (role and role.bypasses_row_security):
        yield f"ALTER ROLE {quoted} BYPASSRLS;"


def _grants(site: Site, name: str, role: DatabaseRole | None) -> Iterator[str]:
    if not (role.may_connect if role else site.server.open_to_public):
        yield f"GRANT CONNECT ON DATABASE {quote_name(site.server.database)} TO {quote_name(name)};"
    if role is None or not role.may_use_schema or role.unreadable:
        for statement in site.database.mapping.setup_statements(site.schema, name):
            if statement.upper().startswith("GRANT"):
                yield f"{' '.join(statement.split())};"


def _indexes(site: Site) -> Iterator[str]:
    for wanted in wanted_indexes(site.database.mapping):
        for table in wanted.lacked_by(site.tables):
            name = wanted.name_on(table)
            for index in table.indexes:
                if index.raw_name == name and not index.valid:
                    yield f"DROP INDEX CONCURRENTLY {index.full_name};"
            # Not IF NOT EXISTS: an existing index of this name would be skipped, and then marked as ours.
            yield wanted.create_on(table)
            yield comment_on(f"INDEX {table.schema}.{quote_name(name)}", MADE)


def _identities_and_publication(site: Site) -> Iterator[str]:
    """Yield the statements for identities and publication, in an order in which Postgres never refuses an
    UPDATE.

    A table is published only after it has an identity. A published table gets the columns of a new identity
    before that identity is chosen.
    """
    chosen = dict(_chosen(site))
    before = [*_publication(site, site.tables, chosen)] if site.publication is not None else []
    yield from before
    yield from _identities(site.tables, chosen)
    yield from (one for one in _publication(site, [*_with(site.tables, chosen)], {}) if one not in before)


def _publication(site: Site, tables: Sequence[Table], chosen: Map[int, Index]) -> Iterator[str]:
    if not publishes(site):
        return
    name, publication, mapping = site.publication_name, site.publication, site.database.mapping
    ours = publication is None or made(publication.comment)
    columns = {oid: index.columns for oid, index in chosen.items()}
    for repair in repairs(name, publication, tables, mapping, columns):
        if not repair.by_hand and (ours or repair.kind is not Kind.MORE):
            yield repair.remedy
    if publication is None:
        yield comment_on(f"PUBLICATION {quote_name(name)}", MADE)


def _chosen(site: Site) -> Iterator[tuple[int, Index]]:
    """Yield (oid, index) for each table that needs another replica identity."""
    mapping = site.database.mapping
    for table in followed(site.tables, mapping):
        column = column_to_name(mapping, table.mapped) or mapping.rules[table.mapped][0].column
        if column in table.identity:
            continue
        index = table.identifier(column) or (None if table.identity else table.identifier())
        if index is None or (publishes(site) and not {*table.unpublished}.isdisjoint(index.columns)):
            continue  # Postgres would refuse updates, since our publication cannot have all of its columns
        # If not, `check` reports the missing key, or the publication that prevents the identity.
        if not _in_the_way(site, table, index.columns, kept_up=publishes(site)):
            yield table.oid, index


def _in_the_way(site: Site, table: Table, identity: Collection[str] | None, *, kept_up: bool) -> list[str]:
    """Return the publications that would make Postgres refuse updates of a table with this identity.

    An ``identity`` of None stands for REPLICA IDENTITY FULL. ``kept_up`` says that `setup` maintains our own
    publication, which is then left out of the result, because it is changed before the identity is.
    """
    names = site.refusing(table, identity)
    return [name for name in names if not (kept_up and name == site.publication_name)]


def _with(tables: Iterable[Table], chosen: Map[int, Index]) -> Iterator[Table]:
    """Yield the tables as they will be with their new identities."""
    for table in tables:
        index = chosen.get(table.oid)
        if index is None:
            yield table
            continue
        kind = "d" if index.primary else "i"
        indexes = tuple(replace(one, identity=kind == "i" and one == index) for one in table.indexes)
        yield replace(table, identity_kind=kind, indexes=indexes)


def _identities(tables: Iterable[Table], chosen: Map[int, Index]) -> Iterator[str]:
    for table in tables:
        if (index := chosen.get(table.oid)) is not None:
            # The comment comes first. If the second statement fails, `teardown` still finds the mark.
            yield comment_on(f"INDEX {index.full_name}", with_choice(index, table))
            yield f"ALTER TABLE {table.name} REPLICA IDENTITY {_choice(index)};"


def _choice(index: Index) -> str:
    return "DEFAULT" if index.primary else f"USING INDEX {index.name}"


def staying(site: Site) -> Iterator[tuple[Table, str]]:
    """Yield each table whose identity `teardown` cannot restore, with the publication that prevents it."""
    dropped = site.publication is not None and made(site.publication.comment)
    for table in site.tables:
        index = table.identity_index
        before = identity_before(index.comment) if index is not None else None
        if before is not None:
            columns = _columns(table, before)
            yield from ((table, name) for name in _in_the_way(site, table, columns, kept_up=dropped)[:1])


def _columns(table: Table, identity: str) -> Collection[str] | None:
    """Return the columns of an identity, given in ALTER TABLE's syntax; None for FULL."""
    if identity == "FULL":
        return None
    for index in table.indexes:
        if index.primary if identity == "DEFAULT" else identity == f"USING INDEX {index.name}":
            return index.columns
    return ()


def _identities_back(site: Site) -> Iterator[str]:
    stay = {table.oid for table, _ in staying(site)}
    for table in site.tables:
        for index in table.indexes:
            before = identity_before(index.comment)
            if before is None or (index == table.identity_index and table.oid in stay):
                continue
            if index == table.identity_index:
                yield f"ALTER TABLE {table.name} REPLICA IDENTITY {before};"
            yield comment_on(f"INDEX {index.full_name}", without_choice(index.comment))


def _indexes_back(tables: Iterable[Table]) -> Iterator[str]:
    for table in tables:
        for index in table.indexes:
            if made(index.comment):
                yield f"DROP INDEX CONCURRENTLY {index.full_name};"


def _session(steps: Iterable[str | Statement], locking: Iterable[str]) -> Iterator[Statement]:
    """Yield the steps with the settings that they need, so that psql can run the printed statements too."""
    steps, locking = [*steps], [*locking]
    if steps or locking:
        yield Statement(f"SET search_path = {SEARCH_PATH};")
        # Building an index may take long.
        yield Statement("SET statement_timeout = 0;")
    yield from (step if isinstance(step, Statement) else Statement(step) for step in steps)
    if locking:
        yield from map(Statement, (_LOCK_TIMEOUT, *locking))
