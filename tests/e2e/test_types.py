"""Columns of every type that people may have: what changes is right at once, or the database is refused.

Keys are named by the slot as text and compared by the database in its own way. An endpoint that is silently
stale until an audit is the worst that can come of that, so no audit runs here.
"""

from __future__ import annotations

import re
from contextlib import ExitStack
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from cdc.checks import NECESSARY, Verdict, run
from cdc.mapping.mapping import load
from cdc.replication import pgoutput
from tests.plugins.postgres import make_database, site_of
from tests.plugins.server import endpoints_of
from tests.support.typed import KINDS, NUMBERS, SENDABLE, TEXTS, VALUES, WHOLE, Columns

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.plugins.postgres import Database, DatabaseFactory
    from tests.plugins.server import Gateway, GatewayFactory, Server, ServerFactory
    from tests.support.cluster import Cluster

STEPS = 14
DEADLINE = 20.0


def rows_of(database: Database) -> dict[str, bytes]:
    """Return the endpoints, each value as the database prints it."""
    columns = ", ".join(
        f"CASE WHEN e.{name} IS NOT NULL THEN format('%%s', e.{name}) END"
        for name in ("endpoint_id", "secret_key")
    )
    texts = ", ".join(
        f"CASE WHEN e.{name} IS NOT NULL THEN format('%%s', e.{name}) END"
        for name in ("account_id", "plan_type")
    )
    return endpoints_of(
        database.rows(
            f"SELECT {columns}, e.secret_key_required, e.authorized_users, {texts}, e.throughput_limit,"
            f" e.capacity_limit FROM ({load('grove').queries['Endpoints']}) AS e",
            {},
        )
    )


CHANGES: tuple[tuple[str, ...], ...] = (
    # A statement, and what stands for its parameters: a column has a value of its type, a number names a row.
    ("UPDATE pay_plans SET throughput_limit = throughput_limit + 1 WHERE number = %s", "number"),
    ("UPDATE pay_plans SET throughput_limit = throughput_limit + 1",),
    ("UPDATE pay_plans SET plan_type = %s WHERE number = %s", "plan", "number"),
    ("UPDATE accounts SET plan_type = %s WHERE number = %s", "account_plan", "number"),
    ("UPDATE accounts SET id = %s WHERE number = %s", "account", "number"),
    ("UPDATE portal_applications SET account_id = %s WHERE number = %s", "app_account", "number"),
    ("UPDATE portal_applications SET id = %s WHERE number = %s", "id", "number"),
    ("DELETE FROM portal_applications WHERE number = %s", "number"),
    ("INSERT INTO portal_applications (id, account_id) VALUES (%s, %s)", "id", "app_account"),
    ("UPDATE portal_application_settings SET secret_key = %s WHERE id = %s", "key", "number"),
    ("UPDATE portal_application_settings SET application_id = %s WHERE id = %s", "settings_id", "number"),
    ("DELETE FROM portal_application_settings WHERE id = %s", "number"),
    (
        (
            "INSERT INTO portal_application_settings (application_id, secret_key, secret_key_required)"
            " VALUES (%s, %s, true)"
        ),
        "settings_id",
        "key",
    ),
    ("INSERT INTO portal_application_changes (portal_app_id) VALUES (%s)", "signal_id"),
)


FILLED = ("plan", "limit", "account", "account_plan", "id", "app_account", "settings_id", "key")


class Changes:
    """Random changes of everything that a key names."""

    def __init__(self, database: Database, columns: Columns, choose: Random) -> None:
        self._database = database
        self._columns = columns
        self._choose = choose

    def fill(self) -> None:
        """Put something into every table."""
        for number in range(VALUES):
            value = partial(self._columns.value, number=number)
            self._database.execute(
                "INSERT INTO pay_plans VALUES (DEFAULT, %s, %s, 1);"
                "INSERT INTO accounts VALUES (DEFAULT, %s, %s);"
                "INSERT INTO portal_applications VALUES (DEFAULT, %s, %s);"
                "INSERT INTO portal_application_settings VALUES (DEFAULT, %s, %s, true)",
                [value(name) for name in FILLED],
            )

    def step(self) -> str:
        """Change something, and say what."""
        statement, *names = self._choose.choice(CHANGES)
        values = [self._value(name) for name in names]
        self._database.execute(statement, values)
        return f"{statement} {values}"

    def _value(self, name: str) -> str:
        number = self._choose.randrange(VALUES)
        if name == "number":
            return str(number + 1)
        return self._columns.value(name, number, again=self._choose.random() < 0.4)


def faults(database: Database) -> list[str]:
    """Return why `serve` would not start."""
    with site_of(database.url()) as site:
        found = [finding for _, finding in run(NECESSARY, site)]
    return [f"{finding.text}; {finding.remedy}" for finding in found if finding.verdict is Verdict.FAIL]


def right_or_refused(
    database: Database,
    columns: Columns,
    seed: int,
    start: Callable[[], Server],
    connect: Callable[[Server], Gateway],
) -> list[str]:
    """Change everything that keys name, and see each change arrive; or return why the database is refused."""
    choose = Random(seed)  # noqa: S311 - it need not be unpredictable
    database.execute(columns.schema.replace("%", "%%"), ())
    changes = Changes(database, columns, choose)
    changes.fill()
    refused = faults(database)
    if refused:
        return refused
    database.publish()
    server = start()
    client = connect(server)
    for step in range(STEPS + 1):
        what = changes.step() if step else "the start"
        oracle = rows_of(database)
        try:
            client.wait(partial(holds, oracle), what, DEADLINE)
        except AssertionError:
            held = client.map
            raise AssertionError(
                f"{columns}, seed {seed}, {what}: too many {held.keys() - oracle.keys()},"
                f" missing {oracle.keys() - held.keys()},"
                f" other {[name for name in oracle.keys() & held.keys() if oracle[name] != held[name]]}"
            ) from None
    assert server.metric("pads_cdc_audit_runs_total") == 0
    assert server.metric("pads_cdc_source_mode", mode="streaming") == 1
    made_up = server.metric("pads_cdc_decode_errors_total", reason="key_shape")
    assert server.metric("pads_cdc_decode_errors_total") == made_up
    others = {columns.signal_id, columns.settings_id} - {columns.id}
    assert not made_up or others, "only another type's value may be what no id can be: then all is read"
    # From wal2json a null may be NaN, in a row whose old parent is unknown.
    if "without end" not in columns.settings_id or database.plugin == pgoutput.NAME:
        assert server.metric("pads_cdc_reconcile_total") <= 1 + made_up, "the start's"
    client.stop()
    assert server.stop() == 0
    return []


def holds(oracle: dict[str, bytes], client: Gateway) -> bool:
    return client.map == oracle


def alike(**kinds: Any) -> Columns:
    """Return columns of which those that are compared have one type: by ``id``, ``account`` and ``plan``."""
    identity, account, plan = (kinds.pop(name, "varchar") for name in ("id", "account", "plan"))
    signal = kinds.pop("signal_id", None) or identity
    return Columns(identity, identity, signal, account, account, plan, plan, **kinds)


CASES = {
    "accounts of uuid": (alike(account="uuid"), None),
    "plans of bigint": (alike(plan="bigint"), None),
    "plans without end": (alike(plan="numeric without end"), None),
    "accounts of real without end": (alike(account="real without end"), None),
    "ids of numeric without end": (alike(id="numeric without end"), None),
    "domains that are never null": (
        alike(id="domain not null", account="domain of domain", plan="enum", key="domain not null"),
        None,
    ),
    "ids of a domain of numeric": (alike(id="domain of numeric", limit="domain of numeric"), None),
    "plans of char": (alike(plan="char"), None),
    "plans of citext": (alike(plan="citext"), None),
    "accounts of char": (Columns(account="char"), None),
    "accounts of caseless text": (alike(account="caseless"), None),
    "ids of uuid": (alike(id="uuid"), None),
    "ids of uuid, signals of text": (Columns(id="uuid", settings_id="uuid"), None),
    "ids of bigint": (alike(id="bigint"), None),
    "ids of numeric": (alike(id="numeric"), None),
    "ids of long numeric": (alike(id="numeric(30,20)"), None),
    "ids of bigint, all else of numeric": (
        Columns(
            id="whole bigint",
            settings_id="whole numeric",
            signal_id="whole bigint",
            account="whole numeric",
            app_account="whole smallint",
            plan="whole double precision",
            account_plan="whole numeric",
        ),
        None,
    ),
    "ids of numeric, all else of bigint": (
        Columns(
            id="whole numeric",
            settings_id="whole bigint",
            signal_id="whole double precision",
            account="whole bigint",
            app_account="whole numeric",
            plan="whole numeric",
            account_plan="whole real",
        ),
        None,
    ),
    "ids of char": (alike(id="char"), None),
    "ids of char without length": (alike(id="char without length"), None),
    "plans of char without length": (alike(plan="char without length"), None),
    "accounts of char without length": (alike(account="char without length"), None),
    "ids of char, settings of varchar": (Columns(id="char"), None),
    "ids of citext": (alike(id="citext"), None),
    "ids of caseless text": (alike(id="caseless"), None),
    "ids of varchar, settings of caseless text": (Columns(settings_id="caseless"), None),
    "ids of an enum": (alike(id="enum"), None),
    "ids of a domain of citext": (alike(id="domain of citext"), None),
    "ids of json": (alike(id="json"), "json = json, in: ON settings.application_id = applications.id"),
    "ids of jsonb": (alike(id="jsonb"), "is jsonb, not text"),
    "ids of lists": (alike(id="list"), "is text[], not text"),
    "keys of bytea": (
        alike(key="bytea"),
        "secret_key, from portal_application_settings.secret_key, is bytea, not text",
    ),
    "keys of jsonb": (alike(key="jsonb"), "is jsonb, not text"),
    "plans of a domain of an enum": (alike(plan="domain of enum"), "feeling = public.feeling"),
    "limits of money": (
        alike(limit="money"),
        "capacity_limit, from pay_plans.monthly_relay_limit, is money, not a number",
    ),
    "accounts of uuid, applications of text": (Columns(account="uuid"), "operator does not exist"),
}


REFUSED = sorted(KINDS.keys() - set(SENDABLE))
"""Those whose values cannot be sent to gateways, or be compared with keys."""


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=() if kind == "regclass" else pytest.mark.soak) for kind in REFUSED],
)
def test_a_type_that_cannot_be_served_is_refused_wherever_it_is(
    kind: str, database_factory: DatabaseFactory
) -> None:
    database = database_factory()
    for name in ("id", "account", "plan", "key", "limit"):
        columns = alike(**{name: kind})
        database.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        database.execute(columns.schema.replace("%", "%%"), ())
        Changes(database, columns, Random(1)).fill()  # noqa: S311
        refused = faults(database)
        assert refused, f"{name} of {kind}"
        assert all(re.search(r"\w+\.\w+", text) for text in refused), "columns are named"


def emptied(database: Database) -> Database:
    """Return the database, without its tables."""
    database.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    return database


OFTEN = ("ids of uuid", "plans of char", "ids of caseless text", "accounts of uuid", "plans without end")
"""Those of what is served that are tested each time."""


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=() if says or case in OFTEN else pytest.mark.soak)
        for case, (_, says) in CASES.items()
    ],
)
def test_a_type_is_served_exactly_and_at_once_or_refused(
    case: str, database_factory: DatabaseFactory, serve: ServerFactory, gateway: GatewayFactory
) -> None:
    columns, says = CASES[case]
    database = emptied(database_factory())
    refused = right_or_refused(database, columns, 1, lambda: serve(database), gateway)
    assert not refused if says is None else any(says in text for text in refused), refused


@pytest.mark.both_plugins
def test_a_value_of_an_enum_is_renamed(
    database_factory: DatabaseFactory, serve: ServerFactory, gateway: GatewayFactory
) -> None:
    """All rows print another text then, and none of them has changed."""
    database = emptied(database_factory())
    columns = alike(id="enum", plan="enum", key="domain of enum")
    database.execute(columns.schema.replace("%", "%%"), ())
    Changes(database, columns, Random(1)).fill()  # noqa: S311
    database.publish()
    server = serve(database)
    client = gateway(server)
    for statement in (
        "ALTER TYPE mood RENAME VALUE 'so so' TO 'middling'",
        "UPDATE pay_plans SET throughput_limit = throughput_limit + 1 WHERE plan_type = 'middling'",
        "ALTER TYPE mood ADD VALUE 'calm'",
        "UPDATE accounts SET plan_type = 'calm' WHERE plan_type = 'middling'",
    ):
        database.execute(statement)
        client.wait(partial(holds, rows_of(database)), statement, DEADLINE)
    assert server.metric("pads_cdc_audit_runs_total") == 0


ANY, SENT = st.sampled_from(sorted(KINDS)), st.sampled_from(SENDABLE)
COLUMNS = (
    st.builds(alike, id=SENT, account=SENT, plan=SENT, key=SENT, limit=st.sampled_from(NUMBERS))
    | st.builds(alike, id=SENT, account=SENT, plan=SENT, key=SENT, signal_id=st.sampled_from(TEXTS))
    | st.builds(
        Columns,
        **dict.fromkeys(("id", "settings_id", "account", "app_account", "plan"), st.sampled_from(TEXTS)),
    )
    | st.builds(
        Columns,
        **dict.fromkeys(
            ("id", "settings_id", "signal_id", "account", "app_account", "plan", "account_plan"),
            st.sampled_from(WHOLE),
        ),
    )
    | st.builds(alike, id=ANY, account=ANY, plan=ANY, key=ANY, limit=ANY, signal_id=ANY)
)


def _test_any_types(
    examples: int,
    *,
    derandomize: bool,
    folder: Path,
    cluster: Cluster,
    plugin: str,
    serve: ServerFactory,
    gateway: GatewayFactory,
) -> None:
    served = []

    @given(COLUMNS, st.integers(0, 2**32))
    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=derandomize,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def some(columns: Columns, seed: int) -> None:
        with ExitStack() as ending:  # the slot ends with its database: a server has only some
            database = emptied(make_database(ending, cluster, "grove", plugin))
            refused = right_or_refused(
                database,
                columns,
                seed,
                lambda: serve(database, STATE_FILE=f"{folder}/{database.name}", SLOT_NAME=database.name),
                gateway,
            )
        served.append(not refused)
        assert all(re.search(r"\w+\.\w+", text) for text in refused), "columns are named"

    some()
    assert any(served)


def test_some_types_together(
    tmp_path: Path, cluster: Cluster, plugin: str, serve: ServerFactory, gateway: GatewayFactory
) -> None:
    _test_any_types(
        4, derandomize=True, folder=tmp_path, cluster=cluster, plugin=plugin, serve=serve, gateway=gateway
    )


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("_part", range(8))
def test_many_types_together(
    _part: int,
    tmp_path: Path,
    cluster: Cluster,
    plugin: str,
    serve: ServerFactory,
    gateway: GatewayFactory,
) -> None:
    """In parts, so that processes share them, and none takes ten minutes."""
    _test_any_types(
        25, derandomize=False, folder=tmp_path, cluster=cluster, plugin=plugin, serve=serve, gateway=gateway
    )
