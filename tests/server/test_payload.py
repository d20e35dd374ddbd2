"""Encoding by hand gives the bytes of the generated classes, and the messages that the contract asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pads_cdc_client.pb import gateway_endpoint_pb2 as pb

from cdc.mapping.mapping import COLUMNS, OPTIONAL_COLUMNS
from cdc.mapping.row_rule import CUT, MESSAGE_BYTES, OddRow
from server import payload

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=300)
IDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=300)
PERIODS = {
    "day": pb.CAPACITY_LIMIT_PERIOD_DAILY,
    "week": pb.CAPACITY_LIMIT_PERIOD_WEEKLY,
    "month": pb.CAPACITY_LIMIT_PERIOD_MONTHLY,
    "year": pb.CAPACITY_LIMIT_PERIOD_YEARLY,
}
INT32 = st.integers(-(2**31), 2**31 - 1) | st.sampled_from([-(2**31), -1, 0, 1, 127, 128, 2**31 - 1])
ROWS = st.tuples(
    IDS,
    st.none() | TEXTS,
    st.none() | st.booleans(),
    st.none() | st.lists(TEXTS, max_size=20),
    st.none() | TEXTS,
    st.none() | TEXTS,
    st.none() | INT32,
    st.none() | INT32,
)


Row = tuple[str, str | None, bool | None, list[str] | None, str | None, str | None, int | None, int | None]


def printed(value: Any) -> Any:
    """Return a value as the driver has it: text as bytes."""
    match value:
        case str():
            return value.encode()
        case list() | tuple():
            return type(value)(map(printed, value))
        case _:
            return value


def encode(row: tuple[Any, ...]) -> bytes:
    """Encode a row of Python's values."""
    return payload.encode(printed(row))


def encoder(columns: Sequence[str]) -> Callable[[tuple[Any, ...]], bytes]:
    """Return what encodes rows of Python's values with these columns."""
    encode_more = payload.encoder(columns)
    return lambda row: encode_more(printed(row))


def generated(row: Row) -> pb.GatewayEndpoint:
    """Build the message as the contract words it."""
    endpoint_id, secret_key, required, users, account_id, plan_type, throughput, capacity = row
    message = pb.GatewayEndpoint(endpoint_id=endpoint_id)
    if users is not None:
        message.auth.jwt.SetInParent()
        for user in users:
            message.auth.jwt.authorized_users[user].SetInParent()
    elif required is True:
        message.auth.static_api_key.api_key = secret_key or ""
    else:
        message.auth.no_auth.SetInParent()
    message.rate_limiting.SetInParent()
    message.rate_limiting.throughput_limit = throughput or 0
    message.rate_limiting.capacity_limit = capacity or 0
    if capacity is not None and capacity > 0:
        message.rate_limiting.capacity_limit_period = pb.CAPACITY_LIMIT_PERIOD_MONTHLY
    message.metadata.SetInParent()
    message.metadata.account_id = account_id or ""
    message.metadata.plan_type = plan_type or ""
    return copied(message)


def copied(message: pb.GatewayEndpoint) -> pb.GatewayEndpoint:
    """Put the metadata into field 3 as well, where this revision's classes have no such fields."""
    message.rate_limiting.MergeFromString(message.metadata.SerializeToString(deterministic=True))
    return message


@given(ROWS)
def test_the_message_is_the_contracts_and_its_bytes_are_the_deterministic_ones(row: Row) -> None:
    encoded, message = encode(row), generated(row)
    assert pb.GatewayEndpoint.FromString(encoded) == message
    expected = message.SerializeToString(deterministic=True)
    assert encoded.replace(entries(in_our_order(row)), entries(in_upbs_order(row))) == expected


def in_our_order(row: Row) -> list[bytes]:
    return sorted({user.encode() for user in row[3] or ()})


def in_upbs_order(row: Row) -> list[bytes]:
    """Sort as the generated classes do: a key comes behind the keys that it is the beginning of."""
    return sorted(in_our_order(row), key=lambda user: (*user, 256))


def entries(users: list[bytes]) -> bytes:
    """Serialize a map entry by entry."""
    one_each = [pb.JWT(authorized_users={user.decode(): pb.Empty()}) for user in users]
    return b"".join(one.SerializeToString() for one in one_each)


@given(ROWS)
def test_the_order_and_repetition_of_users_do_not_matter(row: Row) -> None:
    users = row[3]
    if users is not None:
        assert encode(row) == encode((*row[:3], [*reversed(users), *users], *row[4:]))


@pytest.mark.parametrize("length", [126, 127, 128, 129, 16_383, 16_384, 70_000])
def test_lengths_of_one_to_three_bytes(length: int) -> None:
    key: Row = ("id", "k" * length, True, None, "a" * length, "p" * length, 1, 1)
    users: Row = ("i" * length, None, True, ["u" * length, ""], None, None, None, None)
    for row in (key, users):
        message = generated(row)
        assert len(encode(row)) == message.ByteSize()
        assert pb.GatewayEndpoint.FromString(encode(row)) == message


def test_a_thousand_users_are_sorted_by_their_bytes() -> None:
    users = [chr(code) + str(code) for code in (*range(1, 900), *range(0xFFF0, 0x10010)) if code != 0xD800]
    row: Row = ("id", None, True, users, None, None, None, None)
    assert entries(in_our_order(row)) in encode(row)
    assert pb.GatewayEndpoint.FromString(encode(row)) == generated(row)


@pytest.mark.parametrize("required", [None, False])
def test_no_auth_is_present_although_it_is_empty(required: bool | None) -> None:
    message = pb.GatewayEndpoint.FromString(encode(("app", "k", required, None, None, None, None, None)))
    assert message.auth.WhichOneof("auth_type") == "no_auth"
    assert message.HasField("rate_limiting")
    assert message.HasField("metadata")


def test_a_null_key_is_the_empty_key_that_every_client_refuses() -> None:
    message = pb.GatewayEndpoint.FromString(encode(("app", None, True, None, None, None, None, None)))
    assert message.auth.WhichOneof("auth_type") == "static_api_key"
    assert message.auth.static_api_key.api_key == ""


def test_an_empty_list_of_users_authorizes_nobody() -> None:
    message = pb.GatewayEndpoint.FromString(encode(("app", "key", True, [], None, None, None, None)))
    assert message.auth.WhichOneof("auth_type") == "jwt"
    assert not message.auth.jwt.authorized_users
    assert b"key" not in message.SerializeToString()


@pytest.mark.parametrize(
    ("capacity", "period"),
    [
        (None, pb.CAPACITY_LIMIT_PERIOD_UNSPECIFIED),
        (0, pb.CAPACITY_LIMIT_PERIOD_UNSPECIFIED),
        (-1, pb.CAPACITY_LIMIT_PERIOD_UNSPECIFIED),
        (1, pb.CAPACITY_LIMIT_PERIOD_MONTHLY),
    ],
)
def test_the_period_is_monthly_only_where_there_is_a_limit(
    capacity: int | None, period: pb.CapacityLimitPeriod
) -> None:
    message = pb.GatewayEndpoint.FromString(encode(("app", None, None, None, None, None, 5, capacity)))
    assert message.rate_limiting.capacity_limit_period == period
    assert message.rate_limiting.throughput_limit == 5


@pytest.mark.parametrize(
    ("limits", "served"),
    [
        ((5_000_000_000, 0), (2**31 - 1, 0)),
        ((1, 2**31), (1, 2**31 - 1)),
        ((-(2**31) - 1, 7), (-(2**31), 7)),
        (("Infinity", "2.5"), (2**31 - 1, 3)),
    ],
)
def test_a_limit_that_the_wire_cannot_carry_is_the_nearest_that_it_can(
    limits: tuple[Any, Any], served: tuple[int, int]
) -> None:
    row = ("app", "secret", True, None, "acc", "plan")
    for _ in range(2):  # the second time it is remembered
        with pytest.raises(OddRow) as odd:
            encode((*row, *limits))
        assert odd.value.payload == encode((*row, *served))
        assert odd.value.oddity.served
        assert "secret" not in str(odd.value) + odd.value.oddity.text


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        (0, None, "no_id"),
        (0, "", "no_id"),
        (0, b"caf\xe9", "not_text"),
        (0, "i" * (MESSAGE_BYTES + 1), "too_large"),
        (1, b"\xff", "not_text"),
        (1, "k" * MESSAGE_BYTES, "too_large"),
        (2, "maybe", "not_a_boolean"),
        (3, "{user}", "not_a_list"),
        (3, [["user"]], "not_a_list"),
        (3, [b"\xff"], "not_text"),
        (4, b"\xff", "not_text"),
        (5, b"\xff", "not_text"),
        (6, "many", "not_a_number"),
        (7, "NaN", "not_a_number"),
    ],
)
def test_a_row_without_a_meaning_has_no_payload(column: int, value: Any, reason: str) -> None:
    row = list(printed(("app", "secret", True, None, "acc", "plan", 1, 2)))
    row[column] = printed(value)
    for _ in range(2):
        with pytest.raises(OddRow) as odd:
            payload.encode(tuple(row))
        assert odd.value.payload is None
        assert odd.value.oddity.reason == reason
        assert odd.value.named == (column != 0)
        assert "secret" not in odd.value.oddity.text.replace("secret_key", "")


@pytest.mark.parametrize("column", range(8))
def test_a_value_that_the_server_has_cut_is_in_no_payload(column: int) -> None:
    row = list(printed(("app", "secret", True, None, "acc", "plan", 1, 2)))
    row[column] = [CUT + b"5000000"] if COLUMNS[column] == "authorized_users" else CUT + b"5000000"
    for _ in range(2):
        with pytest.raises(OddRow) as odd:
            payload.encode(tuple(row))
        assert odd.value.payload is None
        assert odd.value.oddity.reason == "too_large"
        assert odd.value.oddity.text == f"{COLUMNS[column]} has 5,000,000 bytes, more than a message can have"
        assert odd.value.named == (column != 0)


@pytest.mark.parametrize("column", OPTIONAL_COLUMNS)
def test_an_optional_value_that_the_server_has_cut_is_in_no_payload(column: str) -> None:
    encode_more = payload.encoder([*COLUMNS, column])
    with pytest.raises(OddRow, match=f"{column} has 5,000,000 bytes, more than a message can have"):
        encode_more((b"app", None, None, None, None, None, 1, 2, CUT + b"5000000"))


@given(ROWS)
def test_flags_and_limits_that_come_as_text_are_the_same(row: Row) -> None:
    as_text = [None if value is None else str(value) for value in row]
    assert encode((*row[:2], as_text[2], *row[3:6], *as_text[6:])) == encode(row)


def test_what_is_remembered_of_plans_is_bounded() -> None:
    for number in range(10_000):
        encode(("app", "key", True, None, "acc", f"plan_{number}", number, 0))
        encode(("app", "key", True, None, "acc", f"plan_{number}" * 100, number, 0))
    assert len(payload._plans) <= payload._PLANS
    assert all(len(plan or b"") < 100 for plan, _, _ in payload._plans)


def test_a_user_that_is_null_is_nobody() -> None:
    row = ("app", "key", True, ["one", None], None, None, None, None)
    assert encode(row) == encode(("app", "key", True, ["one"], None, None, None, None))


@given(ROWS, st.lists(st.none() | TEXTS, min_size=4, max_size=4), st.sampled_from([*PERIODS, None]))
def test_optional_columns_are_in_both_places(row: Row, texts: list[str | None], period: str | None) -> None:
    columns = [*COLUMNS, *OPTIONAL_COLUMNS]
    message = generated(row)
    message.rate_limiting.Clear()
    message.rate_limiting.throughput_limit, message.rate_limiting.capacity_limit = row[6] or 0, row[7] or 0
    if (row[7] or 0) > 0:
        message.rate_limiting.capacity_limit_period = PERIODS[period or "month"]
    for name, text in zip(OPTIONAL_COLUMNS[1:], texts, strict=True):
        setattr(message.metadata, name, text or "")
    encoded = encoder(columns)((*row, period, *texts))
    assert pb.GatewayEndpoint.FromString(encoded) == copied(message)


def test_optional_columns_are_found_by_name_and_may_be_few() -> None:
    row = ("app", None, None, None, "acc", "plan", 1, 2)
    message = pb.GatewayEndpoint.FromString(encoder([*COLUMNS, "environment"])((*row, "test")))
    assert (message.metadata.environment, message.metadata.name) == ("test", "")
    assert message.rate_limiting.capacity_limit_period == pb.CAPACITY_LIMIT_PERIOD_MONTHLY
    assert payload.encoder(COLUMNS) is payload.encode, "mappings without them pay nothing"


def test_a_period_that_is_none_has_no_meaning() -> None:
    encode_more = encoder([*COLUMNS, "capacity_limit_period"])
    with pytest.raises(OddRow, match="not day, week, month, year or NULL") as odd:
        encode_more(("app", None, None, None, None, None, 1, 2, "MONTHLY"))
    assert odd.value.payload is None
    assert odd.value.named
    with pytest.raises(OddRow) as odd:
        encode_more((None, None, None, None, None, None, 1, 2, "MONTHLY"))
    assert not odd.value.named


LENGTHS = st.integers(95, 105) | st.integers(0, 3) | st.just(24)


@given(LENGTHS, LENGTHS, LENGTHS, LENGTHS, st.booleans())
def test_short_texts_and_long_ones_make_the_same_bytes(
    name: int, key: int, account: int, plan: int, required: bool
) -> None:
    row: Row = ("i" * (name or 1), "k" * key, required, None, "a" * account, "p" * plan, 1, 2)
    assert encode(row) == generated(row).SerializeToString(deterministic=True)
