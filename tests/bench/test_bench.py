"""Every benchmark at a size that takes seconds: that each measures what it says. How fast is not asserted."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from bench import compare, document, plot, record, scale
from bench.cli import BENCHMARKS, main
from bench.report import growths, lines
from bench.results import OURS, Point, Result, percentile
from bench.targets import TARGETS, Target
from tests.support import ROOT

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.slow
def test_a_run_of_some_measures_what_is_named(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["ripple_old", "start", "--size", "tiny", "--folder", str(tmp_path)])
    assert done.exit_code == 0, done.output
    results = record.read(tmp_path / "some.json").results
    assert {one.benchmark for one in results} == {"ripple_old", "start"}


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_one_run_measures_every_row(tmp_path: Path) -> None:
    arguments = ["--size", "tiny", "--folder", str(tmp_path)]
    done = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "without a state file" in done.output
    assert (tmp_path / "tiny.png").read_bytes().startswith(b"\x89PNG")
    results = record.read(tmp_path / "tiny.json").results
    assert {one.benchmark for one in results} == BENCHMARKS.keys()
    rows = [(one.benchmark, one.case, one.contender) for one in results]
    assert len(rows) == len(set(rows))
    assert {(*row[:2], OURS) for row in rows} == {row for row in rows if row[2] == OURS}, "each case has ours"
    for one in results:
        assert one.samples, one
        assert all(map(math.isfinite, one.samples)), one
    assert [target for target in TARGETS if target.value(results) is None] == []


def test_every_target_belongs_to_a_benchmark() -> None:
    assert {target.benchmark for target in TARGETS} <= BENCHMARKS.keys()


def test_what_is_typed_wrong_is_told() -> None:
    done = CliRunner().invoke(main, ["ripples"])
    assert done.exit_code == 2
    assert "'ripples' is not one of" in done.output


RESULTS = (
    Result("start", "without a state file", OURS, "s", (3.0, 2.0, 4.0), "10 endpoints"),
    Result("start", "without a state file", "COPY", "s", (1.0, 1.5, 0.5), "10 endpoints"),
    Result("start", "growth: 10", OURS, "s", (3.0,), point=Point("endpoints", 10, "start")),
)
RECORD = record.Record("full", "2026-01-02", 12.3, "2 cores", "15.1", RESULTS)


def test_a_target_is_held_against_medians() -> None:
    target = Target("start", "without a state file", "COPY", 3.0)
    assert target.value(RESULTS) == 3.0
    assert target.met(3.0)
    assert not target.met(3.01)
    assert target.value(RESULTS[:1]) is None
    alone = replace(target, reference=None, at_least=True)
    assert alone.value(RESULTS) == 3.0
    assert alone.met(3.0)
    assert not alone.met(2.99)


def test_percentiles_are_samples() -> None:
    values = [float(value) for value in range(100, 0, -1)]
    assert [percentile(values, share) for share in (0.5, 0.99, 0.999)] == [50.0, 99.0, 100.0]
    assert percentile([7.0], 0.5) == 7.0
    with pytest.raises(ValueError, match="nothing was measured"):
        percentile([], 0.5)


def test_the_table_has_ratios_and_verdicts() -> None:
    ours, copy = lines(RESULTS)
    assert (ours.contender, ours.median, ours.spread) == (OURS, "3.00 s", "2.00 to 4.00")
    assert (copy.ratio, copy.target, copy.met) == ("3.00", "at most 3", True)
    assert [growth.rows for growth in growths(RESULTS)] == [[["10", "3.00"]]]


def test_a_record_survives_its_file(tmp_path: Path) -> None:
    RECORD.write(tmp_path / "full.json")
    assert record.read(tmp_path / "full.json") == RECORD
    plot.draw(RECORD, tmp_path / "full.png")


def test_the_document_is_the_record_s() -> None:
    text = document.DOCUMENT.read_text(encoding="utf-8")
    if document.RECORD.exists():
        assert document.renewed(text, record.read(document.RECORD)) == text, "run python -m bench.document"
    made = document.renewed(text, RECORD)
    assert "| without a state file | pads-cdc | 3.00 s | 2.00 to 4.00 |" in made
    assert document.renewed(made, RECORD) == made
    with pytest.raises(ValueError, match="substring not found"):
        document.renewed("no marks", RECORD)


def test_two_commits_are_compared_by_the_medians_of_all_rounds() -> None:
    old: dict[compare.Key, Result] = {}
    new: dict[compare.Key, Result] = {}
    for found, factor in ((old, 1.0), (new, 0.5), (old, 1.0), (new, 0.5)):
        compare.gather(
            found, [replace(one, samples=tuple(factor * each for each in one.samples)) for one in RESULTS]
        )
    assert [len(one.samples) for one in old.values()] == [6, 6], "curves are left out"
    table = compare.compared(old, new, "v1", "v2")
    cells = [list(column.cells) for column in table.columns]
    assert cells[2:] == [[OURS, "COPY"], ["3.00 s", "1.00 s"], ["1.50 s", "0.500 s"], ["0.50", "0.50"]]


def test_a_commit_that_does_not_exist() -> None:
    done = CliRunner().invoke(compare.main, ["HEAD", "no-such-commit"])
    assert done.exit_code == 2
    assert "git has no commit 'no-such-commit'" in done.output


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_a_commit_beside_itself() -> None:
    done = CliRunner().invoke(compare.main, ["HEAD", "HEAD~0", "start", "--size", "tiny", "--rounds", "1"])
    assert done.exit_code == 0, done.output
    assert "without a state file" in done.output


def test_the_model_of_a_fleet_is_the_one_in_the_document() -> None:
    done = CliRunner().invoke(scale.main, [])
    assert done.exit_code == 0
    assert f"```text\n{done.output}```" in (ROOT / "docs/scale.md").read_text()


def test_a_relay_is_full_where_one_server_was() -> None:
    assert scale.Fleet(relays=1, gateways=500, endpoints=0, changes=500.0).core == 1.0
    assert scale.Fleet(relays=4, gateways=1_000, endpoints=0, changes=500.0).core == 0.5
    assert "too much" in dict(scale.Fleet(1, 501, 0, 500.0).rows())["a core of each relay"]
