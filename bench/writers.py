"""Writers: the cost that a follower of the database causes for the database's writers."""

from __future__ import annotations

import statistics
import threading
import time
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING, Final

from bench import subscribers
from bench.following import Follower
from bench.references import pgbench, reader, triggers
from bench.results import OURS, Result, percentile
from bench.rig import PLAN
from bench.ripple import RAISE
from bench.served import cpu_seconds
from cdc.replication import pgoutput, wal2json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.rig import Database, Rig

_WITH_PGOUTPUT: Final = "ours with pgoutput"
_CONTENDERS: Final = ("nobody", OURS, _WITH_PGOUTPUT, "bare reader", "triggers")
_SENDER: Final = "the wal sender, of a core"
_MIGRATED: Final = ("nobody", OURS)
_LONGEST: Final = "longest wait, a migration each second"
_MIGRATE: Final = "ALTER TABLE accounts ALTER plan_type SET DEFAULT %s"
_PAUSE: Final = 0.3
"""Pause before each contender, in seconds, so that no contender gets a warmer processor."""


def run(rig: Rig) -> Iterator[Result]:
    """Let pgbench commit one-row updates at a fixed rate, and change a plan, with each contender in turn."""
    sizes = rig.sizes
    taken: dict[tuple[str, str], list[float]] = {}
    with rig.database(sizes.small) as database:
        count = len(database.portal.numbers(PLAN))
        for _ in range(sizes.runs):
            for contender in _CONTENDERS:
                with _following(rig, database, contender) as followers:
                    rig.say(f"writers: {contender}")
                    senders, before = _senders(database)
                    found = pgbench.run(database, sizes.writer_rate, sizes.writer_seconds)
                    if senders:
                        used = _senders(database)[1] - before
                        share = 100 * used / sizes.writer_seconds
                        taken.setdefault((_SENDER, contender), []).append(share)
                    taken.setdefault(("mean", contender), []).append(statistics.mean(found))
                    taken.setdefault(("p99", contender), []).append(percentile(found, 0.99))
                    # The triggers take long, and their result differs a lot from the others.
                    times = 1 if contender == "triggers" else sizes.plan_updates
                    plan = _change_plan(database, followers, count, times)
                    taken.setdefault(("a plan", contender), []).append(plan)
                    if contender in _MIGRATED:
                        longest = _beside_migrations(database, sizes.writer_seconds)
                        taken.setdefault((_LONGEST, contender), []).append(longest)
    small = f"{sizes.writer_rate:,} updates a second for {sizes.writer_seconds:.0f} s"
    for (case, contender), samples in taken.items():
        size = {
            "a plan": f"an update, {count:,} endpoints on the plan",
            _LONGEST: f"of {sizes.writer_seconds:.0f} s, while {count:,} endpoints ripple all the time",
        }.get(case, small)
        unit = "%" if case == _SENDER else "ms"
        yield Result("writers", case, contender, unit, tuple(samples), size)


@contextmanager
def _following(rig: Rig, database: Database, contender: str) -> Iterator[list[Follower]]:
    with ExitStack() as stack:
        followers: list[Follower] = []
        if contender in (OURS, _WITH_PGOUTPUT):
            plugin = wal2json.NAME if contender == OURS else pgoutput.NAME
            served = stack.enter_context(rig.serve(database, PLUGIN=plugin))
            followers.append(stack.enter_context(Follower(subscribers.feed, served.target)))
        elif contender == "bare reader":
            slot = stack.enter_context(database.slot("bench"))
            stack.enter_context(Follower(reader.follow, database.url, slot))
        elif contender == "triggers":
            stack.enter_context(triggers.installed(database))
            followers.append(stack.enter_context(Follower(triggers.follow, database.url)))
        yield followers
    # An unread slot would retain WAL, and so slow down the next contender.
    database.drop_slots()


def _senders(database: Database) -> tuple[int, float]:
    """Return the number of wal senders and their CPU seconds."""
    pids = database.value("SELECT coalesce(array_agg(pid), '{}') FROM pg_stat_replication")
    return len(pids), sum(map(cpu_seconds, pids))


def _change_plan(database: Database, followers: list[Follower], count: int, times: int) -> float:
    """Return the median milliseconds of an update of a plan. Waits until the changes of each update have
    arrived.
    """
    found: list[float] = []
    with closing(database.connect()) as session, session.cursor() as cursor:
        for _ in range(times):
            for follower in followers:
                follower.mark()
            threading.Event().wait(_PAUSE)
            began = time.monotonic()
            cursor.execute(RAISE, (PLAN,))
            found.append(1000 * (time.monotonic() - began))
            for follower in followers:
                follower.wait(count)
    return statistics.median(found)


def _beside_migrations(database: Database, seconds: float) -> float:
    """Return the milliseconds of a writer's longest statement while a plan ripples and a table is migrated.

    A migration waits for all readers of its table, and later sessions wait behind it.
    """
    until = time.monotonic() + seconds
    waits = [0.0]

    def repeat(pause: float, statement: str, *values: str) -> None:
        with closing(database.connect()) as session, session.cursor() as cursor:
            while time.monotonic() < until:
                began = time.monotonic()
                cursor.execute(statement, values or None)
                waits.append(1000 * (time.monotonic() - began))
                threading.Event().wait(pause)

    threads = [
        threading.Thread(target=repeat, args=(1.0, _MIGRATE, PLAN)),
        threading.Thread(target=repeat, args=(0.1, RAISE, PLAN)),
        threading.Thread(
            target=repeat, args=(0.01, "UPDATE accounts SET plan_type = plan_type WHERE id = ''")
        ),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return max(waits)
