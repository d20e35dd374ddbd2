"""Pages: a map's log and snapshots, cut into pieces that form a chain.

A *run* of pages has every change since the revision at which it starts, and ends with a checkpoint. Then the
reader's map is the leader's, which the count and the digest prove. A *generation* begins with an opening page
and has every endpoint and tombstone, newest first, with new runs in between. The checkpoint at its end marks
it as complete. A reader without a map needs a generation. A reader with a map takes only the runs.

A *line* is an unbroken chain of pages. A leader that cannot continue the chain (it has lost its state file,
for example) begins another line with a generation. A *head* is the leader's present state, sent beside the
pages.

Worked example, a leader at revision 7 with three endpoints::

    number  start  opening  entries            checkpoint
    1       7      yes      -                  -             a generation begins
    2       7               c@7 b@5 (older)    -             its endpoints, newest first
    3       7               d@8                8             a run: d was created
    4       8               a@1 (older)        8, complete   a reader of pages 1 to 4 has the map
    5       8               b@9                9             the next run

A reader with the map of revision 7 takes pages 3 and 5. A reader that missed page 3 is at revision 7 when
page 5 starts at 8. Its chain is broken, so it starts over with the newest complete generation.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cdc.lsn import Lsn

if TYPE_CHECKING:
    from cdc.state.origin import Checkpoint
    from cdc.store.log import Entry
    from cdc.units import Revision


@dataclass(slots=True)
class Page:
    """One page; the module's docstring explains its parts."""

    line: str
    """Identifies the unbroken chain of pages to which this one belongs."""
    number: int
    """The page's number: one more than that of the page before it in the line."""
    start: Revision
    """The revision that a reader's map must have, or exceed, to apply the run of this page."""
    epoch: str
    timeline: int
    """The epoch and the timeline of the line's revisions and positions."""
    position: Lsn
    """The map of revision `start` has every transaction up to here."""
    first: bool = False
    """Whether this is the first page of a run."""
    opening: bool = False
    """Whether this page opens a generation."""
    total: int = 0
    """In an opening page: the approximate number of entries of the generation."""
    generation: int = 0
    """Number of the page that opened the newest complete generation of the line; 0 if there is none."""
    generating: bool = False
    """Whether a generation has begun and not ended yet."""
    older: bool = False
    """Whether the entries belong to the generation's backward walk, so that a reader with a map has them."""
    entries: list[Entry] = field(default_factory=list)
    moved: list[tuple[str, Revision, Lsn]] = field(default_factory=list)
    """Ids, revisions and new positions of entries that transactions have affected but not changed."""
    checkpoint: Checkpoint | None = None
    complete: bool = False
    """Whether the checkpoint completes the generation."""

    @property
    def reached(self) -> Revision:
        """The revision of a reader's map after this page, if it has taken all pages before."""
        return self.start if self.checkpoint is None else self.checkpoint.revision

    def __repr__(self) -> str:  # payloads hold API keys
        return f"<Page {self.number} of {self.line}, from {self.start}: {len(self.entries)} entries>"


@dataclass(frozen=True, slots=True)
class Head:
    """The leader's state, sent once a second, so that a relay can tell an idle leader from an unreachable
    one.
    """

    line: str
    revision: Revision
    staleness: float
    """The leader's staleness, in seconds."""
    at: float
    """Unix seconds by the leader's clock."""
    server_end: Lsn = Lsn(0)
    """The newest end of WAL that the leader knows of."""
    position: Lsn = Lsn(0)
    """As in `Checkpoint`, for this revision."""
    seen: Lsn = Lsn(0)
    consistent: bool = False
    number: int = 0
    """The number of the line's newest page; 0 if the leader does not say."""
