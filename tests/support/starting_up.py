"""A Postgres server that refuses every connection with 57P03, because it is starting up."""

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
    """Restart the server as a standby without a primary. It keeps starting up until the context ends.

    At the end of the context the server is promoted, and then it is ready.
    """
    cluster.stop()
    (cluster.data / "standby.signal").touch()
    cluster.configure({"restore_command": "false", "hot_standby": "off"})

    def promoted() -> bool:
        with suppress(ClusterError):  # the server's recovery has not begun yet
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
