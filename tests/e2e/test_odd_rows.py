"""One row is one row: whatever stands in one, all the others are served, and that one is named.

At a load, at a single change, in a ripple, in an audit, and after a restart.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest

from tests.plugins.server import DEADLINE, endpoints_of, fill, wait_equal, wait_until
from tests.support.one_table import make_one_table

if TYPE_CHECKING:
    from pathlib import Path

    from tests.plugins.postgres import Database
    from tests.plugins.server import Gateway, GatewayFactory, Server, ServerFactory


def odd(server: Server) -> str:
    """Return what /healthz says of odd rows; empty where it says nothing."""
    status, page = server.get("/healthz")
    if status == 200:
        return ""
    return " ".join(one["message"] for one in json.loads(page)["reasons"] if one["code"] == "odd_rows")


def wait_odd(server: Server, *parts: str) -> None:
    """Return when /healthz names these; without any, when it says nothing of odd rows any more."""

    def said() -> bool:
        text = odd(server)
        return all(part in text for part in parts) if parts else not text

    wait_until(said, f"{parts or 'nothing'} on /healthz, which says {odd(server)!r}")


def in_time(database: Database, client: Gateway, application: str) -> float:
    """Rotate a key, and return how many seconds later the client has it."""
    key = f"rotated_{time.monotonic_ns()}"
    database.execute(
        "UPDATE portal_application_settings SET secret_key = %s, secret_key_required = true"
        " WHERE application_id = %s",
        (key, application),
    )
    began = time.monotonic()
    client.wait(lambda one: one.key(application) == key, "the rotated key")
    return time.monotonic() - began


@pytest.mark.parametrize("limit_type", ["BIGINT", "NUMERIC", "DOUBLE PRECISION", "TEXT", "REAL"])
def test_limits_of_any_type_are_served_and_an_odd_one_stops_nobody(
    database: Database, serve: ServerFactory, gateway: GatewayFactory, limit_type: str
) -> None:
    """From the start, at a plan's change, at an account's move, and after a restart."""
    database.execute(
        f"ALTER TABLE pay_plans ALTER monthly_relay_limit TYPE {limit_type},"
        f" ALTER throughput_limit TYPE {limit_type}"
    )
    fill(database, 60, per_account=2)  # /healthz names five
    most = "16777216000" if limit_type == "REAL" else "5000000000"
    odd_limits = {"too_many": most}
    if limit_type != "BIGINT":
        odd_limits |= {"broken": "NaN", "half": "0.5", "endless": "Infinity"}
    if limit_type == "TEXT":
        odd_limits |= {"words": "unlimited", "nothing": ""}
    for plan, limit in odd_limits.items():
        database.execute("INSERT INTO pay_plans VALUES (%s, %s, 7)", (plan, limit))
    database.execute("UPDATE accounts SET plan_type = 'too_many' WHERE id = 'acc_1'")
    server = serve(database)
    clients = [gateway(server), gateway(server, refetch=True)]
    for client in clients:
        wait_equal(client, database)
    served = clients[0].endpoint("app_1")
    assert served is not None
    assert served.rate_limiting.capacity_limit == 2**31 - 1
    wait_odd(server, "app_1", "capacity_limit", "2147483647")
    for plan in odd_limits:
        database.execute("UPDATE accounts SET plan_type = %s WHERE id = 'acc_2'", (plan,))
        assert in_time(database, clients[0], "app_3") < DEADLINE
        wait_odd(server, "app_2", "capacity_limit")
        for client in clients:
            wait_equal(client, database)
    database.execute("UPDATE pay_plans SET monthly_relay_limit = %s WHERE plan_type = 'plan_4'", (most,))
    for client in clients:
        wait_equal(client, database)
    server.wait_metric(8, "pads_cdc_odd_rows", reason="out_of_range")
    assert server.stop() == 0
    server = serve(database, PORT=str(server.grpc))
    wait_odd(server, "capacity_limit")
    for client in clients:
        wait_equal(client, database)
    database.execute(
        "UPDATE pay_plans SET monthly_relay_limit = 3 WHERE plan_type NOT LIKE 'plan\\_%';"
        "UPDATE pay_plans SET monthly_relay_limit = 4 WHERE plan_type = 'plan_4'"
    )
    for client in clients:
        wait_equal(client, database)
    wait_odd(server)
    assert server.metric("pads_cdc_odd_rows") == 0
    assert server.metric("pads_cdc_audit_drift_total") == 0
    assert server.metric("pads_cdc_reconcile_total") == 1, "the start's; nothing odd needs another one"


def rows_of(database: Database) -> dict[str, bytes]:
    """Return the oracle of the one table; what is larger than a message is none."""
    return endpoints_of(
        database.rows(
            "SELECT id, secret_key, required, users, account_id, plan_type, throughput, capacity"
            " FROM endpoints WHERE length(id) < 1000 AND id NOT IN ('crowd', 'large')"
        )
    )


def wait_rows(client: Gateway, database: Database) -> None:
    oracle = rows_of(database)
    client.wait(lambda one: one.map == oracle, f"{len(oracle)} endpoints")


@pytest.fixture
def one_table(database: Database, tmp_path: Path) -> Path:
    """A mapping of one table without constraints, and some endpoints in it."""
    folder = make_one_table(tmp_path / "one_table")
    database.execute((folder / "schema.sql").read_text())
    database.publish(mapping=str(folder))
    database.execute(
        "INSERT INTO endpoints (id, secret_key, required, account_id, plan_type, throughput, capacity)"
        " SELECT 'app_' || g, 'key_' || g, true, 'acc', 'plan', 1, 2 FROM generate_series(1, 20) g"
    )
    return folder


ODD_IDS = {
    "an empty one": ("INSERT INTO endpoints (id) VALUES ('')", "(empty) (endpoint_id is empty)", "id = ''"),
    "one that is too long": (
        "INSERT INTO endpoints (id) VALUES (repeat('i', 5 << 20))",
        "iiii... (endpoint_id has 5,242,880 bytes, more than a message can have)",
        "length(id) > 1000",
    ),
    "one that is there twice": (
        "INSERT INTO endpoints (id, secret_key, required) VALUES ('app_7', 'other', true)",
        "app_7 (another row has the same endpoint_id",
        "secret_key = 'other'",
    ),
    "one with too long a key": (
        "INSERT INTO endpoints (id, secret_key, required) VALUES ('large', repeat('secret', 1000000), true)",
        "large (secret_key has 6,000,000 bytes, more than a message can have)",
        "id = 'large'",
    ),
    "one with too many users": (
        (
            "INSERT INTO endpoints (id, users) SELECT 'crowd', array_agg('auth0|' || g)"
            " FROM generate_series(1, 300000) g"
        ),
        "crowd (it has ",
        "id = 'crowd'",
    ),
}


@pytest.mark.slow
def test_odd_ids_stop_nobody_and_are_said_until_they_are_mended(
    database: Database, one_table: Path, serve: ServerFactory, gateway: GatewayFactory
) -> None:
    """At a change each, at a ripple, after a restart, and none of them needs an audit."""
    server = serve(database, MAPPING=str(one_table))
    clients = [gateway(server), gateway(server, refetch=True)]
    for number, (insert, said, _) in enumerate(ODD_IDS.values()):
        database.execute(insert)
        wait_odd(server, said)
        database.execute("UPDATE endpoints SET secret_key = %s WHERE id = 'app_1'", (f"rotated_{number}",))
        for client in clients:
            wait_rows(client, database)
    assert server.stop() == 0
    server = serve(database, MAPPING=str(one_table), PORT=str(server.grpc))
    assert server.metric("pads_cdc_reconcile_total", reason="audit") == 0
    wait_until(lambda: server.metric("pads_cdc_odd_rows") == len(ODD_IDS), "all are known again")
    database.execute("INSERT INTO endpoints (id) VALUES ('late'); UPDATE endpoints SET throughput = 3")
    for client in clients:
        wait_rows(client, database)
    for number, (_, _, where) in enumerate(ODD_IDS.values(), 1):
        database.execute(f"DELETE FROM endpoints WHERE {where}")
        left = len(ODD_IDS) - number
        wait_until(lambda left=left: server.metric("pads_cdc_odd_rows") == left, "it is mended")  # type: ignore[misc]
        for client in clients:
            wait_rows(client, database)
    wait_odd(server)
    assert all(len(endpoint_id) < 100 for client in clients for endpoint_id, _ in client.updates)
    assert "secretsecret" not in server.get("/metrics")[1] + server.output
    assert server.metric("pads_cdc_audit_drift_total") == 0
    assert server.metric("pads_cdc_source_mode", mode="streaming") == 1


def test_an_id_of_null_is_found_by_an_audit_and_goes_soon_after_it_is_mended(
    database: Database, one_table: Path, serve: ServerFactory, gateway: GatewayFactory
) -> None:
    """No change names such a row."""
    database.execute("INSERT INTO endpoints (id) VALUES (NULL), (NULL)")
    server = serve(database, MAPPING=str(one_table))
    client = gateway(server)
    wait_rows(client, database)
    wait_odd(server, "(NULL) (endpoint_id is NULL)")
    database.execute("UPDATE endpoints SET id = 'mended' || row_number WHERE id IS NULL")
    wait_rows(client, database)
    wait_odd(server)  # long before AUDIT_INTERVAL
    assert server.metric("pads_cdc_audit_drift_total") == 0


def test_rows_that_say_the_same_are_one(
    database: Database, one_table: Path, serve: ServerFactory, gateway: GatewayFactory
) -> None:
    database.execute("INSERT INTO endpoints (id) SELECT 'same' FROM generate_series(1, 3)")
    server = serve(database, MAPPING=str(one_table))
    client = gateway(server)
    wait_rows(client, database)
    assert "same" in client.map
    assert not odd(server)


def test_an_id_that_is_there_twice_far_apart_is_as_odd_as_side_by_side(
    database: Database, one_table: Path, serve: ServerFactory, gateway: GatewayFactory
) -> None:
    """In different parts of a load, of a ripple and of an audit: each way it comes out the same."""
    database.execute(
        "INSERT INTO endpoints (id, plan_type) VALUES ('far', 'wide'), ('bad', 'wide'), ('worse', 'wide');"
        "UPDATE endpoints SET capacity = 'NaN' WHERE id IN ('bad', 'worse');"
        "INSERT INTO endpoints (id, plan_type) SELECT 'other_' || g, 'wide' FROM generate_series(1, 12000) g;"
        "INSERT INTO endpoints (id, plan_type, capacity) VALUES ('far', 'wide', 9), ('bad', 'wide', 1);"
        "INSERT INTO endpoints (id, plan_type, capacity) VALUES ('far', 'wide', 9)"
    )
    server = serve(database, MAPPING=str(one_table), AUDIT_INTERVAL="1s")
    client = gateway(server)
    wait_rows(client, database)
    wait_odd(server, "far (another row", "bad (another row", "worse (capacity_limit is NaN")
    database.execute("UPDATE endpoints SET throughput = 77 WHERE plan_type = 'wide'")
    wait_rows(client, database)
    server.wait_metric(server.metric("pads_cdc_audit_runs_total") + 2, "pads_cdc_audit_runs_total")
    wait_rows(client, database)
    assert server.metric("pads_cdc_audit_drift_total") == 0
    assert server.metric("pads_cdc_odd_rows", reason="twice") == 2
    database.execute("DELETE FROM endpoints WHERE capacity IS NOT NULL AND plan_type = 'wide'")
    wait_rows(client, database)
    wait_odd(server)
    assert "far" in client.map
    assert server.metric("pads_cdc_audit_drift_total") == 0


def test_a_plan_with_an_odd_limit_takes_no_more_memory_than_a_good_one(
    database: Database, one_table: Path, serve: ServerFactory, gateway: GatewayFactory
) -> None:
    """20,000 odd rows: half of them are remembered by name, all are counted, and all come right again."""
    database.execute(
        "INSERT INTO endpoints (id, plan_type) SELECT 'app_' || g, 'many' FROM generate_series(21, 20020) g"
    )
    server = serve(database, MAPPING=str(one_table), AUDIT_INTERVAL="1s")
    client = gateway(server)
    wait_rows(client, database)
    database.execute("UPDATE endpoints SET capacity = 'NaN' WHERE plan_type = 'many'")
    wait_rows(client, database)
    assert len(client.map) == 20
    wait_until(lambda: server.metric("pads_cdc_odd_rows", reason="not_a_number") == 20_000, "all are counted")
    assert "10,000 rows beyond these" in odd(server)
    assert len(odd(server)) < 1000
    database.execute("UPDATE endpoints SET capacity = 5 WHERE plan_type = 'many'")
    wait_rows(client, database)
    wait_odd(server)
