"""``pads-cdc mapping test``: tests whether a mapping is right and finds all changes. It changes nothing."""

from __future__ import annotations

import time
import tomllib
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from cdc.checks import Check, Finding, Site, Verdict, identities, run, types
from cdc.checks import mapping as questions
from cdc.checks.changes import changes
from cdc.checks.dependencies import Dependencies, Listed
from cdc.checks.finding import PATIENCE, fail, good, patiently
from cdc.errors import ConfigurationError
from cdc.mapping.folder import folder_of, read_queries, server_queries
from cdc.mapping.mapping import load
from cdc.postgres.connection import Address
from cdc.postgres.database import Database
from server.commands.check import report
from server.commands.mapping import scratch
from server.config.redaction import Redactor
from server.payload import encoder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from cdc.mapping.mapping import Mapping
    from server.commands.check import Found
    from server.config.connection_string import ConnectionString

DATABASE: Final = "--database"
"""The name of the connection string in messages."""


_NOT_BEFORE: Final = Finding(Verdict.SKIP, "skipped until the failed checks above pass")


def test(name_or_path: str, given: ConnectionString | None, schema: str, *, as_json: bool) -> int:
    """Test a mapping on the given database, or on a throw-away server, and print the findings.

    Returns the exit code. Blocks for some seconds.

    Raises:
        PadsCdcError: there is no such folder, or the database cannot be used.

    """
    folder = folder_of(name_or_path)
    if given is not None:
        found = [*examine(folder, Address(given.read, given.setting), schema)]
    else:
        with scratch.server() as url:
            found = [*on_scratch(folder, url, schema)]
    return report(found, Redactor([given] if given else []), as_json=as_json)


def on_scratch(folder: Path, url: str, schema: str) -> Iterator[Found]:
    """Fill an empty database from a mapping's folder, and test the mapping there."""
    try:
        scratch.fill(url, folder, schema)
    except ConfigurationError as error:
        fault, _, remedy = str(error).partition("; ")
        yield "schema", fail(fault, remedy or "correct it")
        yield "mapping", _NOT_BEFORE
        return
    yield "schema", good("schema.sql creates its tables, and there are rows in them")
    yield from examine(folder, Address(lambda: url, DATABASE), schema, partial(scratch.set_up, url))


def examine(
    folder: Path,
    address: Address,
    schema: str,
    set_up: Callable[[Mapping, str], None] | None = None,
) -> Iterator[Found]:
    """Test the mapping in a folder on a database. Before the last checks, ``set_up`` prepares the database.

    Raises:
        SourceError, Refusal: the database cannot be queried.

    """
    try:
        queries = read_queries(folder)
        listed = Listed.of(_affects(folder / "affects.toml"))
    except ConfigurationError as error:
        yield "mapping", fail(str(error), "correct it")
        return

    def ask() -> Dependencies:
        with closing(address.connect()) as connection:
            return Dependencies.ask(connection, server_queries(), queries, schema, address.setting)

    read: Dependencies = patiently(time.monotonic() + PATIENCE)(ask)
    judged = [*read.judge(listed, schema)]
    yield from (("dependencies", finding) for finding in judged)
    if any(finding.verdict is Verdict.FAIL for finding in judged):
        yield "mapping", _NOT_BEFORE
        return
    try:
        mapping = load(str(folder))
        if set_up is not None:
            set_up(mapping, schema)
    except ConfigurationError as error:
        yield "mapping", fail(str(error), "correct it")
        return
    yield "mapping", good("its files fit together")
    columns = frozenset(
        (relation.name, column) for relation in read.of_query["Endpoints"] for column in relation.columns
    )
    with closing(Database(address, mapping, schema, encoder(mapping.columns))) as database:
        site = Site(
            source=address,
            database=database,
            queries=server_queries(),
            schema=schema,
            slot_name="",
            publication_name="",
        )
        tried = partial(changes, read=columns, trusted=set_up is not None)
        yield from run((*_QUESTIONS, Check("changes", tried, _SOUND)), site)


def _affects(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigurationError(f"{path}: not TOML: {error}") from error


_SOUND: Final = (
    "tables",
    "select",
    "row_security",
    "operators",
    "statements",
    "column_types",
    "key_types",
    "ids",
)
_READABLE: Final = _SOUND[:4]
_QUESTIONS: Final[tuple[Check[Site], ...]] = (
    Check("tables", questions.tables),
    Check("select", questions.select, _SOUND[:1]),
    Check("row_security", questions.row_security, _SOUND[:1]),
    Check("soft_delete", questions.soft_delete, _SOUND[:1]),
    Check("operators", questions.operators, _SOUND[:1]),
    Check("statements", questions.statements, _READABLE),
    Check("column_types", types.column_types, _SOUND[:5]),
    Check("key_types", types.key_types, _SOUND[:5]),
    Check("ids", questions.ids, _SOUND[:5]),
    Check("odd_rows", questions.odd_rows, _SOUND[:7]),
    Check("replica_identity", identities.replica_identity, _SOUND[:1]),
    Check("unique_keys", identities.unique_keys, _SOUND[:1]),
    Check("indexes", identities.indexes, _SOUND[:5]),
)
