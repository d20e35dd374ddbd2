"""``pads-cdc setup`` prepares a database, and ``teardown`` undoes it. Neither command changes a row."""

from __future__ import annotations

import ipaddress
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click
import psycopg2
from psycopg2.errors import InsufficientPrivilege, UndefinedTable
from psycopg2.extensions import encrypt_password

from cdc.checks import NECESSARY, Site, Verdict, run
from cdc.checks.identities import indexes, replica_identity, unique_keys
from cdc.checks.plugin import (
    output_plugin_libraries,
    publication,
    published_columns,
    refused_changes,
)
from cdc.errors import PadsCdcError, Refusal
from cdc.mapping.folder import server_queries
from cdc.mapping.mapping import load
from cdc.mapping.sql_text import quote_name
from cdc.postgres.connection import Address
from cdc.postgres.database import Database
from cdc.postgres.errors import hba_name, translated
from cdc.postgres.session import ask
from cdc.postgres.slot_state import SlotState
from cdc.replication.own_slot import PLUGINS
from server.commands import setup_plan
from server.commands.role_file import RoleFile
from server.commands.setup_marks import literal, made
from server.commands.setup_plan import DatabaseRole, Statement
from server.payload import encoder

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from psycopg2.extensions import connection as Connection  # noqa: N812 - it is a class

    from server.config.connection_string import ConnectionString

ADMIN = "ADMIN_CONNECTION_STRING"
SLOT = "SLOT_CONNECTION_STRING"

_FOR_A_PERSON = ("server_version", "wal_level", "output_plugin_libraries")
"""Checks of server settings that a command should not change, since they need a restart or affect every
client.
"""


@dataclass(frozen=True, kw_only=True)
class Target:
    """The options that the two commands share."""

    admin: ConnectionString
    role: str
    mapping: str
    schema: str
    slot_name: str
    plugin: str
    publication: str
    dry_run: bool

    def site(self) -> Site:
        """Return a site with which the administrator can query the database."""
        address = Address(self.admin.read, ADMIN)
        mapping = load(self.mapping)
        database = Database(address, mapping, self.schema, encoder(mapping.columns))
        return Site(
            source=address,
            database=database,
            queries=server_queries(),
            schema=self.schema,
            slot_name=self.slot_name,
            plugin=self.plugin,
            publication_name=self.publication,
            service_role=self.role,
        )


def setup(target: Target, role_file: str | None) -> int:
    """Run and print each statement that is needed, and return the exit code. Blocks while indexes are built.

    Raises:
        PadsCdcError: a statement failed. The statements before it are printed, and the next run continues.

    """
    site = target.site()
    _writable(site)
    _found(site)
    role = DatabaseRole.ask(site, target.role)
    if setup_plan.publishes(site) and site.chosen is None:
        _note(f"wal2json is not loaded ({_why(site)}): pgoutput will be used, with the publication")
    connection = site.source.connect()
    try:
        file = RoleFile.of(role_file, target.role, connection) if role_file else None
        password = None
        if file is not None and not (role is not None and file.works()):
            password = _password(file, target, role, connection)
        _run(connection, setup_plan.setup(site, target.role, role, password), site, dry_run=target.dry_run)
    finally:
        connection.close()
    _advise(site if target.dry_run else target.site(), target, file)
    return 0


def teardown(target: Target, slot: ConnectionString | None) -> int:
    """Undo `setup` and drop the slot, print each statement, and return the exit code.

    Raises:
        PadsCdcError: the slot is in use or not ours (in both cases nothing was changed), or a statement
        failed.

    """
    site = target.site()
    _writable(site)
    role = DatabaseRole.ask(site, target.role)
    slot_address = Address(slot.read, SLOT) if slot else site.source
    dropped = _drop_slot(slot_address, site, target.slot_name, dry_run=target.dry_run)
    connection = site.source.connect()
    try:
        _run(connection, setup_plan.teardown(site, target.role, role), site, dry_run=target.dry_run)
    finally:
        connection.close()
    for table, name in setup_plan.staying(site):
        _note(f"the replica identity of {table.name} stays: with the earlier one, the publication {name}")
        _note("would make every UPDATE of the table fail; change the publication, then run teardown again")
    if not dropped and slot is None:
        _note(f"no slot {target.slot_name} here; if it is on a standby, give an admin's {SLOT} to that")
    if role is not None and not made(role.comment):
        _note(f"the role {target.role} stays, with its rights: setup did not make it")
    elif role is not None:
        for text, _ in site.ask("Belongings", role=target.role):
            _note(f"the role {target.role} stays: it {text}")
    return 0


def _why(site: Site) -> str:
    error = site.trial(PLUGINS[0]).error
    return str(error).partition("; ")[0] if error is not None else "no slot is free to try it"


def _writable(site: Site) -> None:
    if site.server.in_recovery:
        raise Refusal(f"{ADMIN} names a standby, which takes no changes; give the primary's")


def _found(site: Site) -> None:
    """Raise an error if the mapping's tables do not exist, since no privilege on them could be granted."""
    for name, finding in run([check for check in NECESSARY if check.name in ("connection", "tables")], site):
        if name == "tables" and finding.verdict is Verdict.FAIL:
            raise Refusal(f"{finding.text}; {finding.remedy}")


def _password(file: RoleFile, target: Target, role: DatabaseRole | None, connection: Connection) -> Statement:
    """Return the statement that sets the role's password as a verifier, because statements may be logged."""
    if role is not None and file.new:
        raise Refusal(
            f"the role {target.role} exists, but the file {file.path} does not, and setup does not replace"
            " the role's password unasked; write its connection string to the file, or drop the role by"
            " pads-cdc teardown"
        )
    prefix = f"ALTER ROLE {quote_name(target.role)} PASSWORD"
    shown = f"{prefix} '(a SCRAM verifier of the password in {file.path})';"
    if target.dry_run:
        return Statement(shown)
    file.write()
    verifier = encrypt_password(file.password, target.role, scope=connection, algorithm="scram-sha-256")
    return Statement(f"{prefix} {literal(verifier)};", shown)


def _run(connection: Connection, plan: Iterable[Statement], site: Site, *, dry_run: bool) -> None:
    """Run each statement outside of a transaction, as CREATE INDEX CONCURRENTLY requires."""
    statements = list(plan)
    if not statements:
        _note("nothing to do")
    for statement in statements:
        click.echo(str(statement))
        if not dry_run:
            _execute(connection, statement.sql, site)


def _execute(connection: Connection, statement: str, site: Site) -> None:
    try:
        with translated(site.source.setting), connection.cursor() as cursor:
            cursor.execute(statement)
    except PadsCdcError as error:
        text = str(error).partition("; ")[0]
        _blame_event_trigger(error, site)
        if isinstance(error.__cause__, UndefinedTable):
            folder = site.database.mapping.folder
            raise Refusal(f'{text}; in {folder / "setup.sql"} write :"schema".NAME for a table') from error
        if isinstance(error.__cause__, InsufficientPrivilege):
            raise Refusal(
                f"{text}; give in {ADMIN} a role that owns the tables and may create roles with REPLICATION"
                " (a superuser, or the managed service's administrator)"
            ) from error
        raise


def _blame_event_trigger(error: PadsCdcError, site: Site) -> None:
    """If an event trigger refused a statement, raise an error that says so. Our statements run no other
    functions.

    Raises:
        Refusal: an event trigger refused the statement. The text names it.

    """
    cause = error.__cause__
    if not isinstance(cause, psycopg2.Error) or not cause.diag.context:
        return
    triggers = site.ask("EventTriggers", context=cause.diag.context)
    if triggers:
        off, on = (" ".join(statements) for statements in zip(*triggers, strict=True))
        raise Refusal(
            f"an event trigger of this database refuses a statement: {cause.diag.message_primary}; change the"
            f" trigger, or switch it off during the setup: {off} (and then {on})"
        ) from error


def _drop_slot(address: Address, site: Site, name: str, *, dry_run: bool) -> bool:
    """Drop our slot, but never another one. Return whether it existed."""
    connection = address.connect()
    try:
        with translated(address.setting):
            state = SlotState.of(ask(connection, site.queries["Slot"], {"slot": name}))
            if state is None:
                return False
            if state.plugin not in PLUGINS or state.database != connection.info.dbname:
                raise Refusal(
                    f"the slot {name} is not ours (plugin {state.plugin or 'none'}, database"
                    f" {state.database or 'none'}), and nothing was done; correct SLOT_NAME or the database"
                )
            if state.active_pid is not None:
                raise Refusal(
                    f"the slot {name} is being read by process {state.active_pid}, and nothing was done; stop"
                    " pads-cdc first"
                )
            click.echo(f"SELECT pg_drop_replication_slot({literal(name)});")
            if not dry_run:
                ask(connection, "SELECT pg_drop_replication_slot(%(slot)s)::text", {"slot": name})
    finally:
        connection.close()
    return True


def _advise(site: Site, target: Target, file: RoleFile | None) -> None:
    """Print the steps that only a person can take: the server's settings, keys, and pg_hba.conf."""
    for text in _left(site, dry_run=target.dry_run):
        _note(text)
    _note("pg_hba.conf (the address is that of this command; write the service's in its place):")
    _note(f"  {hba_line(site, target.role)}")
    _note(f"no other line should match {target.role}: with REPLICATION, a line for the database")
    _note('"replication" would let it copy the whole cluster')
    if file is None:
        _note(f"{target.role} has been given no password: use --role-file, or authenticate it in another way")
    else:
        _note(f"next: POSTGRES_CONNECTION_STRING_FILE={shlex.quote(str(file.path))} pads-cdc check")


def _left(site: Site, *, dry_run: bool) -> Iterator[str]:
    asked = [check.ask for check in NECESSARY if check.name in _FOR_A_PERSON]
    further = [unique_keys]
    if dry_run and site.chosen is None:  # without --dry-run the publication would exist
        asked = [question for question in asked if question is not output_plugin_libraries]
    if not dry_run:
        further += [replica_identity, indexes, publication, refused_changes, published_columns]
    for question in (*asked, *further):
        for finding in question(site):
            if finding.verdict is not Verdict.PASS:
                yield f"left for you: {finding.text}: {finding.remedy}"


def hba_line(site: Site, role: str) -> str:
    """Return the line of pg_hba.conf that lets the role connect to this database only."""
    names = f"{hba_name(site.server.database)} {hba_name(role)}"
    if site.server.client is None:
        return f"local {names} scram-sha-256"
    client = ipaddress.ip_network(site.server.client)
    return f"{'hostssl' if site.server.ssl else 'host'} {names} {client} scram-sha-256"


def _note(text: str) -> None:
    click.echo(f"-- {text}")
