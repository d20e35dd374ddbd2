"""The rule for odd rows, against Postgres' own reading of numbers and booleans, and in bounded time."""

from __future__ import annotations

import time
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc.mapping.row_rule import (
    CUT,
    MESSAGE_BYTES,
    OddRow,
    check_id,
    check_text,
    flag,
    in_short,
    limit,
    shown,
    users,
)

if TYPE_CHECKING:
    from collections.abc import Callable

MOST, LEAST = 2**31 - 1, -(2**31)

NUMBERS = (
    st.integers()
    | st.integers(LEAST - 2, MOST + 2)
    | st.decimals(allow_nan=False, allow_infinity=False)
    | st.floats(allow_nan=False, allow_infinity=False)
)


@given(NUMBERS)
def test_a_number_is_served_as_the_nearest_that_is_no_less_of_a_limit(value: float | Decimal) -> None:
    served, odd = limit("capacity_limit", str(value).encode())
    exact = Decimal(str(value))
    assert LEAST <= served <= MOST
    if odd is None:
        assert served == exact
    elif odd.reason == "out_of_range":
        assert served == (MOST if exact > 0 else LEAST)
        assert not LEAST <= exact <= MOST
    else:
        assert odd.reason == "fraction"
        assert abs(exact) < abs(served) <= abs(exact) + 1
        assert served, "0 is no limit at all, and the row has one"
    assert odd is None or odd.served


@pytest.mark.parametrize(
    ("printed", "served"),
    [
        (None, 0),
        (b"0", 0),
        (b"1000", 1000),
        (b"-5", -5),
        (b"  12\t", 12),
        (b"+7", 7),
        (b"1e3", 1000),
        (b"1000.00", 1000),
        (b".0", 0),
        (b"-0", 0),
        (b"0" * 5000 + b"9", 9),
        (b"1." + b"0" * 16_000, 1),
    ],
)
def test_whole_numbers_are_whole_however_they_are_written(printed: bytes | None, served: int) -> None:
    assert limit("capacity_limit", printed) == (served, None)


@pytest.mark.parametrize(
    ("printed", "served"),
    [
        (b"Infinity", MOST),
        (b"-Infinity", LEAST),
        (b"inf", MOST),
        (b"5000000000", MOST),
        (b"2147483648", MOST),
        (b"-2147483649", LEAST),
        (b"1e400", MOST),
        (b"1e999999999", MOST),
        (b"9" * 200_000, MOST),
    ],
)
def test_what_is_beyond_32_bits_is_the_nearest_within(printed: bytes, served: int) -> None:
    began = time.perf_counter()
    number, odd = limit("capacity_limit", printed)
    assert time.perf_counter() - began < 1
    assert number == served
    assert odd is not None
    assert odd.reason == "out_of_range"
    assert len(odd.text) < 150


@pytest.mark.parametrize(
    "printed",
    [
        b"", b" ", b"NaN", b"-nan", b"many", b"1 000", b"1,000", b"$1.00", b"0x10", b"1_000", b"12abc",
        b"--1", b"1e", b".", b"t", b'{"a": 1}', "\N{FULLWIDTH DIGIT ONE}".encode(), b"\xff", b"1\x00", b"e5",
        b"9" * 200_000 + b"x", b"1e99999999999", b" " * 100_000,
    ],
)  # fmt: skip
def test_what_is_no_number_has_no_meaning(printed: bytes) -> None:
    began = time.perf_counter()
    with pytest.raises(OddRow) as odd:
        limit("capacity_limit", printed)
    assert time.perf_counter() - began < 1
    assert odd.value.oddity.reason == "not_a_number"
    assert odd.value.payload is None
    assert len(odd.value.oddity.text) < 150


TRUE = (b"t", b"true", b"TRUE", b"tr", b"y", b"yes", b"Ye", b"on", b"1", b" t ", b"2", b"-1", b"0.5", b"1e3")
FALSE = (None, b"f", b"false", b"FAL", b"n", b"no", b"off", b"OF", b"0", b"0.00", b"-0", b"0e5")


@pytest.mark.parametrize(("words", "value"), [(TRUE, True), (FALSE, False)])
def test_a_boolean_is_read_as_postgres_reads_it(words: tuple[bytes | None, ...], value: bool) -> None:
    for word in words:
        assert flag("secret_key_required", word) is value, word


@pytest.mark.parametrize("word", [b"", b"o", b"maybe", b"tt", b"yess", b"NaN", b"\xff", b"null"])
def test_what_is_neither_true_nor_false_opens_nothing(word: bytes) -> None:
    with pytest.raises(OddRow) as odd:
        flag("secret_key_required", word)
    assert odd.value.oddity.reason == "not_a_boolean"


def test_users_are_texts_and_a_null_is_nobody() -> None:
    assert users("authorized_users", []) == []
    assert users("authorized_users", [b"a", None, b"\xc3\xa9"]) == [b"a", b"\xc3\xa9"]
    for odd in (b"{a}", "a", [[b"a"]], [1], [b"\xff"]):
        with pytest.raises(OddRow):
            users("authorized_users", odd)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "(NULL)"),
        (b"", "(empty)"),
        (b"\xff", r"\xff"),
        (b"i" * (MESSAGE_BYTES + 1), "i" * 40 + "..."),
    ],
)
def test_an_id_that_no_endpoint_can_have_is_shown_in_short(value: bytes | None, text: str) -> None:
    with pytest.raises(OddRow) as odd:
        check_id("endpoint_id", value)
    assert not odd.value.named
    assert shown(value) == text


def test_what_people_are_shown_is_one_short_line() -> None:
    assert in_short("a\nb\x1b[2J\u202e") == r"a\nb\x1b[2J\u202e"
    assert len(in_short("\n" * 1000)) < 50
    check_id("endpoint_id", "größe".encode())


LONG = CUT + b"5000000"


@pytest.mark.parametrize(
    "judge",
    [
        lambda: limit("it", LONG),
        lambda: flag("it", LONG),
        lambda: users("it", [LONG]),
        lambda: check_text("it", (b"usual", LONG)),
        lambda: check_id("it", LONG),
        lambda: check_id("it", LONG + b" " + b"i" * 160),
        lambda: check_id("it", b"\xff" + LONG + b" \xff\xfe"),
    ],
)
def test_a_value_that_the_server_has_cut_is_as_odd_as_the_whole_one(judge: Callable[[], object]) -> None:
    with pytest.raises(OddRow) as raised:
        judge()
    assert raised.value.oddity.reason == "too_large"
    assert raised.value.oddity.text == "it has 5,000,000 bytes, more than a message can have"


def test_an_id_that_was_cut_is_shown_as_the_whole_one() -> None:
    assert shown(LONG + b" " + b"i" * 160) == shown(b"i" * 5_000_000) == "i" * 40 + "..."
    assert shown(b"\xff" + LONG + b" \xff" + b"i" * 9) == "\\xff" + "i" * 9
