"""The demo's database: the portal's tables with data, and the role that the server connects as."""

from __future__ import annotations

import secrets
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg2
from pads_cdc_client.pb.gateway_endpoint_pb2 import CAPACITY_LIMIT_PERIOD_MONTHLY, GatewayEndpoint
from psycopg2.sql import SQL, Identifier, Literal

from cdc.checks import Site
from cdc.mapping.folder import server_queries
from cdc.mapping.mapping import load
from cdc.postgres.connection import Address
from cdc.postgres.database import Database
from cdc.replication import pgoutput
from server.commands import setup_plan
from server.payload import encoder

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection  # noqa: N812 - it is a class
    from psycopg2.extensions import cursor as Cursor  # noqa: N812 - it is a class

    from server.commands.demo.cluster import Cluster
    from server.commands.setup_plan import Statement

PLUGIN = pgoutput.NAME
"""The demo's plugin. Every server has it, and with it no API key enters the replication stream."""

_NAME = "portal"
_STREAMER = "streamer"
_MAPPING = load("grove")

Endpoints = dict[str, GatewayEndpoint]


@dataclass(frozen=True)
class Portal:
    """Connection strings of the demo's database. They contain passwords."""

    owner: str = field(repr=False)
    """For the portal's owner."""
    streamer: str = field(repr=False)
    """For the server's role, with REPLICATION and SELECT on the mapping's tables."""

    def connect(self) -> Connection:
        """Open a session as the portal's owner."""
        return psycopg2.connect(self.owner)


def create(cluster: Cluster) -> Portal:
    """Create the database, its role and its data, in about a second."""
    portal = Portal(cluster.url(_NAME), cluster.url(_NAME, _STREAMER, password := secrets.token_urlsafe(16)))
    with closing(_administer(cluster.url())) as session, session.cursor() as cursor:
        cursor.execute(SQL("CREATE DATABASE {}").format(Identifier(_NAME)))
        cursor.execute(
            SQL("CREATE ROLE {} LOGIN REPLICATION PASSWORD {}").format(
                Identifier(_STREAMER), Literal(password)
            )
        )
    with closing(_administer(portal.owner)) as session, session.cursor() as cursor:
        cursor.execute(_MAPPING.schema)
        cursor.execute((Path(__file__).parent / "fill.sql").read_text(encoding="utf-8"))
        for statement in _setup(portal):
            cursor.execute(statement.sql.replace("%", "%%"), ())
    return portal


def _setup(portal: Portal) -> list[Statement]:
    """Return the statements of `pads-cdc setup`: grants, indexes, replica identities and the publication."""
    address = Address(lambda: portal.owner, "ADMIN_CONNECTION_STRING")
    site = Site(
        source=address,
        database=Database(address, _MAPPING, "public", encoder(_MAPPING.columns)),
        queries=server_queries(),
        schema="public",
        slot_name="pads_cdc",
        plugin=PLUGIN,
        publication_name="pads_cdc",
    )
    try:
        return [*setup_plan.setup(site, _STREAMER, setup_plan.DatabaseRole.ask(site, _STREAMER), None)]
    finally:
        site.database.close()


def endpoints(cursor: Cursor, column: str | None = None, value: str | None = None) -> Endpoints:
    """Return the current result of the mapping's query, or only the rows whose ``column`` is equal to
    ``value``.

    The server's map is compared with this result, so this code shares only the query with the server.
    """
    where = SQL("") if column is None else SQL("WHERE {} = %(value)s").format(Identifier(column))
    query = SQL("SELECT * FROM (\n{}\n) AS mapping ").format(SQL(_MAPPING.queries["Endpoints"]))
    cursor.execute(query + where, {"value": value})
    return {row[0]: _encode(*row) for row in cursor.fetchall()}


def as_bytes(held: Endpoints) -> dict[str, bytes]:
    """Serialize a map so that equal endpoints have equal bytes."""
    return {
        endpoint_id: endpoint.SerializeToString(deterministic=True) for endpoint_id, endpoint in held.items()
    }


def _encode(
    endpoint_id: str,
    secret_key: str | None,
    secret_key_required: bool | None,
    _authorized_users: None,  # this mapping has none
    account_id: str | None,
    plan_type: str | None,
    throughput_limit: int | None,
    capacity_limit: int | None,
) -> GatewayEndpoint:
    """Make the message with protobuf's own classes, by the rules of the legacy contract."""
    endpoint = GatewayEndpoint(endpoint_id=endpoint_id)
    if secret_key_required:
        endpoint.auth.static_api_key.api_key = secret_key or ""
        endpoint.auth.static_api_key.SetInParent()
    else:
        endpoint.auth.no_auth.SetInParent()
    endpoint.rate_limiting.SetInParent()
    endpoint.rate_limiting.throughput_limit = throughput_limit or 0
    endpoint.rate_limiting.capacity_limit = capacity_limit or 0
    if endpoint.rate_limiting.capacity_limit > 0:
        endpoint.rate_limiting.capacity_limit_period = CAPACITY_LIMIT_PERIOD_MONTHLY
    endpoint.metadata.SetInParent()
    endpoint.metadata.account_id = account_id or ""
    endpoint.metadata.plan_type = plan_type or ""
    # In the second revision of the contract this field contains the metadata. The first revision does not
    # have it.
    endpoint.rate_limiting.MergeFromString(endpoint.metadata.SerializeToString(deterministic=True))
    return endpoint


def _administer(url: str) -> Connection:
    session = psycopg2.connect(url)
    session.autocommit = True
    return session
