"""Resume tokens: what a client's map stands for, opaque to the client, and what a server makes of one.

Its own server serves what has a greater *revision*. Revisions mean nothing to another server, WAL positions
do: there the client gets every entry that a transaction beyond the token's position has named. That is right
if that server has followed without a gap since, and if its map is not older than anything in the client's.

Positions are of one timeline. WAL of other databases and other tables carries a token's position far beyond
anything that was read for it; after a promotion the same positions come again with other content. So a token
of an earlier timeline is judged by where that was left.

A client also gets a token with what is no complete map yet: that one says how new the newest endpoint is that
the client may hold, so that no server takes it back.

The checksum is there to tell damage; nothing here is secret, or proof of anything.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, replace
from math import inf
from typing import TYPE_CHECKING, Literal

from cdc.units import Revision

if TYPE_CHECKING:
    from cdc.lsn import Lsn
    from cdc.postgres.timeline import Timeline
    from cdc.state.origin import Origin, Reread

_VERSION = 1
_LAYOUT = struct.Struct(">B16sQIQQQIIB")
"""Version, epoch, system, timeline, revision, position, seen, mapping, issued, encoding or 0 where it is
incomplete.

Servers of the first encoding read and wrote the last byte as a truth value: theirs say 1, which is right, and
they take ours for complete ones. They also read mapping and issued as one number of seconds: theirs come with
mapping 0, and they take ours for tokens of a far future, which do not expire.
"""
_CHECKSUM = struct.Struct(">I")
_NOBODY = "0" * 32
"""The epoch of no server."""

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
"""Why a client starts over."""


@dataclass(frozen=True, slots=True)
class Token:
    """What a client's map stands for."""

    epoch: str
    """Names the unbroken line of revisions, 32 hexadecimal digits: a server's identity."""
    system: str
    timeline: int
    """What the two positions are of; 0 where the server did not know."""
    revision: Revision
    position: Lsn
    """Every transaction up to here is in the map."""
    seen: Lsn
    """Nothing in the map is newer than this."""
    mapping: int
    """By which mapping of what the map was made (`Origin.mapping`); 0 where the server did not say."""
    issued: int
    """Unix seconds."""
    encoding: int
    """The rules by which the map's payloads were made (`server.payload.ENCODING`): digests of others do not
    compare. 0 in the midst of a snapshot: the map must be had anew, and yet must not go back.
    """

    @property
    def complete(self) -> bool:
        """Whether the map is one that a checkpoint has stood for."""
        return self.encoding != 0

    def incomplete(self) -> Token:
        """Return the token of a map of which only a part has come."""
        return replace(self, encoding=0)

    def mixed(self) -> Token:
        """Return the token of the same map with something of another server's in it.

        Its own server must not go by revisions any more: what changed elsewhere and changed back may never
        have changed there.
        """
        return replace(self, epoch=_NOBODY, revision=Revision(0))

    def on(self, history: Timeline) -> Token | None:
        """Return the token with its positions as this history has them; None where they are not of it.

        Example: a token of timeline 1 has position 1000 and seen 500. Timeline 2 left it at 600, so the
        map is one of timeline 2, too, of position 600. With seen 700 it holds what timeline 2 never had.
        """
        if self.timeline and (self.system, self.timeline) == (history.system, history.timeline):
            return self
        until = history.good_until(self.timeline) if self.system == history.system else None
        if until is None or self.seen > until:
            return None
        return replace(self, timeline=history.timeline, position=min(self.position, until))

    def encode(self) -> bytes:
        """Return what the client keeps."""
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
        """Read what a client sent; None if it is damaged or of another kind."""
        if len(raw) != _LAYOUT.size + _CHECKSUM.size or raw[0] != _VERSION:
            return None
        body, (checksum,) = raw[: _LAYOUT.size], _CHECKSUM.unpack(raw[_LAYOUT.size :])
        if checksum != zlib.crc32(body):
            return None
        _, epoch, system, *others = _LAYOUT.unpack(body)
        return cls(epoch.hex(), str(system) if system else "", *others)


@dataclass(frozen=True, slots=True)
class Here:
    """The server that judges, at one moment."""

    origin: Origin
    history: Timeline
    """What its position is of."""
    revision: Revision
    """The newest that it has."""
    position: Lsn
    """Every transaction up to here is in its map."""
    now: float
    """Unix seconds."""
    retention: float
    """Seconds that a token is good for."""
    reached_at: float = inf
    """Monotonic time as of which no revision is missing here. A server that makes the revisions misses none;
    a relay may learn of some later.
    """


@dataclass(frozen=True, slots=True)
class Resume:
    """Serve what has a revision greater than this."""

    after: Revision


@dataclass(frozen=True, slots=True)
class Rejoin:
    """Serve what a transaction beyond this position has named."""

    beyond: Lsn


@dataclass(frozen=True, slots=True)
class Reset:
    """Serve everything."""

    reason: ResetReason


@dataclass(frozen=True, slots=True)
class Behind:
    """Serve nothing yet: the client may hold newer states than this server has; judge again later."""

    until: Lsn


Verdict = Resume | Rejoin | Reset | Behind


def judge(raw: bytes, here: Here, *, opened: float) -> Verdict:
    """Say how a client that sent the token ``raw`` is to be served; ``opened`` is the monotonic time when it
    came.
    """
    if not raw:
        return Reset("no_token")
    token = Token.parse(raw)
    if token is None:
        return Reset("malformed")
    verdict: Verdict
    if token.epoch != here.origin.epoch:
        verdict = _judge_foreign(token, here, opened)
    elif token.revision <= here.revision:
        verdict = Resume(token.revision)
    elif here.reached_at <= opened:
        verdict = Behind(token.seen)
    else:  # of our future, as our state file was replaced by an older one
        foreign = _judge_foreign(token, here, opened)
        verdict = foreign if isinstance(foreign, Behind) else Reset("unknown_revision")
    if isinstance(verdict, Behind):
        return verdict
    if not token.complete:
        return Reset("incomplete")
    same = (token.encoding, token.mapping) == (here.origin.encoding, here.origin.mapping)
    if not same and isinstance(verdict, Resume | Rejoin):
        # What has not changed would keep what another encoding or mapping has made of it.
        return Reset("malformed")
    if isinstance(verdict, Resume | Rejoin) and here.now - token.issued > here.retention:
        return Reset("expired")
    return verdict


def _judge_foreign(token: Token, here: Here, opened: float) -> Verdict:
    history = here.history
    if history.system and token.system != history.system:
        return Reset("other_system")
    if token.epoch in here.origin.left or history.lost(token.timeline, token.seen):
        return _judge_lost(token, here, opened)
    known = token.on(history)
    if known is None or here.position < token.seen:
        # Even a reset would take the client back. But where there is no stream to catch up with, a whole
        # reading that began after the client came may show that our map is not older than its map.
        reread = here.origin.reread
        if reread is not None and reread.began > opened and _reaches(reread, token, history):
            return Reset("gap")
        if known is None and not token.timeline and here.position >= token.seen:
            return Reset("timeline")
        return Behind(token.seen)
    since = here.origin.followed_since
    return Rejoin(known.position) if since is not None and known.position >= since else Reset("gap")


def _judge_lost(token: Token, here: Here, opened: float) -> Verdict:
    """Judge a token of which the database has lost something: what it has kept must not be taken back.

    Example: timeline 2 has left timeline 1 at 600, and a token of timeline 1 has seen 700. The client starts
    over, but not before this server has what there was at 600.
    """
    earlier = 0 < token.timeline < here.history.timeline
    kept = here.history.good_until(token.timeline) if earlier else None
    if kept is None:  # the database was restored: nobody knows what both have
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
    """Tell whether a whole reading cannot be older than the token's map."""
    timeline = reread.timeline or history.timeline  # 0 where nobody knows
    if reread.timeline is not None and 0 < token.timeline < reread.timeline:
        return True  # of the token's timeline a later one has all that was not lost
    return (not timeline or token.timeline <= timeline) and reread.covers >= token.seen
