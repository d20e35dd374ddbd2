"""Resume tokens: what a client's map stands for, opaque to the client, and what a server makes of one.

Its own server serves what has a greater *revision*. Revisions mean nothing to another server, WAL positions
do: there the client gets every entry that a transaction beyond the token's position has named. That is right
if that server has followed without a gap since, and if its map is not older than anything in the client's.

A checksum tells damage from a token of another kind; nothing here is secret or proof of anything.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from cdc.lineage import Origin
    from cdc.lsn import Lsn

_VERSION = 1
_LAYOUT = struct.Struct(">B16sQIQQQQ")
"""Version, epoch, system, timeline, revision, position, seen, issued."""
_CHECKSUM = struct.Struct(">I")

ResetReason = Literal[
    "no_token",
    "malformed",
    "expired",
    "other_system",
    "timeline",
    "unknown_revision",
    "gap",
    "digest_mismatch",
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
        _, epoch, system, *numbers = _LAYOUT.unpack(body)
        return cls(epoch.hex(), str(system) if system else "", *numbers)


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
    expired = here.now - token.issued > here.retention
    if token.epoch == here.origin.epoch:
        if expired:
            return Reset("expired")
        return Resume(token.revision) if token.revision <= here.revision else Reset("unknown_revision")
    return _judge_foreign(token, here, opened, expired=expired)


def _judge_foreign(token: Token, here: Here, opened: float, *, expired: bool) -> Verdict:
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
    if expired:
        return Reset("expired")
    return Rejoin(token.position) if token.position >= here.origin.followed_since else Reset("gap")
