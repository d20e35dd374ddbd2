"""Connections to brokers with and without TLS, and to some that let us do less than we need."""

from __future__ import annotations

import asyncio
import socket
import threading
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from server.broker import stream
from server.broker.connection import Broker, BrokerError
from server.broker.stream import PageStream
from server.config.settings import RelaySettings
from tests.e2e.test_relay_faults import by_hand
from tests.server.broker.test_checks import right
from tests.support.certificates import Authority, write_secret

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.plugins.nats import Node, NodeFactory

INFO = (
    b'INFO {"server_id":"x","version":"2.12.0","proto":1,"headers":true,"max_payload":1048576,'
    b'"auth_required":true}\r\n'
)


def connect(**settings: str) -> str:
    """Connect, and ask for the stream; returns whom we have reached."""

    async def run() -> str:
        async with Broker(RelaySettings.load(settings), "test").connected() as client:
            await PageStream(client, "pads_cdc").info()
            return f"{client.connected_url and client.connected_url.netloc}"

    return asyncio.run(run())


class Plain:
    """Speaks as a NATS server without TLS does, and keeps what it is told."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.told = b""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            connection.sendall(INFO)
            while some := connection.recv(4096):
                self.told += some
                connection.sendall(b"PONG\r\n")

    def end(self) -> bytes:
        """Return all that it was told, once its client has gone."""
        self._thread.join(10)
        self._listener.close()
        return self.told


@pytest.fixture
def plain() -> Iterator[Plain]:
    """A broker without TLS, or somebody in its place."""
    plain = Plain()
    yield plain
    plain.end()


def tls_of(tmp_path: Path, begins: timedelta, ends: timedelta) -> str:
    """Return the part of a broker's configuration about TLS, but for its end. Its certificate is valid from
    ``begins`` to ``ends``, both relative to the present time.
    """
    authority = Authority()
    issued = authority.issue("broker", begins, ends)
    write_secret(tmp_path / "ca.crt", authority.certificate)
    certificate = write_secret(tmp_path / "broker.crt", issued.certificate)
    key = write_secret(tmp_path / "broker.key", issued.key)
    return f'tls {{ cert_file: "{certificate}", key_file: "{key}"'


@pytest.fixture
def tls(tmp_path: Path) -> str:
    """The part of a broker's configuration about TLS, but for its end."""
    return tls_of(tmp_path, timedelta(days=-20), timedelta(days=20))


def test_nothing_is_told_in_plaintext_to_whoever_answers_without_tls(plain: Plain, tmp_path: Path) -> None:
    """nats-py by itself would send the credentials: it goes by what the other side says of TLS."""
    credentials = write_secret(tmp_path / "credentials", "pads:hunter22")
    with pytest.raises(BrokerError, match="does not offer TLS"):
        connect(broker_url=f"tls://127.0.0.1:{plain.port}", broker_credentials_file=str(credentials))
    assert plain.end() == b""


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(" }\n", id="asked for after a word in plaintext"),
        pytest.param(" }\nallow_non_tls: true\n", id="not asked for, but taken"),
        pytest.param(", handshake_first: true }\n", id="at once, as by a proxy that ends it"),
    ],
)
def test_tls_begins_as_the_broker_has_it(nats_node: NodeFactory, tls: str, tmp_path: Path, how: str) -> None:
    node = nats_node(tls + how).start()
    url = f"tls://127.0.0.1:{node.port}"
    assert connect(broker_url=url, broker_tls_ca_file=str(tmp_path / "ca.crt")) == url.partition("//")[2]
    if "handshake_first" not in how:  # the same there, and it takes the broker 2 s to let go of a first try
        with pytest.raises(BrokerError, match=r"local issuer certificate.*BROKER_TLS_CA_FILE"):
            connect(broker_url=url)


@pytest.mark.parametrize(
    ("begins", "ends", "host", "said"),
    [
        (-20, -1, "127.0.0.1", r"expired\); renew the broker's certificate"),
        (1, 20, "127.0.0.1", r"not yet valid\); renew the broker's certificate"),
        (-20, 20, "127.1", r"127\.1'.*\); name the broker in BROKER_URL as"),  # the same address
        (-20, 20, "0.0.0.0", r"0\.0\.0\.0'.*\); name the broker in BROKER_URL as"),  # noqa: S104
    ],
)
def test_a_certificate_that_is_refused_keeps_its_own_remedy(
    nats_node: NodeFactory, tmp_path: Path, begins: int, ends: int, host: str, said: str
) -> None:
    node = nats_node(tls_of(tmp_path, timedelta(days=begins), timedelta(days=ends)) + " }\n").start()
    with pytest.raises(BrokerError, match=said):
        connect(broker_url=f"tls://{host}:{node.port}", broker_tls_ca_file=str(tmp_path / "ca.crt"))


def test_a_broker_that_offers_no_tls_is_told_to(nats_node: NodeFactory, tls: str, tmp_path: Path) -> None:
    node = nats_node().start()
    there = {"broker_url": f"tls://127.0.0.1:{node.port}", "broker_tls_ca_file": str(tmp_path / "ca.crt")}
    with pytest.raises(BrokerError, match=r"configure tls \{\} there"):
        connect(**there)
    node.configure("listen:", f"{tls} }}\nlisten:")
    assert connect(**there)


def test_a_subject_that_another_stream_has_is_named(nats: Node) -> None:
    """Its stream would store our pages."""

    async def publish() -> int:
        async with Broker(RelaySettings.load({"broker_url": nats.url}), "test").connected() as client:
            ours = PageStream(client, "pads_cdc")
            return await ours.publish(ours.page, b"a page", 0)

    by_hand(nats, lambda js: js.add_stream(name="everything", subjects=["pads_cdc.*"]))
    with pytest.raises(BrokerError, match="one of the stream everything; take it out of its subjects"):
        asyncio.run(publish())
    by_hand(nats, lambda js: js.update_stream(name="everything", subjects=["else"]))
    by_hand(nats, lambda js: js.add_stream(right()))
    assert asyncio.run(publish()) == 1


def test_what_we_may_not_do_is_said_in_the_broker_s_words(
    nats_node: NodeFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "_SECONDS", 0.5)
    node = nats_node(
        'authorization { users: [ { user: few, password: x, permissions: { publish: ["a"],'
        ' subscribe: ["_INBOX.>"] } } ] }\n'
    ).start()
    few = write_secret(node.folder / "few", "few:x")
    with pytest.raises(BrokerError, match=r'permissions violation for publish to "\$js\.api\.stream\.info'):
        connect(broker_url=node.url, broker_credentials_file=str(few))
