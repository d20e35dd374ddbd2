"""The bytes of an endpoint are read right by clients of both revisions of the contract.

`EXAMPLES` is there in Go as well (``examples/go/revisions``), as rows with their bytes.
"""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import grpc
import pytest
from google.protobuf.json_format import MessageToDict
from google.protobuf.unknown_fields import UnknownFieldSet
from hypothesis import given
from pads_cdc_client.pb import gateway_endpoint_pb2 as pb

from cdc.mapping.mapping import COLUMNS, OPTIONAL_COLUMNS
from server.payload import ENCODING
from tests.plugins.server import fill, wait_until
from tests.server.test_payload import ROWS, encode, encoder
from tests.support import ROOT
from tests.support.revisions import second_revision, second_revision_descriptors

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from tests.plugins.postgres import Database
    from tests.plugins.server import ServerFactory
    from tests.server.test_payload import Row

TESTDATA: Final = ROOT / "examples/go/revisions/testdata"
ALL_COLUMNS: Final = (*COLUMNS, *OPTIONAL_COLUMNS)
NOTHING: Final = dict.fromkeys(ALL_COLUMNS)

EXAMPLES: Final[dict[str, dict[str, Any]]] = {
    "as usual": {
        "endpoint_id": "app_1",
        "secret_key": "key_1",
        "secret_key_required": True,
        "account_id": "acc_1",
        "plan_type": "plan_1",
        "throughput_limit": 5,
        "capacity_limit": 1000,
    },
    "nothing but an id": {"endpoint_id": "app_2"},
    "an account without limits": {"endpoint_id": "app_3", "account_id": "acc_3", "plan_type": "PLAN_FREE"},
    "limits without an account": {"endpoint_id": "app_4", "throughput_limit": 1, "capacity_limit": 2**31 - 1},
    "numbers of ten bytes": {"endpoint_id": "app_5", "account_id": "a", "throughput_limit": -1},
    "authorized users": {
        "endpoint_id": "app_6",
        "authorized_users": ["auth0|b", "auth0|a"],
        "account_id": "acc_6",
        "plan_type": "plan_6",
        "capacity_limit": 7,
    },
    "everything": {
        "endpoint_id": "app_7",
        "secret_key": "k" * 200,
        "secret_key_required": True,
        "account_id": "a" * 120,
        "plan_type": "p" * 130,
        "throughput_limit": 300,
        "capacity_limit": 70_000,
        "capacity_limit_period": "year",
        "name": "Ünser",
        "user_id": "auth0|user",
        "email": "someone@example.org",
        "environment": "production",
    },
}


def payload(example: dict[str, Any]) -> bytes:
    return encoder(ALL_COLUMNS)(tuple({**NOTHING, **example}.values()))


def unknown(message: Message) -> list[tuple[int, int]]:
    """Return number and wire type of each field that the message's class does not know."""
    fields: Any = UnknownFieldSet(message)  # its stubs have no __iter__
    return [(field.field_number, field.wire_type) for field in fields]


VARINT, LENGTH = 0, 2


@given(ROWS)
def test_the_second_revision_reads_all_that_it_knows(row: Row) -> None:
    first = pb.GatewayEndpoint.FromString(encode(row))
    second = second_revision().GatewayEndpoint.FromString(encode(row))
    assert second.endpoint_id == first.endpoint_id
    assert second.HasField("metadata")
    assert MessageToDict(second.metadata) == MessageToDict(first.metadata)
    kind = first.auth.WhichOneof("auth_type")
    assert second.auth.WhichOneof("auth_type") == (None if kind == "jwt" else kind)
    assert second.auth.static_api_key.api_key == first.auth.static_api_key.api_key
    # What it does not know it keeps aside: the numbers where they stand, and field 4.
    assert unknown(second) == [(4, LENGTH)]
    assert all(number in (1, 2, 3) and kind == VARINT for number, kind in unknown(second.metadata))


@given(ROWS)
def test_the_first_revision_reads_all_of_it_and_writes_the_same_bytes(row: Row) -> None:
    encoded = encode(row)
    first = pb.GatewayEndpoint.FromString(encoded)
    assert unknown(first) == []
    assert all(kind == LENGTH for _, kind in unknown(first.rate_limiting))
    again = pb.GatewayEndpoint.FromString(first.SerializeToString())
    assert again == first
    if not row[3]:  # a map's entries have no order in protobuf
        assert first.SerializeToString() == encoded


@pytest.mark.parametrize("name", EXAMPLES)
def test_what_both_read_of_the_examples(name: str) -> None:
    example = EXAMPLES[name]
    first = pb.GatewayEndpoint.FromString(payload(example))
    second = second_revision().GatewayEndpoint.FromString(payload(example))
    metadata = {
        column: example.get(column) or "" for column in (*OPTIONAL_COLUMNS[1:], "account_id", "plan_type")
    }
    for message in (first, second):
        assert {column: getattr(message.metadata, column) for column in metadata} == metadata
    assert first.rate_limiting.throughput_limit == example.get("throughput_limit", 0)
    assert first.rate_limiting.capacity_limit == example.get("capacity_limit", 0)


def test_a_client_from_before_yearly_keeps_the_number() -> None:
    """Enums of proto3 are open; the class of that time is this one without the value."""
    first = pb.GatewayEndpoint.FromString(payload(EXAMPLES["everything"]))
    assert first.rate_limiting.capacity_limit_period == pb.CAPACITY_LIMIT_PERIOD_YEARLY == 4
    newer = pb.RateLimiting.FromString(b"\x18\x63")
    assert newer.capacity_limit_period == 99
    assert newer.SerializeToString() == b"\x18\x63"


def test_the_bytes_are_those_of_this_encoding() -> None:
    """Whoever changes a byte of them has to raise ENCODING: resume tokens, state files and pairs go by it."""
    held = json.loads((TESTDATA / "payloads.json").read_text(encoding="utf-8"))
    made = {name: {"row": example, "bytes": payload(example).hex()} for name, example in EXAMPLES.items()}
    assert held == {"encoding": ENCODING, "payloads": made}


def test_go_has_the_second_revision_as_it_is() -> None:
    assert (TESTDATA / "second_revision.binpb").read_bytes() == second_revision_descriptors()


def test_a_client_of_the_second_revision_holds_account_and_plan(
    database: Database, serve: ServerFactory
) -> None:
    """It fetches and streams, and what it reads of each endpoint is what the database says."""
    fill(database, 50)
    server = serve(database)
    classes = second_revision()
    rows = """SELECT applications.id, coalesce(account_id, ''), coalesce(plan_type, '')
        FROM portal_applications AS applications LEFT JOIN accounts ON accounts.id = account_id"""
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc}") as channel:
        fetch = channel.unary_unary(
            "/proto.GatewayEndpoints/FetchAuthDataSync",
            request_serializer=classes.AuthDataRequest.SerializeToString,
            response_deserializer=classes.AuthDataResponse.FromString,
        )
        endpoints = dict(fetch(classes.AuthDataRequest(), wait_for_ready=True, timeout=30).endpoints)
        stream = channel.unary_stream(
            "/proto.GatewayEndpoints/StreamAuthDataUpdates",
            request_serializer=classes.AuthDataUpdatesRequest.SerializeToString,
            response_deserializer=classes.AuthDataUpdate.FromString,
        )
        updates = stream(classes.AuthDataUpdatesRequest())

        def equal() -> bool:
            held = [(id_, one.metadata.account_id, one.metadata.plan_type) for id_, one in endpoints.items()]
            return sorted(held) == sorted(database.rows(rows))

        def equal_after_an_update() -> bool:
            update = next(updates)
            endpoints.pop(update.endpoint_id, None)
            if not update.delete:
                endpoints[update.endpoint_id] = update.gateway_endpoint
            return equal()

        assert equal()
        database.execute(
            """UPDATE accounts SET plan_type = 'plan_7' WHERE id = 'acc_1';
            UPDATE portal_applications SET account_id = NULL WHERE id = 'app_2';
            DELETE FROM portal_applications WHERE id = 'app_3'"""
        )
        assert not equal()
        wait_until(partial(equal_after_an_update), "what the database says")
        updates.cancel()
