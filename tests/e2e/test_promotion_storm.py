"""The storm on a standby that is promoted in its midst: a short one; ``make soak`` has the long ones."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.plugins.postgres import fetched
from tests.soak import Storm

if TYPE_CHECKING:
    from pathlib import Path

    from tests.plugins.postgres import ClusterFactory


@pytest.mark.slow
@pytest.mark.parametrize("version", [pytest.param("17", marks=pytest.mark.soak), "18"])
def test_a_storm_with_a_promotion_in_the_middle_of_it(
    cluster_factory: ClusterFactory, tmp_path: Path, plugin: str, version: str
) -> None:
    """Three writers, three generations of clients, faults of both servers and of the network."""
    cluster = cluster_factory(programs=fetched(version))
    with ExitStack() as closing:
        storm = Storm(cluster, tmp_path, int(version), closing, plugin=plugin, standby=True)
        storm.round(8.0, promote=True)
        assert storm.primary is storm.cluster, "the standby was promoted"
        assert storm.faults["standby_promoted"] == 1
        assert storm.counts["transactions"] > 50
