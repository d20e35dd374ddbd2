"""The compose file and what it mounts: valid, complete, closed to other machines."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.config.authorize_settings import AuthorizeSettings
from server.config.settings import Settings
from tests.support import ROOT

DEPLOY = ROOT / "deploy"
FILE = DEPLOY / "compose.yaml"
PROGRAMS = Path(sys.executable).parent
"""Those that pip has installed with us."""


def services() -> dict[str, dict[str, Any]]:
    read: dict[str, dict[str, Any]] = yaml.safe_load(FILE.read_text())["services"]
    return read


def test_it_fits_the_compose_specification() -> None:
    done = subprocess.run(
        [PROGRAMS / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", FILE],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_it_builds_from_and_mounts_is_there() -> None:
    for name, service in services().items():
        if "build" in service:
            assert (DEPLOY / service["build"] / "Dockerfile").exists(), name
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (DEPLOY / source).exists(), f"{name}: {source}"
            else:
                assert source in yaml.safe_load(FILE.read_text())["volumes"]


def test_nothing_listens_beyond_this_machine_and_no_password_is_written_down() -> None:
    for name, service in services().items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name
        assert "latest" not in service.get("image", "x:1").split(":"), name
        assert ":" in service.get("image", "x:1"), name
    for line in FILE.read_text().splitlines():
        if "PASSWORD" in line and not line.lstrip().startswith(("#", "export")):
            assert "${" in line, line


def test_the_authorizer_is_set_up_with_settings_that_it_knows_where_envoy_asks() -> None:
    known = {name.upper() for name in AuthorizeSettings.model_fields}
    given = services()["authorizer"]["environment"]
    assert set(given) <= known
    settings = AuthorizeSettings.load({name.lower(): value for name, value in given.items()})
    envoy = (DEPLOY / "envoy/envoy.yaml").read_text()
    assert f"port_value: {settings.port}}}" in envoy
    upstream = services()["upstream"]["entrypoint"][-1]
    assert f"port_value: {upstream}}}" in envoy
    published = services()["authorizer"]["ports"][0].rpartition(":")[2]
    assert f"{{address: 0.0.0.0, port_value: {published}}}" in envoy
    for beside in ("envoy", "upstream"):
        assert services()[beside]["network_mode"] == "service:authorizer"


def test_the_server_is_set_up_with_settings_that_it_knows() -> None:
    known = {name.upper() for name in Settings.model_fields}
    known |= {f"{name.upper()}_FILE" for name in Settings.secrets()}
    assert set(services()["pads-cdc"]["environment"]) <= known


def test_promtool_takes_the_configuration(prometheus_programs: Any) -> None:
    done = subprocess.run(
        [prometheus_programs / "promtool", "check", "config", DEPLOY / "prometheus/prometheus.yml"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    scraped = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())["scrape_configs"]
    assert scraped[0]["job_name"] == "pads-cdc", "the rules look for it"
    for job in scraped:
        named = [name for found in job.get("dns_sd_configs", ()) for name in found["names"]]
        for target in (*job["static_configs"][0]["targets"], *named):
            assert target.split(":")[0] in services()


@pytest.mark.parametrize(
    "path", sorted((DEPLOY / "grafana/provisioning").rglob("*.yaml")), ids=lambda one: one.stem
)
def test_grafana_is_given_its_data_source_and_its_dashboard(path: Any) -> None:
    given = yaml.safe_load(path.read_text())
    assert given["apiVersion"] == 1
    mounted = [volume.split(":")[1] for volume in services()["grafana"]["volumes"]]
    for provider in given.get("providers", ()):
        assert f"{provider['options']['path']}/pads-cdc.json" in mounted
    for source in given.get("datasources", ()):
        assert source["url"] == "http://prometheus:9090"
