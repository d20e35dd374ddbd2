"""Start: the time from the start of a process until it is ready for gateways."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.references import mapping_query
from bench.results import OURS, Result

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.rig import Database, Rig


def run(rig: Rig) -> Iterator[Result]:
    """Start a server without a state file, and another with the state file that the first has left."""
    with rig.database(rig.sizes.endpoints) as database:
        taken: dict[tuple[str, str], list[float]] = {}
        for _ in range(rig.sizes.runs):
            state = str(rig.state_file())
            for case in ("without a state file", "with a state file"):
                rig.say(f"start, {case}: {OURS}")
                taken.setdefault((case, OURS), []).append(_start(rig, database, state))
                for contender, measure in (
                    ("COPY", mapping_query.copy),
                    ("plain fetch", mapping_query.fetch),
                ):
                    rig.say(f"start: {contender}")
                    taken.setdefault((case, contender), []).append(measure(database))
        size = f"{rig.sizes.endpoints:,} endpoints"
        for (case, contender), samples in taken.items():
            yield Result("start", case, contender, "s", tuple(samples), size)


def _start(rig: Rig, database: Database, state: str) -> float:
    with rig.serve(database, STATE_FILE=state) as served:
        return served.ready_after
