"""Encodes a row of the mapping as a serialized ``proto.GatewayEndpoint``. Equal rows always give equal bytes.

Digests cover these bytes, and other languages serialize the same message differently. So the bytes are made
only here, by our own rules: fields are in the order of their numbers, map entries are in the order of their
keys' bytes, defaults are left out, and a submessage that is set is written even if it is empty. A protobuf
library's "deterministic" mode guarantees less: its next version may use another order (upb sorts "ab" before
"a"). Our encoding also takes only a third of the time, and there may be a million rows at each start. Tests
compare the bytes with those of the generated classes.

Clients of both revisions of the legacy contract read these bytes. Field 3 contains the limits, which the
first revision expects there, followed by a copy of the metadata, which the second revision expects there.
``proto/gateway_endpoint.proto`` explains why this is safe.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from cdc.mapping.row_rule import Oddity, OddRow, check_id, check_size, check_text, check_whole, flag, limit
from cdc.mapping.row_rule import users as authorized
from server.wire import SHORT, field, varint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

ENCODING: Final = 2
"""Version of the encoding, 1 to 255, since a token has one byte for it. Digests over bytes of another version
(of a client's map, a state file, or the peer's map) cannot be compared with ours. Increase the version with
every change of the bytes. Version 1 had only the limits in field 3.
"""

_Limit: TypeAlias = int | bytes | None
Row: TypeAlias = tuple[
    bytes | None,
    bytes | None,
    bool | bytes | None,
    list[bytes] | None,
    bytes | None,
    bytes | None,
    _Limit,
    _Limit,
]
"""The mapping's columns: endpoint_id, secret_key, secret_key_required, authorized_users, account_id,
plan_type, throughput_limit, capacity_limit. Text is in UTF-8; the database converts unusual types to text.
"""
_ROW: Final = 8

_MONTH: Final = 3
_PERIODS: Final = {b"day": 1, b"week": 2, b"month": _MONTH, b"year": 4}
"""The values of `CapacityLimitPeriod`."""

# A tag is the field's number << 3 | 2, and a length follows.
_ENDPOINT_ID, _AUTH, _RATE_LIMITING, _METADATA = b"\x0a", b"\x12", b"\x1a", b"\x22"
_STATIC_API_KEY, _JWT = b"\x12", b"\x1a"
_API_KEY = b"\x0a"
_AUTHORIZED_USERS = b"\x12"
_ACCOUNT_ID, _PLAN_TYPE = b"\x12", b"\x22"
_NAME, _USER_ID, _EMAIL, _ENVIRONMENT = b"\x0a", b"\x1a", b"\x2a", b"\x32"
_MAP_KEY, _EMPTY_MAP_VALUE = b"\x0a", b"\x12\x00"
# A tag is the field's number << 3 | 0, and a varint follows.
_THROUGHPUT_LIMIT, _CAPACITY_LIMIT, _CAPACITY_LIMIT_PERIOD = b"\x08", b"\x10", b"\x18"

_NO_AUTH = _AUTH + b"\x02\x0a\x00"
"""`no_auth`, which is written although it is empty, because clients refuse an unset `auth_type`."""

_LONG = 100
"""Texts of at least this number of bytes take the slow path. For shorter texts, each length in the message is
one byte.
"""
_BEFORE_ID = [_ENDPOINT_ID + SHORT[length] for length in range(_LONG)]
_BEFORE_KEY = [
    _AUTH + SHORT[length + 4] + _STATIC_API_KEY + SHORT[length + 2] + _API_KEY + SHORT[length]
    for length in range(_LONG)
]
"""The bytes before a key, by the key's length."""
_BEFORE_ACCOUNT = [_ACCOUNT_ID + SHORT[length] for length in range(_LONG)]
_BEFORE_METADATA = [_METADATA + SHORT[length + 2] for length in range(_LONG)]
"""The bytes before the metadata, by the total length of the account's id and the plan's field."""
_BEFORE_LIMITS = [_RATE_LIMITING + SHORT[length + 2] for length in range(_LONG + 24)]
"""The bytes before the limits, by the total length of the account's id, the plan's field and the serialized
numbers (at most 24).
"""


class _PlanFields(NamedTuple):
    """A row's plan and limits, serialized."""

    usual: bool
    """Whether the plan is ASCII and plan and limits have no oddity, so that the fast path can be used."""
    plan: bytes
    """The plan's field of the metadata."""
    numbers: bytes
    """The fields of the limits."""
    odd: Oddity | OddRow | None
    """The oddity of the limits if there is one, or an error if the limits have no meaning."""


_PLANS: Final = 4096
"""Maximum number of cached combinations of plan and limits. Usually many endpoints share few combinations."""
_plans: dict[tuple[bytes | None, _Limit, _Limit], _PlanFields] = {}


def encoder(columns: Sequence[str]) -> Callable[[tuple[Any, ...]], bytes]:
    """Return a function that encodes rows of these columns.

    The columns are those of `Row`, followed by any of `cdc.mapping.mapping.OPTIONAL_COLUMNS`. Without
    optional columns the function is as fast as `encode`. It raises the same errors as `encode`.
    """
    optional = columns[_ROW:]
    if not optional:
        return encode

    def encode_more(row: tuple[Any, ...]) -> bytes:
        check_id("endpoint_id", _bytes(row[0]))  # this is done first, so that other oddities can name the id
        more = {name: _bytes(value) for name, value in zip(optional, row[_ROW:], strict=True)}
        period = _period(more.pop("capacity_limit_period", None))
        for column, value in more.items():
            check_text(column, (value or b"",))
        return _encode(row[:_ROW], _of_plan(row[5], row[6], row[7], period), more)

    return encode_more


def encode(row: Row) -> bytes:
    """Return the payload of one endpoint. A NULL becomes the field's default in `gateway_endpoint.proto`.

    Authorized users take precedence over the key. An empty list of users authorizes nobody, and so does an
    empty key.

    Raises:
        OddRow: the row is not a valid endpoint by the rules of `cdc.mapping.row_rule`.

    """
    name, key, required, users, account, plan_type, throughput, capacity = row
    known = _plans.get((plan_type, throughput, capacity))
    if known is None:
        known = _of_plan(plan_type, throughput, capacity)
    usual, plan, numbers, _ = known
    # The fast path: every value is present and short. The bytes between the values come from tables.
    if usual and required is True and users is None and name and key and account:
        length = len(account) + len(plan)
        short = len(name) < _LONG and len(key) < _LONG and length < _LONG
        if short and name.isascii() and key.isascii() and account.isascii():
            before_account = _BEFORE_ACCOUNT[len(account)]
            return b"".join(
                (
                    _BEFORE_ID[len(name)],
                    name,
                    _BEFORE_KEY[len(key)],
                    key,
                    _BEFORE_LIMITS[length + len(numbers)],
                    numbers,
                    before_account,
                    account,
                    plan,
                    _BEFORE_METADATA[length],
                    before_account,
                    account,
                    plan,
                )
            )
    return _encode(row, known, {})


def _encode(row: Row, of_plan: _PlanFields, more: Mapping[str, bytes | None]) -> bytes:
    """Encode any row, with its optional columns."""
    name, key, required, users, account, *_ = map(_bytes, row)
    check_id("endpoint_id", name)
    check_text("secret_key", (key or b"",))
    check_text("account_id", (account or b"",))
    odd = of_plan.odd
    if isinstance(odd, OddRow):
        raise OddRow(odd.oddity)
    if users is not None:
        auth = _jwt(authorized("authorized_users", users))
    elif flag("secret_key_required", required):
        auth = field(_AUTH, field(_STATIC_API_KEY, _text(_API_KEY, key)))
    else:
        auth = _NO_AUTH
    metadata = b"".join(
        (
            _text(_NAME, more.get("name")),
            _text(_ACCOUNT_ID, account),
            _text(_USER_ID, more.get("user_id")),
            of_plan.plan,
            _text(_EMAIL, more.get("email")),
            _text(_ENVIRONMENT, more.get("environment")),
        )
    )
    limits = field(_RATE_LIMITING, of_plan.numbers + metadata)
    payload = _text(_ENDPOINT_ID, name) + auth + limits + field(_METADATA, metadata)
    check_size("it", len(name) + len(payload))
    if odd is not None:
        raise OddRow(odd, payload)
    return payload


def _bytes(value: Any) -> Any:
    """Return a value of any type in the form in which the server prints it."""
    if value is None or isinstance(value, bytes | list):
        return value
    if isinstance(value, bool):
        return b"t" if value else b"f"
    return str(value).encode()


def _jwt(users: Iterable[bytes]) -> bytes:
    entries = [
        field(_AUTHORIZED_USERS, field(_MAP_KEY, user) + _EMPTY_MAP_VALUE) for user in sorted({*users})
    ]
    return field(_AUTH, field(_JWT, b"".join(entries)))


def _period(name: bytes | None) -> int:
    if name is None:
        return _MONTH
    try:
        return _PERIODS[name]
    except KeyError:
        check_whole("capacity_limit_period", name)
        text = "capacity_limit_period is not day, week, month, year or NULL (which means month)"
        raise OddRow(Oddity("not_a_period", text)) from None


def _of_plan(
    plan_type: bytes | None, throughput: _Limit, capacity: _Limit, period: int = _MONTH
) -> _PlanFields:
    try:
        plan_type = _bytes(plan_type)
        check_text("plan_type", (plan_type or b"",))
        plan = _text(_PLAN_TYPE, plan_type)
        most_calls, odd = limit("throughput_limit", _bytes(throughput))
        most_use, odd_use = limit("capacity_limit", _bytes(capacity))
        numbers = _number(_THROUGHPUT_LIMIT, most_calls) + _number(_CAPACITY_LIMIT, most_use)
        numbers += _number(_CAPACITY_LIMIT_PERIOD, period if most_use > 0 else 0)
        known = _PlanFields(odd is odd_use is None and plan.isascii(), plan, numbers, odd or odd_use)
    except OddRow as meaningless:
        known = _PlanFields(usual=False, plan=b"", numbers=b"", odd=meaningless)
    length = sum(len(_bytes(value) or b"") for value in (plan_type, throughput, capacity))
    if period == _MONTH and length < _LONG:
        if len(_plans) >= _PLANS:
            _plans.clear()
        _plans[plan_type, throughput, capacity] = known
    return known


def _text(tag: bytes, value: bytes | None) -> bytes:
    return field(tag, value) if value else b""


def _number(tag: bytes, value: int) -> bytes:
    # A negative int32 is written in two's complement of 64 bits.
    return tag + varint(value % 2**64) if value else b""
