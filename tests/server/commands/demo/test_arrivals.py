"""Matching what arrives with what was committed: the demo's latencies must not flatter."""

from __future__ import annotations

import pytest
from pads_cdc_client.pb.gateway_endpoint_pb2 import Auth, GatewayEndpoint, StaticAPIKey

from server.commands.demo.arrivals import Arrivals
from server.commands.demo.figures import percentile
from server.commands.demo.workload import WorkloadCommit
from server.commands.old_client import EndpointUpdate

OLD = GatewayEndpoint(endpoint_id="a")


def keyed(endpoint_id: str, key: str) -> GatewayEndpoint:
    return GatewayEndpoint(endpoint_id=endpoint_id, auth=Auth(static_api_key=StaticAPIKey(api_key=key)))


def commit(number: int, **changes: str | None) -> WorkloadCommit:
    return WorkloadCommit(
        number,
        "key rotated",
        "",
        {each: None if key is None else keyed(each, key) for each, key in changes.items()},
        {},
    )


def update(endpoint_id: str, key: str | None, at: float) -> EndpointUpdate:
    return EndpointUpdate(endpoint_id, OLD, None if key is None else keyed(endpoint_id, key), at)


@pytest.fixture
def arrivals() -> Arrivals:
    return Arrivals()


def seconds(arrivals: Arrivals) -> dict[int, float | None]:
    return {one.commit.number: one.seconds for one in arrivals.take()}


def test_a_commit_has_arrived_with_its_last_endpoint(arrivals: Arrivals) -> None:
    one = commit(1, a="x", b=None, c="x")
    arrivals.expect(one)
    arrivals.committed(one, 10.0)
    arrivals.arrived(update("a", "x", 11.0))
    arrivals.arrived(update("b", None, 12.0))
    assert (seconds(arrivals), arrivals.awaited) == ({}, 1)
    arrivals.arrived(update("c", "x", 14.5))
    assert (seconds(arrivals), arrivals.awaited) == ({1: 4.5}, 0)


def test_other_values_are_not_the_arrival(arrivals: Arrivals) -> None:
    one = commit(1, a="new")
    arrivals.expect(one)
    arrivals.committed(one, 10.0)
    arrivals.arrived(update("a", "old", 11.0))
    arrivals.arrived(update("a", None, 12.0))
    arrivals.arrived(update("b", "new", 13.0))
    assert (seconds(arrivals), arrivals.awaited) == ({}, 1)


def test_what_overtakes_the_answer_to_commit_took_no_time(arrivals: Arrivals) -> None:
    one = commit(1, a="x")
    arrivals.expect(one)
    arrivals.arrived(update("a", "x", 9.9))
    assert seconds(arrivals) == {}
    arrivals.committed(one, 10.0)
    assert seconds(arrivals) == {1: 0.0}


def test_a_later_state_stands_for_those_before_it(arrivals: Arrivals) -> None:
    commits = [commit(1, a="x"), commit(2, a="y", b="y"), commit(3, a="z")]
    for at, one in enumerate(commits, 10):
        arrivals.expect(one)
        arrivals.committed(one, float(at))
    arrivals.arrived(update("a", "z", 20.0))
    assert seconds(arrivals) == {1: 10.0, 3: 8.0}
    arrivals.arrived(update("b", "y", 21.0))
    assert seconds(arrivals) == {2: 10.0}


def test_the_newest_of_equal_states_is_taken(arrivals: Arrivals) -> None:
    for number, key in enumerate(("x", "y", "x"), 1):
        one = commit(number, a=key)
        arrivals.expect(one)
        arrivals.committed(one, 10.0)
    arrivals.arrived(update("a", "x", 11.0))
    assert seconds(arrivals) == {1: 1.0, 2: 1.0, 3: 1.0}


def test_a_commit_that_changes_nothing_has_no_latency(arrivals: Arrivals) -> None:
    one = commit(1)
    arrivals.expect(one)
    arrivals.committed(one, 10.0)
    assert seconds(arrivals) == {1: None}


def test_alone_means_that_nothing_was_before_it(arrivals: Arrivals) -> None:
    first, second, third = commit(1, a="x"), commit(2, b="x"), commit(3, c="x")
    for one in (first, second):
        arrivals.expect(one)
        arrivals.committed(one, 10.0)
    for endpoint_id in "ab":
        arrivals.arrived(update(endpoint_id, "x", 11.0))
    arrivals.expect(third)
    arrivals.committed(third, 12.0)
    arrivals.arrived(update("c", "x", 13.0))
    assert [one.alone for one in arrivals.take()] == [True, False, True]


def test_what_holds_keys_does_not_show_them() -> None:
    one = commit(1, a="hunter22")
    assert "hunter22" not in repr(one) + repr(update("a", "hunter22", 1.0))


@pytest.mark.parametrize(
    ("share", "value"), [(0.0, 1.0), (0.5, 50.0), (0.99, 99.0), (0.991, 100.0), (1.0, 100.0)]
)
def test_percentiles_are_values_that_occurred(share: float, value: float) -> None:
    assert percentile([float(each) for each in range(100, 0, -1)], share) == value
