"""The tables of the mapping `grove`, without constraints, whose columns can have any type; and values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

VALUES: Final = 5
"""Number of values of each type."""

PREPARE: Final = """
CREATE EXTENSION citext;
CREATE EXTENSION hstore;
CREATE EXTENSION ltree;
CREATE TYPE mood AS ENUM ('glad', 'sad', 'MAD', 'so so', 'none');
CREATE DOMAIN word AS VARCHAR(20) CHECK (VALUE <> 'forbidden');
CREATE DOMAIN padded AS CHAR(12);
CREATE DOMAIN loose AS CITEXT;
CREATE DOMAIN certain AS TEXT NOT NULL CHECK (VALUE <> '');
CREATE DOMAIN certain_word AS word NOT NULL CHECK (VALUE <> 'forbidden as well');
CREATE DOMAIN feeling AS mood CHECK (VALUE <> 'none' OR VALUE = 'none');
CREATE DOMAIN amount AS NUMERIC(12, 2) CHECK (VALUE >= 0);
CREATE DOMAIN words AS TEXT[];
CREATE TYPE pair AS (number INT, word TEXT);
CREATE COLLATION caseless (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
"""


@dataclass(frozen=True)
class Kind:
    """A type, with functions that return its values as text, by their numbers."""

    sql: str
    spelled: Callable[[int], str]
    again: Callable[[int], str] | None = None
    """Other spellings of the same values: the database finds them equal, or stores them in the same form."""


def _word(number: int) -> str:
    return f"Word {number}"


def _loud(number: int) -> str:
    return f"WORD {number}"


def _padded(number: int) -> str:
    return f"Word {number}   "


def _any_number(number: int) -> str:
    return ("1.50", "NaN", "Infinity", "-Infinity", "0")[number]


def _uuid(number: int) -> str:
    return f"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a1{number}"


KINDS: Final[Mapping[str, Kind]] = {
    "smallint": Kind("SMALLINT", lambda number: str(number + 1)),
    "integer": Kind("INTEGER", lambda number: str(number - 2)),
    "bigint": Kind("BIGINT", lambda number: str(number + 2**53)),
    "numeric": Kind("NUMERIC", lambda number: f"{number}.50", lambda number: f"{number}.5"),
    "numeric(30,20)": Kind("NUMERIC(30,20)", lambda number: f"{number}.12345678901234567890"),
    "real": Kind("REAL", lambda number: f"{number}.1"),
    "double precision": Kind("DOUBLE PRECISION", lambda number: f"{number + 1}e300"),
    "text": Kind("TEXT", lambda number: f'it\'s "{number}" \\ %s é'),
    "varchar": Kind("VARCHAR(24)", _word),
    "varchar without length": Kind("VARCHAR", _word),
    "name": Kind("NAME", _word),
    "char": Kind("CHAR(12)", _word, _padded),
    "char without length": Kind("BPCHAR", _padded, _word),
    "citext": Kind("CITEXT", _word, _loud),
    "domain": Kind("WORD", _word),
    "domain of char": Kind("PADDED", _word, _padded),
    "domain of citext": Kind("LOOSE", _word, _loud),
    "enum": Kind("MOOD", lambda number: ("glad", "sad", "MAD", "so so", "none")[number]),
    "uuid": Kind("UUID", _uuid, lambda number: _uuid(number).upper()),
    "collation C": Kind('TEXT COLLATE "C"', _word),
    "caseless": Kind("TEXT COLLATE caseless", _word, _loud),
    "bytea": Kind("BYTEA", lambda number: f"\\x00ff4{number}"),
    "json": Kind("JSON", lambda number: f'"{number}"'),
    "jsonb": Kind("JSONB", lambda number: f'{{"a": {number}.0}}', lambda number: f'{{"a":{number}.00}}'),
    "list": Kind("TEXT[]", lambda number: f"{{a,{number}}}"),
    "date": Kind("DATE", lambda number: f"2026-01-0{number + 1}"),
    "timestamp": Kind("TIMESTAMPTZ", lambda number: f"2026-01-0{number + 1} 03:04:05.6+02"),
    "interval": Kind(
        "INTERVAL", lambda number: f"{number + 1} days", lambda number: f"{(number + 1) * 24} hours"
    ),
    "inet": Kind("INET", lambda number: f"10.0.0.{number}"),
    "boolean": Kind("BOOLEAN", lambda number: "ft"[number % 2]),
    "bit": Kind("BIT(8)", lambda number: f"0000000{number % 2}"),
    "money": Kind("MONEY", lambda number: f"{number}.50"),
    "oid": Kind("OID", str),
    "numeric without end": Kind("NUMERIC", _any_number),
    "real without end": Kind("REAL", _any_number),
    "double precision without end": Kind("DOUBLE PRECISION", _any_number),
    "whole smallint": Kind("SMALLINT", str),
    "whole bigint": Kind("BIGINT", str),
    "whole numeric": Kind("NUMERIC", str, lambda number: f"{number}.00"),
    "whole real": Kind("REAL", str, lambda number: f"{number}.0"),
    "whole double precision": Kind("DOUBLE PRECISION", str, lambda number: f"{number}.0"),
    "domain not null": Kind("CERTAIN", _word),
    "domain of domain": Kind("CERTAIN_WORD", _word),
    "domain of enum": Kind("FEELING", lambda number: ("glad", "sad", "MAD", "so so", "none")[number]),
    "domain of numeric": Kind("AMOUNT", lambda number: f"{number}.50", lambda number: f"{number}.5"),
    "domain of list": Kind("WORDS", lambda number: f"{{a,{number}}}"),
    "list of uuid": Kind("UUID[]", lambda number: f"{{{_uuid(number)}}}"),
    "vector of oid": Kind("OIDVECTOR", lambda number: f"1 {number}"),
    "composite": Kind("PAIR", lambda number: f"({number},word)"),
    "range": Kind("INT4RANGE", lambda number: f"[{number},{number + 2})"),
    "multirange": Kind("INT4MULTIRANGE", lambda number: f"{{[{number},{number + 2})}}"),
    "xml": Kind("XML", lambda number: f"<a>{number}</a>"),
    "hstore": Kind("HSTORE", lambda number: f'"a"=>"{number}"', lambda number: f"a=>{number}"),
    "ltree": Kind("LTREE", lambda number: f"a.b.{number}"),
    "internal char": Kind('"char"', lambda number: "abcde"[number]),
    "tid": Kind("TID", lambda number: f"({number},1)"),
    "xid": Kind("XID", str),
    "xid8": Kind("XID8", str),
    "regclass": Kind("REGCLASS", lambda number: f"pg_{('class', 'type', 'proc', 'enum', 'index')[number]}"),
    "regtype": Kind("REGTYPE", lambda number: ("text", "integer", "bigint", "uuid", "oid")[number]),
    "lsn": Kind("PG_LSN", lambda number: f"0/{number}"),
    "cidr": Kind("CIDR", lambda number: f"10.0.{number}.0/24"),
    "macaddr": Kind("MACADDR", lambda number: f"08:00:2b:01:02:0{number}"),
    "varbit": Kind("VARBIT", lambda number: f"1{number % 2}"),
    "time": Kind("TIME", lambda number: f"0{number}:00:00"),
    "time with zone": Kind("TIMETZ", lambda number: f"0{number}:00:00+01"),
    "timestamp without end": Kind(
        "TIMESTAMP",
        lambda number: ("infinity", "-infinity", "epoch", "2026-01-01", "2026-01-02")[number],
    ),
    "point": Kind("POINT", lambda number: f"({number},0)"),
    "search document": Kind("TSVECTOR", lambda number: f"'a':{number + 1}"),
}
NUMBERS: Final = (
    *("smallint", "integer", "bigint", "numeric", "real", "double precision", "text", "oid"),
    *("numeric without end", "real without end", "double precision without end", "domain of numeric"),
)
WHOLE: Final = ("whole smallint", "whole bigint", "whole numeric", "whole real", "whole double precision")
"""Kinds of numbers that have equal values, so that a schema may mix them."""
SENDABLE: Final = (
    *WHOLE,
    *("smallint", "integer", "bigint", "numeric", "numeric(30,20)", "real", "double precision", "text"),
    *("varchar", "varchar without length", "name", "char", "char without length", "citext", "domain"),
    *("domain of char", "domain of citext", "enum", "uuid", "collation C", "caseless", "oid"),
    *("numeric without end", "real without end", "double precision without end"),
    *("domain not null", "domain of domain", "domain of enum", "domain of numeric"),
)
"""The kinds whose values can be sent to gateways."""
TEXTS: Final = ("text", "varchar", "char", "citext", "domain", "caseless", "enum")
"""The kinds that a schema may well mix. It has only one collation besides the default one, because Postgres
refuses to compare two values with different explicit collations.
"""


@dataclass(frozen=True)
class Columns:
    """The types (names in `KINDS`) of the columns that determine the endpoints."""

    id: str = "varchar"
    settings_id: str = "varchar"
    signal_id: str = "varchar"
    account: str = "varchar"
    app_account: str = "varchar"
    plan: str = "varchar"
    account_plan: str = "varchar"
    key: str = "text"
    limit: str = "integer"

    def value(self, column: str, number: int, *, again: bool = False) -> str:
        """Return a column's value by its number; with ``again``, in its other spelling if there is one."""
        kind = KINDS[getattr(self, column)]
        return (kind.again or kind.spelled)(number) if again else kind.spelled(number)

    @property
    def schema(self) -> str:
        """The SQL that creates the tables."""
        of = {name: KINDS[kind].sql for name, kind in vars(self).items()}
        return f"""{PREPARE}
            CREATE TABLE pay_plans (
                number SERIAL PRIMARY KEY,
                plan_type {of["plan"]},
                monthly_relay_limit {of["limit"]},
                throughput_limit INT
            );
            CREATE TABLE accounts (
                number SERIAL PRIMARY KEY, id {of["account"]}, plan_type {of["account_plan"]}
            );
            CREATE TABLE portal_applications (
                number SERIAL PRIMARY KEY, id {of["id"]}, account_id {of["app_account"]}
            );
            CREATE TABLE portal_application_settings (
                id SERIAL PRIMARY KEY,
                application_id {of["settings_id"]},
                secret_key {of["key"]},
                secret_key_required BOOLEAN
            );
            CREATE TABLE portal_application_changes (id SERIAL PRIMARY KEY, portal_app_id {of["signal_id"]});
            ALTER TABLE pay_plans REPLICA IDENTITY FULL;
            ALTER TABLE accounts REPLICA IDENTITY FULL;
            ALTER TABLE portal_applications REPLICA IDENTITY FULL;
        """
