"""Starts the parts of the demo step by step. One ExitStack ends them all."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cdc.errors import PadsCdcError
from server.commands.demo import portal as portals
from server.commands.demo.arrivals import Arrivals
from server.commands.demo.cluster import ephemeral_cluster
from server.commands.demo.envoy_process import find_envoy
from server.commands.demo.gate import put_up
from server.commands.demo.gateway import Gateway
from server.commands.demo.programs import ClusterError
from server.commands.demo.relays import Mover, NatsProcess, find_nats, put_up_relays
from server.commands.demo.server_process import ServerProcess

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack

    from server.commands.demo.gate import EnvoyStack
    from server.commands.demo.portal import Portal
    from server.commands.interrupt import Interrupt

_READY_SECONDS: Final = 60.0


class StoppedEarly(Exception):  # noqa: N818 - it is no error
    """Ctrl-C was pressed before all parts had started."""


@dataclass(frozen=True)
class Stage:
    """The running parts of the demo."""

    portal: Portal
    server: ServerProcess
    gateways: tuple[Gateway, ...]
    """Two subscribers, which show that each subscriber gets every change."""
    arrivals: Arrivals
    """Arrivals at the first subscriber."""
    gate: EnvoyStack | None
    """The Envoy part, with ``--envoy``."""
    mover: Mover | None
    """With ``--relays``, a third subscriber, which moves from server to server."""

    @property
    def subscribers(self) -> tuple[Gateway | Mover, ...]:
        """All subscribers whose maps are compared with the database."""
        return self.gateways if self.mover is None else (*self.gateways, self.mover)


def set_up(
    ending: ExitStack, interrupt: Interrupt, say: Callable[[str], None], *, envoy: bool, relays: int
) -> Stage:
    """Start all parts, in about five seconds. ``ending`` ends them.

    Raises:
        StoppedEarly: Ctrl-C was pressed.
        PadsCdcError: a part could not be started.

    """
    try:
        return _set_up(ending, interrupt, say, envoy=envoy, relays=relays)
    except (ClusterError, PadsCdcError) as error:
        # In a terminal Ctrl-C also reaches the programs that we have just started: initdb, pg_ctl, serve.
        if interrupt.requested:
            raise StoppedEarly from error
        raise PadsCdcError(str(error)) from error


def _set_up(
    ending: ExitStack, interrupt: Interrupt, say: Callable[[str], None], *, envoy: bool, relays: int
) -> Stage:
    if envoy:
        find_envoy()  # fail before any slow step
    if relays:
        find_nats()
    say("starting PostgreSQL in a temporary folder")
    cluster = ending.enter_context(ephemeral_cluster())
    _go_on(interrupt)
    say("filling it with 10,000 applications")
    portal = portals.create(cluster)
    _go_on(interrupt)
    broker = ending.enter_context(NatsProcess(cluster.folder)) if relays else None
    say("starting the server: pads-cdc serve, as a role with REPLICATION and SELECT")
    server = ending.enter_context(
        ServerProcess(portal.streamer, cluster.folder, "" if broker is None else broker.url)
    )

    def wait(condition: Callable[[], bool], what: str) -> None:
        _wait(interrupt, server, condition, what)

    wait(server.serving, "the server serves")
    fronts = [server.target]
    if broker is not None:
        wait(broker.listens, "the broker listens")
        say(f"starting NATS, and behind it {relays} relays: pads-cdc relay, without a database")
        behind = put_up_relays(ending, cluster.folder, broker, relays, wait)
        fronts = [relay.target for relay in behind]
    say(f"connecting two subscribers to {', '.join(fronts[:2])}")
    arrivals = Arrivals()
    gateways = (Gateway(fronts[0], arrivals.arrived), Gateway(fronts[-1]))
    for gateway in gateways:
        ending.enter_context(gateway)
    wait(lambda: all(one.settled for one in gateways), "the subscribers hold the map")
    mover = None
    if broker is not None:
        say("connecting a third one, which moves between the server and the relays with its token")
        mover = ending.enter_context(Mover([server.target, *fronts]))
        wait(lambda: mover.settled, "the one that moves holds the map")
    gate = None
    if envoy:
        say("starting Envoy with deploy/envoy/envoy.yaml, and behind it pads-cdc authorize and an upstream")
        with closing(portal.connect()) as session, session.cursor() as cursor:
            known = portals.endpoints(cursor)

        gate = put_up(ending, cluster.folder, server.target, known, wait)
        open_one = next(each for each in sorted(known) if known[each].auth.HasField("no_auth"))
        asks = next(each for each in sorted(known) if known[each].auth.static_api_key.api_key)
        say(f"call it, from another terminal:  curl -i {gate.address}/v1/{open_one}/")
        say(f"  one that asks for a key:       curl -i {gate.address}/v1/{asks}/")
    return Stage(portal, server, gateways, arrivals, gate, mover)


def _wait(interrupt: Interrupt, server: ServerProcess, condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while not condition():
        server.check()
        if time.monotonic() > deadline:
            raise PadsCdcError(f"not within {_READY_SECONDS:.0f} s: {what}")
        interrupt.wait(0.05)
        _go_on(interrupt)


def _go_on(interrupt: Interrupt) -> None:
    if interrupt.requested:
        raise StoppedEarly
