"""A fault of ours is said for as long as it lasts, by each thread for itself."""

from __future__ import annotations

import pytest

from cdc.errors import SourceError
from cdc.fault import Fault
from server.observe.fanout import Listener


class Told(Listener):
    """Remembers what was said."""

    def __init__(self) -> None:
        self.said: list[tuple[str, str | None]] = []

    def trouble(self, key: str, message: str | None) -> None:
        self.said.append((key, message))


def raised(error: Exception) -> Exception:
    """Return it as it is caught: with where it came from."""
    with pytest.raises(type(error)) as caught:
        raise error
    return caught.value


def test_a_fault_is_taken_back_when_its_thread_has_done_its_work_again() -> None:
    told = Told()
    probe, applier = Fault(told, "probe"), Fault(told, "follower")
    probe.over()
    assert not told.said
    applier.met(raised(ValueError("secret-key")))
    probe.met(raised(KeyError("x")))
    probe.over()
    probe.over()
    assert [(key, message is None) for key, message in told.said] == [
        ("fault_follower", False),
        ("fault_probe", False),
        ("fault_probe", True),
    ]
    assert "secret-key" not in str(told.said)


def test_what_the_database_does_wrong_is_no_fault() -> None:
    told = Told()
    fault = Fault(told, "probe")
    fault.met(raised(SourceError("gone", "the database is away")))
    fault.over()
    assert not told.said
