"""Settings of `pads-cdc authorize`: what is refused, with what to type in its place."""

from __future__ import annotations

import pytest

from cdc.errors import ConfigurationError
from server.config.authorize_settings import AuthorizeSettings
from server.config.settings import Settings
from server.config.settings_table import rows

FEED = {"feed_addresses": "127.0.0.1:10002"}


@pytest.fixture(autouse=True)
def _empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for row in rows(AuthorizeSettings):
        monkeypatch.delenv(row.environment, raising=False)


def test_defaults_are_those_of_path_s_authorization_servers() -> None:
    settings = AuthorizeSettings.load(FEED)
    assert (settings.host, settings.port, settings.workers) == ("127.0.0.1", 10001, 1)
    assert (settings.id_header, settings.id_path_prefix) == ("Portal-Application-ID", "/v1/")
    assert settings.jwt_subject_header is None
    assert settings.upstream_endpoint_header == "Portal-Application-ID"
    assert settings.upstream_account_header == "Portal-Account-ID"
    assert (settings.upstream_limited_header, settings.upstream_throughput_header) == (
        "Rl-Endpoint-Id",
        "Rl-Throughput",
    )
    assert (settings.remove_authorization, settings.rate_limit, settings.max_staleness) == (
        True,
        "headers",
        None,
    )


def test_several_feeds_are_written_with_commas() -> None:
    assert AuthorizeSettings.load({"feed_addresses": "one:1, [::1]:2"}).feeds == ("one:1", "[::1]:2")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"feed_addresses": None}, "FEED_ADDRESSES"),
        ({"feed_addresses": "one"}, "HOST:PORT"),
        ({"feed_addresses": "one:1,,two:2"}, "HOST:PORT"),
        ({"feed_addresses": "one:1,one:1"}, "twice"),
        ({"host": "192.0.2.1"}, "ALLOW_INSECURE"),
        ({"feed_addresses": "one:1", "feed_token_file": "/t"}, "FEED_CA_FILE"),
        ({"feed_cert_file": "/c"}, "FEED_KEY_FILE"),
        ({"feed_cert_file": "/c", "feed_key_file": "/k"}, "FEED_CA_FILE"),
        ({"tls_key_file": "/k"}, "TLS_CERT_FILE"),
        ({"tls_client_ca_file": "/c"}, "TLS_CERT_FILE"),
        ({"id_path_prefix": "/v1"}, "slashes"),
        ({"id_path_prefix": "/%76/"}, "slashes"),
        ({"id_path_prefix": "/../"}, "slashes"),
        ({"id_header": "none", "id_path_prefix": "none"}, "ID_PATH_PREFIX"),
        ({"id_header": "Portal_Application_ID"}, "dashes"),
        ({"id_header": "Authorization"}, "something else"),
        ({"upstream_account_header": "host"}, "something else"),
        ({"upstream_account_header": "rl-endpoint-id"}, "same header"),
        ({"jwt_subject_header": "portal-application-id"}, "JWT_SUBJECT_HEADER"),
        ({"jwt_subject_header": "RL-Throughput"}, "JWT_SUBJECT_HEADER"),
        ({"rate_limit": "redis"}, "RATE_LIMIT"),
        ({"workers": "0"}, "WORKERS"),
        ({"drain_time": "3"}, "DRAIN_TIME"),
        ({"unix_socket": "/" + "a" * 120}, "UNIX_SOCKET"),
    ],
)
def test_each_bad_setting_says_what_to_type(given: dict[str, str | None], said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        AuthorizeSettings.load({**FEED, **given})
    [line] = str(caught.value).splitlines()
    assert said in line


def test_what_another_command_reads_is_not_misspelt(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*Settings.environment(), *AuthorizeSettings.environment()):
        monkeypatch.setenv(name, "x")
    assert not AuthorizeSettings.misspelt()
    assert not Settings.misspelt()
    monkeypatch.setenv("FEED_ADDRESES", "x")
    monkeypatch.delenv("FEED_ADDRESSES")
    assert "FEED_ADDRESSES" in AuthorizeSettings.misspelt()[0]
