"""How the threads are put together: what each may rely on before the others run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import pytest

from cdc.freshness import Freshness
from cdc.pair.pair import Pair
from cdc.state.state_file import StateFile
from cdc.store.store import Store
from server.config.settings import Settings
from server.observe.fanout import Listener
from server.pipeline import Pipeline
from tests.plugins.server import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.plugins.postgres import Database


class PipelineFactory(Protocol):
    """Makes a pipeline with a state file that says how far which timeline was read."""

    def __call__(self, timeline: int, seen: int) -> Pipeline: ...


@pytest.fixture
def left_behind(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[PipelineFactory]:
    """Pipelines whose threads end with the test, if they were started."""
    made: list[Pipeline] = []

    def make(timeline: int, seen: int) -> Pipeline:
        system = database.value("SELECT system_identifier::text FROM pg_control_system()")
        file, store = StateFile(tmp_path / "state", system), Store()
        file.note(system=system, timeline=timeline)
        file.append(store.prepare([("app_1", b"payload")], 1000), position=1000, seen=seen)
        file.close()
        monkeypatch.setenv("POSTGRES_CONNECTION_STRING", database.url())
        monkeypatch.setenv("STATE_FILE", str(tmp_path / "state"))
        made.append(Pipeline(Settings.load({}), Store(), Freshness(), Listener(), Pair(), lambda: None))
        return made[-1]

    yield make
    for pipeline in made:
        if pipeline.applier.ident is not None:
            pipeline.stop()


def test_what_was_read_is_known_before_any_thread_runs(left_behind: PipelineFactory) -> None:
    """The reader of the slot may be the first: it must know a standby that replays again when it sees one."""
    history, position = left_behind(timeline=3, seen=2000).applier.read_so_far()
    assert (history.timeline, position) == (3, 2000)


def test_what_was_read_of_a_history_that_was_left_is_forgotten(left_behind: PipelineFactory) -> None:
    """Of a primary that is not as far: a standby of it would be waited for as long as that takes."""
    pipeline = left_behind(timeline=1, seen=1 << 60)
    pipeline.start()
    wait_until(lambda: pipeline.origin.now().reread is not None, "the map of now")
    assert pipeline.applier.read_so_far()[1] < 1 << 60
