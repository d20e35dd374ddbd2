"""The example of docs/mappings.md, as it stands there: it loads, is set up, and follows its tables."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pads_cdc_client.pb.gateway_endpoint_pb2 import GatewayEndpoint

from cdc.mapping.mapping import load
from tests.support import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from tests.plugins.postgres import Database
    from tests.plugins.server import Gateway, GatewayFactory, ServerFactory

FILES = re.compile(r"^`(\S+\.(?:sql|toml))`[^\n]*\n```\w+\n(.*?)^```", re.MULTILINE | re.DOTALL)
ROWS = """
INSERT INTO tiers VALUES ('small', 5), ('large', NULL);
INSERT INTO teams VALUES (1, 'small'), (2, 'large');
INSERT INTO tokens
SELECT ('00000000-0000-0000-0000-00000000000' || number)::UUID, 1 + number % 2, 'key ' || number
FROM generate_series(0, 5) AS number
"""
CHANGES = (
    "UPDATE tiers SET calls_a_second = 7 WHERE name = 'small'",
    "UPDATE teams SET tier = 'small' WHERE id = 2",
    "UPDATE teams SET closed = true WHERE id = 1",
    "UPDATE tiers SET calls_a_second = 8 WHERE name = 'small'",
    "UPDATE teams SET closed = false WHERE id = 1",
    "UPDATE tokens SET secret = 'another' WHERE team_id = 1",
    "UPDATE tokens SET team_id = 2 WHERE secret = 'another'",
    "UPDATE teams SET tier = NULL",
    "DELETE FROM tokens WHERE secret = 'another'",
    "INSERT INTO tokens VALUES ('00000000-0000-0000-0000-00000000000f', 1, 'new')",
    "UPDATE teams SET id = 3 WHERE id = 2 AND NOT EXISTS (SELECT FROM tokens WHERE team_id = 2)",
    "TRUNCATE tokens",
)
ENDPOINTS = """
SELECT
    tokens.id::TEXT, tokens.secret, teams.id::TEXT,
    coalesce(teams.tier, ''), coalesce(tiers.calls_a_second, 0)
FROM tokens
JOIN teams ON teams.id = tokens.team_id AND NOT teams.closed
LEFT JOIN tiers ON tiers.name = teams.tier
"""


def held(client: Gateway) -> set[tuple[str, str, str, str, int]]:
    """Return what a client holds, as `ENDPOINTS` has it."""
    endpoints = map(GatewayEndpoint.FromString, client.map.values())
    return {
        (
            one.endpoint_id,
            one.auth.static_api_key.api_key,
            one.metadata.account_id,
            one.metadata.plan_type,
            one.rate_limiting.throughput_limit,
        )
        for one in endpoints
    }


def wait_holds(client: Gateway, oracle: set[tuple[str, str, str, str, int]], what: str) -> None:
    client.wait(lambda one: held(one) == oracle, what)


def test_the_example_follows(
    database: Database, serve: ServerFactory, gateway: GatewayFactory, tmp_path: Path
) -> None:
    files = dict(FILES.findall((ROOT / "docs/mappings.md").read_text()))
    assert files.keys() == {"schema.sql", "queries.sql", "affects.toml", "setup.sql", "sample.sql"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    mapping = load(str(tmp_path))
    assert mapping.reads == ("tiers", "teams", "tokens")
    database.execute(files["schema.sql"] + ROWS)
    database.set_up(mapping, database.create_role("REPLICATION").name)
    database.publish(mapping=str(tmp_path))
    server = serve(database, MAPPING=str(tmp_path))
    client = gateway(server)
    wait_holds(client, set(database.rows(ENDPOINTS)), "the rows")
    assert len(client.map) == 6
    for change in CHANGES:
        database.execute(change)
        wait_holds(client, set(database.rows(ENDPOINTS)), change)
    assert server.metric("pads_cdc_audit_drift_total") == 0
    assert server.metric("pads_cdc_source_mode", mode="streaming") == 1, "polling would hide what is missed"
