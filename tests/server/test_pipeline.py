"""How the threads are put together: what each may rely on before the others run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cdc.freshness import Freshness
from cdc.history import History
from cdc.state_file import StateFile
from cdc.store import Store
from server.fanout import Listener
from server.pipeline import Pipeline
from server.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from tests.fix_postgres import Database


def test_what_was_read_is_known_before_any_thread_runs(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader of the slot may be the first: it must know a standby that replays again when it sees one."""
    path = tmp_path / "state"
    system = database.value("SELECT system_identifier::text FROM pg_control_system()")
    file, store = StateFile(path, system), Store()
    file.note(system=system, timeline=3)
    file.append(store.prepare([("app_1", b"payload")], 1000), position=1000, seen=2000)
    file.close()
    monkeypatch.setenv("POSTGRES_CONNECTION_STRING", database.url())
    monkeypatch.setenv("STATE_FILE", str(path))
    pipeline = Pipeline(Settings.load({}), Store(), Freshness(), Listener(), lambda: None)
    assert pipeline.follower.read_so_far() == (History(system, 3), 2000)
