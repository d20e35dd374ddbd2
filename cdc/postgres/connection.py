"""Opens connections, with a limit on every wait and a name that identifies us in ``pg_stat_activity``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import psycopg2
from psycopg2.extras import LogicalReplicationConnection

from cdc import lsn
from cdc.errors import PadsCdcError
from cdc.postgres import refused, session
from cdc.postgres.errors import not_connected, translated
from cdc.postgres.timeline import Timeline, parse_switches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from psycopg2.extensions import connection as PlainConnection  # noqa: N812 - it is a class
    from psycopg2.extras import ReplicationCursor

    from cdc.lsn import Lsn

_DEFAULTS: dict[str, Any] = {
    "application_name": "pads-cdc",
    "connect_timeout": 5,
    # The connection to a server that has vanished ends after about 20 s, whatever the kernel's defaults are.
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 2,
    "tcp_user_timeout": 20_000,
}
"""Defaults; the connection string overrides them."""

_OPTIONS_REFUSED = frozenset({"08P01", "0A000", "42704"})
"""The SQLSTATEs with which poolers refuse startup options, and servers refuse unknown settings."""


class Address:
    """A server's address: a connection string, which is read again for each connection, and the name of the
    setting that has it.
    """

    def __init__(self, read: Callable[[], str], setting: str) -> None:
        """``read`` returns the connection string, which may come from a file whose content changes."""
        self._read = read
        self.setting = setting
        self._takes_options = True
        """Whether to send our startup options; False once a pooler has refused them."""
        self._version = 0
        """The server's version, as of the last connection. It decides which settings can be sent."""

    def __repr__(self) -> str:
        return f"<Address from {self.setting}>"

    def connect(self) -> PlainConnection:
        """Open an ordinary connection, in autocommit. Blocks for at most the connect timeout (5 s for each
        address).

        Each transaction on the connection must begin with `session.begin`, since a pooler may be in between.

        Raises:
            SourceError, Refusal: the connection cannot be opened.

        """
        connection: PlainConnection = self._open(decoding=False)
        connection.autocommit = True
        return connection

    def connect_replication(self) -> LogicalReplicationConnection:
        """Open a replication connection, which accepts ordinary statements too.

        Raises:
            SourceError, Refusal: the connection cannot be opened.

        """
        connection: LogicalReplicationConnection = self._open(decoding=True)
        try:
            with translated(self.setting), connection.cursor() as cursor:
                cursor.execute(session.for_good(connection))
        except PadsCdcError:
            connection.close()
            raise
        return connection

    def _open(self, *, decoding: bool) -> Any:
        """Connect with as many of our startup options as are accepted. The first attempt sends all options
        that the server's version knows, the next one those that every version knows, and the last one none.
        """
        parameters = self._parameters()
        given = parameters.pop("options", os.environ.get("PGOPTIONS", ""))
        factory = None
        if decoding:
            factory, parameters["replication"] = LogicalReplicationConnection, "database"
        versions = sorted({self._version, 0}, reverse=True) if self._takes_options else []
        tries = [*(session.at_start(given, version, decoding=decoding) for version in versions), given]
        let_in = False
        while True:
            parameters["options"] = tries[0]
            try:
                connection = psycopg2.connect(connection_factory=factory, **parameters)
            except psycopg2.Error as error:
                why = refused.why(parameters) if refused.answered(error) else None
                if why is refused.LET_IN and not let_in:
                    let_in = True
                elif why is not None and why.code in _OPTIONS_REFUSED and len(tries) > 1:
                    tries.pop(0)
                else:
                    raise not_connected(error, why, self.setting, parameters, decoding=decoding) from error
            else:
                self._takes_options, self._version = len(tries) > 1, connection.server_version
                return connection

    def each(self) -> Iterator[tuple[str, Address]]:
        """Yield every host of the connection string, each with an address of only that host."""
        given = psycopg2.extensions.parse_dsn(self._read())
        hosts = given.get("host", "").split(",")
        alone = {name: value for name, value in given.items() if name != "target_session_attrs"}
        for number, host in enumerate(hosts):
            # A single value applies to all hosts.
            own: dict[str, Any] = {
                name: (given[name].split(",") * len(hosts))[number]
                for name in ("host", "hostaddr", "port")
                if name in given
            }
            dsn = psycopg2.extensions.make_dsn(**alone | own)
            yield f"{host}:{own['port']}" if "port" in own else host, Address(_returns(dsn), self.setting)

    def _parameters(self) -> dict[str, Any]:
        given: dict[str, Any] = psycopg2.extensions.parse_dsn(self._read())
        # The plugin sends its messages in the client's encoding, so the connection string must not choose it.
        return {**_DEFAULTS, **given, "client_encoding": "UTF8"}


def _returns(text: str) -> Callable[[], str]:
    return lambda: text


def identify(cursor: ReplicationCursor) -> Timeline:
    """Return a server's timeline and the end of its WAL, queried on a replication connection."""
    cursor.execute("IDENTIFY_SYSTEM")
    [(system, timeline, end, _)] = cursor.fetchall()
    switches: tuple[tuple[int, Lsn], ...] = ()
    if int(timeline) > 1:
        cursor.execute(f"TIMELINE_HISTORY {int(timeline)}")
        [(_, content)] = cursor.fetchall()
        switches = parse_switches(bytes(content).decode() if not isinstance(content, str) else content)
    cursor.execute("SELECT extract(epoch FROM pg_catalog.pg_postmaster_start_time())")
    [(instance,)] = cursor.fetchall()
    return Timeline(system, int(timeline), lsn.parse(end), switches, str(instance))
