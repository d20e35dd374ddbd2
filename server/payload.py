"""From a row of the mapping to a serialized ``proto.GatewayEndpoint``: for ever the same bytes for a row.

Digests cover these bytes, and other languages serialize the same message to other ones, so they are made once
and here, by rules of our own: fields in the order of their numbers, map entries in the order of their keys'
bytes, defaults left out, and a submessage that is set written even if it is empty. A protobuf library's
"deterministic" promises less: the next version may order differently (upb sorts a user behind another one of
which it is the beginning). Putting the bytes together also takes a third of the time, a million times at each
start. Tests hold them against the generated classes.

Clients of both revisions of the contract read these bytes: field 3 holds the limits, which the first revision
expects there, and behind them a copy of the metadata, which the second one does. Why that is safe:
``proto/gateway_endpoint.proto``.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from server.wire import SHORT, field, varint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

ENCODING: Final = 2
"""Counts the rules by which a row becomes bytes. Whoever holds bytes of another number (a resume token's
client, a state file, a pair's other server) cannot compare digests with ours. Number 1 had the limits alone
in field 3. To be raised with every change of the bytes; 1 to 255, since a token has one byte for it.
"""

Row: TypeAlias = tuple[
    str, str | None, bool | None, list[str] | None, str | None, str | None, int | None, int | None
]
"""The mapping's columns: endpoint_id, secret_key, secret_key_required, authorized_users, account_id,
plan_type, throughput_limit, capacity_limit.
"""
_ROW: Final = 8

_MONTH: Final = 3
_PERIODS: Final = {"day": 1, "week": 2, "month": _MONTH, "year": 4}
"""The values of `CapacityLimitPeriod`."""
_INT32 = range(-(2**31), 2**31)

# A tag is the field's number << 3 | 2: a length follows.
_ENDPOINT_ID, _AUTH, _RATE_LIMITING, _METADATA = b"\x0a", b"\x12", b"\x1a", b"\x22"
_STATIC_API_KEY, _JWT = b"\x12", b"\x1a"
_API_KEY = b"\x0a"
_AUTHORIZED_USERS = b"\x12"
_ACCOUNT_ID, _PLAN_TYPE = b"\x12", b"\x22"
_NAME, _USER_ID, _EMAIL, _ENVIRONMENT = b"\x0a", b"\x1a", b"\x2a", b"\x32"
_MAP_KEY, _EMPTY_MAP_VALUE = b"\x0a", b"\x12\x00"
# A tag is the field's number << 3 | 0: a varint follows.
_THROUGHPUT_LIMIT, _CAPACITY_LIMIT, _CAPACITY_LIMIT_PERIOD = b"\x08", b"\x10", b"\x18"

_NO_AUTH = _AUTH + b"\x02\x0a\x00"
"""`no_auth` is set, although it is empty: clients refuse an unset `auth_type`."""

_LONG = 100
"""Bytes from which on a text takes the long way: below, each length around it is one byte."""
_BEFORE_ID = [_ENDPOINT_ID + SHORT[length] for length in range(_LONG)]
_BEFORE_KEY = [
    _AUTH + SHORT[length + 4] + _STATIC_API_KEY + SHORT[length + 2] + _API_KEY + SHORT[length]
    for length in range(_LONG)
]
"""By the length of the key."""
_BEFORE_ACCOUNT = [_ACCOUNT_ID + SHORT[length] for length in range(_LONG)]
_BEFORE_METADATA = [_METADATA + SHORT[length + 2] for length in range(_LONG)]
"""By the lengths of the account's id and of the plan's serialized field, together."""
_BEFORE_LIMITS = [_RATE_LIMITING + SHORT[length + 2] for length in range(_LONG + 24)]
"""By these and the length of the serialized numbers, of which there are 24 bytes at most."""


def encoder(columns: Sequence[str]) -> Callable[[tuple[Any, ...]], bytes]:
    """Return what encodes rows of these columns: those of `Row`, then any of
    `cdc.mapping.mapping.OPTIONAL_COLUMNS`. Rows without any of these take no longer for it.

    The function that is returned raises what `encode` raises, and a ValueError for a period that is none.
    """
    optional = columns[_ROW:]
    if not optional:
        return encode

    def encode_more(row: tuple[Any, ...]) -> bytes:
        return _encode(row[:_ROW], dict(zip(optional, row[_ROW:], strict=True)))

    return encode_more


def encode(row: Row) -> bytes:
    """Return the payload of one endpoint; NULLs become what `proto/gateway_endpoint.proto` has for nothing.

    Authorized users win over the key; an empty list of them authorizes nobody, and so does an empty key.

    Raises:
        ValueError: a limit does not fit into 32 bits.

    """
    endpoint_id, secret_key, required, users, account_id, plan_type, throughput, capacity = row
    # As usual: all there, and nothing of it long. What stands between is looked up, not put together.
    if users is None and required and secret_key and account_id:
        name, key, account = endpoint_id.encode(), secret_key.encode(), account_id.encode()
        plan, numbers = _plan_type(plan_type), _numbers(throughput or 0, capacity or 0, _MONTH)
        length = len(account) + len(plan)
        if name and len(name) < _LONG and len(key) < _LONG and length < _LONG:
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
    return _encode(row, {})


def _encode(row: Row, more: Mapping[str, str | None]) -> bytes:
    """Encode any row, with what the optional columns say of it."""
    endpoint_id, secret_key, required, users, account_id, plan_type, throughput, capacity = row
    if users is not None:
        auth = _jwt(users)
    elif required:
        auth = field(_AUTH, field(_STATIC_API_KEY, _text(_API_KEY, secret_key)))
    else:
        auth = _NO_AUTH
    metadata = b"".join(
        (
            _text(_NAME, more.get("name")),
            _text(_ACCOUNT_ID, account_id),
            _text(_USER_ID, more.get("user_id")),
            _plan_type(plan_type),
            _text(_EMAIL, more.get("email")),
            _text(_ENVIRONMENT, more.get("environment")),
        )
    )
    numbers = _numbers(throughput or 0, capacity or 0, _period(more.get("capacity_limit_period")))
    limits = field(_RATE_LIMITING, numbers + metadata)
    return _text(_ENDPOINT_ID, endpoint_id) + auth + limits + field(_METADATA, metadata)


def _jwt(users: Iterable[str]) -> bytes:
    entries = [
        field(_AUTHORIZED_USERS, field(_MAP_KEY, user) + _EMPTY_MAP_VALUE)
        for user in sorted({user.encode() for user in users})
    ]
    return field(_AUTH, field(_JWT, b"".join(entries)))


def _period(name: str | None) -> int:
    if name is None:
        return _MONTH
    try:
        return _PERIODS[name]
    except KeyError:
        raise ValueError(
            f"capacity_limit_period {name!r}: must be {', '.join(_PERIODS)} or NULL, which is a month"
        ) from None


# Many endpoints share few plans. The bound is there for a mapping that has limits of each endpoint's own.
@lru_cache(maxsize=4096)
def _numbers(throughput: int, capacity: int, period: int) -> bytes:
    if throughput not in _INT32 or capacity not in _INT32:
        raise ValueError(f"limits {throughput} and {capacity}: both must fit into 32 bits")
    return (
        _number(_THROUGHPUT_LIMIT, throughput)
        + _number(_CAPACITY_LIMIT, capacity)
        + _number(_CAPACITY_LIMIT_PERIOD, period if capacity > 0 else 0)
    )


@lru_cache(maxsize=4096)
def _plan_type(plan_type: str | None) -> bytes:
    return _text(_PLAN_TYPE, plan_type)


def _text(tag: bytes, value: str | None) -> bytes:
    return field(tag, value.encode()) if value else b""


def _number(tag: bytes, value: int) -> bytes:
    # A negative int32 is written as the 64 bits of its two's complement.
    return tag + varint(value % 2**64) if value else b""
