"""Both wheels as users get them: the client's alone in an empty environment, and both on later Pythons."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING

import pytest

from tests.plugins.decoding import plugin_settings
from tests.plugins.server import Server, end, fill
from tests.support import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from tests.plugins.postgres import Database
    from tests.plugins.server import ServerFactory

CLIENTS_OWN = {"pads-cdc-client", "grpcio", "protobuf", "typing_extensions"}
"""All that may be in the client's environment; the last one is grpcio's."""
PINS = ("grpcio", "protobuf", "typing_extensions")

CHECK = r"""
import hmac, importlib.metadata, os, pathlib, re, sys
before = dict(os.environ)
import pads_cdc_client
from pads_cdc_client import EndpointFeed
assert dict(os.environ) == before, "importing the client has changed the environment"
imported = {name.partition(".")[0] for name in sys.modules}
strangers = imported & {"cdc", "server", "authz", "psycopg2", "pydantic"}
assert not strangers, strangers
folder = pathlib.Path(pads_cdc_client.__file__).parent
assert folder.is_relative_to(sys.prefix), folder
assert (folder / "py.typed").is_file()
print("installed", *sorted(each.name for each in importlib.metadata.distributions()))

readme, address = sys.argv[1:]
[block] = [each for each in re.findall(r"```python\n(.*?)```", pathlib.Path(readme).read_text(), re.DOTALL)
           if "def authorize" in each]
block = re.sub(r'"pads-1:10002", "pads-2:10002"', repr(address), block)
names = {"hmac": hmac, "EndpointFeed": EndpointFeed, "hostname": "gateway"}
exec(compile(block, readme, "exec"), names)
authorize, feed = names["authorize"], names["feed"]
assert authorize("app_1", "key_1", None) == 503
with feed:
    assert feed.wait_ready(30)
    print("answers", *(authorize(name, key, None) for name, key in
          (("app_1", "key_1"), ("app_1", "key_2"), ("app_3", ""), ("app_11", ""))))
"""


def run(*command: str | Path, **environment: str) -> str:
    """Run a program that must succeed, outside of the checkout's reach; returns what it wrote."""
    inherited = {
        name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")
    }
    done = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        cwd="/",
        env={**inherited, "PYTHONSAFEPATH": "1", **environment},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both wheels, built from the checkout: by the name of the distribution."""
    folder = tmp_path_factory.mktemp("wheels")
    build = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation")
    run(*build, "--wheel-dir", folder, ROOT / "client", ROOT)
    return {path.name.split("-")[0]: path for path in folder.glob("*.whl")}


def empty_environment(python: str | Path, folder: Path) -> Path:
    """Make a virtual environment with nothing in it; returns its Python."""
    run(python, "-m", "venv", "--without-pip", folder)
    return folder / "bin" / "python"


def install(python: Path, *what: str | Path) -> None:
    """Install into another environment, with this one's pip."""
    pip = (sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--only-binary=:all:")
    run(*pip, *what)


def install_the_client_alone(python: Path, wheel: Path, pins: Path) -> None:
    """Let pip find what the client requires, in the versions that we have."""
    pins.write_text("".join(f"{name}=={version(name)}\n" for name in PINS), encoding="utf-8")
    install(python, wheel, "--constraint", pins)


def check_in(python: Path, server: Server) -> None:
    """Run the README's authorization check in an environment with the client alone."""
    lines = run(python, "-c", CHECK, ROOT / "README.md", f"127.0.0.1:{server.grpc}").splitlines()
    installed, answers = (line.split()[1:] for line in lines)
    assert set(installed) <= CLIENTS_OWN
    assert "pads-cdc-client" in installed
    assert answers == ["200", "401", "200", "404"]


def test_the_clients_wheel_alone_answers_the_readmes_check(
    database: Database, serve: ServerFactory, wheels: dict[str, Path], tmp_path: Path
) -> None:
    fill(database, 10)  # app_1 needs its key, app_3 none
    python = empty_environment(sys.executable, tmp_path / "environment")
    install_the_client_alone(python, wheels["pads_cdc_client"], tmp_path / "pins.txt")
    check_in(python, serve(database))


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("newer", ["3.13", "3.14"])
def test_both_wheels_run_on_later_pythons(
    database: Database, wheels: dict[str, Path], tmp_path: Path, newer: str, plugin: str
) -> None:
    fetch = subprocess.run(
        [ROOT / "scripts/fetch-python", newer], cwd=ROOT, check=False, capture_output=True, text=True
    )
    if fetch.returncode == 3:
        pytest.skip(fetch.stderr.strip())
    assert fetch.returncode == 0, fetch.stderr
    base = fetch.stdout.strip()
    fill(database, 10)
    client = empty_environment(base, tmp_path / "client")
    install_the_client_alone(client, wheels["pads_cdc_client"], tmp_path / "pins.txt")
    both = empty_environment(base, tmp_path / "both")
    install(both, "--require-hashes", "--requirement", ROOT / "requirements.txt")
    install(both, "--no-deps", *wheels.values())
    assert run(both, "-c", "import sys; print(sys.version)").startswith(f"{newer}.")
    assert run(both.with_name("pads-cdc"), "--version").startswith("pads-cdc")

    class FromWheels(Server):
        interpreter = str(both)

    server = FromWheels(
        {
            "POSTGRES_CONNECTION_STRING": database.url(),
            "PORT": "0",
            "METRICS_PORT": "0",
            "STATE_FILE": str(tmp_path / "state"),
            "LOG_FORMAT": "json",
            "PYTHONSAFEPATH": "1",  # not the checkout, which is the working folder
            **plugin_settings(plugin),
        }
    )
    try:
        check_in(client, server)
    finally:
        end(server)
