"""TLS on either side: Envoy's, and the feed's with a certificate and a token; files that are renewed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
import pytest

from tests.plugins.authorizer import Checks, asked
from tests.plugins.server import fill, wait_until
from tests.support.certificates import Authority, write_secret

if TYPE_CHECKING:
    from pathlib import Path

    from tests.plugins.authorizer import AuthorizerFactory
    from tests.plugins.feed import Scripted
    from tests.plugins.postgres import Database
    from tests.plugins.server import ServerFactory

TOKEN = "authorizers-token-" * 3
KEY = (("authorization", "key_1"),)


def files(folder: Path, authority: Authority, name: str) -> dict[str, str]:
    """Write a certificate and its key."""
    pair = authority.issue(name)
    return {
        "CERT_FILE": str(write_secret(folder / f"{name}.crt", pair.certificate)),
        "KEY_FILE": str(write_secret(folder / f"{name}.key", pair.key)),
    }


def test_envoy_needs_the_right_certificate_and_is_shown_renewed_ones(
    scripted: Scripted, authorize: AuthorizerFactory, tmp_path: Path
) -> None:
    authority = Authority()
    ours = files(tmp_path, authority, "authorizer")
    authorizer = authorize(
        f"127.0.0.1:{scripted.port}",
        TLS_CERT_FILE=ours["CERT_FILE"],
        TLS_KEY_FILE=ours["KEY_FILE"],
        TLS_CLIENT_CA_FILE=str(write_secret(tmp_path / "ca.crt", authority.certificate)),
    )
    envoys = authority.issue("envoy")
    trusted = grpc.ssl_channel_credentials(authority.certificate, envoys.key, envoys.certificate)
    checks = Checks(f"localhost:{authorizer.grpc}", trusted)
    assert checks("/v1/app_1").code == 503
    checks.close()
    stranger = Checks(f"localhost:{authorizer.grpc}", grpc.ssl_channel_credentials(authority.certificate))
    with pytest.raises(grpc.RpcError) as refused:
        stranger.stub.Check(asked("/v1/app_1"), timeout=5)
    assert refused.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    stranger.close()
    plain = Checks(f"127.0.0.1:{authorizer.grpc}")
    with pytest.raises(grpc.RpcError):
        plain.stub.Check(asked("/v1/app_1"), timeout=5)
    plain.close()
    renewed = authority.issue("authorizer")
    write_secret(tmp_path / "authorizer.crt", renewed.certificate)
    write_secret(tmp_path / "authorizer.key", renewed.key)
    authorizer.wait_log("certificate reloaded")
    checks = Checks(f"localhost:{authorizer.grpc}", trusted)
    assert checks("/v1/app_1").code == 503
    checks.close()
    write_secret(tmp_path / "authorizer.crt", b"rubbish")
    wait_until(lambda: "TLS_CERT_FILE" in authorizer.get("/healthz")[1], "bad files are said, and not taken")


def test_the_feed_asks_for_a_certificate_and_a_token_which_are_renewed(
    database: Database, serve: ServerFactory, authorize: AuthorizerFactory, tmp_path: Path
) -> None:
    fill(database, 10)
    authority = Authority()
    server_files = files(tmp_path, authority, "server")
    ours = files(tmp_path, authority, "client")
    ca = str(write_secret(tmp_path / "ca.crt", authority.certificate))
    token = write_secret(tmp_path / "token", f"{TOKEN}\n")
    tokens = write_secret(tmp_path / "tokens", f"authorizer:{TOKEN}\n")
    secured = {
        "TLS_CERT_FILE": server_files["CERT_FILE"],
        "TLS_KEY_FILE": server_files["KEY_FILE"],
        "TLS_CLIENT_CA_FILE": ca,
        "AUTH_TOKENS_FILE": str(tokens),
    }
    server = serve(database, **secured)
    authorizer = authorize(
        f"localhost:{server.grpc}",
        FEED_CA_FILE=ca,
        FEED_CERT_FILE=ours["CERT_FILE"],
        FEED_KEY_FILE=ours["KEY_FILE"],
        FEED_TOKEN_FILE=str(token),
    ).wait_ready()
    assert authorizer.check("/v1/app_1", KEY).code == 200
    # Everything is exchanged, on both sides; only what was read again lets us in.
    assert server.stop() == 0
    another = Authority("another")
    write_secret(tmp_path / "ca.crt", another.certificate)
    files(tmp_path, another, "server")
    files(tmp_path, another, "client")
    write_secret(token, TOKEN[::-1])
    write_secret(tokens, f"authorizer:{TOKEN[::-1]}\n")
    serve(database, PORT=str(server.grpc), **secured)
    database.execute(
        "UPDATE portal_application_settings SET secret_key = NULL WHERE application_id = 'app_1'"
    )
    authorizer.wait_answer(401, "/v1/app_1", KEY)
    assert TOKEN not in authorizer.output
    assert TOKEN[::-1] not in authorizer.output
