"""From one encoding of the endpoints to the next: clients of the feed hold the other one's bytes, and a
token.

Digests are over the bytes, so a client that goes on from the token of another encoding would never match. It
is sent everything, once for each move, and comes to rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest
from pads_cdc_client.pb.gateway_endpoint_pb2 import GatewayEndpoint

from tests.plugins.feed import wait_exact
from tests.plugins.server import expected, fill, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.plugins.feed import FeedFactory
    from tests.plugins.postgres import Database
    from tests.plugins.server import GatewayFactory, ServerFactory

FIRST: Final = "tests.support.first_encoding"


def in_the_first_encoding(oracle: dict[str, bytes]) -> dict[str, bytes]:
    found = {}
    for endpoint_id, raw in oracle.items():
        endpoint = GatewayEndpoint.FromString(raw)
        endpoint.rate_limiting.DiscardUnknownFields()
        found[endpoint_id] = endpoint.SerializeToString(deterministic=True)
    return found


@pytest.mark.parametrize("back", [False, True])
def test_a_server_is_upgraded_or_taken_back(
    database: Database, serve: ServerFactory, feed: FeedFactory, gateway: GatewayFactory, back: bool
) -> None:
    """With its state file, whose digests are of the other encoding: the client is sent everything once."""
    before, after = ("server", FIRST) if back else (FIRST, "server")
    fill(database, 100)
    old = serve(database, module=before, PROGRESS_INTERVAL="1s")
    client, gateways = feed(old), [gateway(old), gateway(old, refetch=True)]
    maps = {"server": expected(database), FIRST: in_the_first_encoding(expected(database))}
    wait_exact(client, maps[before])
    assert client.resets == 1
    assert old.stop() == 0
    new = serve(database, module=after, PORT=str(old.grpc), PROGRESS_INTERVAL="1s")
    wait_exact(client, maps[after])
    for each in gateways:
        each.wait(lambda one: one.map == maps[after], "the new bytes")
    database.execute("UPDATE portal_application_settings SET secret_key = 'x' WHERE application_id = 'app_1'")
    wait_exact(client, in_the_first_encoding(expected(database)) if back else expected(database))
    proofs = client.proofs
    wait_until(lambda: client.proofs > proofs, "another proof, on the same stream")
    if not back:  # the first encoding's server goes on by revisions, of which each endpoint has a new one
        assert client.resets == 2
        assert new.metric("pads_cdc_feed_resets_total", reason="malformed") == 1
    assert new.metric("pads_cdc_feed_resets_total", reason="digest_mismatch") == 0


def test_a_client_between_servers_of_two_encodings_comes_to_rest_at_each(
    database: Database, serve: ServerFactory, feed: FeedFactory, tmp_path: Path
) -> None:
    """Half of a fleet is upgraded: two servers with a slot each, and a client that is moved to and fro."""
    fill(database, 100)
    servers = {
        module: serve(
            database,
            module=module,
            SLOT_NAME=f"upgrade_{number}",
            STATE_FILE=str(tmp_path / f"{number}"),
            PROGRESS_INTERVAL="1s",
        ).wait_ready()  # one that has not loaded yet would call a token's position a gap
        for number, module in enumerate((FIRST, "server"))
    }
    maps: dict[str, Callable[[], dict[str, bytes]]] = {
        "server": lambda: expected(database),
        FIRST: lambda: in_the_first_encoding(expected(database)),
    }
    endpoints: dict[str, bytes] = {}
    token = b""
    for move, module in enumerate((FIRST, "server", FIRST, "server", "server")):
        server = servers[module]
        # Most endpoints stay as they are, and so would their bytes.
        database.execute(
            "UPDATE pay_plans SET throughput_limit = throughput_limit + 1 WHERE plan_type = 'plan_1'"
        )
        client = feed(server, endpoints=endpoints, resume_token=token)
        wait_exact(client, maps[module]())
        proofs = client.proofs
        wait_until(lambda: client.proofs > proofs, "another proof, on the same stream")  # noqa: B023
        assert client.resets <= 1, (move, module)
        client.close()
        endpoints, token = dict(client.endpoints), client.resume_token
    assert servers["server"].metric("pads_cdc_feed_resets_total", reason="digest_mismatch") == 0
    assert servers["server"].metric("pads_cdc_feed_resets_total", reason="malformed") == 2
    assert servers[FIRST].metric("pads_cdc_feed_resets_total", reason="digest_mismatch") == 1
