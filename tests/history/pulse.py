"""How long ordinary changes take to reach a client while others write odd rows, and while they do not."""

from __future__ import annotations

import threading
import time
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING

import psycopg2
from pads_cdc_client.pb.gateway_endpoint_pb2 import GatewayEndpoint

from tests.history.witness import Versions

if TYPE_CHECKING:
    from tests.plugins.postgres import Database

_APPLICATIONS = 10
_PAUSE = 0.02
"""Seconds between two changes."""
_LATE = 10.0
"""Seconds after which a change counts as lost."""
_PRESENT = """
SELECT substr(secret_key, 2)
FROM portal_application_settings
JOIN portal_applications ON portal_applications.id = application_id
WHERE application_id = %s
"""


class Pulse:
    """Rotates keys of its own, and observes one client."""

    def __init__(self) -> None:
        self._arrivals: dict[str, list[tuple[int, float]]] = {}
        """Of each application the versions that have arrived, and when."""
        self._changed = threading.Condition()
        self.judge = Versions()
        self.seconds: dict[bool, list[float]] = {False: [], True: []}
        """From just before COMMIT until the client had that key or a newer one, by whether odd rows were
        being written.
        """

    def __call__(self, endpoint_id: str, payload: bytes | None) -> None:
        """Take the client's next observation."""
        now = time.monotonic()
        self.judge(endpoint_id, payload)
        if payload is not None and endpoint_id.startswith("pulse_"):
            key = GatewayEndpoint.FromString(payload).auth.static_api_key.api_key
            with self._changed:
                self._arrivals.setdefault(endpoint_id, []).append((int(key[1:] or 0), now))
                self._changed.notify_all()

    def measure(self, database: Database, seconds: float, *, odd: bool) -> None:
        """Change one key after the other for so long, and note how long each took. A key that a writer takes
        away again does not count: its transaction may have begun before it was told to be gentle.

        Raises:
            AssertionError: a key has not arrived in time.

        """
        committed: list[tuple[str, int, float]] = []
        until = time.monotonic() + seconds
        with closing(psycopg2.connect(database.url(), options="-c lock_timeout=3s")) as session:
            number = 0
            while time.monotonic() < until:
                time.sleep(_PAUSE)
                number += 1
                application = f"pulse_{number % _APPLICATIONS}"
                try:
                    committed.append((application, *_rotate(session, application)))
                except psycopg2.Error:  # a lock, or a deadlock with other writers
                    session.rollback()
        for application, version, at in committed:
            arrived = partial(self._arrived, application, version)
            with self._changed:
                in_time = self._changed.wait_for(arrived, _LATE)
                last = self._arrivals.get(application)
            if in_time:
                self.seconds[odd].append(arrived() - at)
            else:
                [(now,)] = database.rows(_PRESENT, (application,)) or [(None,)]
                assert now is None, (
                    f"{application} never had v{version}: the database has v{now}, the client had {last}"
                )
        with self._changed:
            self._arrivals.clear()

    def _arrived(self, application: str, version: int) -> float:
        """Return when the client had this version or a newer one; 0.0 if it has not yet."""
        times = (at for newer, at in self._arrivals.get(application, ()) if newer >= version)
        return next(times, 0.0)

    def report(self) -> str:
        """Return the percentiles of both, in milliseconds."""
        lines = []
        for odd, seconds in self.seconds.items():
            if not seconds:
                continue
            found = sorted(seconds)
            shown = " ".join(
                f"p{percent} {1000 * found[min(len(found) - 1, len(found) * percent // 100)]:.1f} ms"
                for percent in (50, 90, 99)
            )
            what = "beside odd rows" if odd else "without odd rows"
            lines.append(
                f"{len(found):>12,} keys rotated {what}, from COMMIT to client: {shown},"
                f" most {1000 * found[-1]:.1f} ms"
            )
        return "\n".join(lines)


def _rotate(session: psycopg2.extensions.connection, application: str) -> tuple[int, float]:
    """Give an application, which may be gone, another key; returns its version, and the time before
    COMMIT.
    """
    with session.cursor() as cursor:
        cursor.execute("INSERT INTO portal_applications VALUES (%s) ON CONFLICT DO NOTHING", (application,))
        cursor.execute(
            "INSERT INTO portal_application_settings (application_id, secret_key, secret_key_required)"
            " VALUES (%s, 'v' || next_version(), true)"
            " ON CONFLICT (application_id) DO UPDATE SET secret_key = EXCLUDED.secret_key"
            " RETURNING substr(secret_key, 2)::int",
            (application,),
        )
        [[version]] = cursor.fetchall()
    at = time.monotonic()
    session.commit()
    return version, at
