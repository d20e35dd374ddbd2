"""Resume tokens: what a client's map stands for, opaque to the client, and what a server makes of one.

Its own server serves what has a greater *revision*. Revisions mean nothing to another server, WAL positions
do: there the client gets every entry that a transaction beyond the token's position has named. That is right
if that server has followed without a gap since, and if its map is not older than anything in the client's.

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

if TYPE_CHECKING:
    from cdc.lsn import Lsn
    from cdc.state.origin import Origin

_VERSION = 1
_LAYOUT = struct.Struct(">B16sQIQQQQB")
"""Version, epoch, system, timeline, revision, position, seen, issued, encoding or 0 where it is incomplete.

Servers of the first encoding read and wrote the last byte as a truth value: theirs say 1, which is right, and
they take ours for complete ones.
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
    revision: int
    position: Lsn
    """Every transaction up to here is in the map."""
    seen: Lsn
    """Nothing in the map is newer than this."""
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
        return replace(self, epoch=_NOBODY, revision=0)

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
    revision: int
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

    after: int


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
    if token.epoch == here.origin.epoch:
        verdict: Verdict
        if token.revision <= here.revision:
            verdict = Resume(token.revision)
        else:
            verdict = Reset("unknown_revision") if here.reached_at > opened else Behind(token.seen)
    else:
        verdict = _judge_foreign(token, here, opened)
    if isinstance(verdict, Behind):
        return verdict
    if not token.complete:
        return Reset("incomplete")
    if token.encoding != here.origin.encoding and isinstance(verdict, Resume | Rejoin):
        # What has not changed would keep the bytes of the other encoding, and no digest would match.
        return Reset("malformed")
    if isinstance(verdict, Resume | Rejoin) and here.now - token.issued > here.retention:
        return Reset("expired")
    return verdict


def _judge_foreign(token: Token, here: Here, opened: float) -> Verdict:
    history, reread = here.origin.history, here.origin.reread
    if history.system and token.system != history.system:
        return Reset("other_system")
    if token.epoch in here.origin.left:
        return Reset("timeline")
    if token.timeline < history.timeline:
        until = history.good_until(token.timeline)
        if until is None or token.seen > until:
            return Reset("timeline")
    if token.timeline > history.timeline or here.position < token.seen:
        # Even a reset would take the client back. But where there is no stream to catch up with, a whole
        # reading that began after the client came and has reached its position is not older than its map.
        comparable = token.timeline <= history.timeline or not history.timeline
        if comparable and reread is not None and reread.began > opened and reread.covers >= token.seen:
            return Reset("gap")
        return Behind(token.seen)
    return Rejoin(token.position) if token.position >= here.origin.followed_since else Reset("gap")
