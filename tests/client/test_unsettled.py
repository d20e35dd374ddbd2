"""A checkpoint that says ``unsettled`` makes a map complete and proves nothing, whoever the client is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from pads_cdc_client import EndpointFeed

from tests.plugins.feed import UNSETTLED
from tests.plugins.server import DEADLINE, wait_until
from tests.support.command import Command

if TYPE_CHECKING:
    from tests.plugins.feed import Unsettled


def test_the_python_client_serves_the_map_and_knows_no_staleness(unsettled: Unsettled) -> None:
    with EndpointFeed(f"127.0.0.1:{unsettled.port}", client_id="test") as feed:
        assert feed.wait_ready(DEADLINE)
        wait_until(lambda: len(unsettled.acknowledged) > 2, "acknowledgements")
        assert (feed.ready, dict(feed.endpoints)) == (True, {"one": UNSETTLED})
        assert (feed.proofs, feed.staleness()) == (0, float("inf"))
        unsettled.rest.set()
        wait_until(lambda: feed.proofs == 1, "the proof")
        assert feed.staleness() < DEADLINE


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_watch_until_synced_waits_for_a_proof(unsettled: Unsettled, options: tuple[str, ...]) -> None:
    with Command("watch", f"127.0.0.1:{unsettled.port}", "--until-synced", *options) as command:
        command.wait_line('"unsettled": true' if options else "no proof yet")
        wait_until(lambda: len(unsettled.acknowledged) > 2, "acknowledgements")
        assert command.process.poll() is None
        assert "in sync" not in command.told()
        unsettled.rest.set()
        assert command.end() == 0
        command.wait_line('"unsettled": false' if options else "in sync: 1 endpoints, digest verified")
