"""Fills a schema with look-alikes of the objects of `pg_catalog` that our statements use.

A role without any other right creates them. If one of them runs, it writes `MARK` into the server's log.
"""

from __future__ import annotations

import re
from contextlib import closing
from typing import TYPE_CHECKING

import psycopg2

from tests.support import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterable

    from psycopg2.extensions import cursor

    from tests.plugins.postgres import Database

MARK = "HOSTILE"

TYPES = (
    *(
        "text",
        "varchar",
        "bpchar",
        "name",
        '"char"',
        "bool",
        "int2",
        "int4",
        "int8",
        "numeric",
        "float8",
        "oid",
    ),
    *(
        "xid",
        "pg_lsn",
        "timestamptz",
        "regclass",
        "regtype",
        "regrole",
        "regnamespace",
        "jsonb",
        "int2vector",
    ),
    *("text[]", "varchar[]", "name[]", "oid[]", "int2[]", "anyelement", "anyarray", "anyenum"),
)
"""Operators are made for each pair of these types."""
_OPERATORS = ("=", "<>", "<", "<=", ">", ">=", "||", "~", "~*", "+", "-", "*", "/", "->>", "@>", "&&")
_NEARER = {
    "text": "character varying",
    "name": "text",
    "bigint": "integer",
    "regclass": "oid",
    '"any"': "text",
    "anyelement": "character varying",
    "anyarray": "text[]",
    "text[]": "character varying[]",
}
"""For a parameter type of `pg_catalog`: a type that our argument may have, and that needs a cast there.

Postgres prefers a look-alike with this type, because it needs no cast.
"""
_SHADOWS = ("pg_class", "pg_namespace", "pg_attribute", "pg_index", "pg_inherits", "pg_roles", "pg_settings")
_MORE_SHADOWS = (
    "pg_replication_slots",
    "pg_type",
    "pg_proc",
    "pg_trigger",
    "pg_stat_activity",
    "pg_database",
)
_DOMAINS = (
    "text",
    "varchar",
    "int",
    "int4",
    "bigint",
    "bool",
    "name",
    "oid",
    "regclass",
    "float8",
    "timestamptz",
)

_FUNCTION = """
CREATE FUNCTION public.{name}({arguments}) RETURNS {returns} LANGUAGE plpgsql AS $hostile$
BEGIN
    RAISE LOG '{mark}: {name}';
    RETURN NULL;
END
$hostile$
"""
_BUILT_IN = """
SELECT proname, pg_get_function_arguments(oid), pg_get_function_result(oid), provariadic <> 0
FROM pg_proc
WHERE pronamespace = 'pg_catalog'::regnamespace AND prokind = 'f' AND NOT proretset AND proname = ANY (%s)
ORDER BY oid
"""


def poison(database: Database) -> int:
    """Let every role create objects in the schema ``public``, fill it, and return the number of objects."""
    mallory = database.create_role()
    database.execute("GRANT USAGE, CREATE ON SCHEMA public TO PUBLIC")
    made = 0
    with closing(psycopg2.connect(database.url(*mallory))) as session:
        session.autocommit = True
        with session.cursor() as cursor:
            cursor.execute("SET search_path = pg_catalog; SET check_function_bodies = off")
            for statements in (_functions(cursor), _operators(), _aggregates(), _names()):
                made += sum(_made(cursor, statement) for statement in statements)
    return made


def _made(cursor: cursor, statement: str) -> bool:
    try:
        cursor.execute(statement)
    except psycopg2.Error:  # some combinations of types are not possible
        return False
    return True


def _functions(cursor: cursor) -> Iterable[str]:
    """Yield look-alikes of each function whose name is a word of our code.

    One has the same parameters, another has parameters that fit our arguments better.
    """
    cursor.execute(_BUILT_IN, (sorted(_words()),))
    for name, arguments, returns, variadic in cursor.fetchall():
        takes = re.sub(r" DEFAULT [^,]+", "", arguments)
        nearer = ", ".join(_NEARER.get(one.replace("VARIADIC ", ""), one) for one in takes.split(", ") if one)
        loose = re.sub(r'VARIADIC "any"', "VARIADIC anycompatiblearray", takes)
        several = [", ".join(["text"] * count) for count in range(1, 9)] if variadic else []
        for one in dict.fromkeys((takes, nearer, loose, *several)):
            yield _FUNCTION.format(name=name, arguments=one, returns=returns, mark=MARK)


def _operators() -> Iterable[str]:
    yield _FUNCTION.format(name="hostile_unknown", arguments="text, text", returns="boolean", mark=MARK)
    for number, (left, right) in enumerate((left, right) for left in TYPES for right in TYPES):
        name = f"hostile_{number}"
        yield _FUNCTION.format(
            name=name, arguments=f"{left}, {right}", returns="boolean", mark=f"{MARK} operator"
        )
        for operator in _OPERATORS:
            yield (
                f"CREATE OPERATOR public.{operator} (FUNCTION = public.{name}, LEFTARG = {left},"
                f" RIGHTARG = {right})"
            )


def _aggregates() -> Iterable[str]:
    yield _FUNCTION.format(name="hostile_step", arguments="bigint", returns="bigint", mark=f"{MARK} count")
    yield "CREATE AGGREGATE public.count(*) (SFUNC = public.hostile_step, STYPE = bigint, INITCOND = '0')"
    for name in ("min", "max", "string_agg", "bool_or", "bool_and", "array_agg", "count"):
        for type_ in ("text", "varchar", "bool", "int4", "int8"):
            step = f"hostile_{name}_{type_}"
            yield _FUNCTION.format(
                name=step, arguments=f"{type_}, {type_}", returns=type_, mark=f"{MARK} {name}"
            )
            yield f"CREATE AGGREGATE public.{name}({type_}) (SFUNC = public.{step}, STYPE = {type_})"


def _names() -> Iterable[str]:
    """Yield domains with the names of types, views with the names of catalogs, and a cast."""
    yield _FUNCTION.format(name="hostile_check", arguments="anyelement", returns="boolean", mark=MARK)
    for name in _DOMAINS:
        yield f"CREATE DOMAIN public.{name} AS pg_catalog.{name} CHECK (public.hostile_check(VALUE))"
    for name in (*_SHADOWS, *_MORE_SHADOWS):
        yield f"CREATE VIEW public.{name} AS SELECT *, public.hostile_check(1) FROM pg_catalog.{name}"
        yield f"GRANT SELECT ON public.{name} TO PUBLIC"
    yield "CREATE TYPE public.hostile AS ENUM ('')"
    yield _FUNCTION.format(
        name="hostile_cast", arguments="public.hostile", returns="text", mark=f"{MARK} cast"
    )
    yield "CREATE CAST (public.hostile AS text) WITH FUNCTION public.hostile_cast AS IMPLICIT"


def _words() -> set[str]:
    """Return all words of our SQL files, and of the code that may contain SQL."""
    files = [*(ROOT / "sql").rglob("*.sql"), *(ROOT / "cdc").rglob("*.py"), *(ROOT / "server").rglob("*.py")]
    return {word for file in files for word in re.findall(r"[a-z_]\w+", file.read_text(encoding="utf-8"))}
