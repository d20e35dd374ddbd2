"""The command ``pads-cdc``: parses arguments, calls one function, and turns errors into one-line texts and
exit codes.

Exit codes: 0 done, 1 failed, 2 a wrong argument or setting, 130 interrupted. A command imports its modules
when it runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
import traceback
from contextlib import contextmanager
from importlib.metadata import version
from math import inf, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar

import click

from cdc.errors import ConfigurationError, PadsCdcError
from server.config.redaction import Redactor
from server.signals import ignore_what_passes_by, pass_by

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import TextIO

    from server.commands.setup import Target
    from server.config.connection_string import ConnectionString

_Command = TypeVar("_Command", bound="Callable[..., Any]")

_FAILED: Final = 1
_MISUSED: Final = 2
_INTERRUPTED: Final = 130

_UNWRITABLE: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EPIPE})
"""Error numbers that mean that the standard output cannot be written."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code. Expected errors never show a traceback."""
    code = _run(sys.argv[1:] if arguments is None else list(arguments))
    ignore_what_passes_by()
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    pass_by(signal.SIGUSR1, signal.SIGUSR2)
    secrets: list[ConnectionString] = []  # each command fills this list; no message shows its content

    def complain(text: str, code: int) -> int:
        for line in Redactor(secrets)(text).strip().splitlines():
            _tell(f"pads-cdc: {line}")
        return code

    try:
        with _written():
            return int(cli.main(arguments, prog_name="pads-cdc", standalone_mode=False, obj=secrets) or 0)
    except ConfigurationError as error:
        return complain(str(error), _MISUSED)
    except PadsCdcError as error:
        return complain(str(error), _FAILED)
    except click.exceptions.NoArgsIsHelpError as error:
        _tell(error.format_message())
        return error.exit_code
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "pads-cdc"
        return complain(f"{error.format_message().rstrip('.')}; see {command} --help", error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return _INTERRUPTED
    except Exception:  # noqa: BLE001 (the last boundary: a fault of ours, shown without secrets)
        return complain(f"this is a bug, please report it:\n{traceback.format_exc()}", _FAILED)


def _tell(text: str) -> None:
    """Write a line to the standard error. If it cannot be written, only the exit code reports the error."""
    try:
        click.echo(text, err=True)
    except OSError:
        _give_up(sys.stderr)


def _give_up(stream: TextIO) -> None:
    """Discard what a stream could not write.

    Otherwise the interpreter would try again at its end, and replace the exit code by its own.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextmanager
def _written() -> Iterator[None]:
    """Flush the standard output at the end of a command.

    Raises:
        PadsCdcError: the output cannot be written. If the reader of a pipe has closed it, no error is raised.

    """
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        if error.errno not in _UNWRITABLE or error.filename is not None:
            raise
        _give_up(sys.stdout)
        if error.errno == errno.EPIPE:
            sys.exit(_FAILED)
        raise PadsCdcError(f"cannot write to the standard output: {error.strerror}") from error


_BROKER: Final = (
    "broker_url",
    "broker_stream",
    "broker_replicas",
    "broker_credentials_file",
    "broker_tls_ca_file",
    "broker_tls_cert_file",
    "broker_tls_key_file",
)


class _WithSettings(click.Command):
    """A command with options for all or some of the settings.

    The options are made only when they are needed.
    """

    settings: ClassVar[tuple[str, str]] = ("settings", "Settings")
    """A module in `server.config`, and the name of the settings' class in it."""
    only: ClassVar[frozenset[str] | None] = None
    _made = False

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        if not self._made:
            self.params = [*_options(self.settings, self.only), *self.params]
            self._made = True
        return super().get_params(ctx)


class _WithRelaySettings(_WithSettings):
    settings = ("settings", "RelaySettings")


class _WithAuthorizeSettings(_WithSettings):
    settings = ("authorize_settings", "AuthorizeSettings")


class _WithBroker(_WithSettings):
    """`setup`, with the options for the broker."""

    settings = ("settings", "Serving")
    only: ClassVar = frozenset({*_BROKER, "allow_insecure"})


class _Check(_WithSettings):
    """`check`, with the options that influence its findings."""

    only: ClassVar = frozenset(
        {
            "postgres_connection_string",
            "postgres_connection_string_file",
            "query_connection_string",
            "query_connection_string_file",
            "mapping",
            "db_schema",
            "slot_name",
            "plugin",
            "publication",
            "state_file",
            "max_retained_wal",
            *_BROKER,
        }
    )


def _options(settings: tuple[str, str], only: frozenset[str] | None) -> Sequence[click.Option]:
    from server.config.settings_table import rows  # noqa: PLC0415 (pydantic is most of the start of --version)

    module, name = settings
    options = []
    for row in rows(getattr(importlib.import_module(f"server.config.{module}"), name)):
        if only is not None and row.field not in only:
            continue
        declaration = f"{row.flag}/--no-{row.flag.removeprefix('--')}" if row.switch else row.flag
        default = f"; default: {row.default}" if row.default else ""
        options.append(
            click.Option(
                [declaration, row.field],
                # The text as typed, or None: Settings checks it, as it checks the environment.
                default=None,
                is_flag=row.switch,
                metavar=None if row.switch else "TEXT",
                help=f"{row.description} [{row.environment}{default}]",
            )
        )
    return options


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(version("pads-cdc"), prog_name="pads-cdc")
def cli() -> None:
    """Stream who-may-call-what from Postgres to every gateway, within milliseconds of the commit."""


@cli.command(cls=_WithSettings)
@click.pass_obj
def serve(secrets: list[ConnectionString], /, **flags: Any) -> int | None:
    """Follow the database and serve gateways. An option overrides its environment variable."""
    pass_by(signal.SIGHUP)
    from server.config.commands import Settings  # noqa: PLC0415

    settings = Settings.load(flags)
    secrets.extend(settings.connection_strings)
    from server.serve import serve as run  # noqa: PLC0415

    return run(settings)


@cli.command(cls=_WithRelaySettings)
@click.pass_obj
def relay(_: list[ConnectionString], /, **flags: Any) -> int | None:
    """Serve a leader's map, from a broker or from the leader itself. Needs no database."""
    pass_by(signal.SIGHUP)
    from server.config.commands import RelaySettings  # noqa: PLC0415

    settings = RelaySettings.load(flags)
    from server.relay import relay as run  # noqa: PLC0415

    return run(settings)


@cli.command(cls=_WithAuthorizeSettings)
@click.pass_obj
def authorize(_secrets: list[ConnectionString], /, **flags: Any) -> int:
    """Answer Envoy's ext_authz from the feed. An option overrides its environment variable."""
    pass_by(signal.SIGHUP)
    from server.config.commands import AuthorizeSettings  # noqa: PLC0415

    settings = AuthorizeSettings.load(flags)
    from server.commands.authorize import authorize as run  # noqa: PLC0415

    return run(settings, flags)


@cli.command(cls=_Check)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for machines.")
@click.pass_obj
def check(secrets: list[ConnectionString], /, *, as_json: bool, **flags: Any) -> int:
    """Say whether this database is ready, and what to type if it is not. Changes nothing.

    Connects as the service will. Exits with 0, with 1 if a check fails, or with 2 if a setting is wrong.
    """
    from server.config.commands import Settings  # noqa: PLC0415

    settings = Settings.load(flags)
    secrets.extend(settings.connection_strings)
    from server.commands.check import check as run  # noqa: PLC0415

    return run(settings, as_json=as_json)


def _setting(flag: str, help_: str, default: str | None = None) -> Callable[[_Command], _Command]:
    """Make an option that is also an environment variable, for commands without a class of settings."""
    variable = flag.removeprefix("--").replace("-", "_").upper()
    return click.option(
        flag, envvar=variable, default=default, show_envvar=True, show_default=default is not None, help=help_
    )


_db_schema = _setting("--db-schema", "Schema that holds the mapping's tables.", "public")


def _for_admins(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that `setup` and `teardown` share."""
    for option in (
        click.option("--dry-run", is_flag=True, help="Print the SQL without running it."),
        _db_schema,
        _setting("--mapping", "The mapping that will be served.", "grove"),
        _setting("--publication", "The publication, for the plugin pgoutput.", "pads_cdc"),
        _setting("--slot-name", "The service's slot; teardown drops it.", "pads_cdc"),
        click.option("--role", default="pads_cdc", show_default=True, help="The service's role."),
        _setting("--admin-connection-string-file", "The file that holds ADMIN_CONNECTION_STRING."),
        _setting(
            "--admin-connection-string", "The primary, and a role that owns the tables and may create roles."
        ),
    ):
        command = option(command)
    return command


def _target(secrets: list[ConnectionString], given: dict[str, Any]) -> Target:
    """Combine the options that `setup` and `teardown` share into one value."""
    from server.commands.setup import ADMIN, Target  # noqa: PLC0415

    admin = _connection_string(secrets, ADMIN, given)
    if admin is None:
        raise ConfigurationError(
            f"{ADMIN} (--admin-connection-string): is required, also as {ADMIN}_FILE; for example"
            f" {ADMIN}=postgresql://USER:PASSWORD@HOST:5432/DATABASE"
        )
    return Target(
        admin=admin,
        role=given["role"],
        mapping=given["mapping"],
        schema=given["db_schema"],
        slot_name=given["slot_name"],
        plugin=given.get("plugin", "auto"),
        publication=given["publication"],
        dry_run=given["dry_run"],
    )


def _connection_string(
    secrets: list[ConnectionString], name: str, given: dict[str, Any]
) -> ConnectionString | None:
    """Return a connection string given as a value or as a file, and add it to ``secrets``."""
    from server.config.connection_string import ConnectionString  # noqa: PLC0415

    value, file = given[name.lower()], given[f"{name.lower()}_file"]
    if value is None and file is None:
        return None
    found = ConnectionString(name, value=value, file=file)
    secrets.append(found)
    found.read()
    return found


@cli.group()
def mapping() -> None:
    """Write a mapping of your own, and test it (docs/mappings.md)."""


@mapping.command()
@click.argument("folder", type=click.Path(path_type=Path))
def new(folder: Path) -> int:
    """Write a mapping into FOLDER, with comments, for you to edit. It works as it is; no file is replaced."""
    from server.commands.mapping.new import new as run  # noqa: PLC0415

    return run(folder)


@mapping.command()
@click.argument("folder")
@click.option("--database", metavar="URL", help="Test on this database, in place of a throw-away server.")
@click.option("--database-file", metavar="FILE", help="The file that holds its connection string.")
@_db_schema
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for machines.")
@click.pass_obj
def test(
    secrets: list[ConnectionString], /, folder: str, db_schema: str, *, as_json: bool, **given: Any
) -> int:
    """Test whether the mapping in FOLDER is right and finds every change. The test changes each column of
    each table that the mapping reads, and affects.toml must find the endpoints that this alters.

    By default it uses a throw-away server, with schema.sql and the rows of sample.sql (or made-up ones). With
    --database it uses copies of some rows of your tables, in temporary tables: it changes no row, runs no
    trigger, and gives up where it would wait for a lock. That needs a primary and the privilege TEMPORARY.
    Exits with 0, with 1 if something is wrong, or with 2 if an argument is wrong.
    """
    database = _connection_string(secrets, "DATABASE", given)
    from server.commands.mapping.trial import test as run  # noqa: PLC0415

    return run(folder, database, db_schema, as_json=as_json)


@cli.command(cls=_WithBroker)
@_for_admins
@click.option(
    "--plugin",
    type=click.Choice(["auto", "wal2json", "pgoutput"], case_sensitive=False),
    envvar="PLUGIN",
    default="auto",
    show_envvar=True,
    show_default=True,
    help="The plugin that will decode. pgoutput needs the publication, and so does auto without wal2json.",
)
@click.option(
    "--role-file",
    help="File for the role's connection string; written, with a new password, if it does not exist yet.",
)
@click.pass_obj
def setup(secrets: list[ConnectionString], /, role_file: str | None, **given: Any) -> int:
    """Make a database ready: a role that may read, replica identities, a publication, indexes. Touches no
    row.

    Run it as often as you like: it does only what is missing, and prints each statement. With BROKER_URL it
    creates the stream for relays, too.
    """
    from server.commands.setup import setup as run  # noqa: PLC0415
    from server.config.settings import Serving  # noqa: PLC0415

    broker = Serving.load({name: given.pop(name) for name in (*_BROKER, "allow_insecure")})
    target = _target(secrets, given)
    code = run(target, role_file)
    if code == 0 and broker.broker_url is not None:
        from server.broker.setup import make_stream  # noqa: PLC0415

        make_stream(broker, dry_run=target.dry_run)
    return code


@cli.command()
@_for_admins
@_setting("--slot-connection-string", "Where the slot is, if that is a standby; by default the primary.")
@_setting("--slot-connection-string-file", "The file that holds SLOT_CONNECTION_STRING.")
@click.pass_obj
def teardown(secrets: list[ConnectionString], /, **given: Any) -> int:
    """Drop the slot, and undo what setup did: role, grants, publication, indexes, identities.

    Touches no row.
    """
    from server.commands.setup import SLOT  # noqa: PLC0415
    from server.commands.setup import teardown as run  # noqa: PLC0415

    return run(_target(secrets, given), _connection_string(secrets, SLOT, given))


@cli.command()
@click.argument("target", default="127.0.0.1:10002")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON for each event, for pipes.")
@click.option(
    "--resume", metavar="TOKEN", help="Begin where an earlier --json stopped: a checkpoint's resume_token."
)
@click.option("--until-synced", is_flag=True, help="Exit with 0 once everything has arrived and is verified.")
@click.option(
    "--protocol",
    type=click.Choice(["feed", "old"]),
    default="feed",
    show_default=True,
    help="The endpoint feed, or what clients of the legacy contract see.",
)
@click.option("--ca-file", help="Speak TLS, and trust the certificates in this file.")
@click.option("--cert-file", help="Certificate to show, where the server wants mutual TLS; with --key-file.")
@click.option("--key-file", help="Its key.")
@click.option("--token-file", help="Show the bearer token in this file; with --ca-file, or on this machine.")
def watch(target: str, **options: Any) -> int | None:
    """Show live what the server at TARGET (host:port) sends, until Ctrl-C. Never shows a key."""
    from server.commands.watch import run  # noqa: PLC0415

    return run(target, **options)


class _Seconds(click.ParamType[float]):
    """How long a demo runs."""

    name = "SECONDS"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            seconds = float(value)
        except ValueError:
            seconds = nan
        if not 1 <= seconds < inf:
            self.fail(f"{value!r} is not a number of seconds, 1 or more; for example 20", param, ctx)
        return seconds


@cli.command()
@click.option("--seconds", type=_Seconds(), help="Stop after this time; by default at Ctrl-C.")
@click.option("--plain", is_flag=True, help="Print lines instead of the live view; for logs and CI.")
@click.option(
    "--envoy", is_flag=True, help="Start a real Envoy with `pads-cdc authorize` too, and send requests to it."
)
@click.option(
    "--relays",
    type=click.IntRange(0, 8),
    default=0,
    metavar="N",
    help="Start a real NATS server and N relays too, and move a subscriber between server and relays.",
)
def demo(seconds: float | None, plain: bool, envoy: bool, relays: int) -> int | None:
    """Show pads-cdc at work: a throw-away Postgres, a workload, the server, a subscriber, and the proof."""
    from server.commands.demo import run  # noqa: PLC0415

    return run(seconds, plain, envoy, relays)
