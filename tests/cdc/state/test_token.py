"""Tokens: what is kept of them, and what a server makes of each kind."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace
from math import inf
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc.postgres.timeline import Timeline
from cdc.state.ledger import Ledger
from cdc.state.origin import CurrentOrigin, Origin, Reread
from cdc.state.token import Behind, Here, Rejoin, Reset, Resume, Token, Verdict, judge

if TYPE_CHECKING:
    from pathlib import Path

OURS, THEIRS = "a" * 32, "b" * 32
HERE = Here(
    origin=Origin(OURS, followed_since=400, encoding=2, mapping=5),
    history=Timeline("7", 3, end=900, switches=((1, 100), (2, 300))),
    revision=50,
    position=800,
    now=10_000.0,
    retention=1_000.0,
)
TOKEN = Token(OURS, "7", 3, revision=40, position=500, seen=520, mapping=5, issued=9_500, encoding=2)
FOREIGN = replace(TOKEN, epoch=THEIRS, revision=4000)

NUMBERS = st.integers(0, 2**64 - 1)
TOKENS = st.builds(
    Token,
    epoch=st.binary(min_size=16, max_size=16).map(bytes.hex),
    system=NUMBERS.map(lambda number: str(number) if number else ""),
    timeline=st.integers(0, 2**32 - 1),
    revision=NUMBERS,
    position=NUMBERS,
    seen=NUMBERS,
    mapping=st.integers(0, 2**32 - 1),
    issued=st.integers(0, 2**32 - 1),
    encoding=st.integers(0, 255),
)


def verdict(token: Token, here: Here = HERE, opened: float = 5.0) -> Verdict:
    return judge(token.encode(), here, opened=opened)


@given(TOKENS)
def test_a_token_says_what_went_into_it(token: Token) -> None:
    assert Token.parse(token.encode()) == token


@given(st.binary(max_size=200))
def test_what_is_no_token_is_none(raw: bytes) -> None:
    assert Token.parse(raw) is None
    assert judge(raw, HERE, opened=0.0) == Reset("malformed" if raw else "no_token")


@given(TOKENS, st.data())
def test_a_bit_that_flips_is_noticed(token: Token, data: st.DataObject) -> None:
    raw = bytearray(token.encode())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert Token.parse(bytes(raw)) is None


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        (TOKEN, Resume(40)),
        (replace(TOKEN, revision=50), Resume(50)),
        (replace(TOKEN, revision=51), Reset("unknown_revision")),
        (replace(TOKEN, issued=8_999), Reset("expired")),
        (TOKEN.incomplete(), Reset("incomplete")),
        # By its own server a token is good whatever happened to the database's timelines.
        (replace(TOKEN, timeline=1), Resume(40)),
        (FOREIGN, Rejoin(500)),
        (FOREIGN.mixed(), Rejoin(500)),
        (TOKEN.mixed(), Rejoin(500)),
        (replace(FOREIGN, position=400), Rejoin(400)),
        (replace(FOREIGN, position=399), Reset("gap")),
        (replace(FOREIGN, seen=800), Rejoin(500)),
        (replace(FOREIGN, seen=801), Behind(801)),
        # An older map is never swapped in, not even by a reset.
        (replace(FOREIGN, seen=801, issued=0), Behind(801)),
        (replace(FOREIGN, seen=801).incomplete(), Behind(801)),
        (replace(FOREIGN, issued=0), Reset("expired")),
        (FOREIGN.incomplete(), Reset("incomplete")),
        (replace(FOREIGN, system="8"), Reset("other_system")),
        (replace(FOREIGN, timeline=4), Behind(520)),
        # An earlier timeline is good up to where it was left.
        (replace(FOREIGN, timeline=2, position=250, seen=300), Reset("gap")),
        (replace(FOREIGN, timeline=2, seen=301), Reset("timeline")),
        # Where its server did not know the timeline, its positions are only good to wait for.
        (replace(FOREIGN, timeline=0), Reset("timeline")),
        (replace(FOREIGN, timeline=0, seen=800), Reset("timeline")),
        (replace(FOREIGN, timeline=0, seen=801), Behind(801)),
        # Of our future, as our state file was replaced by an older one: even so the client is not taken back.
        (replace(TOKEN, revision=51, seen=801), Behind(801)),
        # What has not changed would keep bytes of another encoding: everything is sent, and never too early.
        (replace(TOKEN, encoding=1), Reset("malformed")),
        (replace(TOKEN, encoding=3), Reset("malformed")),
        (replace(FOREIGN, encoding=1), Reset("malformed")),
        (replace(FOREIGN, encoding=1, seen=801), Behind(801)),
        (replace(TOKEN, mapping=0), Reset("malformed")),
        (replace(FOREIGN, mapping=6), Reset("malformed")),
        (replace(FOREIGN, mapping=6, seen=801), Behind(801)),
        (replace(FOREIGN, encoding=1, position=399), Reset("gap")),
    ],
)
def test_each_kind_has_its_verdict(token: Token, expected: Verdict) -> None:
    assert verdict(token) == expected


def test_a_mixed_map_s_token_names_no_revision() -> None:
    assert TOKEN.mixed() == replace(TOKEN, epoch="0" * 32, revision=0)


def test_a_token_on_a_later_timeline_has_that_timeline_s_positions() -> None:
    earlier = replace(TOKEN, timeline=2, position=700, seen=300)
    assert earlier.on(HERE.history) == replace(earlier, timeline=3, position=300)
    assert earlier.on(replace(HERE.history, system="8")) is None, "another system has other positions"
    assert replace(earlier, seen=301).on(HERE.history) is None


def test_a_relay_that_is_behind_its_leader_says_how_far_to_wait() -> None:
    here = replace(HERE, revision=30, reached_at=5.0)
    assert verdict(TOKEN, here) == Behind(520)


@pytest.mark.parametrize(
    ("reached_at", "position", "seen", "expected"),
    [
        (5.0, 520, 0, Resume(40)),
        (5.0, 519, 520, Behind(520)),
        (5.0, 0, 521, Resume(40)),
        (5.1, 0, 0, Resume(40)),
    ],
)
def test_a_relay_has_all_that_a_client_may_hold_once_one_of_three_says_so(
    reached_at: float, position: int, seen: int, expected: Verdict
) -> None:
    """It has all that was made before the client came, or is complete up to there, or has something newer."""
    assert verdict(TOKEN, replace(HERE, reached_at=reached_at, position=position, seen=seen)) == expected


def test_a_token_is_good_to_the_end_of_its_retention() -> None:
    assert verdict(replace(TOKEN, issued=9_000)) == Resume(40)
    assert verdict(replace(TOKEN, issued=8_999)) == Reset("expired")


def test_a_token_from_before_a_delete_that_is_forgotten_has_expired() -> None:
    def forgotten(revision: int) -> Here:
        return replace(HERE, origin=replace(HERE.origin, forgotten=revision))

    assert verdict(TOKEN, forgotten(40)) == Resume(40), "its map has that delete"
    assert verdict(TOKEN, forgotten(41)) == Reset("expired")
    assert verdict(TOKEN.incomplete(), forgotten(41)) == Reset("incomplete")


def test_a_revision_of_our_future_is_waited_for_until_a_read_has_reached_its_map() -> None:
    ahead = replace(TOKEN, revision=51, seen=850)
    for began, expected in ((6.0, Reset("unknown_revision")), (4.0, Behind(850))):
        here = replace(HERE, origin=replace(HERE.origin, reread=Reread(began, 850)))
        assert verdict(ahead, here) == expected


def test_an_earlier_timeline_resumes_where_it_was_followed() -> None:
    here = replace(HERE, origin=replace(HERE.origin, followed_since=200))
    assert verdict(replace(FOREIGN, timeline=2, position=250, seen=300), here) == Rejoin(250)
    beyond = replace(FOREIGN, timeline=2, position=700, seen=300)
    assert verdict(beyond, here) == Rejoin(300), "WAL of others has carried it beyond the switch"


def test_after_a_full_read_a_server_without_a_stream_resets_clients() -> None:
    ahead = replace(FOREIGN, seen=850)

    def polled(reread: Reread, history: Timeline = HERE.history) -> Here:
        return replace(HERE, history=history, origin=replace(HERE.origin, reread=reread))

    assert verdict(ahead, polled(Reread(6.0, 850))) == Reset("gap")
    assert verdict(ahead, polled(Reread(4.0, 850))) == Behind(850), "begun before the client came"
    assert verdict(ahead, polled(Reread(5.0, 850))) == Behind(850), "begun as the client came"
    assert verdict(ahead, polled(Reread(6.0, 849))) == Behind(850), "not as far as the client"
    assert verdict(ahead, polled(Reread(6.0, 850), Timeline("7"))) == Reset("gap"), "never followed a stream"
    elsewhere = replace(ahead, timeline=4)
    assert verdict(elsewhere, polled(Reread(6.0, 900))) == Behind(850), "another timeline's positions"
    assert verdict(elsewhere, polled(Reread(6.0, 900, 3), Timeline("7"))) == Behind(850), "likewise"
    assert verdict(elsewhere, polled(Reread(6.0, 10, 5), Timeline("7"))) == Reset("gap"), (
        "the primary of a later timeline has all that was not lost"
    )
    for timeline, expected in ((0, Behind(850)), (1, Reset("gap")), (5, Behind(850)), (6, Behind(850))):
        token = replace(ahead, timeline=timeline)
        assert verdict(token, polled(Reread(6.0, 10, 5), Timeline("7"))) == expected


def test_a_history_whose_switches_nobody_told_loses_nothing_by_guessing() -> None:
    """A server that has never had a slot knows the timeline of what it reads at most."""
    here = replace(HERE, history=Timeline("7", 3), position=400)
    assert verdict(replace(FOREIGN, timeline=2), here) == Behind(520)


def test_what_the_database_has_kept_of_a_lost_map_is_waited_for() -> None:
    """Timeline 1 was left at 100, and the map has seen 150: what it had at 100 must not be taken back."""
    token = replace(FOREIGN, timeline=1, position=90, seen=150)
    early = replace(HERE, position=99, origin=replace(HERE.origin, reread=None))
    assert verdict(token, early) == Behind(100)
    assert verdict(token, replace(early, position=100)) == Reset("timeline")
    left = replace(early, origin=replace(early.origin, left=frozenset({token.epoch})))
    assert verdict(token, left) == Behind(100)
    assert verdict(replace(token, seen=95), replace(left, position=94)) == Behind(95)
    read = replace(early, origin=replace(early.origin, reread=Reread(6.0, 100)))
    assert verdict(token, read) == Reset("timeline")
    for began in (4.0, 5.0):
        earlier = replace(read.origin, reread=Reread(began, 100))
        assert verdict(token, replace(read, origin=earlier)) == Behind(100)
    assert verdict(replace(token, timeline=3), left) == Reset("timeline"), (
        "nobody knows what a restore has kept"
    )


def test_a_history_that_was_left_is_not_waited_for() -> None:
    here = replace(HERE, origin=replace(HERE.origin, left=frozenset({THEIRS})))
    assert verdict(replace(FOREIGN, seen=10_000), here) == Reset("timeline")


class Silent:
    """An observer of a ledger that has nothing to say."""

    def state_file_error(self, message: str) -> None:
        raise AssertionError(message)

    def trouble(self, key: str, message: str | None) -> None:
        raise AssertionError(key, message)


def test_a_lineage_only_ever_knows_less_of_the_past(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "state", "7", Silent())  # type: ignore[arg-type]  # it reports nothing else
    origin = CurrentOrigin(ledger)
    assert origin.now() == Origin(ledger.epoch, None)
    origin.reread(Reread(1.0, 100))
    origin.gap(200)
    origin.gap(150)
    assert origin.now() == Origin(ledger.epoch, 200, Reread(1.0, 100))
    origin.timeline_changed()
    assert origin.now() == Origin(ledger.epoch, 200)
    origin.reread(Reread(2.0, 100))
    before = ledger.epoch
    origin.broken()
    ledger.epoch = "c" * 32
    now = origin.now()
    assert now == Origin("c" * 32, None, left=frozenset({before}))
    ledger.close()


def test_servers_of_the_first_encoding_and_we_read_each_other_s_tokens() -> None:
    """They had a truth value where the encoding stands: a client goes back and forth during an upgrade."""
    first = replace(TOKEN, encoding=1, mapping=0)
    body = struct.pack(
        ">B16sQIQQQQ?",
        1,
        bytes.fromhex(OURS),
        7,
        3,
        first.revision,
        first.position,
        first.seen,
        first.issued,
        True,
    )
    assert Token.parse(body + struct.pack(">I", zlib.crc32(body))) == first
    as_they_read = struct.unpack(">B16sQIQQQQ?", TOKEN.encode()[:-4])
    assert as_they_read[-1] is True
    assert struct.unpack(">B16sQIQQQQ?", TOKEN.incomplete().encode()[:-4])[-1] is False


@given(st.data())
def test_a_relay_sends_nothing_older_than_its_leader_or_another_relay_has_sent(data: st.DataObject) -> None:
    """A client may hold more than its token's revision: in a snapshot, and before the next checkpoint."""
    draw = data.draw
    seen, positions = [0], [0]
    """For each revision: nothing in it is newer than `seen`, and everything up to its position is in it."""
    for _ in range(draw(st.integers(1, 6))):
        change = positions[-1] + draw(st.integers(1, 3))
        seen.append(max(seen[-1], change + draw(st.integers(0, 3))))
        positions.append(change + draw(st.integers(0, 3)))
    revisions = st.integers(0, len(seen) - 1)
    newest = draw(revisions)
    complete = draw(st.booleans())
    token = replace(
        TOKEN,
        revision=draw(st.integers(0, newest)) if complete else 0,
        position=0,
        seen=seen[newest],
        encoding=2 if complete else 0,
    )
    here = draw(revisions)
    relay = replace(HERE, revision=here, position=positions[here], seen=seen[here], reached_at=4.0)
    if here < newest:
        assert isinstance(verdict(token, relay), Behind)
    if here == len(seen) - 1:  # it has everything, and hears from its leader that it does
        assert not isinstance(verdict(token, replace(relay, reached_at=6.0)), Behind)
    leader = replace(relay, revision=len(seen) - 1, reached_at=inf)
    assert not isinstance(verdict(token, leader), Behind), "a leader never waits for itself"
