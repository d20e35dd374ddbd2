"""Backlog: the time until all waiting transactions are in the store and the slot is confirmed beyond them."""

from __future__ import annotations

import os
import resource
import signal
import time
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple

from bench.references import reader, recvlogical
from bench.results import OURS, Result
from bench.rig import wait_until
from cdc import lsn
from cdc.replication import wal2json
from cdc.replication.own_slot import PLUGINS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.rig import Database, Rig
    from bench.served import Served
    from bench.sizes import Sizes

_CASES: Final = {
    "settings": ("portal_application_settings", "application_id"),
    "nothing of ours": ("noise", "id"),
}
_CONTENDERS: Final = (OURS, "pg_recvlogical", "bare reader")
_SMALL: Final = """
DO $$ BEGIN
    FOR number IN {first}..{last} LOOP
        UPDATE {table} SET secret_key = md5('{round}' || number) WHERE {key} = {value};
        COMMIT;
    END LOOP;
END $$
"""
_BULK: Final = "UPDATE {table} SET secret_key = md5('{round}' || id) WHERE id BETWEEN {first} AND {last}"
_CONFIRMED: Final = "SELECT confirmed_flush_lsn >= %s FROM pg_replication_slots WHERE slot_name = 'pads_cdc'"
_WAL_SENDER: Final = "SELECT active_pid FROM pg_replication_slots WHERE slot_name = 'pads_cdc'"
_TRANSACTIONS: Final = "pads_cdc_transactions_total"
_WITH_WAL2JSON: Final = "ours with wal2json"


class _Spent(NamedTuple):
    """Wall time and CPU time of one contender, in seconds."""

    seconds: float
    cpu: float


def run(rig: Rig) -> Iterator[Result]:
    """Stop our wal sender (SIGSTOP), commit changes, and let it continue. The references have their own
    slots.

    The server is not stopped, since a wal sender ends the connection of a stopped server after 5 s. The
    figure would then contain a reconcile.

    The plugins are measured in turns, so that neither has a quieter machine than the other.
    """
    sizes = rig.sizes
    size = (
        f"{sizes.transactions + 1:,} transactions, {sizes.transactions + sizes.bulk:,} updates, "
        f"{sizes.endpoints:,} endpoints"
    )
    taken: dict[tuple[str, str, str], list[_Spent]] = {}
    with rig.database(sizes.endpoints) as database:
        for number in range(sizes.runs):
            for plugin in PLUGINS:
                with rig.serve(database, PLUGIN=plugin) as served:
                    for case in _CASES:
                        for contender, spent in _round(rig, database, served, plugin, case, number):
                            taken.setdefault((plugin, case, contender), []).append(spent)
                database.drop_slots()
    for case in _CASES:
        for plugin in PLUGINS:
            named = case if plugin == wal2json.NAME else f"{case}, {plugin}"
            found = {contender: taken[plugin, case, contender] for contender in _CONTENDERS}
            if plugin != wal2json.NAME:
                found[_WITH_WAL2JSON] = taken[wal2json.NAME, case, OURS]
            for contender, rounds in found.items():
                seconds, cpu = zip(*rounds, strict=True)
                yield Result("backlog", named, contender, "s", seconds, size)
                yield Result("backlog", f"{named}, CPU", contender, "s", cpu, size)


def _round(
    rig: Rig, database: Database, served: Served, plugin: str, case: str, number: int
) -> Iterator[tuple[str, _Spent]]:
    # The previous rounds left dead rows, which autovacuum would have removed.
    database.execute("VACUUM (ANALYZE)")
    with ExitStack() as slots:
        limit, bare = (slots.enter_context(database.slot(name, plugin)) for name in ("limit", "bare"))
        before, connected = served.metric(_TRANSACTIONS), database.value(_WAL_SENDER)
        with _stopped(connected):
            rig.say(f"backlog, {case}, {plugin}: changes pile up")
            _pile_up(database, rig.sizes, case, f"{case}{number}{plugin}")
            end = database.wal_end()
            rig.say(f"backlog, {case}, {plugin}: {OURS}")
            began, used = time.monotonic(), served.cpu_seconds()
        with closing(database.connect()) as session, session.cursor() as cursor:

            def confirmed() -> bool:
                cursor.execute(_CONFIRMED, (end,))
                return cursor.fetchall() == [(True,)]

            wait_until(confirmed, "the backlog is confirmed")
        yield OURS, _Spent(time.monotonic() - began, served.cpu_seconds() - used)
        if database.value(_WAL_SENDER) != connected:
            raise RuntimeError("the server has reconnected, so the figure contains a reconcile")
        if case == "settings":  # transactions of other tables are not counted
            seen = served.metric(_TRANSACTIONS) - before
            if seen <= rig.sizes.transactions:
                raise RuntimeError(f"confirmed after {seen:.0f} transactions: the rest was not taken")
        rig.say(f"backlog, {case}, {plugin}: pg_recvlogical")
        used = _used()
        seconds = recvlogical.read(database, limit, end, plugin)
        yield "pg_recvlogical", _Spent(seconds, _used() - used)
        rig.say(f"backlog, {case}, {plugin}: bare reader")
        used = _used()
        seconds = reader.read(database.url, bare, lsn.parse(end), plugin)
        yield "bare reader", _Spent(seconds, _used() - used)


@contextmanager
def _stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def _used() -> float:
    """Return the CPU seconds of this process and of its children that have ended."""
    each = (resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in each)


def _pile_up(database: Database, sizes: Sizes, case: str, round_name: str) -> None:
    table, key = _CASES[case]
    value = "number" if key == "id" else "substr(md5(number::text), 1, 24)"
    half = sizes.transactions // 2
    names = {"table": table, "key": key, "value": value, "round": round_name}
    database.execute(_SMALL.format(first=0, last=half - 1, **names))
    bulk = {"first": sizes.transactions + 1, "last": sizes.transactions + sizes.bulk}
    database.execute(_BULK.format(**bulk, **names))
    database.execute(_SMALL.format(first=half, last=sizes.transactions - 1, **names))
