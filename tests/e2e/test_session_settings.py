"""Whatever a role has set for its sessions: the server loads, follows, and `check` passes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg2
import pytest

from cdc.mapping.mapping import load
from tests.plugins.postgres import fetched
from tests.plugins.server import fill, wait_equal, wait_until

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

    from tests.plugins.check import Check
    from tests.plugins.postgres import ClusterFactory, Database, DatabaseFactory, Replicated, Role
    from tests.plugins.server import GatewayFactory, ServerFactory

SETTABLE = """
SELECT name, category, vartype, boot_val, min_val, max_val, enumvals
FROM pg_settings
WHERE context IN ('user', 'backend', 'superuser')
ORDER BY name
"""
STRINGS = {
    "DateStyle": ("German", "SQL, DMY"),
    "TimeZone": ("Asia/Kathmandu", "America/St_Johns"),
    "application_name": ("", "x" * 63),
    "backtrace_functions": ("errstart", "exec_simple_query"),
    "client_encoding": ("LATIN1", "SQL_ASCII"),
    "createrole_self_grant": ("set", "inherit"),
    "default_table_access_method": ("nowhere", "nowhere"),
    "default_tablespace": ("nowhere", "nowhere"),
    "default_text_search_config": ("pg_catalog.simple", "pg_catalog.german"),
    "extension_control_path": ("/nowhere", "/nowhere"),
    "extension_destdir": ("/nowhere", "/nowhere"),
    "lc_messages": ("POSIX", "C.UTF-8"),
    "lc_monetary": ("POSIX", "C.UTF-8"),
    "lc_numeric": ("POSIX", "C.UTF-8"),
    "lc_time": ("POSIX", "C.UTF-8"),
    "local_preload_libraries": ("nowhere", "nowhere"),
    "restrict_nonsystem_relation_kind": ("view", "view, foreign-table"),
    "search_path": ("", "nowhere, pg_temp, public, pg_catalog"),
    "temp_tablespaces": ("nowhere", "nowhere"),
    "timezone_abbreviations": ("India", "Australia"),
    "wal_consistency_checking": ("heap", "all"),
}
"""Settings that take any text, and two that are not what we want."""
NOT_OURS = {
    # Only a superuser sets these, and then wal2json is not found, no session works, or any query may fail.
    "dynamic_library_path",
    "temp_file_limit",
    "max_stack_depth",
    "output_plugin_libraries",
    "session_preload_libraries",
}
GROUPS = ("Query Tuning", "Client Connection Defaults", "the others")


def hostile(
    name: str, vartype: str, usual: str, least: str, most: str, values: list[str], *, high: bool
) -> str:
    """Return the value that is farthest from the usual one."""
    match vartype:
        case "bool":
            return "off" if usual == "on" else "on"
        case "enum":
            return [value for value in values if value != usual][-1 if high else 0]
        case "integer" if name == "transaction_timeout" and not high:
            return "50"  # the first connection to a server can end it only when it runs
        case "integer":
            return most if high else least if least != usual else str(int(least) + 1)
        case _:
            return most if high or least == usual else least


@pytest.fixture
def streamer(database: Database) -> Role:
    """The role that `setup` makes."""
    return make_streamer(database)


def make_streamer(database: Database) -> Role:
    role = database.create_role("REPLICATION")
    database.set_up(load("grove"), role.name)
    return role


def set_all(database: Database, role: Role, group: str, *, high: bool) -> set[str]:
    """Give the role a hostile value of each setting of a group; returns those that the server took."""
    taken = set()
    for name, category, vartype, usual, least, most, values in database.rows(SETTABLE):
        of = next((one for one in GROUPS if category.startswith(one)), GROUPS[-1])
        if of != group or name in NOT_OURS:
            continue
        if vartype == "string":
            value = STRINGS[name][high]
        else:
            value = hostile(name, vartype, usual, least, most, values, high=high)
        if set_one(database, role, name, value):
            taken.add(name)
    return taken


def set_one(database: Database, role: Role, name: str, value: str) -> bool:
    given = value if value and name in {"search_path", "DateStyle"} else f"'{value}'"
    try:
        database.execute(f'ALTER ROLE {role.name} SET "{name}" = {given}')
    except psycopg2.Error:
        return False
    return True


@pytest.mark.parametrize("high", [False, True], ids=["low", "high"])
@pytest.mark.parametrize(
    ("version", "group"),
    [  # version 18 has every setting of the others, but for a few of 15
        pytest.param(
            version,
            group,
            marks=() if version == "18" or (version, group) == ("15", GROUPS[-1]) else pytest.mark.soak,
        )
        for version in ("15", "17", "18")
        for group in GROUPS
    ],
)
def test_each_setting_of_the_role_at_its_worst(
    version: str,
    group: str,
    high: bool,
    cluster_factory: ClusterFactory,
    database_factory: DatabaseFactory,
    serve: ServerFactory,
    gateway: GatewayFactory,
    check: Check,
) -> None:
    database = database_factory(cluster=cluster_factory(programs=fetched(version)))
    fill(database, 300)
    role = make_streamer(database)
    taken = set_all(database, role, group, high=high)
    assert len(taken) > 25, taken
    if group == "Client Connection Defaults":
        nobody = database.create_role()
        database.execute(
            f"GRANT {nobody.name} TO {role.name}; ALTER ROLE {role.name} SET role = {nobody.name}"
        )
    server = serve(database.url(*role))
    client = gateway(server.wait_ready())
    wait_until(lambda: server.metric("pads_cdc_source_mode", mode="streaming") == 1, "it streams")
    database.execute("UPDATE pay_plans SET throughput_limit = 77")
    wait_equal(client, database)
    database.execute("DELETE FROM portal_applications WHERE id = 'app_1'")
    wait_equal(client, database)
    report = check(database.url(*role))
    assert report.ready, report.not_passed()
    assert not [line for line in server.logs if line["level"] != "info"], server.output
    assert server.stop() == 0


@pytest.mark.parametrize(
    ("group", "high"),
    [
        pytest.param(group, high, marks=() if (group, high) == (GROUPS[-1], False) else pytest.mark.soak)
        for group in GROUPS
        for high in (False, True)
    ],
)
def test_each_setting_of_an_administrator_at_its_worst(
    group: str,
    high: bool,
    database: Database,
    pads_cdc: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    """`setup` and `teardown` change what they would, and `mapping test` finds nothing wrong."""
    fill(database, 50)
    administrator = database.create_role("SUPERUSER")
    taken = set_all(database, administrator, group, high=high)
    assert len(taken) > 25, taken
    url = database.url(*administrator)

    def run(*arguments: str) -> str:
        done = pads_cdc(*arguments, ADMIN_CONNECTION_STRING=url)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    role = f"{database.name}_role_service"
    run("setup", "--role", role, "--role-file", str(tmp_path / "file"))
    assert database.value("SELECT rolreplication FROM pg_roles WHERE rolname = %s", (role,))
    run("mapping", "test", "grove", "--database", url)
    run("teardown", "--role", role)
    assert database.rows("SELECT FROM pg_roles WHERE rolname = %s", (role,)) == []


@pytest.mark.soak
def test_settings_of_a_role_that_reads_a_standby(
    replicated: Replicated, database_factory: DatabaseFactory, serve: ServerFactory, gateway: GatewayFactory
) -> None:
    """A standby takes no serializable transaction; the first load and a ripple last longer than 50 ms."""
    primary = database_factory(cluster=replicated.primary)
    fill(primary, 30_000, plans=1)
    role = make_streamer(primary)
    for setting in (
        "default_transaction_isolation = 'serializable'",
        "default_transaction_deferrable = on",
        "transaction_timeout = '50ms'",
        "idle_session_timeout = '1s'",
        "statement_timeout = '50ms'",
    ):
        primary.execute(f"ALTER ROLE {role.name} SET {setting}")
    replicated.wait_replayed()
    standby = primary.on(replicated.standby)
    server = serve(standby.url(*role), PRIMARY_CONNECTION_STRING=primary.url()).wait_ready()
    client = gateway(server)
    wait_until(lambda: server.metric("pads_cdc_source_mode", mode="streaming") == 1, "it streams")
    for _ in range(2):
        primary.execute("UPDATE pay_plans SET throughput_limit = throughput_limit + 1")
        wait_equal(client, primary)
    assert server.metric("pads_cdc_source_reconnects_total") == 0
    assert server.metric("pads_cdc_audit_drift_total") == 0
