"""Pages: the log of a map and its snapshots, cut into pieces that chain.

A *run* of pages brings everything that has changed since the revision where it starts, and ends with a
checkpoint: then the reader's map is the leader's, as count and digest prove. A *generation* begins with an
opening page and brings every endpoint and tombstone, newest first, with the runs of the moment in between;
it is complete with the checkpoint that says so. A reader that has a map ignores the rest of a generation; a
reader that has none needs one.

Worked example, a leader at revision 7 with three endpoints::

    number  start  opening  entries            checkpoint
    1       7      yes      -                  -             a generation begins
    2       7               c@7 b@5 (older)    -             its endpoints, newest first
    3       7               d@8                8             a run: somebody created d
    4       8               a@1 (older)        8, complete   whoever has read from page 1 on holds the map
    5       8               b@9                9             the next run

A reader with the map of revision 7 takes pages 3 and 5. A reader that missed page 3 has revision 7 and sees
page 5 start at 8: its chain is broken, and it starts over with the newest complete generation.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cdc.lsn import Lsn

if TYPE_CHECKING:
    from cdc.postgres.timeline import Timeline
    from cdc.state.origin import Origin
    from cdc.store.log import Entry
    from cdc.units import Revision


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The leader's map at one moment."""

    revision: Revision
    origin: Origin
    """By what its tokens are made and judged."""
    history: Timeline
    """What the positions are of."""
    position: Lsn
    """Every transaction up to here is in the map."""
    seen: Lsn
    """Nothing in the map is newer than this."""
    consistent: bool
    """The database has had this map."""
    count: int
    digest: bytes


@dataclass(slots=True)
class Page:
    """See the module."""

    line: str
    """Names the unbroken chain that the page is of: a leader that cannot go on where the last page ended
    begins another one, with a generation.
    """
    number: int
    """One more than the page before in its line."""
    start: Revision
    """The revision that a reader's map must have reached for the run that this page is of."""
    epoch: str
    timeline: int
    """Whose revisions the line is of, and on which timeline."""
    position: Lsn
    """The map of revision `start` holds every transaction up to here."""
    first: bool = False
    """It is the first page of a run."""
    opening: bool = False
    """A generation begins."""
    total: int = 0
    """In an opening page: how many entries are to come, as far as is known."""
    generation: int = 0
    """Number of the page that opened the newest complete generation of the line; 0 while there is none."""
    generating: bool = False
    """A generation is under way: its end is still to come."""
    older: bool = False
    """Its entries are a part of the generation: a reader that has a map has them."""
    entries: list[Entry] = field(default_factory=list)
    moved: list[tuple[str, Revision, Lsn]] = field(default_factory=list)
    """Ids, revisions and positions of entries that transactions have named and left as they are."""
    checkpoint: Checkpoint | None = None
    complete: bool = False
    """With this checkpoint the generation is complete."""

    @property
    def reached(self) -> Revision:
        """The revision that a reader's map has reached once all pages up to this one have come."""
        return self.start if self.checkpoint is None else self.checkpoint.revision

    def __repr__(self) -> str:  # payloads hold API keys
        return f"<Page {self.number} of {self.line}, from {self.start}: {len(self.entries)} entries>"


@dataclass(frozen=True, slots=True)
class Head:
    """Where the leader is, said once a second: so a quiet leader is told from one that is cut off."""

    line: str
    revision: Revision
    staleness: float
    """Seconds since the leader's map was known to be the database's; 0.0: it is."""
    at: float
    """Unix seconds by the leader's clock."""
    server_end: Lsn = Lsn(0)
    """The newest end of WAL that the leader knows of."""
    position: Lsn = Lsn(0)
    """As in `Checkpoint`, of the revision."""
    seen: Lsn = Lsn(0)
    consistent: bool = False
