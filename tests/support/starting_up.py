"""A Postgres server that takes connections and refuses them all, since it is starting up (57P03)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from server.commands.demo.programs import ClusterError
from tests.plugins.server import DEADLINE, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.cluster import Cluster


@contextmanager
def starting_up(cluster: Cluster) -> Iterator[None]:
    """Restart the server as a standby without a primary, which is not ready before it is promoted: at the
    end of this context.
    """
    cluster.stop()
    (cluster.data / "standby.signal").touch()
    cluster.configure({"restore_command": "false", "hot_standby": "off"})

    def promoted() -> bool:
        with suppress(ClusterError):  # its recovery has not begun yet
            cluster.promote()
            return True
        return False

    with ThreadPoolExecutor(1) as other:
        started = other.submit(cluster.start)
        try:
            yield
        finally:
            wait_until(promoted, "the standby can be promoted")
        started.result(DEADLINE)
