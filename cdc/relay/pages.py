"""Pages: a map's log and snapshots, cut into pieces that form a chain.

A *run* of pages contains every change since the revision at which it starts, and ends with a checkpoint. At
the checkpoint the reader's map is equal to the leader's map; the count and the digest prove it. A
*generation* begins with an opening page and contains every endpoint and tombstone, newest first, with new
runs in between. The checkpoint at its end marks it as complete. A reader without a map needs a generation. A
reader with a map needs only the runs.

A *line* is an unbroken chain of pages. A leader that cannot continue the chain (for example, because it has
lost its state file) begins another line with a generation. A *head* is the leader's current state, which is
sent in addition to the pages.

Worked example of a leader at revision 7 with three endpoints::

    number  start  opening  entries            checkpoint
    1       7      yes      -                  -             a generation begins
    2       7               c@7 b@5 (older)    -             its endpoints, newest first
    3       7               d@8                8             a run: d was created
    4       8               a@1 (older)        8, complete   a reader of pages 1 to 4 has the map
    5       8               b@9                9             the next run

A reader with the map of revision 7 needs pages 3 and 5. A reader that has missed page 3 is still at revision
7 when page 5 starts at 8. Its chain is broken, so it starts over with the newest complete generation.
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
    """Identifies the unbroken chain of pages that this page belongs to."""
    number: int
    """The page's number in the line. The next page has the next number."""
    start: Revision
    """The minimum revision of a map to which the run of this page can be applied."""
    epoch: str
    timeline: int
    """The epoch and the timeline of the line's revisions and positions."""
    position: Lsn
    """The map of revision `start` includes every transaction up to this position."""
    first: bool = False
    """Whether this is the first page of a run."""
    opening: bool = False
    """Whether this page opens a generation."""
    total: int = 0
    """In an opening page, the approximate number of entries of the generation."""
    generation: int = 0
    """Number of the page that opened the newest complete generation of the line; 0 if there is none."""
    generating: bool = False
    """Whether a generation has begun and not ended yet."""
    older: bool = False
    """Whether the entries belong to the generation's backward walk. A reader with a map already has such
    entries.
    """
    entries: list[Entry] = field(default_factory=list)
    moved: list[tuple[str, Revision, Lsn]] = field(default_factory=list)
    """Ids, revisions and new positions of entries that transactions have affected without changing them."""
    checkpoint: Checkpoint | None = None
    complete: bool = False
    """Whether the checkpoint completes the generation."""

    @property
    def reached(self) -> Revision:
        """The revision of a map to which this page and all pages before it have been applied."""
        return self.start if self.checkpoint is None else self.checkpoint.revision

    def __repr__(self) -> str:  # payloads hold API keys
        return f"<Page {self.number} of {self.line}, from {self.start}: {len(self.entries)} entries>"


@dataclass(frozen=True, slots=True)
class Head:
    """The leader's state. It is sent once a second, so that a relay can distinguish an idle leader from an
    unreachable one.
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
    """`position`, `seen` and `consistent` are as in `Checkpoint`, for this revision."""
    seen: Lsn = Lsn(0)
    consistent: bool = False
    number: int = 0
    """The number of the line's newest page; 0 if the leader does not send it."""
