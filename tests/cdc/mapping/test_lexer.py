"""Scripts are split where psql splits them: psql itself and a server say where that is."""

from __future__ import annotations

import subprocess
from itertools import product
from typing import TYPE_CHECKING

import pytest

from cdc.errors import ConfigurationError
from cdc.mapping import sql_text
from cdc.mapping.lexer import script, tokens
from cdc.mapping.query_shape import takes_away
from cdc.mapping.table_names import qualify
from server.commands.mapping import scratch

if TYPE_CHECKING:
    from pathlib import Path

    from tests.plugins.postgres import Database, DatabaseFactory

STATEMENTS = (
    "CREATE TABLE t (a INT DEFAULT 1, b TEXT DEFAULT 'x;''y(', c TEXT DEFAULT E'\\'; \\\\', \"d;\"\"e\" INT)",
    "CREATE UNLOGGED TABLE u (a TEXT DEFAULT $$;$$, b TEXT DEFAULT $q$ ; $$ ; $q$, c BIT(4) DEFAULT B'0101')",
    "CREATE TABLE U&\"caf\\00e9;\" (a TEXT DEFAULT U&'\\003b;')",
    "CREATE TABLE a$b$ (x INT); CREATE TABLE c$b$ (x INT)",  # two: a dollar within a name quotes nothing
    "INSERT INTO t (b) VALUES ('two\n\n   lines;  \n'), (E'a'\n'b;')",
    "INSERT INTO t (b) VALUES (n'x;'), (';--'), ('/*;'), ('\\')",
    "CREATE RULE r AS ON INSERT TO t DO ALSO (UPDATE t SET a = 2; UPDATE t SET a = (3); SELECT (1))",
    (
        "CREATE FUNCTION f(x INT) RETURNS INT LANGUAGE sql BEGIN ATOMIC SELECT 1; SELECT CASE WHEN x > 0\n"
        "THEN CASE x WHEN 1 THEN 2 END ELSE 3 END; END"
    ),
    "create or replace function g() returns int language sql begin atomic select 1; end",
    "CREATE FUNCTION h() RETURNS INT LANGUAGE sql RETURN (SELECT CASE WHEN true THEN 1 END)",
    "CREATE PROCEDURE p() LANGUAGE sql BEGIN ATOMIC INSERT INTO t VALUES (1); INSERT INTO t VALUES (2); END",
    "CREATE FUNCTION j() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN IF true THEN RETURN NEW; END IF; END$$",
    "CREATE TRIGGER tr BEFORE INSERT ON t FOR EACH ROW WHEN (NEW.a > 1) EXECUTE FUNCTION j()",
    "DO $do$ BEGIN EXECUTE 'SELECT 1;'; END $do$",
    "COMMENT ON TABLE t IS 'CREATE FUNCTION x BEGIN; it''s'",
    "BEGIN; CREATE INDEX i ON t (a); END",  # three: END ends a transaction, and no body
    "SELECT CASE a WHEN 1 THEN 2 END FROM t",
)
COMMENTED = (
    "SELECT E'a'\n'b\\';'",  # psql itself gets this one wrong
    "SELECT 1 /* ; /* nested; */ ; */ + 2 -- ; the end; '\n",
    "SELECT 5 - -3, 5*-3, 2 */* ; */ 3",
)
COPIES = """\
COPY t (a, b) FROM stdin;
7\tit's; "odd" $$ /*
8\t\\N
\\.
COPY "t" ("b")
  FROM STDIN WITH (FORMAT csv);
"a;

b"
\\.
"""


def number(statement: str) -> int:
    return {"CREATE TABLE a$": 2, "BEGIN; CREATE I": 3}.get(statement[:15], 1)


@pytest.mark.parametrize("separator", [";", ";\n", " ; -- it's\n", "\n;/* ' ; */\n\n", ";\n\\echo it's\n"])
def test_every_two_statements_part(separator: str) -> None:
    for one, two in product(STATEMENTS + COMMENTED, repeat=2):
        found = sql_text.statements(f"{one}{separator}{two}")
        assert len(found) == number(one) + number(two), (one, two, found)
        for whole, part in ((one, found[: number(one)]), (two, found[number(one) :])):
            if whole not in COMMENTED:
                assert "; ".join(part) == whole


def test_psql_splits_alike(database: Database, tmp_path: Path) -> None:
    """It prints each query that it sends."""
    file = tmp_path / "script.sql"
    file.write_text("".join(f"{one};\n" for one in STATEMENTS))
    command = ["psql", "-X", "-q", "-e", "-f", str(file), "-o", "/dev/null", database.url()]
    said = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "ERROR" not in said.stderr
    ours = "".join(f"{one};\n" for one in sql_text.statements(file.read_text()))
    assert said.stdout == ours


def test_a_folder_is_filled_as_psql_would(database_factory: DatabaseFactory, tmp_path: Path) -> None:
    """All of it in schema.sql, and dumps' rows in sample.sql: pg_dump sees no difference."""
    schema = (
        "\\set QUIET on\n\\restrict abc\n"
        + ";\n".join(f"{one}\n" for one in STATEMENTS)
        + ";\n\\unrestrict abc\n"
    )
    (tmp_path / "schema.sql").write_text(schema + "GRANT SELECT ON t TO nobody_here;\n")
    (tmp_path / "sample.sql").write_text(f"{COPIES}INSERT INTO t (b) VALUES (';');\n{COPIES}")
    ours, psqls = database_factory(), database_factory()
    scratch.fill(ours.url(), tmp_path, "public")
    (tmp_path / "all.sql").write_text(schema + (tmp_path / "sample.sql").read_text())
    psql = ["psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-f", str(tmp_path / "all.sql"), psqls.url()]
    subprocess.run(psql, check=True, capture_output=True, text=True)
    command = ["pg_dump", "--restrict-key=x"]
    dumps = [
        subprocess.run([*command, one.url()], check=True, stdout=subprocess.PIPE).stdout
        for one in (ours, psqls)
    ]
    assert dumps[0] == dumps[1]
    assert b'it\'s; "odd" $$ /*' in dumps[0]


@pytest.mark.parametrize(
    "command", ["\\i other.sql", "\\copy t FROM 'x'", "SELECT 'DROP TABLE t' \\gexec", "\\if true"]
)
def test_commands_of_psql_that_would_do_something(command: str, database: Database, tmp_path: Path) -> None:
    (tmp_path / "schema.sql").write_text(f"CREATE TABLE t (a INT);\n{command}\n")
    (tmp_path / "sample.sql").write_text("")
    with pytest.raises(ConfigurationError, match=r"`\\.*` is a command of psql") as refused:
        scratch.fill(database.url(), tmp_path, "public")
    assert str(refused.value).startswith(f"{tmp_path / 'schema.sql'}: ")


@pytest.mark.parametrize(
    "text", ["SELECT 'a; b", 'SELECT "a; b', "SELECT $x$ a; b $y$", "SELECT /* ; /* */ ;"]
)
def test_what_has_no_end_goes_to_the_end(text: str) -> None:
    assert len([*script(text)]) == 1


def test_the_data_of_a_copy_is_none_of_its_statement() -> None:
    csv = '"a;\n\nb"\n'
    one, two = script(COPIES)
    assert one.text == "COPY t (a, b) FROM stdin"
    assert one.data == '7\tit\'s; "odd" $$ /*\n8\t\\N\n'
    assert (two.text, two.data) == ('COPY "t" ("b")\n  FROM STDIN WITH (FORMAT csv)', csv)
    [unended] = script("COPY t FROM stdin;\n1")
    assert unended.data == "1"


def test_everything_that_reads_sql_knows_its_strings_and_names() -> None:
    """One lexer for parameters, columns, tables, names and the shape of a query."""
    odd = r"""E'\' , @a FROM plans WHERE x' AS one, U&'\003b' AS U&"tw\006f" """
    query = f"SELECT {odd}, @keys AS three FROM accounts LEFT JOIN plans ON true"
    assert sql_text.parameters(query) == {"keys"}
    assert sql_text.columns(query) == ("one", "two", "three")
    assert qualify(query, {"accounts", "plans"}, "s") == query.replace(
        "FROM accounts LEFT JOIN plans", 'FROM "s".accounts LEFT JOIN "s".plans'
    )
    assert qualify('SELECT 1 FROM U&"pl\\0061ns"', {"plans"}, "s") == 'SELECT 1 FROM "s".U&"pl\\0061ns"'
    assert takes_away(query, {"accounts": ["x"], "plans": ["x"]}) == {"accounts"}
    schema = "CREATE TABLE t (a TEXT DEFAULT E'\\', (', b INT CHECK (b IN (1, 2)), \"c,d\" INT DEFAULT (1))"
    assert sql_text.tables(schema) == {"t": {"a", "b", "c,d"}}


def test_tokens_stand_where_they_say() -> None:
    for statement in STATEMENTS:
        for token in tokens(statement):
            assert statement[token.start : token.end] == token.text
