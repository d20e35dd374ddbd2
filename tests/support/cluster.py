"""The demo's ephemeral cluster, with methods that stop, crash, freeze or promote the server."""

from __future__ import annotations

import os
import signal
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from server.commands.demo import cluster as demo
from server.commands.demo.cluster import free_port, temporary_folder
from server.commands.demo.programs import ClusterError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from server.commands.demo.programs import Programs

_DEADLINE = 60
"""Maximum seconds for a server to stop or to be promoted."""


class Cluster(demo.Cluster):
    """A Postgres server that can be stopped, crashed, frozen or promoted. Each method blocks until done."""

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Shut the server down. ``fast`` waits for readers of slots that have not confirmed everything."""
        self._pg_ctl("stop", "-m", mode, "-t", str(_DEADLINE))

    def restart(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stop, and start again on the same port."""
        self.stop(mode)
        self.start()

    def crash(self) -> None:
        """Kill the server with SIGKILL. Returns when its last process has ended. `start` may follow."""
        processes = self._halt()
        os.kill(processes[0], signal.SIGKILL)
        _signal(processes[1:], signal.SIGCONT)
        deadline = time.monotonic() + _DEADLINE
        while any(_parent(pid) is not None for pid in processes):
            if time.monotonic() > deadline:
                raise ClusterError("the killed server's processes do not end")
            time.sleep(0.01)
        # A dead process that no parent has reaped (as in many containers) looks alive to the next server.
        (self.data / "postmaster.pid").unlink()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop every process of the server (SIGSTOP) until the context ends. Connections stay open."""
        processes = self._halt()
        try:
            yield
        finally:
            _signal(processes, signal.SIGCONT)

    def reload(self) -> None:
        """Make the server read its settings again. It does so a moment later: see ``pg_settings``."""
        self._pg_ctl("reload")

    def promote(self) -> None:
        """Promote a standby. Returns when it accepts writes."""
        self._pg_ctl("promote", "-t", str(_DEADLINE))

    def _halt(self) -> list[int]:
        """Send SIGSTOP to the postmaster first, so that it starts no process, then to its children."""
        postmaster = self.pid
        _signal([postmaster], signal.SIGSTOP)
        running = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
        children = [pid for pid in running if _parent(pid) == postmaster]
        _signal(children, signal.SIGSTOP)
        return [postmaster, *children]


@contextmanager
def ephemeral_cluster(
    settings: Mapping[str, str] | None = None, *, programs: Programs | None = None
) -> Iterator[Cluster]:
    """Make and start a primary, as the demo does."""
    with demo.ephemeral_cluster(settings, programs=programs) as made:
        yield Cluster(made.programs, made.folder, made.port, made.password)


@contextmanager
def ephemeral_standby(
    primary: Cluster,
    settings: Mapping[str, str] | None = None,
    *,
    slot: str = "phys1",
) -> Iterator[Cluster]:
    """Make and start a streaming standby of ``primary``, which retains WAL for it by a physical slot.

    The slot remains when the standby ends, until the primary is removed.
    """
    with temporary_folder(primary.programs) as folder:
        standby = Cluster(primary.programs, folder, free_port(), primary.password)
        source = ("-h", "127.0.0.1", "-p", str(primary.port), "-U", "postgres")
        how = ("-R", "-C", "-S", slot, "-X", "stream", "-c", "fast", "--no-sync")
        # The password is passed in the environment, because every user can read a command line.
        secret = {"PGPASSWORD": primary.password}
        copy = ("-D", str(standby.data), *source, *how)
        primary.programs.run("pg_basebackup", *copy, cwd=folder, environment=secret)
        own = {"port": str(standby.port), "hot_standby_feedback": "on"}
        standby.configure(own | dict(settings or {}))
        standby.start()
        yield standby


def _parent(pid: int) -> int | None:
    """Return the parent's process id; None for a process that has ended, or is a zombie."""
    try:
        # The fields after the command's name, which may contain spaces and parentheses: state, parent, ...
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state == "Z" else int(parent)


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
