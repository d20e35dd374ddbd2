"""The authorizer: the cost of a check, its duration during changes, and the time until a revoked key is
refused.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import grpc

from bench import checks
from bench.commits import Rotation
from bench.following import Follower, now
from bench.portal import REST, endpoint_id
from bench.references import check_server
from bench.results import OURS, Result, percentile
from bench.rig import PLAN, wait_until
from bench.ripple import RAISE
from bench.served import cpu_seconds
from server.commands.demo.envoy_process import EnvoyProcess, configuration
from server.commands.demo.upstream import EchoUpstream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from bench.rig import Database, Rig
    from bench.served import Served

_SHARES: Final = {"p50": 0.5, "p99": 0.99}
_GO: Final = "in Go"
_NOTHING: Final = "do-nothing server"
_RATE: Final = 1_000
"""Checks per second while endpoints change."""
_CHANGES: Final = 500
"""Changes per second."""
_HTTP_RATE: Final = 200
"""Requests per second through Envoy."""
_REVOKE: Final = "UPDATE portal_application_settings SET secret_key = NULL WHERE application_id = %s"
_KNOWN: Final = 5_000
"""Number of endpoints that callers use."""


class _Server(NamedTuple):
    """A server that answers checks."""

    port: int
    pid: int

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    def cpu_seconds(self) -> float:
        return cpu_seconds(self.pid)


def run(rig: Rig) -> Iterator[Result]:
    """Measure the authorizer, the one in Go and the references, on the same endpoints."""
    with rig.database(rig.sizes.small) as database, rig.serve(database) as served:
        rest = database.portal.numbers(REST)
        calls = _calls(rest[: min(_KNOWN, len(rest) // 2)])
        with (
            rig.authorize(served.target) as authorizer,
            _in_go(rig, served) as in_go,
            check_server.serving() as nothing,
        ):
            servers = {OURS: _Server(authorizer.grpc, authorizer.process.pid), _NOTHING: _Server(*nothing)}
            if in_go is not None:
                servers[_GO] = in_go
            yield from _cost(rig, servers, calls)
            yield from _memory(rig, authorizer)
            yield from _through_envoy(rig, servers, calls)
            yield from _revocations(rig, database, served, servers)
        yield from _while_everything_changes(rig, database, served, calls)


def _calls(numbers: Sequence[int]) -> list[checks.Call]:
    from hashlib import md5  # noqa: PLC0415 (as the portal makes its keys)

    return [
        (endpoint_id(number), md5(f"key{number}".encode(), usedforsecurity=False).hexdigest())
        for number in numbers
    ]


@contextmanager
def _in_go(rig: Rig, served: Served) -> Iterator[_Server | None]:
    """Run the authorizer in Go; None if it cannot be built."""
    root = Path(__file__).parents[1]
    built = subprocess.run([root / "scripts/build-go"], capture_output=True, text=True, check=False)  # noqa: S603
    program = Path(built.stdout.strip()) / "ext-authz"
    if built.returncode or not program.exists():
        rig.say("the authorizer in Go cannot be built here")
        yield None
        return
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = ["setpriv", "--pdeathsig", "TERM", str(program), "-listen", f"127.0.0.1:{port}", served.target]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:  # noqa: S603
        try:
            server = _Server(port, process.pid)
            wait_until(lambda: _answers(server), "the authorizer in Go answers")
            yield server
        finally:
            process.kill()


def _answers(server: _Server) -> bool:
    """Return whether the server's health service reports that it has a map."""
    from grpc_health.v1 import health_pb2, health_pb2_grpc  # noqa: PLC0415

    with grpc.insecure_channel(server.target) as channel:
        try:
            stub = health_pb2_grpc.HealthStub(channel)
            return bool(stub.Check(health_pb2.HealthCheckRequest(), timeout=1).status == 1)  # type: ignore[attr-defined]
        except grpc.RpcError:
            return False


def _cost(rig: Rig, servers: dict[str, _Server], calls: Sequence[checks.Call]) -> Iterator[Result]:
    """Divide the number of checks by the server's CPU time. The elapsed time cannot be used, since the
    callers may be slower than the server, and share its cores.
    """
    taken: dict[str, list[float]] = {}
    seconds = rig.sizes.seconds / rig.sizes.runs
    for _ in range(rig.sizes.runs):
        for contender, server in servers.items():
            rig.say(f"authorize: checks a second, {contender}")
            before = server.cpu_seconds()
            count = checks.saturate(server.target, calls, seconds)
            taken.setdefault(contender, []).append(count / (server.cpu_seconds() - before))
    size = f"{len(calls):,} endpoints called, 32 checks under way"
    for contender, samples in taken.items():
        yield Result("authorize", "checks a second of one core", contender, "/s", tuple(samples), size)


def _memory(rig: Rig, authorizer: Served) -> Iterator[Result]:
    """Return a worker's memory for each endpoint, beyond its memory without endpoints."""
    with rig.authorize("127.0.0.1:9", wait=False) as empty:
        each = (authorizer.resident_bytes() - empty.resident_bytes()) / rig.sizes.small
    yield Result("authorize", "memory an endpoint", OURS, "bytes", (each,), f"{rig.sizes.small:,} endpoints")


def _through_envoy(rig: Rig, servers: dict[str, _Server], calls: Sequence[checks.Call]) -> Iterator[Result]:
    """Send requests to the Envoys in turn."""
    with ExitStack() as running:
        envoys = {name: running.enter_context(_envoy(rig, server)) for name, server in servers.items()}
        envoys["no ext_authz"] = running.enter_context(_envoy(rig, None))
        taken: dict[tuple[str, str], list[float]] = {}
        for _ in range(rig.sizes.runs):
            for contender, port in envoys.items():
                rig.say(f"authorize: through Envoy, {contender}")
                asking = checks.through_envoy(port, calls, _HTTP_RATE)
                time.sleep(rig.sizes.seconds / rig.sizes.runs)
                found = [1000 * seconds for _, seconds in asking.stop()]
                for name, share in _SHARES.items():
                    taken.setdefault((name, contender), []).append(percentile(found, share))
    size = f"{_HTTP_RATE} requests a second over one connection"
    for (name, contender), samples in taken.items():
        yield Result("authorize", f"a request through Envoy, {name}", contender, "ms", tuple(samples), size)


@contextmanager
def _envoy(rig: Rig, server: _Server | None) -> Iterator[int]:
    """Run an Envoy that asks this server, or no server; yield its port."""
    edits = [("route: {cluster: upstream, timeout: 60s}", "direct_response: {status: 200}")]
    if server is None:
        text = configuration("envoy.yaml")
        begin = text.index("                  - name: envoy.filters.http.ext_authz")
        edits.append((text[begin : text.index("                  - name: envoy.filters.http.router")], ""))
    port = 9 if server is None else server.port
    with (
        EchoUpstream() as upstream,
        EnvoyProcess(
            rig.folder("envoy"),
            authorizer=f"socket_address: {{address: 127.0.0.1, port_value: {port}}}",
            upstream=upstream.port,
            edits=edits,
        ) as process,
    ):
        process.wait_ready()
        if server is not None:
            healthy = "cluster.authorizer.membership_healthy"
            wait_until(
                lambda: process.admin(f"/stats?filter={healthy}").strip().endswith(" 1"), "it is healthy"
            )
        yield process.port


def _revocations(
    rig: Rig, database: Database, served: Served, servers: dict[str, _Server]
) -> Iterator[Result]:
    """Revoke keys one after the other. Each key is used through Envoy while it is revoked. A client of the
    feed runs at the same time.
    """
    count = max(10, int(rig.sizes.seconds * 7))
    numbers = database.portal.numbers(REST)
    taken: dict[str, list[float]] = {"feed client": []}
    with database.connect().cursor() as cursor, Follower(checks.follow, served.target) as follower:
        for place, contender in enumerate(name for name in servers if name != _NOTHING):
            # Take endpoints from the end, because no caller uses those.
            chosen = _calls(numbers[len(numbers) - (place + 1) * count : len(numbers) - place * count])
            with _envoy(rig, servers[contender]) as port, checks.probing(port) as prober:
                rig.say(f"authorize: {count} revocations, {contender}")
                follower.mark()
                for call in chosen:
                    prober.use(call)
                    sent = now()
                    cursor.execute(_REVOKE, (call[0],))
                    taken.setdefault(contender, []).append(1000 * (prober.refused_at() - sent))
                    follower.wait(1)
                    if contender == OURS:
                        taken["feed client"].append(1000 * (follower.arrivals()[call[0]] - sent))
                    follower.mark()
    size = f"{count} revocations, from the moment when each commit was asked for"
    for name, share in _SHARES.items():
        for contender, samples in taken.items():
            found = (percentile(samples, share),)
            yield Result("authorize", f"revocation to first 401, {name}", contender, "ms", found, size)


def _while_everything_changes(
    rig: Rig, database: Database, served: Served, calls: Sequence[checks.Call]
) -> Iterator[Result]:
    """Check at a steady rate while other keys change and a plan ripples.

    The contender and its caller share one core, as if the caller were an Envoy on the same machine. The
    server and the database have the other cores, as if they were on another machine.
    """
    taken: dict[tuple[str, str], list[float]] = {}
    rest = database.portal.numbers(REST)[len(calls) :]
    for _ in range(rig.sizes.runs):
        for contender in (OURS, _NOTHING, _GO):
            with ExitStack() as running:
                one_core = running.enter_context(_other_cores(served.process.pid, database.cluster.pid))
                with one_core():
                    server = running.enter_context(_alone(rig, served, contender))
                    if server is None:
                        continue
                    asking = checks.at_rate(server.target, calls, _RATE)
                rig.say(f"authorize: while everything changes, {contender}")
                with Rotation(database, rest, _CHANGES):
                    time.sleep(rig.sizes.seconds / 12)
                    began = now()
                    database.execute(RAISE, (PLAN,))
                    time.sleep(rig.sizes.seconds / 6)  # longer than the ripple takes
                    found = [1000 * seconds for at, seconds in asking.stop() if at >= began]
            for name, share in _SHARES.items():
                taken.setdefault((name, contender), []).append(percentile(found, share))
    size = f"{_RATE:,} checks, {_CHANGES} changes a second, and {rig.sizes.plan:,} endpoints pass"
    for (name, contender), samples in taken.items():
        yield Result("authorize", f"while everything changes, {name}", contender, "ms", tuple(samples), size)


@contextmanager
def _other_cores(*processes: int) -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Reserve one core: our process, these processes and their children run only on the other cores.

    Yields a function that makes a context manager. Processes that are started within it run on the reserved
    core.
    """
    cores = os.sched_getaffinity(0)
    one = {max(cores)}
    others = cores - one or cores

    @contextmanager
    def one_core() -> Iterator[None]:
        os.sched_setaffinity(0, one)
        try:
            yield
        finally:
            os.sched_setaffinity(0, others)

    _move(processes, others)
    os.sched_setaffinity(0, others)
    try:
        yield one_core
    finally:
        os.sched_setaffinity(0, cores)
        _move(processes, cores)


def _move(processes: Sequence[int], cores: set[int]) -> None:
    """Make all threads of these processes and of their children run only on these cores."""
    for pid in processes:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for one in (pid, *map(int, children)):
            with suppress(OSError):  # the process has just ended
                for thread in Path(f"/proc/{one}/task").iterdir():
                    os.sched_setaffinity(int(thread.name), cores)


@contextmanager
def _alone(rig: Rig, served: Served, contender: str) -> Iterator[_Server | None]:
    """Run one contender. While the do-nothing server runs, an idle authorizer runs as well.

    So each contender shares its cores with the same other processes.
    """
    if contender == _GO:
        with _in_go(rig, served) as in_go:
            yield in_go
        return
    with rig.authorize(served.target) as authorizer:
        if contender == OURS:
            yield _Server(authorizer.grpc, authorizer.process.pid)
        else:
            with check_server.serving() as nothing:
                yield _Server(*nothing)
