"""Takeover: the time from the kill of the server that reads the slot until its standby server serves.

Writers continue all the time, so some changes are always on their way.
"""

from __future__ import annotations

import socket
import threading
import time
from typing import TYPE_CHECKING, Final

from pads_cdc_client import EndpointFeed

from bench.results import OURS, Result
from bench.rig import DEADLINE, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pads_cdc_client.replica import Change

    from bench.rig import Database, Rig
    from bench.served import Served

_PAUSE: Final = 0.005
"""Seconds between commits."""
_UPDATE: Final = (
    "UPDATE portal_application_settings SET secret_key = %s WHERE id ="
    " (SELECT min(id) + %s %% 1000 FROM portal_application_settings)"
)


def run(rig: Rig) -> Iterator[Result]:
    """Start a pair of servers and kill its leader, several times."""
    ready: list[float] = []
    arrived: list[float] = []
    with rig.database(rig.sizes.endpoints) as database:
        for _ in range(rig.sizes.runs):
            with socket.create_server(("127.0.0.1", 0)) as listener:
                port = listener.getsockname()[1]
            with rig.serve(database, PEER_ADDRESS=f"127.0.0.1:{port}") as leader:
                settings = {"PEER_ADDRESS": leader.target, "PORT": str(port)}
                with rig.serve(database, wait=False, **settings) as standby:
                    rig.say("the standby mirrors")
                    leader.wait_metric(1, "pads_cdc_peer_connected")
                    standby.wait_metric(1, "pads_cdc_peer_connected")
                    times = _kill(rig, database, leader, standby)
            ready.append(times[0])
            arrived.append(times[1])
    size = f"{rig.sizes.endpoints:,} endpoints"
    yield Result("takeover", "ready", OURS, "s", tuple(ready), size)
    yield Result("takeover", "a change reaches a client", OURS, "s", tuple(arrived), size)


def _kill(rig: Rig, database: Database, leader: Served, standby: Served) -> tuple[float, float]:
    """Return the seconds from the kill until the standby is ready, and until a client has a new change."""
    fresh: set[bytes] = set()
    arrived: list[float] = []

    def note(change: Change) -> None:
        if not arrived and any(key in (change.after or b"") for key in tuple(fresh)):
            arrived.append(time.monotonic())

    stopping = threading.Event()
    killed_at = 0.0

    def write() -> None:
        session, number = database.connect(), 0
        with session.cursor() as cursor:
            while not stopping.wait(_PAUSE):
                number += 1
                key = f"takeover_{number}_{id(stopping)}"
                if killed_at:
                    fresh.add(key.encode())
                cursor.execute(_UPDATE, (key, number))

    rig.say("a client takes everything")
    client = EndpointFeed(leader.target, standby.target, client_id="takeover", on_change=note)
    with client:
        if not client.wait_ready(DEADLINE):
            raise TimeoutError("the client was not ready")
        writer = threading.Thread(target=write)
        writer.start()
        try:
            proofs = client.proofs
            wait_until(lambda: client.proofs > proofs + 50, "changes flow")
            rig.say("the leader is killed")
            killed_at = time.monotonic()
            leader.process.kill()
            standby.wait_ready(DEADLINE)
            ready_at = time.monotonic()
            wait_until(lambda: arrived, "a change after the kill arrives")
        finally:
            stopping.set()
            writer.join()
        if client.resets != 1:
            raise RuntimeError("the client's token was not good at the standby")
    return ready_at - killed_at, arrived[0] - killed_at
