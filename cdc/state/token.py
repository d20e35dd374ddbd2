"""Resume tokens: a token identifies the map that a client has, and a server decides how to resume from it.

The server that issued the token sends the entries with a greater *revision*. Other servers do not know these
revisions, so they use WAL positions: they send every entry that was named by a transaction beyond the token's
position. This is correct if the server has followed the slot without a gap since that position, and if its
map is not older than any endpoint in the client's map.

A position belongs to one timeline. WAL of other databases and tables moves a token's position far beyond the
newest change that was read. After a promotion, the new timeline has other content at the same positions. So a
token of an earlier timeline is judged by the position at which that timeline ended.

A client also gets a token while its map is incomplete. This token limits how new the client's newest endpoint
may be, so that no server sends the client an older state.

The checksum detects damage. A token contains no secret and proves no identity.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, replace
from math import inf
from typing import TYPE_CHECKING, Literal

from cdc.lsn import Lsn
from cdc.units import Revision

if TYPE_CHECKING:
    from cdc.postgres.timeline import Timeline
    from cdc.state.origin import Origin, Reread

_VERSION = 1
_LAYOUT = struct.Struct(">B16sQIQQQIIB")
"""Version, epoch, system, timeline, revision, position, seen, mapping, issued, and the encoding (0 means
incomplete).

Servers of the first encoding used the last byte as a boolean. In their tokens it is 1, which is their
encoding, and they treat all of our tokens as complete. They also used mapping and issued together as one
number of seconds. Their tokens have mapping 0. They see a time in the far future in our tokens, which
therefore never expire there.
"""
_CHECKSUM = struct.Struct(">I")
_NOBODY = "0" * 32
"""An epoch that no server has."""

ResetReason = Literal[
    "no_token",
    "malformed",
    "expired",
    "other_system",
    "timeline",
    "unknown_revision",
    "gap",
    "digest_mismatch",
    "incomplete",
]
"""The reasons for sending a client everything."""


@dataclass(frozen=True, slots=True)
class Token:
    """Identifies the map that a client has."""

    epoch: str
    """The epoch of `revision`, 32 hexadecimal digits: an unbroken line of revisions of one server."""
    system: str
    timeline: int
    """The timeline of both positions; 0 if the server did not know it."""
    revision: Revision
    position: Lsn
    """Every transaction up to this position is in the map."""
    seen: Lsn
    """Nothing in the map is newer than this position."""
    mapping: int
    """The mapping that made the map, as a number (`Origin.mapping`); 0 if the server did not write it."""
    issued: int
    """The time at which the token was made, in Unix seconds."""
    encoding: int
    """The version of the rules that encoded the payloads (`server.payload.ENCODING`). Digests of different
    versions cannot be compared. It is 0 in the middle of a snapshot: the client must be sent everything, but
    nothing that is older than what it already has.
    """

    @property
    def complete(self) -> bool:
        """Whether the token was issued at a checkpoint, so that the client had a complete map."""
        return self.encoding != 0

    def incomplete(self) -> Token:
        """Return the token of a map that the client has received only in part."""
        return replace(self, encoding=0)

    def mixed(self) -> Token:
        """Return the token of the same map after another server has changed something in it.

        The server that issued the token must no longer use its revision. If an endpoint changed and changed
        back, perhaps only the other server gave it a new revision.
        """
        return replace(self, epoch=_NOBODY, revision=Revision(0))

    def on(self, history: Timeline) -> Token | None:
        """Return the token with positions of this history; None if the map is not part of this history.

        Example: a token of timeline 1 has position 1000 and seen 500. Timeline 2 left timeline 1 at 600. So
        the map is also a map of timeline 2, with position 600. With seen 700 it might contain changes that
        timeline 2 does not have.
        """
        if self.timeline and (self.system, self.timeline) == (history.system, history.timeline):
            return self
        until = history.good_until(self.timeline) if self.system == history.system else None
        if until is None or self.seen > until:
            return None
        return replace(self, timeline=history.timeline, position=min(self.position, until))

    def encode(self) -> bytes:
        """Return the token as the bytes that the client stores."""
        body = _LAYOUT.pack(
            _VERSION,
            bytes.fromhex(self.epoch),
            int(self.system or "0"),
            self.timeline,
            self.revision,
            self.position,
            self.seen,
            self.mapping,
            self.issued,
            self.encoding,
        )
        return body + _CHECKSUM.pack(zlib.crc32(body))

    @classmethod
    def parse(cls, raw: bytes) -> Token | None:
        """Parse a token that a client sent; return None if it is damaged or has another version."""
        if len(raw) != _LAYOUT.size + _CHECKSUM.size or raw[0] != _VERSION:
            return None
        body, (checksum,) = raw[: _LAYOUT.size], _CHECKSUM.unpack(raw[_LAYOUT.size :])
        if checksum != zlib.crc32(body):
            return None
        _, epoch, system, *others = _LAYOUT.unpack(body)
        return cls(epoch.hex(), str(system) if system else "", *others)


@dataclass(frozen=True, slots=True)
class Here:
    """The state of the server that judges a token, at one moment."""

    origin: Origin
    history: Timeline
    """The history that `position` belongs to."""
    revision: Revision
    """The server's newest revision."""
    position: Lsn
    """The server's map includes every transaction up to this position."""
    now: float
    """The current time, in Unix seconds."""
    retention: float
    """Seconds after which a token expires."""
    seen: Lsn = Lsn(0)
    """Nothing in the server's map is newer than this position."""
    reached_at: float = inf
    """A monotonic time. This server has all revisions that the leader had made by then. A relay receives
    revisions later than the leader makes them; the leader itself always has all of them.
    """


@dataclass(frozen=True, slots=True)
class Resume:
    """Send the entries with a greater revision than this."""

    after: Revision


@dataclass(frozen=True, slots=True)
class Rejoin:
    """Send the entries that were named by a transaction beyond this position."""

    beyond: Lsn


@dataclass(frozen=True, slots=True)
class Reset:
    """Send everything."""

    reason: ResetReason


@dataclass(frozen=True, slots=True)
class Behind:
    """Send nothing yet and judge again later, because the client may have newer states than this server."""

    until: Lsn


Verdict = Resume | Rejoin | Reset | Behind


def judge(raw: bytes, here: Here, *, opened: float) -> Verdict:
    """Decide how to serve a client that sent the token ``raw`` and opened its stream at the monotonic time
    ``opened``.
    """
    if not raw:
        return Reset("no_token")
    token = Token.parse(raw)
    if token is None:
        return Reset("malformed")
    verdict: Verdict
    if token.epoch != here.origin.epoch:
        verdict = _judge_foreign(token, here, opened)
    elif token.revision <= here.revision and _has_all(token, here, opened):
        old = token.complete and token.revision < here.origin.forgotten
        verdict = Reset("expired") if old else Resume(token.revision)
    elif here.reached_at <= opened:
        verdict = Behind(token.seen)
    else:  # the revision is beyond our newest one: our state file has been replaced by an older file
        foreign = _judge_foreign(token, here, opened)
        verdict = foreign if isinstance(foreign, Behind) else Reset("unknown_revision")
    if isinstance(verdict, Behind):
        return verdict
    if not token.complete:
        return Reset("incomplete")
    same = (token.encoding, token.mapping) == (here.origin.encoding, here.origin.mapping)
    if not same and isinstance(verdict, Resume | Rejoin):
        # Endpoints that have not changed since then would keep payloads of the other encoding or mapping.
        return Reset("malformed")
    if isinstance(verdict, Resume | Rejoin) and here.now - token.issued > here.retention:
        return Reset("expired")
    return verdict


def _has_all(token: Token, here: Here, opened: float) -> bool:
    """Return whether our map, which has the token's epoch, is at least as new as everything that the client
    has.

    Only a relay's map can be older. The client may have changes that are newer than its token's revision: in
    the middle of a snapshot, where the token has revision 0, and after changes before the next checkpoint.
    The leader's `seen` never decreases from one revision to the next.
    """
    return here.reached_at > opened or here.position >= token.seen or here.seen > token.seen


def _judge_foreign(token: Token, here: Here, opened: float) -> Verdict:
    history = here.history
    if history.system and token.system != history.system:
        return Reset("other_system")
    if token.epoch in here.origin.left or history.lost(token.timeline, token.seen):
        return _judge_lost(token, here, opened)
    known = token.on(history)
    if known is None or here.position < token.seen:
        # Even a reset might send older states. But if there is no stream with which this server could catch
        # up, a reconcile that began after the client's stream can show that our map is not older than the
        # client's.
        reread = here.origin.reread
        if reread is not None and reread.began > opened and _reaches(reread, token, history):
            return Reset("gap")
        if known is None and not token.timeline and here.position >= token.seen:
            return Reset("timeline")
        return Behind(token.seen)
    since = here.origin.followed_since
    return Rejoin(known.position) if since is not None and known.position >= since else Reset("gap")


def _judge_lost(token: Token, here: Here, opened: float) -> Verdict:
    """Judge a token of a map with changes that the database has lost. The client must not receive older
    states of changes that the database has kept.

    Example: timeline 2 left timeline 1 at 600, and a token of timeline 1 has seen 700. The client is sent
    everything, but only after this server's map has reached 600.
    """
    earlier = 0 < token.timeline < here.history.timeline
    kept = here.history.good_until(token.timeline) if earlier else None
    if kept is None:  # the database was restored from a backup: the common part is unknown
        return Reset("timeline")
    kept, reread = min(kept, token.seen), here.origin.reread
    if here.position >= kept:
        return Reset("timeline")
    if (
        reread is not None
        and reread.began > opened
        and _reaches(reread, replace(token, seen=kept), here.history)
    ):
        return Reset("timeline")
    return Behind(kept)


def _reaches(reread: Reread, token: Token, history: Timeline) -> bool:
    """Return whether the map from a reconcile is certainly not older than the token's map."""
    timeline = reread.timeline or history.timeline  # 0 if unknown
    if reread.timeline is not None and 0 < token.timeline < reread.timeline:
        return True  # a later timeline contains everything of the token's timeline that was not lost
    return (not timeline or token.timeline <= timeline) and reread.covers >= token.seen
