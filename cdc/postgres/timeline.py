"""Which history a server is on: LSNs only mean something within one.

A cluster is known by its system identifier. A promotion starts a new timeline, which shares the old one's WAL
up to the switch point; a restore from an older backup goes back on the same cluster.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cdc import lsn
from cdc.errors import SourceError
from cdc.lsn import Lsn

if TYPE_CHECKING:
    from cdc.postgres.gate import Evidence


@dataclass(frozen=True)
class Timeline:
    """A place in the history of a cluster, as ``IDENTIFY_SYSTEM`` and ``TIMELINE_HISTORY`` tell it."""

    system: str = ""
    """The system identifier; empty while nothing is known."""
    timeline: int = 0
    end: Lsn = Lsn(0)
    """How far the server's WAL goes."""
    switches: tuple[tuple[int, Lsn], ...] = ()
    """For each earlier timeline, the position at which it was left."""
    instance: str = ""
    """Names one run of the server that was asked, from its start to its end; a promotion does not end it."""

    def good_until(self, timeline: int) -> Lsn | None:
        """Return up to where positions of a timeline are positions of this history; None if it is not part of
        it.
        """
        if timeline == self.timeline:
            return self.end
        return dict(self.switches).get(timeline)

    def lost(self, timeline: int, seen: Lsn) -> bool:
        """Tell whether what an earlier timeline had at ``seen`` is certainly no part of this history."""
        if not 0 < timeline < self.timeline or not self.switches:
            return False
        until = self.good_until(timeline)
        return until is None or seen > until

    def continues(self, before: Timeline, position: Lsn, seen: Lsn) -> bool:
        """Tell whether what was read up to ``seen`` on an earlier history is still true here.

        On another timeline it does not matter how far the slot was followed (``position``): of a line that
        was left, nothing is in the map that was not read. On the same one, who is not there has gone back.
        """
        if not before.system:
            return True
        until = self.good_until(before.timeline)
        if self.system != before.system or until is None:
            return False
        return max(seen, position if before.timeline == self.timeline else 0) <= until

    def left_at(self, before: Timeline) -> Lsn | None:
        """Return where this history has left an earlier timeline; None where it is still on it."""
        if not before.system or before.timeline == self.timeline:
            return None
        return dict(self.switches).get(before.timeline)

    def promoted_from(self, before: Timeline) -> bool:
        """Tell whether it is the same run of one server that was on an earlier timeline before.

        Then whatever it has ever delivered is of this history, also beyond the switch.
        """
        return bool(self.instance) and (self.system, self.instance) == (before.system, before.instance)

    def lags(self, before: Timeline, position: Lsn) -> bool:
        """Tell whether this is the same line, not yet as far as what was read on it up to ``position``.

        A standby that has restarted looks like that until it has replayed again. A primary that does has been
        restored from a backup.
        """
        if self.system != before.system or self.timeline > before.timeline:
            return False
        return self.timeline < before.timeline or self.end < position


def parse_switches(content: str) -> tuple[tuple[int, Lsn], ...]:
    """Read the content of a timeline history file: a timeline, where it was left, and why, a line."""
    switches = []
    for line in content.splitlines():
        fields = line.split()
        if len(fields) >= 2 and fields[0].isdigit():  # noqa: PLR2004 - comments and blank lines have other shapes
            switches.append((int(fields[0]), lsn.parse(fields[1])))
    return tuple(switches)


def check_evidence(evidence: Evidence, history: Timeline | None, read_up_to: Lsn) -> None:
    """Refuse a read of a server that is not of the slot's history, or that lags behind what was read already.

    Raises:
        SourceError: what was read does not count; its reason says why.

    """
    if history is not None:
        if evidence.system != history.system:
            raise SourceError("other_system", "the query server belongs to another cluster than the slot")
        if evidence.timeline is not None and evidence.timeline != history.timeline:
            raise SourceError(
                "other_timeline",
                f"the query server writes timeline {evidence.timeline}, the slot's server another one",
            )
    if evidence.replayed is not None and evidence.replayed < read_up_to:
        raise SourceError("query_server_behind", "the query server has not replayed what was read before")
