"""``pads-cdc check``: reports whether a database is ready, and suggests what to type if it is not."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from itertools import groupby
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cdc.checks import FURTHER, NECESSARY, Deployment, Verdict, run
from cdc.mapping.folder import server_queries
from cdc.mapping.mapping import load
from cdc.postgres.connection import Address
from cdc.postgres.database import Database
from server.broker.checks import examine
from server.config.redaction import Redactor
from server.payload import encoder

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cdc.checks import Finding
    from server.config.settings import Settings

_COLOURS = {Verdict.PASS: "green", Verdict.WARN: "yellow", Verdict.FAIL: "bold red", Verdict.SKIP: "dim"}

_SKIPPED = 3
"""If more consecutive checks than this are skipped for the same reason, they are printed as one line."""

Found = tuple[str, "Finding"]
"""A check's name, and one of its findings."""


def check(settings: Settings, *, as_json: bool) -> int:
    """Run all checks with the service's settings and print the findings; returns the exit code.

    It changes nothing.

    Raises:
        ConfigurationError: there is no such mapping.

    """
    for line in settings.misspelt():
        click.echo(f"pads-cdc: {line}", err=True)
    found = list(run((*NECESSARY, *FURTHER), deployment(settings)))
    if settings.broker_url is not None:
        found += examine(settings)
    return report(found, Redactor(settings.connection_strings), as_json=as_json)


def report(found: Sequence[Found], redact: Redactor, *, as_json: bool) -> int:
    """Print the findings of a command.

    Return its exit code, which is 1 if one of the findings is a failure.
    """
    failed = any(finding.verdict is Verdict.FAIL for _, finding in found)
    if as_json:
        findings = [
            {
                "check": name,
                "verdict": finding.verdict,
                "text": redact(finding.text),
                "remedy": redact(finding.remedy),
            }
            for name, finding in found
        ]
        click.echo(json.dumps({"ready": not failed, "findings": findings}, indent=2))
    else:
        _show(found, redact)
    return int(failed)


def deployment(settings: Settings) -> Deployment:
    """Return the value that the checks need, made from the service's settings. It opens no connection yet."""
    mapping = load(settings.mapping)
    source, query = settings.postgres_connection_string, settings.query_connection_string
    return Deployment(
        source=Address(source.read, source.setting),
        database=Database(
            Address(query.read, query.setting), mapping, settings.db_schema, encoder(mapping.columns)
        ),
        queries=server_queries(),
        schema=settings.db_schema,
        failover=settings.slot_failover,
        slot_name=settings.slot_name,
        plugin=settings.plugin,
        publication_name=settings.publication,
        max_retained_wal=settings.max_retained_wal,
        state_file=settings.state_file,
        makes_views=True,
    )


def _shown(found: Sequence[Found]) -> Iterator[Found]:
    """Yield the findings to print. Many checks that were skipped for the same reason become one line."""
    for reason, group in groupby(found, _why_skipped):
        rows = [*group]
        if reason is None or len(rows) <= _SKIPPED:
            yield from rows
        else:
            yield f"{len(rows)} checks", rows[0][1]


def _why_skipped(one: Found) -> str | None:
    _, finding = one
    return finding.text if finding.verdict is Verdict.SKIP else None


def _show(found: Sequence[Found], redact: Redactor) -> None:
    """Print a report for people: a table on a terminal, lines elsewhere."""
    console = Console(highlight=False)
    if console.is_terminal:
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("check", no_wrap=True)
        table.add_column("")
        table.add_column("found, and what to type")
        for name, finding in _shown(found):
            text = Text(redact(finding.text))
            if finding.remedy:
                text.append(f"\n→ {redact(finding.remedy)}", style="bold")
            verdict = Text(finding.verdict, style=_COLOURS[finding.verdict])
            table.add_row(name, verdict, text)
        console.print(table)
    else:
        for name, finding in _shown(found):
            click.echo(f"{finding.verdict}  {name}: {redact(finding.text)}")
            if finding.remedy:
                click.echo(textwrap.indent(redact(finding.remedy), "      "))
    counts = Counter(finding.verdict for _, finding in found)
    click.echo(", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict if counts[verdict]))
