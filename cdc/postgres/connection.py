"""How we connect: limits on every wait, and a name that an administrator finds in ``pg_stat_activity``."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import psycopg2
from psycopg2.extras import LogicalReplicationConnection

from cdc import lsn
from cdc.postgres.errors import translated
from cdc.postgres.timeline import Timeline, parse_switches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from psycopg2.extensions import connection as PlainConnection  # noqa: N812 - it is a class
    from psycopg2.extras import ReplicationCursor

    from cdc.lsn import Lsn

_DEFAULTS: dict[str, Any] = {
    "application_name": "pads-cdc",
    "connect_timeout": 5,
    # A peer that is gone without a word is given up after some 20 s, whatever the kernel's own patience is.
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 2,
    "tcp_user_timeout": 20_000,
}
"""Weaker than what the connection string says itself."""

_DECODING = "-c TimeZone=UTC -c DateStyle=ISO -c statement_timeout=0 -c lock_timeout=0"


class Address:
    """Where a server is: a connection string that is read anew each time, and the setting that it came
    from.
    """

    def __init__(self, read: Callable[[], str], setting: str) -> None:
        """``read`` returns the connection string; it may come from a file whose content changes."""
        self._read = read
        self.setting = setting

    def __repr__(self) -> str:
        return f"<Address from {self.setting}>"

    def connect(self) -> PlainConnection:
        """Open an ordinary connection, in autocommit. Blocks for up to the connect timeout (5 s an address).

        Raises:
            SourceError, Refusal: it cannot be had.

        """
        with translated(self.setting):
            connection: PlainConnection = psycopg2.connect(**self._parameters())
            connection.autocommit = True
        return connection

    def connect_replication(self) -> LogicalReplicationConnection:
        """Open a replication connection; it takes ordinary statements too.

        Raises:
            SourceError, Refusal: it cannot be had.

        """
        parameters = self._parameters()
        # Settings of the decoding session change how values are written: fix those that could.
        parameters["options"] = f"{parameters.get('options', '')} {_DECODING}".strip()
        with translated(self.setting):
            connection: LogicalReplicationConnection = psycopg2.connect(
                connection_factory=LogicalReplicationConnection, **parameters
            )
        return connection

    def each(self) -> Iterator[tuple[str, Address]]:
        """Yield every host that the connection string names, with where only that one is."""
        given = psycopg2.extensions.parse_dsn(self._read())
        hosts = given.get("host", "").split(",")
        alone = {name: value for name, value in given.items() if name != "target_session_attrs"}
        for number, host in enumerate(hosts):
            # One value may stand for all hosts.
            own: dict[str, Any] = {
                name: (given[name].split(",") * len(hosts))[number]
                for name in ("host", "hostaddr", "port")
                if name in given
            }
            dsn = psycopg2.extensions.make_dsn(**alone | own)
            yield f"{host}:{own['port']}" if "port" in own else host, Address(_returns(dsn), self.setting)

    def _parameters(self) -> dict[str, Any]:
        given: dict[str, Any] = psycopg2.extensions.parse_dsn(self._read())
        # The plugin's messages come in the client's encoding: it is not the connection string's to choose.
        return {**_DEFAULTS, **given, "client_encoding": "UTF8"}


def _returns(text: str) -> Callable[[], str]:
    return lambda: text


def identify(cursor: ReplicationCursor) -> Timeline:
    """Ask a server, on a replication connection, which history it is on, and how far."""
    cursor.execute("IDENTIFY_SYSTEM")
    [(system, timeline, end, _)] = cursor.fetchall()
    switches: tuple[tuple[int, Lsn], ...] = ()
    if int(timeline) > 1:
        cursor.execute(f"TIMELINE_HISTORY {int(timeline)}")
        [(_, content)] = cursor.fetchall()
        switches = parse_switches(bytes(content).decode() if not isinstance(content, str) else content)
    return Timeline(system, int(timeline), lsn.parse(end), switches)


def cancel_soon(connection: PlainConnection) -> None:
    """Ask the server to end what runs on a connection, without waiting: a frozen server would not even answer
    that.
    """

    def cancel() -> None:
        with suppress(psycopg2.Error):  # it has ended by itself
            connection.cancel()

    threading.Thread(target=cancel, name="cancel", daemon=True).start()
