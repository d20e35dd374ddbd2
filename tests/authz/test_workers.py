"""Several processes on one port."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.plugins.authorizer import Checks, wait_answer
from tests.plugins.server import fill, wait_until

if TYPE_CHECKING:
    from tests.plugins.authorizer import Authorizer, AuthorizerFactory
    from tests.plugins.postgres import Database
    from tests.plugins.server import ServerFactory

KEY = (("authorization", "key_1"),)


def workers(authorizer: Authorizer) -> list[int]:
    """Return the pids of the workers, of those that have not ended."""
    children = Path(f"/proc/{authorizer.process.pid}/task/{authorizer.process.pid}/children")
    return [int(pid) for pid in children.read_text().split() if _runs(int(pid))]


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_they_share_the_port_and_one_that_is_killed_comes_back(
    database: Database, serve: ServerFactory, authorize: AuthorizerFactory, tmp_path: Path
) -> None:
    fill(database, 50)
    socket = tmp_path / "authorize.sock"
    authorizer = authorize(serve(database), WORKERS="2", UNIX_SOCKET=str(socket)).wait_ready()
    assert len(workers(authorizer)) == 2

    asked = 0

    def all_have_answered() -> bool:
        nonlocal asked
        check = Checks(f"127.0.0.1:{authorizer.grpc}")  # by the connection the kernel chooses who takes it
        assert check("/v1/app_1", KEY).code == 200
        check.close()
        asked += 1
        checked = "pads_cdc_authorize_checks_total"
        return all(authorizer.metric(checked, outcome="allowed", worker=each) for each in ("1", "2"))

    wait_until(all_have_answered, "both workers answer")
    checked = "pads_cdc_authorize_checks_total"
    wait_until(lambda: authorizer.metric(checked, outcome="allowed") == asked, "their metrics are together")
    assert authorizer.metric("pads_cdc_authorize_endpoints") == 100, "each has a map of its own"
    assert authorizer.metric("pads_cdc_authorize_workers") == 2
    for number in (1, 2):
        check = Checks(f"unix:{socket}.{number}")
        assert check("/v1/app_1", KEY).code == 200
        check.close()

    victim, survivor = workers(authorizer)
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: victim not in workers(authorizer), "it is gone")
    fresh = Checks(f"127.0.0.1:{authorizer.grpc}")
    assert fresh("/v1/app_1", KEY).code == 200, "the other one takes all"
    assert authorizer.get("/readyz")[0] == 200
    fresh.close()
    wait_until(lambda: len(workers(authorizer)) == 2, "another one is started")
    wait_until(lambda: authorizer.metric("pads_cdc_authorize_ready") == 2, "and has a map")
    assert authorizer.metric("pads_cdc_authorize_worker_restarts_total") == 1
    assert survivor in workers(authorizer)
    database.execute(
        "UPDATE portal_application_settings SET secret_key = NULL WHERE application_id = 'app_1'"
    )
    for number in (1, 2):
        check = Checks(f"unix:{socket}.{number}")
        wait_answer(check, 401, "/v1/app_1", KEY)  # every worker hears of a revocation
        check.close()
    assert authorizer.stop() == 0


@pytest.mark.soak
def test_one_that_hangs_is_not_ready_for_long(
    database: Database, serve: ServerFactory, authorize: AuthorizerFactory
) -> None:
    fill(database, 5)
    authorizer = authorize(serve(database), WORKERS="2").wait_ready()
    victim = workers(authorizer)[0]
    os.kill(victim, signal.SIGSTOP)
    authorizer.wait_log("a worker hangs and is killed")
    wait_until(lambda: victim not in workers(authorizer), "it is gone")


@pytest.mark.soak
def test_a_supervisor_that_hangs_does_not_halt_its_workers(
    database: Database, serve: ServerFactory, authorize: AuthorizerFactory
) -> None:
    fill(database, 5)
    authorizer = authorize(serve(database), WORKERS="2").wait_ready()
    os.kill(authorizer.process.pid, signal.SIGSTOP)
    try:
        until = time.monotonic() + 12  # by then reports have filled the pipe
        while time.monotonic() < until:
            assert authorizer.check("/v1/app_1", KEY).code == 200
            time.sleep(0.2)
    finally:
        os.kill(authorizer.process.pid, signal.SIGCONT)
    wait_until(lambda: authorizer.get("/readyz")[0] == 200, "it is heard again")
    assert authorizer.stop() == 0


def test_they_do_not_outlive_the_one_that_started_them(
    database: Database, serve: ServerFactory, authorize: AuthorizerFactory
) -> None:
    authorizer = authorize(serve(database), WORKERS="2", DRAIN_TIME="1h")
    started = workers(authorizer)
    authorizer.kill()
    wait_until(lambda: not any(_runs(pid) for pid in started), "the workers end")


def test_settings_given_as_flags_reach_the_workers(authorize: AuthorizerFactory) -> None:
    authorizer = authorize("127.0.0.1:9", WORKERS="2", MAX_STALENESS="1h")
    environments = [Path(f"/proc/{pid}/environ").read_text() for pid in workers(authorizer)]
    assert len(environments) == 2
    assert all(
        "PADS_CDC_AUTHORIZE_WORKER" in each and f"PORT={authorizer.grpc}" in each for each in environments
    )
