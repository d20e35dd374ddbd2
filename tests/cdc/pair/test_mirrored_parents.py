"""The copy of a peer's memory of parents: of the moment that was followed, and bounded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cdc.mapping.mapping import Rule
from cdc.pair import mirrored_parents
from cdc.pair.mirrored_parents import MirroredParents, ParentsPart

if TYPE_CHECKING:
    import pytest

RULE = Rule("settings", "application_id", "EndpointsOfApplications", row="id", parents="ParentsOfSettings")
COLUMN = ("settings", "application_id")


def loaded(at: int, *rows: tuple[str, str | None]) -> ParentsPart:
    return ParentsPart(anew=True, column=COLUMN, at=at, rows=list(rows))


def moved(at: int, row: str, parent: str | None) -> ParentsPart:
    return ParentsPart(anew=False, column=COLUMN, at=at, rows=[(row, parent)])


def held(parents: MirroredParents, followed: int) -> dict[str, str] | None:
    memory = parents.memory([RULE], followed)
    return None if memory is None else dict(memory.get(RULE, ()))


def test_it_is_as_of_what_was_followed() -> None:
    parents = MirroredParents()
    parents.take(loaded(10, ("1", "A"), ("2", "B")))
    for at, row, parent in ((20, "1", "C"), (30, "2", None), (40, "3", "D")):
        parents.take(moved(at, row, parent))
    assert held(parents, 9) is None, "it was loaded later than that"
    parents.followed(10)
    assert held(parents, 10) == {"1": "A", "2": "B"}
    parents.followed(29)
    assert held(parents, 29) == {"1": "C", "2": "B"}
    parents.followed(40)
    assert held(parents, 40) == {"1": "C", "3": "D"}


def test_moves_that_come_before_everything_are_in_it() -> None:
    parents = MirroredParents()
    parents.take(moved(5, "1", "old"))
    parents.take(loaded(10, ("1", "A")))
    parents.followed(10)
    assert held(parents, 10) == {"1": "A"}


def test_a_peer_that_follows_and_does_nothing_costs_no_more_than_so_much(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mirrored_parents, "_COMING", 10)
    parents = MirroredParents()
    parents.take(loaded(10, ("1", "A")))
    for at in range(11, 21):
        parents.take(moved(at, "1", str(at)))
    assert held(parents, 10) == {"1": "A"}, "so much is kept"
    for at in range(21, 200):
        parents.take(moved(at, "1", str(at)))
        assert len(parents._coming) <= 10
    assert held(parents, 10) is None
    parents.followed(200)
    assert held(parents, 200) is None, "some moves are missing"
    parents.take(loaded(210, ("1", "B")))
    for at in range(211, 400):  # those that are done take no room
        parents.take(moved(at, "1", str(at)))
        parents.followed(at)
    assert held(parents, 400) == {"1": "399"}
