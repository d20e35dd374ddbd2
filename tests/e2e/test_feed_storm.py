"""A client of the feed that is cut off again and again in a storm: whenever it holds a proof, its map
existed.

Transactions move amounts between endpoints, so that the sum of all is the same in every state of the database
that anybody could see, and change a plan, so that all endpoints of a plan have the same limit. A map that
mixes two states breaks one or the other.
"""

from __future__ import annotations

import random
import threading
from contextlib import closing
from typing import TYPE_CHECKING

import grpc
import psycopg2
import pytest
from pads_cdc_client.pb.gateway_endpoint_pb2 import GatewayEndpoint
from pads_cdc_client.replica import Replica

from tests.plugins.feed import Stream
from tests.plugins.server import expected, fill, wait_until

if TYPE_CHECKING:
    from tests.plugins.postgres import Database
    from tests.plugins.server import ServerFactory

ENDPOINTS, AMOUNT = 40, 1_000
TRANSFER = """
    UPDATE portal_application_settings AS settings
    SET secret_key = (secret_key::int + moved.amount)::text
    FROM unnest(%s::text[], %s::int[]) AS moved (id, amount)
    WHERE settings.application_id = moved.id
"""
RIPPLE = "UPDATE pay_plans SET throughput_limit = throughput_limit + 1 WHERE plan_type = %s"


def write(database: Database, seed: int, ended: threading.Event, done: list[int]) -> None:
    """Commit transactions that share endpoints, one soon after the other."""
    chance = random.Random(seed)  # noqa: S311 - a storm need not be secret
    with closing(psycopg2.connect(database.url())) as session, session.cursor() as cursor:
        session.autocommit = True
        while not ended.is_set():
            ids = chance.sample(range(1, ENDPOINTS + 1), chance.randint(2, 4))
            amounts = [chance.randint(-9, 9) for _ in ids[1:]]
            try:
                if chance.random() < 0.1:
                    cursor.execute(RIPPLE, (f"plan_{chance.randrange(2)}",))
                else:
                    cursor.execute(TRANSFER, ([f"app_{one}" for one in ids], [*amounts, -sum(amounts)]))
            except psycopg2.errors.DeadlockDetected:
                continue
            done.append(1)
            ended.wait(chance.choice((0, 0, 0.002, 0.02)))


def is_a_state_that_existed(endpoints: dict[str, bytes]) -> bool:
    """Check what holds in every committed state."""
    parsed = [GatewayEndpoint.FromString(payload) for payload in endpoints.values()]
    limits: dict[str, set[int]] = {}
    for endpoint in parsed:
        limits.setdefault(endpoint.metadata.plan_type, set()).add(endpoint.rate_limiting.throughput_limit)
    total = sum(int(endpoint.auth.static_api_key.api_key) for endpoint in parsed)
    return total == ENDPOINTS * AMOUNT and all(len(of_plan) == 1 for of_plan in limits.values())


@pytest.mark.soak
@pytest.mark.timeout(170)
def test_every_proof_of_a_client_that_is_cut_off_a_hundred_times(
    database: Database, serve: ServerFactory
) -> None:
    fill(database, ENDPOINTS, plans=2, per_account=4)
    database.execute("DELETE FROM portal_application_settings")
    database.execute(
        "INSERT INTO portal_application_settings (application_id, secret_key, secret_key_required)"
        " SELECT id, %s, true FROM portal_applications",
        (str(AMOUNT),),
    )
    server = serve(database, PROGRESS_INTERVAL="1s")
    replica, proofs, resets = Replica(), 0, 0
    chance = random.Random(7)  # noqa: S311 - a storm need not be secret
    ended, done = threading.Event(), list[int]()
    writers = [threading.Thread(target=write, args=(database, seed, ended, done)) for seed in range(2)]
    for writer in writers:
        writer.start()
    try:
        for _ in range(100):
            stream = Stream(f"127.0.0.1:{server.grpc}", replica.opening("storm"))
            for _ in range(chance.randint(1, 60)):
                message = stream.read()
                resets += message.HasField("opened") and message.opened.HasField("reset")
                applied = replica.apply(message)
                if applied.acknowledge is not None:
                    assert not applied.acknowledge.digest_mismatch
                    stream.acknowledge(applied.acknowledge.token)
                if applied.staleness is not None:
                    proofs += 1
                    assert is_a_state_that_existed(replica.endpoints)
            stream.close()
    finally:
        ended.set()
        for writer in writers:
            writer.join()
    assert proofs > 50, "a storm is no excuse for never being in sync"
    assert resets == 1, "the first time; from then on it resumed"
    assert len(done) > 500

    stream = Stream(f"127.0.0.1:{server.grpc}", replica.opening("storm"))
    oracle = expected(database)

    def caught_up() -> bool:
        replica.apply(stream.read())
        return replica.endpoints == oracle

    try:
        wait_until(caught_up, "the mapping query's result")
    except grpc.RpcError as error:
        raise AssertionError(error) from error
    finally:
        stream.close()
