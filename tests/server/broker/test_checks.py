"""`check` and `setup` with a broker: what they find, and that what they say to type works."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig

from server.broker.stream import ANEW, ANOTHER, CORRECT
from tests.e2e.test_relay import follows
from tests.e2e.test_relay_faults import by_hand
from tests.plugins.server import fill
from tests.support import ROOT

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Awaitable, Callable

    from nats.js import JetStreamContext

    from tests.plugins.check import Check
    from tests.plugins.nats import Node, NodeFactory
    from tests.plugins.postgres import Database
    from tests.plugins.server import RelayFactory, ServerFactory


def make(node: Node, config: StreamConfig) -> None:
    by_hand(node, lambda js: js.add_stream(config))


def by_hand_as(node: Node, user: str, what: Callable[[JetStreamContext], Awaitable[Any]]) -> None:
    """Do something to the stream as one of the broker's users, whose password is x."""

    class As:
        url = node.url.replace("nats://", f"nats://{user}:x@")

    by_hand(As, what)  # type: ignore[arg-type]


def right(**other: object) -> StreamConfig:
    values: dict[str, object] = {
        "name": "pads_cdc",
        "subjects": ["pads_cdc.page", "pads_cdc.head"],
        "discard": DiscardPolicy.NEW,
        "storage": StorageType.FILE,
        "allow_rollup_hdrs": True,
    }
    return StreamConfig(**{**values, **other})  # type: ignore[arg-type]


def set_up(
    database: Database,
    node: Node,
    check: Check,
    pads_cdc: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    """Type `pads-cdc setup`, after which check must find the stream as it should be."""
    given = {"ADMIN_CONNECTION_STRING": database.url(), "BROKER_URL": node.url}
    assert pads_cdc("setup", **given).returncode == 0
    assert check(database, BROKER_URL=node.url).the("broker_stream", "pass")


def test_setup_makes_the_stream_that_check_wants(
    database: Database, nats: Node, check: Check, pads_cdc: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    assert (
        check(database, BROKER_URL=nats.url).the("broker_stream", "warn").remedy.startswith("pads-cdc setup")
    )
    given = {"ADMIN_CONNECTION_STRING": database.url(), "BROKER_URL": nats.url}
    dry = pads_cdc("setup", "--dry-run", **given)
    assert "-- the stream pads_cdc is created, with the subjects pads_cdc.page, pads_cdc.head\n" in dry.stdout
    assert check(database, BROKER_URL=nats.url).the("broker_stream", "warn")
    assert pads_cdc("setup", **given).returncode == 0
    report = check(database, BROKER_URL=nats.url)
    assert {one.verdict for one in report.findings if one.check.startswith("broker")} == {"pass"}
    assert "is there" in pads_cdc("setup", **given).stdout
    messages = by_hand(nats, lambda js: js.stream_info("pads_cdc")).state.messages
    assert messages == 0, "asking about rights stores nothing"


@pytest.mark.parametrize(
    ("config", "verdict", "named"),
    [
        (right(discard=DiscardPolicy.OLD), "fail", "drops its oldest pages"),
        (right(allow_rollup_hdrs=False), "fail", "let a head take the place"),
        pytest.param(right(max_age=60.0), "fail", "by age or number", marks=pytest.mark.soak),
        pytest.param(right(max_msgs=100), "fail", "by age or number", marks=pytest.mark.soak),
        pytest.param(right(max_msg_size=1_000), "fail", "of up to 1000 bytes", marks=pytest.mark.soak),
        pytest.param(right(max_msg_size=8_000), "warn", "of up to 8000 bytes", marks=pytest.mark.soak),
        pytest.param(
            right(subjects=["pads_cdc.page"]),
            "fail",
            "has other subjects: pads_cdc.page",
            marks=pytest.mark.soak,
        ),
        pytest.param(right(no_ack=True), "fail", "acknowledges nothing", marks=pytest.mark.soak),
    ],
)
def test_a_stream_that_would_fail_relays_is_named_with_its_remedy(
    database: Database,
    nats: Node,
    check: Check,
    pads_cdc: Callable[..., subprocess.CompletedProcess[str]],
    config: StreamConfig,
    verdict: str,
    named: str,
) -> None:
    make(nats, config)
    found = check(database, BROKER_URL=nats.url).the("broker_stream", verdict)
    assert named in found.text
    assert found.remedy == CORRECT
    set_up(database, nats, check, pads_cdc)


@pytest.mark.parametrize(
    ("config", "verdict", "remedy"),
    [
        (right(retention=RetentionPolicy.INTEREST), "fail", ANEW),
        (right(subjects=["orders.>"]), "fail", ANOTHER),
        pytest.param(right(deny_purge=True, allow_rollup_hdrs=False), "fail", ANEW, marks=pytest.mark.soak),
        pytest.param(right(storage=StorageType.MEMORY), "warn", ANEW, marks=pytest.mark.soak),
    ],
)
def test_a_stream_that_setup_cannot_correct_is_removed(
    database: Database,
    nats: Node,
    check: Check,
    pads_cdc: Callable[..., subprocess.CompletedProcess[str]],
    config: StreamConfig,
    verdict: str,
    remedy: str,
) -> None:
    """Another program's is not."""
    make(nats, config)
    assert check(database, BROKER_URL=nats.url).the("broker_stream", verdict).remedy == remedy
    if remedy == ANEW:
        by_hand(nats, lambda js: js.delete_stream("pads_cdc"))
        set_up(database, nats, check, pads_cdc)


def test_another_stream_is_given_to_leader_and_relay(
    database: Database,
    nats: Node,
    serve: ServerFactory,
    relay: RelayFactory,
    pads_cdc: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    make(nats, right(retention=RetentionPolicy.INTEREST))
    fill(database, 50)
    another = {"BROKER_URL": nats.url, "BROKER_STREAM": "another"}
    assert pads_cdc("setup", ADMIN_CONNECTION_STRING=database.url(), **another).returncode == 0
    leader = serve(database, **another).wait_ready()
    follows(relay(**another).wait_ready(), leader)


def test_a_broker_with_small_messages_is_told_how_large_they_must_be(
    database: Database, nats_node: NodeFactory, check: Check
) -> None:
    node = nats_node("max_payload: 8KB\n").start()
    remedy = check(database, BROKER_URL=node.url).the("broker_payload", "warn").remedy
    [(typed, where)] = re.findall(r"^set (\S+: \S+) in (.*)$", remedy)
    assert where == "the broker's configuration"
    node.configure("max_payload: 8KB", typed)
    assert check(database, BROKER_URL=node.url).the("broker_payload", "pass")


def test_setup_changes_no_stream_of_another_program(
    database: Database, nats: Node, pads_cdc: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    make(nats, right(subjects=["orders.>"]))
    done = pads_cdc("setup", ADMIN_CONNECTION_STRING=database.url(), BROKER_URL=nats.url)
    assert done.returncode == 1
    assert "give another BROKER_STREAM" in done.stderr
    assert by_hand(nats, lambda js: js.stream_info("pads_cdc")).config.subjects == ["orders.>"]


def test_a_broker_that_is_not_there_or_has_no_jetstream(
    database: Database, nats_node: NodeFactory, check: Check
) -> None:
    node = nats_node()
    assert "BROKER_URL" in check(database, BROKER_URL=node.url).the("broker", "fail").remedy
    jetstream = next(line for line in node.config.read_text().splitlines() if line.startswith("jetstream"))
    node.configure(jetstream, "")
    report = check(database, BROKER_URL=node.url)
    found = [one for one in report.findings if one.check == "broker" and one.verdict == "fail"]
    assert "JetStream" in found[0].text
    assert "turn it on there" in found[0].remedy
    node.configure("listen:", f"{jetstream}\nlisten:")
    assert check(database, BROKER_URL=node.url).the("broker", "pass")


def test_a_user_without_rights_is_found(database: Database, nats_node: NodeFactory, check: Check) -> None:
    node = nats_node(
        "authorization { users: [ { user: reader, password: x, permissions: {"
        ' publish: ["$JS.API.STREAM.INFO.>"], subscribe: ["_INBOX.>"] } }, { user: all, password: x } ] }\n'
    ).start()
    folder = node.folder
    for name in ("reader", "all"):
        (folder / name).write_text(f"{name}:x\n")
        (folder / name).chmod(0o600)
    everything = {"BROKER_URL": node.url, "BROKER_CREDENTIALS_FILE": str(folder / "all")}
    by_hand_as(node, "all", lambda js: js.add_stream(right()))
    assert {one.verdict for one in check(database, **everything).of("broker_rights")} == {"pass"}
    reader = everything | {"BROKER_CREDENTIALS_FILE": str(folder / "reader")}
    remedy = check(database, **reader).the("broker_rights", "fail").remedy
    [(first, second)] = re.findall(
        r"^permit our user to publish (\S+) and (\S+), and to subscribe _INBOX\.>$", remedy
    )
    node.configure('publish: ["$JS.API.STREAM.INFO.>"]', f'publish: ["{first}", "{second}"]')
    assert check(database, **reader).the("broker_rights", "pass")


RIGHTS = re.compile(r"^\| (server|relay) \| (.*?) \| (.*?) \|$", re.MULTILINE)
"""The table of docs/scale.md."""


def test_the_rights_that_the_document_names_are_enough(
    database: Database,
    serve: ServerFactory,
    relay: RelayFactory,
    nats_node: NodeFactory,
    pads_cdc: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    fill(database, 50)
    users = ["{ user: admin, password: x }"]
    for user, publish, subscribe in RIGHTS.findall((ROOT / "docs/scale.md").read_text()):
        rights = (
            ", ".join(f'"{one}"' for one in re.findall(r"`([^`]+)`", part)) for part in (publish, subscribe)
        )
        may = f"publish: [{next(rights)}], subscribe: [{next(rights)}]"
        users.append(f"{{ user: {user}, password: x, permissions: {{ {may} }} }}")
    assert len(users) == 3
    node = nats_node(f"authorization {{ users: [ {', '.join(users)} ] }}\n").start()

    def settings(user: str) -> dict[str, str]:
        file = node.folder / user
        file.write_text(f"{user}:x\n")
        file.chmod(0o600)
        return {"BROKER_URL": node.url, "BROKER_CREDENTIALS_FILE": str(file)}

    given = {"ADMIN_CONNECTION_STRING": database.url(), **settings("admin")}
    assert pads_cdc("setup", **given).returncode == 0
    leader = serve(database, **settings("server")).wait_ready()
    one = relay(**settings("relay")).wait_ready()
    database.execute("DELETE FROM portal_applications WHERE id = 'app_2'")
    follows(one, leader)
    by_hand_as(node, "admin", lambda js: js.purge_stream("pads_cdc"))
    second = relay(
        **settings("relay")
    ).wait_ready()  # which has to ask for a snapshot, or the leader to notice
    follows(second, leader)
    assert leader.metric("pads_cdc_broker_restarts_total") == 0
