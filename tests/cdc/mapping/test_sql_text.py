"""SQL as text: nothing in a string, a quoted name or a comment is taken for syntax."""

from __future__ import annotations

import pytest

from cdc.mapping import sql_text

TRICKY = """
-- a comment; with 'a quote
SELECT ';''--', "a;""b", $$ ; -- @x $$, $body$ ; $$ $body$ /* ; ' */ ; -- the end;

DO $$ BEGIN PERFORM 1; END $$;
SELECT 2
"""


def test_statements_end_at_semicolons_only() -> None:
    first, second, third = sql_text.statements(TRICKY)
    assert first.startswith("SELECT ';''--', \"a;\"\"b\", $$ ; -- @x $$, $body$ ; $$ $body$")
    assert "comment" not in first
    assert second == "DO $$ BEGIN PERFORM 1; END $$"
    assert third == "SELECT 2"


@pytest.mark.parametrize("text", ["", ";;", "-- nothing", "/* nothing */ ;\n\n"])
def test_nothing_is_no_statement(text: str) -> None:
    assert sql_text.statements(text) == []


def test_queries_have_names() -> None:
    text = "-- about the file\n-- name: One :many\n-- About it.\nSELECT 1;\n\n-- name: Two :many\nSELECT 2;\n"
    assert sql_text.named_queries(text) == {"One": "SELECT 1", "Two": "SELECT 2"}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("-- name: A :many\nSELECT 1;\n-- name: A :many\nSELECT 2;", "there are two queries A"),
        ("-- name: A :many\nSELECT 1; SELECT 2;", "statement after the query A, `SELECT 2...`, has no name"),
        ("-- name: A :many\n-- only words", "A has no statement"),
        ("SELECT 1;\n-- name: A :many\nSELECT 2;", "the first statement has no name"),
        ("SELECT 1;", "the first statement has no name"),
        (
            "-- name: A :many\nSELECT 1;\n\nSELECT 2;",
            "after the query A, .*: write a line `-- name: X :many` before it",
        ),
        (
            "-- name: A :many\nSELECT 1;\n-- name: B :one\nSELECT 2;",
            "the line `-- name: B :one`",
        ),
        ("--name: A :many\nSELECT 1;", "the line `--name: A :many`: write it as"),
        ("\n  -- name: A\nSELECT 1;", "the line `-- name: A`: write it as"),
    ],
)
def test_queries_that_are_none(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        sql_text.named_queries(text)


@pytest.mark.parametrize(
    ("query", "bound", "names"),
    [
        ("x = ANY(@keys::text[])", "x = ANY(%(keys)s::text[])", {"keys"}),
        ("@a + @b", "%(a)s + %(b)s", {"a", "b"}),
        ("x LIKE 'a%@b' AND y % 2 = @c", "x LIKE 'a%%@b' AND y %% 2 = %(c)s", {"c"}),
        ('"@no" <@ x AND y @> z AND @ -5 = @@ w', '"@no" <@ x AND y @> z AND @ -5 = @@ w', set()),
        ("me@example", "me@example", set()),
    ],
)
def test_parameters_become_psycopgs(query: str, bound: str, names: set[str]) -> None:
    assert sql_text.bind(query) == bound
    assert sql_text.parameters(query) == names


def test_one_name_for_the_parameter() -> None:
    assert sql_text.bind("@keys || '%'", "Kind") == "%(Kind)s || '%%'"


def test_columns_of_tables() -> None:
    schema = """
        CREATE TYPE t AS ENUM ('a', 'b');
        CREATE TABLE One (
            Id NUMERIC(10, 2) PRIMARY KEY, -- a comment, with a comma
            "of" VARCHAR(25) NOT NULL REFERENCES two (id, other) ON DELETE CASCADE,
            CHECK (Id > 0), CONSTRAINT c UNIQUE ("of", id),
            FOREIGN KEY (id) REFERENCES two (id)
        );
        create table if not exists two (id INT);
        INSERT INTO three (id) VALUES (1);
        CREATE TABLE public.Four (id INT, "Key" TEXT) PARTITION BY RANGE (id);
        CREATE TABLE "my schema"."Five" (
            a INT DEFAULT ((1)), b TEXT
        );
    """
    assert sql_text.tables(schema) == {
        "one": {"id", "of"},
        "two": {"id"},
        "four": {"id", "Key"},
        "Five": {"a", "b"},
    }


def test_keys_of_tables_as_people_and_pg_dump_write_them() -> None:
    schema = """
        \\restrict abc
        CREATE TABLE one (id VARCHAR(10) UNIQUE, at NUMERIC(1, 2) PRIMARY KEY, x INT, UNIQUE (id, x));
        CREATE TABLE public.two (
            id integer NOT NULL,
            "Key" text
        );
        ALTER TABLE ONLY public.two
            ADD CONSTRAINT two_pkey PRIMARY KEY (id);
        ALTER TABLE ONLY public.two ADD CONSTRAINT u UNIQUE (id, "Key");
        ALTER TABLE ONLY public.two ADD CONSTRAINT f FOREIGN KEY (id) REFERENCES public.one(id);
    """
    assert [(table, {*columns}) for table, columns in sql_text.keys(schema)] == [
        ("one", {"id"}),
        ("one", {"at"}),
        ("one", {"id", "x"}),
        ("two", {"id"}),
        ("two", {"id", "Key"}),
    ]


def test_names_are_quoted() -> None:
    assert sql_text.quote_name('a"b') == '"a""b"'


@pytest.mark.parametrize(
    ("query", "columns"),
    [
        ("SELECT a, t.b, c AS d, e f FROM t", ("a", "b", "d", "f")),
        ('SELECT A, "B", t."c""d" FROM t', ("a", "B", 'c"d')),
        ("SELECT a::TEXT, b::VARCHAR(10), c::TEXT[] AS d, NULL::INT AS e FROM t", ("a", "b", "d", "e")),
        ("SELECT coalesce(a, b, 'c, d AS e') AS f, count(*) AS g FROM t", ("f", "g")),
        ("SELECT a IS DISTINCT FROM b AS c, extract(YEAR FROM d) AS e FROM t", ("c", "e")),
        ("SELECT DISTINCT a, $$ AS b, c $$ AS d FROM t", ("a", "d")),
        ("WITH w AS (SELECT a AS b FROM t) SELECT c FROM w UNION SELECT d FROM t", ("c",)),
        ("SELECT (SELECT a AS b FROM t) AS c, CASE WHEN d THEN e ELSE f END AS g", ("c", "g")),
        ("SELECT * FROM t", ()),
        ("SELECT t.*, a FROM t", ("t", "a")),
        ("VALUES (1)", ()),
    ],
)
def test_the_columns_of_a_query_by_name(query: str, columns: tuple[str, ...]) -> None:
    assert sql_text.columns(query) == columns
