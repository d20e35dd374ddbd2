"""What a leader says of where it is."""

from __future__ import annotations

from cdc.relay.publisher import PAGE_BYTES
from tests.cdc.relay.test_page_reader import everything, leading


def test_a_head_is_not_beyond_positions_that_relays_were_not_told() -> None:
    """A relay at the head's position would serve a client of another server less than has changed for it."""
    leader = leading("1" * 32, "app_0", "app_1")
    everything(leader)
    before = leader.store.position
    assert leader.publisher.head().position == before
    leader.change([("app_0", b"a")])  # named by a transaction, and the same as before
    assert leader.store.position > before
    assert leader.publisher.head().position == before
    everything(leader)
    assert leader.publisher.head().position == leader.store.position


def test_pages_are_no_larger_than_the_broker_takes() -> None:
    leader = leading("1" * 32)
    leader.change([(f"app_{number}", b"x" * 100) for number in range(50)])
    leader.publisher.limit(PAGE_BYTES * 2)
    assert leader.publisher._page_bytes == PAGE_BYTES
    leader.publisher.limit(500)
    assert max(sum(len(one.payload or b"") for one in page.entries) for page in everything(leader)) <= 500


def test_a_publisher_that_goes_on_tells_the_positions_that_moved_before_it_came() -> None:
    leader = leading("1" * 32, "app_0", "app_1")
    last = everything(leader)[-1]
    leader.publisher.close()
    leader.change([("app_0", b"a")])
    leader.publisher = leader.published_by()
    assert leader.publisher.resume(last)
    moved = [one for page in everything(leader) for one in page.moved]
    assert [endpoint_id for endpoint_id, _, _ in moved] == ["app_0"]
    leader.publisher.close()
    assert not leader.store.movements
