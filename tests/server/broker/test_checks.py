"""`check` and `setup` with a broker: what they find, and that what they say to type works."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from nats.js.api import DiscardPolicy, StorageType, StreamConfig

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


def test_setup_makes_the_stream_that_check_wants(
    database: Database, nats: Node, check: Check, pads_cdc: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    assert (
        check(database, BROKER_URL=nats.url).the("broker_stream", "warn").remedy.startswith("pads-cdc setup")
    )
    given = {"ADMIN_CONNECTION_STRING": database.url(), "BROKER_URL": nats.url}
    dry = pads_cdc("setup", "--dry-run", **given)
    assert "nats stream add pads_cdc" in dry.stdout
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
        (right(discard=DiscardPolicy.OLD), "fail", "--discard=new"),
        (right(max_age=60.0), "fail", "--max-age=0"),
        (right(max_msgs=100), "fail", "--max-msgs=-1"),
        (right(allow_rollup_hdrs=False), "fail", "--allow-rollup"),
        (right(max_msg_size=1_000), "fail", "--max-msg-size=-1"),
        (right(max_msg_size=8_000), "warn", "--max-msg-size=-1"),
        (right(subjects=["pads_cdc.page"]), "fail", "--subjects=pads_cdc.page,pads_cdc.head"),
        (right(storage=StorageType.MEMORY), "warn", "file storage"),
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
    remedy = check(database, BROKER_URL=nats.url).the("broker_stream", verdict).remedy
    assert named in remedy
    if remedy.startswith("pads-cdc setup"):
        given = {"ADMIN_CONNECTION_STRING": database.url(), "BROKER_URL": nats.url}
        assert pads_cdc("setup", **given).returncode == 0
        assert check(database, BROKER_URL=nats.url).the("broker_stream", "pass")


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
    config = node.folder / "nats.conf"
    config.write_text(f"listen: 127.0.0.1:{node.port}\n")
    node.start()
    report = check(database, BROKER_URL=node.url)
    found = [one for one in report.findings if one.check == "broker" and one.verdict == "fail"]
    assert "JetStream" in found[0].text


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
    assert "permit" in check(database, **reader).the("broker_rights", "fail").remedy


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
