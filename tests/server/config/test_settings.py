"""Settings: what is accepted, and what people read when it is not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from psycopg2.extensions import make_dsn, parse_dsn
from pydantic import ValidationError

from cdc.errors import ConfigurationError
from server.config.authorize_settings import AuthorizeSettings
from server.config.connection_string import ConnectionString
from server.config.misspelt import misspelt
from server.config.quantities import seconds, size
from server.config.settings import Settings
from server.config.settings_table import page, rows

if TYPE_CHECKING:
    from collections.abc import Callable

URL = "postgresql://streamer:hunter22secret@db.example:5432/portal"
SECRET = "hunter22secret"


@pytest.fixture(autouse=True)
def _empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for row in rows():
        monkeypatch.delenv(row.environment, raising=False)


def complaint(**flags: object) -> str:
    with pytest.raises(ConfigurationError) as caught:
        Settings.load(flags)
    # A chained error would show its input in a traceback.
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    return str(caught.value)


def test_defaults_are_those_that_other_things_depend_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTGRES_CONNECTION_STRING", URL)
    settings = Settings.load()
    assert settings.postgres_connection_string.read() == URL
    assert settings.query_connection_string.read() == URL
    assert (settings.host, settings.port) == ("127.0.0.1", 10002)
    assert (settings.metrics_host, settings.metrics_port) == ("127.0.0.1", 9090)
    assert (settings.mapping, settings.db_schema, settings.slot_name) == ("grove", "public", "pads_cdc")
    assert settings.state_file == Path("pads-cdc.state")
    assert settings.max_retained_wal == 2**30
    assert settings.max_staleness is None
    assert settings.audit_interval == 300.0
    assert (settings.logger_level, settings.log_format, settings.allow_insecure) == ("info", None, False)


def test_a_flag_wins_over_the_environment_and_empty_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTGRES_CONNECTION_STRING", URL)
    monkeypatch.setenv("SLOT_NAME", "of_environment")
    monkeypatch.setenv("MAX_STALENESS", "")
    monkeypatch.setenv("AUDIT_INTERVAL", "2h")
    settings = Settings.load({"slot_name": "of_flag", "port": None})
    assert settings.slot_name == "of_flag"
    assert settings.max_staleness is None
    assert settings.audit_interval == 7200.0


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("POSTGRES_CONECTION_STRING", "POSTGRES_CONNECTION_STRING"),
        ("POSTGRES_CONNECTION_STRING_FIEL", "POSTGRES_CONNECTION_STRING_FILE"),
        ("SLOTNAME", "SLOT_NAME"),
        ("slot_nmae", "SLOT_NAME"),
        ("PADS_CDC_PORT", "PORT"),
        ("PADS_STATE_FILE", "STATE_FILE"),
        ("AUTH_TOKEN_FILE", "AUTH_TOKENS_FILE"),
        ("TLS_CERTFILE", "TLS_CERT_FILE"),
        ("LOGGER_LEVELS", "LOGGER_LEVEL"),
    ],
)
def test_a_name_that_is_close_to_a_setting_is_taken_for_a_mistake(name: str, meant: str) -> None:
    names = [row.environment for row in rows()]
    assert list(misspelt([name, "PATH"], names)) == [(name, meant)]
    assert not list(misspelt([name, meant], names)), "what is given under its own name was not meant"


def test_names_of_others_are_let_be() -> None:
    names = [row.environment for row in rows()]
    others = (
        "PATH HOME HOSTNAME LANG PWD PGHOST PGPORT PORTS HOSTS LOG_LEVEL POSTGRES_PASSWORD POSTGRES_DB"
        " ADMIN_CONNECTION_STRING ADMIN_CONNECTION_STRING_FILE SLOT_CONNECTION_STRING"
        " KUBERNETES_SERVICE_HOST PADS_CDC_SERVICE_PORT PADS_PG_BIN SSL_CERT_FILE PADS_CDC_FAILPOINT"
        " METRICS_PORT_9090_TCP GRPC_VERBOSITY slot_name Port"
    )
    assert not list(misspelt(others.split(), names))


def test_settings_are_frozen() -> None:
    settings = Settings.load({"postgres_connection_string": URL})
    with pytest.raises(ValidationError):
        settings.port = 1


def test_a_required_setting_says_its_name_its_file_form_and_an_example() -> None:
    text = complaint()
    assert "\n" not in text
    assert text.startswith("POSTGRES_CONNECTION_STRING (--postgres-connection-string): is required")
    assert "POSTGRES_CONNECTION_STRING_FILE" in text
    assert "POSTGRES_CONNECTION_STRING=postgresql://" in text


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("port", "99999", "65535"),
        ("port", "ten", "integer"),
        ("metrics_port", "-1", "0"),
        ("max_staleness", "5", "no unit"),
        ("max_staleness", "5 parsecs", "unknown unit"),
        ("audit_interval", "0s", "more than zero"),
        ("audit_interval", "none", "not a duration"),
        ("max_retained_wal", "1000000", "no unit"),
        ("max_retained_wal", "lots", "not a size"),
        ("logger_level", "loud", "'debug', 'info', 'warning' or 'error'"),
        ("log_format", "xml", "'console' or 'json'"),
        ("slot_name", "Pads-CDC", "a-z, 0-9 and _"),
        ("slot_name", "x" * 64, "63"),
        ("db_schema", "", "63 bytes"),
        ("db_schema", "ü" * 32, "63 bytes"),
        ("mapping", "", "at least 1"),
        ("host", "[::1]:10002", "without port"),
        ("host", "127.0.0.1:10002", "without port"),
        ("host", "", "without port"),
        ("allow_insecure", "perhaps", "boolean"),
    ],
)
def test_a_bad_value_is_one_line_that_names_it_and_shows_a_good_one(name: str, value: str, said: str) -> None:
    text = complaint(postgres_connection_string=URL, **{name: value})
    assert "\n" not in text
    assert text.startswith(f"{name.upper()} (--{name.replace('_', '-')}): ")
    assert said in text
    assert f"for example {name.upper()}=" in text


def test_every_example_is_accepted(tmp_path: Path) -> None:
    for row in rows():
        if row.field.endswith("_file") and row.field != "state_file":
            continue
        flags: dict[str, object] = {"postgres_connection_string": URL, "allow_insecure": "true"}
        Settings.load(flags | {row.field: row.example})
        if row.default:
            Settings.load(flags | {row.field: row.default})
    assert list(tmp_path.iterdir()) == []


def test_several_bad_values_are_told_at_once_each_in_its_line() -> None:
    lines = complaint(port="x", slot_name="-").splitlines()
    assert [line.split(" ")[0] for line in lines] == ["POSTGRES_CONNECTION_STRING", "SLOT_NAME", "PORT"]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost", "LOCALHOST"])
def test_loopback_needs_no_permission(host: str) -> None:
    assert Settings.load({"postgres_connection_string": URL, "host": host}).host == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "gateway.example", "localhost.evil.example"])  # noqa: S104 (refused)
def test_anything_else_is_served_in_plaintext_only_on_purpose(host: str) -> None:
    text = complaint(postgres_connection_string=URL, host=host)
    assert text.startswith("HOST (--host)")
    assert "ALLOW_INSECURE=true" in text
    allowed = Settings.load({"postgres_connection_string": URL, "host": host, "allow_insecure": "true"})
    assert allowed.host == host


@pytest.mark.parametrize(
    "malformed",
    [
        f"nonsense {SECRET}",
        f"http://u:{SECRET}@h/db",
        f"postgres://u:{SECRET}@with@h/db",
        f"postgres://u:a/{SECRET}@h/db",
        f"postgres://u:1/{SECRET}@h/db",
        f"postgres://u:%zz{SECRET}@h/db",
        f"host=h hots=x password={SECRET}",
        f"host=h password='{SECRET}",
        f"postgres://u:{SECRET}@h:port/db",
        "   ",
    ],
)
@pytest.mark.parametrize("way", ["flag", "environment", "file"])
def test_a_malformed_connection_string_is_one_line_without_any_of_it(
    malformed: str, way: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    flags = {}
    if way == "flag":
        flags["postgres_connection_string"] = malformed
    elif way == "environment":
        monkeypatch.setenv("POSTGRES_CONNECTION_STRING", malformed)
    else:
        file = tmp_path / "dsn"
        file.write_text(malformed)
        monkeypatch.setenv("POSTGRES_CONNECTION_STRING_FILE", str(file))
    text = complaint(**flags)
    assert text.startswith("POSTGRES_CONNECTION_STRING")
    assert "\n" not in text
    assert SECRET not in text
    assert "nonsense" not in text


@given(password=st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=8))
def test_no_password_ever_makes_it_into_a_message(password: str) -> None:
    for form in ("postgres://u:{}@h/db", "host=h password={}", "{} host=h"):
        assume(password not in _said_of(form.format(SECRET)))  # such as the word Postgres
        assert password not in _said_of(form.format(password))


def _said_of(connection_string: str) -> str:
    try:
        ConnectionString("POSTGRES_CONNECTION_STRING", value=connection_string).read()
    except ConfigurationError as error:
        return str(error)
    return ""


def test_libpq_keywords_are_as_good_as_a_url() -> None:
    dsn = make_dsn(host="h", dbname="d", password="it's \\ odd")
    settings = Settings.load({"postgres_connection_string": dsn})
    assert parse_dsn(settings.postgres_connection_string.read())["password"] == "it's \\ odd"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"peer_address": "pads-1"}, "HOST:PORT"),
        ({"peer_address": "::1:10002"}, "HOST:PORT"),
        ({"peer_address": "[::1]:0"}, "HOST:PORT"),
        ({"peer_address": "pads 1:10002"}, "without port"),
        ({"peer_ca_file": "ca"}, "PEER_ADDRESS"),
        ({"peer_token_file": "token"}, "PEER_ADDRESS"),
        ({"peer_address": "p:1", "peer_ca_file": "ca", "peer_key_file": "key"}, "PEER_CERT_FILE"),
        ({"peer_address": "p:1", "peer_cert_file": "crt", "peer_key_file": "key"}, "PEER_CA_FILE"),
        ({"peer_address": "p:1", "peer_token_file": "token"}, "unencrypted"),
    ],
)
def test_what_is_wrong_with_a_peer_is_told(given: dict[str, str], said: str) -> None:
    assert said in complaint(postgres_connection_string=URL, **given)


def test_a_peer_is_anywhere() -> None:
    for address in ("pads-1:10002", "10.0.0.1:1", "[::1]:10002", "[fd00::1]:65535"):
        given = {"postgres_connection_string": URL, "peer_address": address}
        assert Settings.load(given).peer_address == address
        assert Settings.load({**given, "peer_token_file": "token", "allow_insecure": True})


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (
            f"{URL}?schema=public",
            "has the parameter schema, which Postgres does not know; take it out, and set DB_",
        ),
        (
            f"{URL}?sslmode=require&pgbouncer=true",
            "has the parameter pgbouncer, which Postgres does not know; take",
        ),
        (
            f"{URL}?connection_limit=5",
            "has the parameter connection_limit, which Postgres does not know; take it out",
        ),
        ("host=h user=u password=hunter22secret schema=public", "has the parameter schema"),
        # Here it could be a part of the password.
        ("postgresql://u:pa?hunter22secret=x@h/d?foreign=1", "is not a connection string"),
        ("postgresql://h/d?user=u&password=pa&hunter22secret=x", "is not a connection string"),
        ("postgresql://u:pa/?hunter22secret=x", "is not a connection string"),
        ("host=h user=u password=pa hunter22secret=x", "is not a connection string"),
    ],
)
def test_a_parameter_of_another_driver_is_named_unless_it_could_be_a_secret(value: str, says: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        ConnectionString("POSTGRES_CONNECTION_STRING", value=value).read()
    assert says in str(refused.value)
    assert SECRET not in str(refused.value)


def test_a_secret_comes_from_exactly_one_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "dsn"
    file.write_text(URL + "\n")
    monkeypatch.setenv("POSTGRES_CONNECTION_STRING", URL)
    monkeypatch.setenv("POSTGRES_CONNECTION_STRING_FILE", str(file))
    text = complaint()
    assert "exactly one" in text
    assert SECRET not in text
    # Another source is another matter: a flag replaces what the environment says, in either form.
    settings = Settings.load({"postgres_connection_string_file": str(file)})
    assert settings.postgres_connection_string.read() == URL


def test_a_file_is_read_again_so_that_a_password_can_be_rotated(tmp_path: Path) -> None:
    file = tmp_path / "dsn"
    file.write_text(URL)
    settings = Settings.load({"postgres_connection_string_file": str(file)})
    rotated = URL.replace(SECRET, "rotated-secret")
    file.write_text(f"  {rotated}\n")
    assert settings.postgres_connection_string.read() == rotated
    known = settings.postgres_connection_string.secrets()
    assert {SECRET, "rotated-secret"} <= known
    file.unlink()
    with pytest.raises(ConfigurationError, match="No such file"):
        settings.postgres_connection_string.read()


@pytest.mark.parametrize("content", [b"\xff\xfe", b""])
def test_a_file_without_text_is_told(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "dsn"
    file.write_bytes(content)
    assert "POSTGRES_CONNECTION_STRING_FILE" in complaint(postgres_connection_string_file=str(file))


@pytest.mark.timeout(10)
def test_a_pipe_or_a_device_is_no_file_that_can_be_read_again(tmp_path: Path) -> None:
    """The shell makes a pipe of <(command); reading it could hang, and /dev/zero has no end."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        text = complaint(postgres_connection_string_file=str(path))
        assert "it is read again at each connection" in text
        assert "POSTGRES_CONNECTION_STRING_FILE" in text
    assert "directory" in complaint(postgres_connection_string_file=str(tmp_path))


def test_a_connection_string_in_place_of_a_path_is_not_quoted() -> None:
    text = complaint(postgres_connection_string_file=URL)
    assert "give the path of a file" in text
    assert SECRET not in text


def test_a_secret_in_the_wrong_setting_is_not_quoted() -> None:
    assert SECRET not in complaint(postgres_connection_string=URL, host=URL)


@pytest.mark.parametrize("show", [repr, str, lambda settings: str(settings.model_dump())])
def test_no_form_of_the_settings_shows_a_secret(show: Callable[[Settings], str]) -> None:
    settings = Settings.load({"postgres_connection_string": URL})
    assert SECRET not in show(settings)


def test_only_declared_names_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTGRES_CONNECTION_STRING", URL)
    monkeypatch.setenv("SLOT_NAME_FILE", os.devnull)
    assert Settings.load().slot_name == "pads_cdc"


@pytest.mark.parametrize(
    ("text", "value"),
    [("500ms", 0.5), ("30s", 30.0), ("1.5m", 90.0), ("2h", 7200.0), ("1d", 86400.0), (" 5 M ", 300.0)],
)
def test_durations(text: str, value: float) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [("64MB", 64 << 20), ("1GB", 1 << 30), ("1GiB", 1 << 30), ("2 kb", 2048), ("1TB", 1 << 40)],
)
def test_sizes_are_those_of_postgres(text: str, value: int) -> None:
    assert size(text) == value


@pytest.mark.parametrize(
    "text", ["", "s", "-1s", "1e3s", "1s2m", "٣s", "9" * 400 + "s", "nan s", "0.0000000001s"]
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"duration|more than zero"):
        seconds(text)


def test_the_documentation_is_that_of_the_settings() -> None:
    written = Path(__file__).parents[3] / "docs" / "configuration.md"
    assert written.read_text(encoding="utf-8") == page(), (
        "run: python -m server.config.settings_table > docs/configuration.md"
    )


@pytest.mark.parametrize(
    ("load", "given", "way_out"),
    [
        (Settings.load, {"broker_url": "nats://b:4222"}, "BROKER_TLS_CA_FILE"),
        (Settings.load, {"peer_address": "p:1", "peer_token_file": "token"}, "PEER_CA_FILE"),
        (AuthorizeSettings.load, {"feed_addresses": "f:1", "feed_token_file": "token"}, "FEED_CA_FILE"),
        (
            AuthorizeSettings.load,
            {"feed_addresses": "f:1", "host": "192.0.2.1"},
            "TLS_CERT_FILE TLS_KEY_FILE",
        ),
    ],
)
def test_secrets_go_unencrypted_on_purpose_alone(
    load: Callable[[dict[str, Any]], object], given: dict[str, str], way_out: str
) -> None:
    """Both ways out that the message names are taken."""
    if load == Settings.load:
        given = {"postgres_connection_string": URL, **given}
    with pytest.raises(ConfigurationError, match=r" and | set |give tls://") as refused:
        load(given)
    for name in ("ALLOW_INSECURE", *way_out.split()):
        assert name in str(refused.value)
    load({**given, "allow_insecure": "true"})
    load({**given, **{name.lower(): "/file" for name in way_out.split()}})
