"""Ids come and go: what is remembered of them is bounded, and nobody is left with what is gone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from pads_cdc_client.pb.pads.cdc.v1 import endpoint_feed_pb2 as pb

from tests.plugins.feed import opening, wait_exact
from tests.plugins.server import expected, fill, wait_equal, wait_until

if TYPE_CHECKING:
    from tests.plugins.feed import FeedFactory, StreamFactory
    from tests.plugins.postgres import Database
    from tests.plugins.server import GatewayFactory, Server, ServerFactory

COME = (
    "INSERT INTO portal_applications (id, account_id)"
    " SELECT 'brief_' || g, 'acc_1' FROM generate_series(1, %s) g"
)
GO = "DELETE FROM portal_applications WHERE starts_with(id, 'brief_')"


@pytest.mark.parametrize(
    ("ids", "retention"),
    [
        pytest.param(100, "2s", id="100"),
        pytest.param(200_000, "60s", id="200000", marks=[pytest.mark.soak, pytest.mark.timeout(600)]),
    ],
)
def test_deletes_are_forgotten_after_the_retention(
    database: Database,
    serve: ServerFactory,
    gateway: GatewayFactory,
    feed: FeedFactory,
    stream: StreamFactory,
    ids: int,
    retention: str,
) -> None:
    fill(database, 20)
    server = serve(database, TOMBSTONE_RETENTION=retention)
    client, old = feed(server), gateway(server)

    def remembers(at: Server) -> bool:
        """Return whether a client that never fetches is told of deletes, before the rest of the map."""
        one, whole = gateway(at, fetch=False), expected(database)
        one.wait(lambda it: it.map == whole, "everything", deadline=180)
        return any(payload is None for _, payload in one.updates)

    database.execute(COME, (ids,))
    wait_exact(client, expected(database))
    token = client.resume_token
    database.execute(GO)
    assert remembers(server), "clients that were away are told"
    wait_until(lambda: not remembers(server), "deletes are forgotten", deadline=300)
    wait_exact(client, expected(database))
    wait_equal(old, database)
    assert client.resets == 1, "who follows hears nothing of it"
    opened = stream(server, opening(token)).read().opened
    assert opened.reset.reason == pb.RESET_REASON_EXPIRED
    server.stop()
    again = serve(database, **{**server.environment, "TOMBSTONE_RETENTION": "24h"})
    assert not remembers(again.wait_ready()), "the state file does not bring them back"
    opened = stream(again, opening(token)).read().opened
    assert opened.reset.reason == pb.RESET_REASON_EXPIRED, "its map is older than what is forgotten"
