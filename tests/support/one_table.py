"""A mapping of one table without constraints, whose columns can have any type and any value."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

TYPES = {
    "id": "TEXT",
    "secret_key": "TEXT",
    "required": "BOOLEAN",
    "users": "TEXT[]",
    "account_id": "TEXT",
    "plan_type": "TEXT",
    "throughput": "NUMERIC",
    "capacity": "NUMERIC",
}
"""The columns from which an endpoint is made, with their types."""

_AFFECTS = """
reads = ["endpoints"]
endpoint_keys = "EndpointsOfIds"
key_columns = { EndpointsOfPlans = "plan_type" }

[[affects]]
table = "endpoints"
column = "id"
query = "EndpointsOfIds"

[[affects]]
table = "endpoints"
column = "plan_type"
query = "EndpointsOfPlans"
"""

_QUERIES = """
-- name: Endpoints :many
SELECT id AS endpoint_id, secret_key, required AS secret_key_required, users AS authorized_users, account_id,
    plan_type, throughput AS throughput_limit, capacity AS capacity_limit
FROM endpoints;

-- name: EndpointsOfIds :many
SELECT key::TEXT AS endpoint_id FROM unnest(@keys::TEXT[]) AS key;

-- name: EndpointsOfPlans :many
SELECT endpoints.id AS endpoint_id FROM endpoints WHERE endpoints.plan_type = ANY(@keys::TEXT[]);
"""


def make_one_table(folder: Path, **types: str) -> Path:
    """Write the mapping, with ``types`` in place of some of `TYPES`. Returns the folder."""
    folder.mkdir()
    columns = ", ".join(f"{name} {kind}" for name, kind in (TYPES | types).items())
    # The table has no key: all columns together identify a row.
    schema = f"CREATE TABLE endpoints (row_number SERIAL, {columns});\n"
    (folder / "schema.sql").write_text(f"{schema}ALTER TABLE endpoints REPLICA IDENTITY FULL;\n")
    (folder / "affects.toml").write_text(_AFFECTS)
    (folder / "queries.sql").write_text(_QUERIES)
    (folder / "setup.sql").write_text("")
    return folder
