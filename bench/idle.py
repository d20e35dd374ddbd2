"""Idle: the cost of a server while nothing changes, and the cost of an audit."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final

from bench import crowd
from bench.fan_out import resume_token
from bench.following import Follower
from bench.results import OURS, Result

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.rig import Rig

_AUDIT_SECONDS: Final = 300.0
"""The default of AUDIT_INTERVAL, in seconds."""
_AUDITS: Final = "pads_cdc_audit_runs_total"


def run(rig: Rig) -> Iterator[Result]:
    """Measure the process's CPU, without audits and with them."""
    sizes = rig.sizes
    size = f"{sizes.endpoints:,} endpoints, {sizes.idle_subscribers} subscribers"
    with rig.database(sizes.endpoints) as database:
        with rig.serve(database) as served:
            token = resume_token(served)
            with Follower(crowd.feed, served.grpc, sizes.idle_subscribers, token=token):
                rig.say("idle: nothing happens")
                cpu, began = served.cpu_seconds(), time.monotonic()
                threading.Event().wait(sizes.idle_seconds)
                idle = (served.cpu_seconds() - cpu) / (time.monotonic() - began)
        yield Result("idle", "no changes", OURS, "%", (100 * idle,), size)
        with rig.serve(database, AUDIT_INTERVAL="1s") as served:
            rig.say("idle: audits")
            served.wait_metric(1, _AUDITS)
            cpu, began, done = served.cpu_seconds(), time.monotonic(), served.metric(_AUDITS)
            served.wait_metric(done + sizes.runs, _AUDITS)
            used = served.cpu_seconds() - cpu - idle * (time.monotonic() - began)
            each = used / (served.metric(_AUDITS) - done)
        yield Result("idle", "an audit's CPU", OURS, "s", (each,), size)
        yield Result("idle", "audits every 5 minutes", OURS, "%", (100 * each / _AUDIT_SECONDS,), size)
