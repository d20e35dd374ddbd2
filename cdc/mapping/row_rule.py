"""The rules for odd rows: rows that are not valid endpoints. They are the same for every read.

- A value that has a meaning but does not fit into a message is served as the nearest value that fits.
- A row with a value that has no meaning is left out, as if it were deleted: it must not authorize anybody.

===============  =========================================================  ==================================
reason           the row                                                    result
===============  =========================================================  ==================================
`out_of_range`   a limit beyond 32 bits, or ``Infinity``                    served as the nearest of 32 bits
`fraction`       a limit with a fraction                                    rounded up in size, so never to 0
`not_a_number`   a limit that is ``NaN``, or text that is no number         left out
`not_a_boolean`  ``secret_key_required`` is neither true nor false          left out
`not_a_list`     ``authorized_users`` is not a list                         left out
`not_a_period`   ``capacity_limit_period`` is not a period                  left out
`not_text`       bytes that are not text in the database's encoding         left out
`no_id`          ``endpoint_id`` is NULL or empty                           left out
`twice`          another row has the same ``endpoint_id`` and differs       both are left out
                 from it; equal rows are served as one
`too_large`      it, or one of its values, does not fit into a message      left out
===============  =========================================================  ==================================

The time for a row is proportional to the length of its values. A value that is longer than a message is not
even read: the server sends the value's length instead (`CUT`).
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from decimal import ROUND_UP, Decimal, InvalidOperation
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable

OddReason = Literal[
    "out_of_range",
    "fraction",
    "not_a_number",
    "not_a_boolean",
    "not_a_list",
    "not_a_period",
    "not_text",
    "no_id",
    "twice",
    "too_large",
]
SERVED: Final = frozenset({"out_of_range", "fraction"})
"""The reasons for which a row is still served."""

MESSAGE_BYTES: Final = (4 << 20) - (8 << 10)
"""Maximum bytes of an endpoint's id and payload together. By default a gRPC client accepts messages of at
most 4 MiB, and a stream with a larger one would break again and again. The 8 KiB are for the message's other
fields.
"""

CUT: Final = b"pads_cdc_cut_" + secrets.token_hex(48).encode()
"""What the server sends in place of a value that is longer than a message (`KeyType.sent`). The value's
length in bytes follows it; for an id, a blank and the id's beginning, too. It is random, so that no value
can be mistaken for it, and so long that `server.payload` never takes its fast path.
"""
_CUT_BYTES: Final = len(CUT)

_INT32_LEAST, _INT32_MOST = -(2**31), 2**31 - 1
# The quantifiers are possessive, so that no text is scanned twice: a match holds the interpreter's lock.
_NUMBER: Final = re.compile(rb"\s*+[+-]?(?:[0-9]++(?:\.[0-9]*+)?|\.[0-9]++)(?:[eE][+-]?[0-9]{1,9})?\s*+")
_INFINITE: Final = re.compile(rb"\s*+([+-]?)inf(?:inity)?\s*+", re.IGNORECASE)
_SHOWN: Final = 40
"""Maximum number of characters of a value or an id that reports show."""


@dataclass(frozen=True, slots=True)
class Oddity:
    """The oddity of one row. Its text never contains a key."""

    reason: OddReason
    text: str
    """The column's name, and why its value is odd."""

    @property
    def served(self) -> bool:
        """Whether the row is still served."""
        return self.reason in SERVED


TWICE: Final = Oddity("twice", "another row has the same endpoint_id and other values")


class OddRow(Exception):  # noqa: N818 - it describes a row, not an error of ours
    """An odd row. It is raised instead of returning the row's payload."""

    def __init__(self, oddity: Oddity, payload: bytes | None = None, *, named: bool = True) -> None:
        """``payload`` is the payload to serve, if any. ``named`` says whether the row has a valid id."""
        super().__init__(oddity.text)
        self.oddity = oddity
        self.payload = payload
        self.named = named


def limit(column: str, value: bytes | None) -> tuple[int, Oddity | None]:
    """Return a limit as a number of 32 bits, and its oddity, if any. NULL becomes 0, which means no limit.

    Raises:
        OddRow: the value has no meaning.

    """
    if value is None:
        return 0, None
    if len(value) <= _SHOWN and value.isdigit() and (number := int(value)) <= _INT32_MOST:
        return number, None
    check_whole(column, value)
    infinite = _INFINITE.fullmatch(value)
    if infinite is not None:
        found = Decimal("-Infinity" if infinite[1] == b"-" else "Infinity")
    elif _NUMBER.fullmatch(value) is not None:
        try:
            found = Decimal(value.decode("ascii").strip())
        except InvalidOperation:  # its exponent is too large even for Decimal
            raise _no_number(column, value) from None
    else:
        raise _no_number(column, value)
    # The comparison comes before the conversion, since a short text can stand for an int that fills the
    # memory.
    if not _INT32_LEAST <= found <= _INT32_MOST:
        nearest = _INT32_MOST if found > 0 else _INT32_LEAST
        text = f"{column} is {_shown(value)}, beyond 32 bits: served as {nearest}"
        return nearest, Oddity("out_of_range", text)
    number = int(found.to_integral_value(ROUND_UP))
    if number == found:
        return number, None
    return number, Oddity("fraction", f"{column} is {_shown(value)}, not a whole number: served as {number}")


def flag(column: str, value: bool | bytes | None) -> bool:
    """Return whether a value is true. It may be a boolean, a number, or text that Postgres prints or reads as
    a boolean. NULL is false.

    Raises:
        OddRow: the value is neither true nor false.

    """
    if value is None or isinstance(value, bool):
        return bool(value)
    if value in (b"t", b"f"):
        return value == b"t"
    word = value.strip().lower()
    if word and (b"true".startswith(word) or b"yes".startswith(word) or word == b"on"):
        return True
    if word and (b"false".startswith(word) or b"no".startswith(word) or word in (b"of", b"off")):
        return False
    if _NUMBER.fullmatch(word) is None:
        check_whole(column, value)
        raise OddRow(Oddity("not_a_boolean", f"{column} is neither true nor false"))
    return any(digit in b"123456789" for digit in word.partition(b"e")[0])


def users(column: str, value: object) -> list[bytes]:
    """Return the users that may call; NULLs in the list are skipped.

    Raises:
        OddRow: the value is not a list of valid texts.

    """
    if not isinstance(value, list):
        raise OddRow(Oddity("not_a_list", f"{column} is not a list"))
    found = [user for user in value if user is not None]
    if not all(isinstance(user, bytes) for user in found):
        raise OddRow(Oddity("not_a_list", f"{column} is not a list of text"))
    check_text(column, found)
    return found


def check_text(column: str, values: Iterable[bytes]) -> None:
    """Check that bytes are UTF-8, and all of a value.

    Raises:
        OddRow: they are not UTF-8, because they were not valid text in the database's encoding; or the
            value was too long to be read.

    """
    for value in values:
        if len(value) > _CUT_BYTES:  # first, since this runs for every value of a slow row
            check_whole(column, value)
        if not value.isascii():
            try:
                value.decode()
            except UnicodeDecodeError:
                raise OddRow(Oddity("not_text", f"{column} is not text in the database's encoding")) from None


def check_id(column: str, value: bytes | None) -> None:
    """Check that an id is valid.

    Raises:
        OddRow: no endpoint can have it.

    """
    if not value:
        what = "NULL" if value is None else "empty"
        raise OddRow(Oddity("no_id", f"{column} is {what}"), named=False)
    try:
        check_size(column, _size(value))
        check_text(column, (value,))
    except OddRow as odd:
        odd.named = False
        raise


def check_size(what: str, size: int) -> None:
    """Check that a number of bytes fits into a message.

    Raises:
        OddRow: it does not fit.

    """
    if size > MESSAGE_BYTES:
        raise OddRow(Oddity("too_large", f"{what} has {size:,} bytes, more than a message can have"))


def check_whole(column: str, value: bytes) -> None:
    """Check that a value was read, because it is not longer than a message.

    Raises:
        OddRow: the server has sent its length in its place.

    """
    if value.startswith(CUT):
        check_size(column, _size(value))


def shown(value: bytes | None) -> str:
    """Return an invalid id in the form that reports show."""
    if value is None:
        return "(NULL)"
    _, cut, after = value[: 2 * _CUT_BYTES + 16 * _SHOWN].partition(CUT)
    return _shown(after.partition(b" ")[2] if cut else value) or "(empty)"


def in_short(text: str) -> str:
    """Return text in the form that reports show: on one line, and not too long."""
    text = "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text[: 4 * _SHOWN])
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _size(value: bytes) -> int:
    """Return the length of a value, also of one that was cut."""
    # Where the beginning of an id is no valid text, a byte precedes (`Encoding.in_utf8`).
    if value.find(CUT, 0, _CUT_BYTES + 1) < 0:
        return len(value)
    return int(value.partition(CUT)[2].partition(b" ")[0])


def _no_number(column: str, value: bytes) -> OddRow:
    return OddRow(Oddity("not_a_number", f"{column} is {_shown(value) or 'empty'}, which is not a number"))


def _shown(value: bytes) -> str:
    return in_short(value[: 4 * _SHOWN].decode("utf-8", "backslashreplace"))
