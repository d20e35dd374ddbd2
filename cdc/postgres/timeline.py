"""Timelines of clusters. An LSN is a position in the WAL of one cluster, on one of its timelines.

The system identifier identifies a cluster. A promotion starts a new timeline, which shares the WAL of the old
one up to the switch point. A restore from a backup takes a cluster back to an earlier position.
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
    """A cluster's timeline and the earlier timelines that lead to it, as reported by ``IDENTIFY_SYSTEM`` and
    ``TIMELINE_HISTORY``.
    """

    system: str = ""
    """The system identifier; empty while it is unknown."""
    timeline: int = 0
    end: Lsn = Lsn(0)
    """The end of the server's WAL."""
    switches: tuple[tuple[int, Lsn], ...] = ()
    """Each earlier timeline, with its switch point: the position at which the next one began."""
    instance: str = ""
    """Identifies one run of the server, from its start to its end. A promotion does not end the run."""

    def good_until(self, timeline: int) -> Lsn | None:
        """Return the last position that this history shares with ``timeline``; None if it shares none."""
        if timeline == self.timeline:
            return self.end
        return dict(self.switches).get(timeline)

    def lost(self, timeline: int, seen: Lsn) -> bool:
        """Return whether this history certainly lacks the WAL that ``timeline`` had at ``seen``."""
        if not 0 < timeline < self.timeline or not self.switches:
            return False
        until = self.good_until(timeline)
        return until is None or seen > until

    def continues(self, before: Timeline, position: Lsn, seen: Lsn) -> bool:
        """Return whether this history contains everything that was read up to ``seen`` on the history
        ``before``.

        ``position`` is the position up to which the slot was followed. It is used only on the same timeline:
        a server whose WAL ends before it has been restored from a backup. On another timeline only ``seen``
        is used: WAL beyond the switch point may have been followed, but if no read saw it, the map contains
        none of it.
        """
        if not before.system:
            return True
        until = self.good_until(before.timeline)
        if self.system != before.system or until is None:
            return False
        return max(seen, position if before.timeline == self.timeline else 0) <= until

    def left_at(self, before: Timeline) -> Lsn | None:
        """Return the position at which this history left the timeline of ``before``; None if it did not."""
        if not before.system or before.timeline == self.timeline:
            return None
        return dict(self.switches).get(before.timeline)

    def promoted_from(self, before: Timeline) -> bool:
        """Return whether ``before`` is the same run of the same server, which has since been promoted.

        If so, all WAL that it has delivered belongs to this history, even beyond the switch point.
        """
        return bool(self.instance) and (self.system, self.instance) == (before.system, before.instance)

    def lags(self, before: Timeline, position: Lsn) -> bool:
        """Return whether this server has the same history, but has not reached ``position`` yet.

        This is true for a standby that has restarted, until it has replayed enough. If it is true for a
        primary, the primary has been restored from a backup.
        """
        if self.system != before.system or self.timeline > before.timeline:
            return False
        return self.timeline < before.timeline or self.end < position


def parse_switches(content: str) -> tuple[tuple[int, Lsn], ...]:
    """Parse a timeline history file. Each line has a timeline, its switch point, and the reason."""
    switches = []
    for line in content.splitlines():
        fields = line.split()
        if len(fields) >= 2 and fields[0].isdigit():  # noqa: PLR2004 - comments and blank lines have other shapes
            switches.append((int(fields[0]), lsn.parse(fields[1])))
    return tuple(switches)


def check_evidence(evidence: Evidence, history: Timeline | None, read_up_to: Lsn) -> None:
    """Refuse a read from a server with another history than the slot's, or from a server that is behind
    earlier reads.

    ``history`` is the slot's history; None allows any. ``read_up_to`` is the newest position that earlier
    reads saw.

    Raises:
        SourceError: the read must not be used; ``reason`` says why.

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
        raise SourceError(
            "query_server_behind", "the query server has not replayed the WAL that earlier reads have seen"
        )
