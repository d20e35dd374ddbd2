"""A Postgres as it comes, without wal2json: from nothing to a green check by `setup` alone, and served."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from server.commands.demo.programs import Programs
from tests.plugins.postgres import fetched
from tests.plugins.server import fill, wait_equal

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator

    from tests.plugins.check import Check
    from tests.plugins.postgres import ClusterFactory, DatabaseFactory
    from tests.plugins.server import GatewayFactory, ServerFactory


pytestmark = pytest.mark.only_with("wal2json")  # which is not there: no test has made a publication


@pytest.fixture(params=["15", pytest.param("17", marks=pytest.mark.soak), "18"])
def stock(request: pytest.FixtureRequest) -> Iterator[Programs]:
    """One installation without the plugin; the files are links to the fetched one's."""
    programs = fetched(request.param)
    folder = Path(tempfile.mkdtemp(prefix="pads-cdc-stock-", dir="/tmp"))  # which postgres may enter
    folder.chmod(0o755)
    root = programs.folder.parents[4]  # the folder that has usr/lib/postgresql/VERSION/bin
    shutil.copytree(root / "usr", folder / "usr", symlinks=True, ignore=shutil.ignore_patterns("wal2json*"))
    yield Programs(folder / programs.folder.relative_to(root))
    shutil.rmtree(folder)


def test_from_nothing_to_a_green_check_by_setup_alone(
    stock: Programs,
    cluster_factory: ClusterFactory,
    database_factory: DatabaseFactory,
    pads_cdc: Callable[..., subprocess.CompletedProcess[str]],
    check: Check,
    serve: ServerFactory,
    gateway: GatewayFactory,
    tmp_path: Path,
) -> None:
    """All settings are the defaults but for `wal_level`, as a newcomer has them."""
    assert not stock.has_wal2json()
    database = database_factory(cluster=cluster_factory(programs=stock))
    assert not database.rows("SELECT FROM pg_publication")
    fill(database, 50)
    report = check(database)
    assert "pads-cdc setup" in report.the("publication", "fail").remedy

    file = tmp_path / "service.connection"
    done = pads_cdc("setup", "--role-file", str(file), ADMIN_CONNECTION_STRING=database.url())
    assert (done.returncode, done.stderr) == (0, "")
    assert "CREATE PUBLICATION" in done.stdout
    again = pads_cdc("setup", "--role-file", str(file), ADMIN_CONNECTION_STRING=database.url())
    assert again.stdout.startswith("-- ")
    assert "nothing to do" in again.stdout

    service = file.read_text().strip()
    report = check(service)
    assert report.code == 0
    assert set(report.not_passed()) <= {"max_slot_wal_keep_size", "endpoints"}
    assert report.the("plugin", "pass").text == "pgoutput can be loaded"
    server = serve(service)
    client = gateway(server)
    database.execute(
        "DELETE FROM portal_applications WHERE id = 'app_1'; UPDATE pay_plans SET throughput_limit = 5"
    )
    wait_equal(client, database)
    assert server.metric("pads_cdc_source_mode", mode="streaming") == 1
    assert check(service).code == 0
