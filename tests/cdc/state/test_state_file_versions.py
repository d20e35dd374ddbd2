"""Upgrade and downgrade: a state file that an older version wrote, and one that a newer version wrote."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from cdc.state.state_file import StateFile
from cdc.store.store import Store

FIXTURE = Path(__file__).resolve().parents[2] / "fixtures/state-version-1"
"""Written by version 0.1.0: a and b published, a changed, b deleted; closed cleanly."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return Path(shutil.copy(FIXTURE, tmp_path / "state"))


def test_the_first_version_s_file_goes_on_where_it_was(path: Path) -> None:
    file = StateFile(path)
    kept = file.kept
    assert file.set_aside is None
    assert kept.epoch == "0f" * 16
    assert (kept.head, kept.position, kept.seen) == (3, 0x30, 0x33)
    store = Store()
    store.restore(kept.entries, kept.head, kept.position, kept.seen)
    assert list(store.tombstones) == ["b"]
    batch = store.prepare([("a", b"second")], 0x40, named=False)
    assert not batch.changed, "the digest of what it held is still ours"
    file.close()


def test_a_newer_version_s_file_is_set_aside_whole_for_the_way_back(path: Path) -> None:
    """A downgrade: what it means is not guessed, and it is there for the version that knows."""
    with closing(sqlite3.connect(path)) as newer, newer:
        newer.execute("UPDATE facts SET value = 2 WHERE name = 'version'")
        newer.execute("CREATE TABLE something_new (x)")
    file = StateFile(path)
    assert file.set_aside is not None
    assert file.kept.epoch != "0f" * 16, "tokens of the other epoch are answered with a reset"
    assert not file.kept.entries
    file.close()
    with closing(sqlite3.connect(file.set_aside)) as aside:
        assert aside.execute("SELECT value FROM facts WHERE name = 'version'").fetchall() == [(2,)]
