"""Recorded output of the plugins, one labelled case a line, and its form as our own stream would have it."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_FIXTURES = Path(__file__).parents[1] / "fixtures"

BEGIN = b'{"action":"B","xid":7,"timestamp":"2026-11-22 06:37:51.19021+00","lsn":"0/10","nextlsn":"0/20"}'
COMMIT = BEGIN.replace(b'"B"', b'"C"')


@dataclass(frozen=True)
class Sample:
    """What the plugin said to some SQL with some options."""

    label: str
    options: dict[str, str]
    lines: tuple[str, ...]

    def stream(self) -> list[bytes]:
        """Return the messages as the stream brings them: with transactions that say what ours always say."""
        whole = self.lines
        if self.options.get("include-transaction") == "0" and whole:
            return [BEGIN, *(line.encode() for line in whole), COMMIT]
        return [_with_positions(line) for line in whole]

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows as the standard library reads them: the oracle."""
        return [row for line in self.lines if (row := json.loads(line))["action"] in "IUDT"]


@dataclass(frozen=True)
class Pair:
    """What both plugins said to the same SQL, each from the beginning of a stream."""

    label: str
    pgoutput: tuple[bytes, ...]
    wal2json: tuple[bytes, ...]


def _cases(file: str) -> list[dict[str, Any]]:
    # Not splitlines(): a value may hold U+2028, which wal2json does not escape.
    text = (_FIXTURES / file).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


def _samples() -> dict[str, Sample]:
    return {
        case["label"]: Sample(case["label"], case["options"], tuple(case["lines"]))
        for case in _cases("wal2json-samples.jsonl")
        if case["lines"]
    }


def _pairs() -> dict[str, Pair]:
    return {
        case["label"]: Pair(
            case["label"],
            tuple(map(base64.b64decode, case["messages"])),
            tuple(line.encode() for line in case["wal2json"]),
        )
        for case in _cases("pgoutput-samples.jsonl")
    }


def name_of(sample: Sample | Pair) -> str:
    """Return the label as a test's name: pytest does not find a name with a backslash again, and mutmut asks
    for tests by name.
    """
    return sample.label.replace("\\", "/")


def _with_positions(line: str) -> bytes:
    if not line.startswith(('{"action":"B"', '{"action":"C"')):
        return line.encode()
    said = json.loads(line)
    return json.dumps({**json.loads(BEGIN if said["action"] == "B" else COMMIT), **said}).encode()


SAMPLES = _samples()
"""Every case in which the plugin said something, by its label."""

FORMAT_2 = tuple(sample for sample in SAMPLES.values() if sample.options["format-version"] == "2")

PAIRS = _pairs()
"""Every case, as both plugins have it (`tests.fixtures.record_pgoutput`), by its label."""
