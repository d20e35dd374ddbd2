"""Owners of mapped tables gain nothing when a mapping is tested on their database: no code of theirs runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.plugins.server import fill

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    from tests.plugins.postgres import Database

MARK = "ran as"
FUNCTION = f"""
CREATE FUNCTION public.runs(text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS
    $$ BEGIN RAISE LOG '{MARK} %', current_user; RETURN $1; END $$
"""
OPERATOR = "CREATE OPERATOR public.=== (LEFTARG = text, RIGHTARG = text, FUNCTION = public.same)"
SAME = f"""
CREATE FUNCTION public.same(text, text) RETURNS boolean IMMUTABLE LANGUAGE plpgsql AS
    $$ BEGIN RAISE LOG '{MARK} %', current_user; RETURN $1 = $2; END $$
"""
DOMAIN = "CREATE DOMAIN public.checked AS text CHECK (public.runs(VALUE) IS NOT NULL)"
ADD = "ALTER TABLE public.accounts ADD extra"
CHECKED = "ALTER TABLE public.accounts ADD CHECK "
COMPOSITE = "CREATE TYPE public.both AS (one public.checked)"
CASES: dict[str, tuple[tuple[str, ...], bool]] = {
    "check": ((f"{CHECKED} (public.runs(plan_type) IS NOT NULL)",), False),
    "domain": ((DOMAIN, f"{ADD} public.checked DEFAULT 'x'"), True),
    "operator": ((SAME, OPERATOR, f"{CHECKED} (plan_type OPERATOR(public.===) plan_type)"), False),
    "generated": ((f"{ADD} text GENERATED ALWAYS AS (public.runs(id)) STORED",), True),
    "of a domain": (
        (DOMAIN, "CREATE DOMAIN public.outer AS public.checked", f"{ADD} public.outer DEFAULT 'x'"),
        True,
    ),
    "array": ((DOMAIN, f"{ADD} public.checked[] DEFAULT '{{x}}'"), True),
    "composite": ((DOMAIN, COMPOSITE, f"{ADD} public.both DEFAULT '(x)'"), True),
}
"""What an owner does, and whether a row of the table cannot be copied then."""
OFTEN = ("check", "domain")


@pytest.mark.parametrize(
    "case", [case if case in OFTEN else pytest.param(case, marks=pytest.mark.soak) for case in CASES]
)
@pytest.mark.own_cluster
def test_no_function_of_a_table_s_owner_runs_in_a_trial(
    database: Database,
    pads_cdc: Callable[..., subprocess.CompletedProcess[str]],
    case: str,
) -> None:
    statements, refused = CASES[case]
    fill(database, 10)
    for statement in (FUNCTION, *statements):
        database.execute(statement)
    log = database.cluster.folder / "postgres.log"
    before = log.read_text().count(MARK)
    done = pads_cdc("mapping", "test", "grove", "--database", database.url())
    assert log.read_text().count(f"LOG:  {MARK}") == before, "it has run in our name"
    assert ("a throw-away server" in done.stdout) == refused, done.stdout + done.stderr
    assert (done.returncode == 1) == refused
