"""The alerts: promtool's own checks and tests, and that nothing was forgotten in them or in the runbook."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING, Any, NoReturn

import yaml
from pads_cdc_client import EndpointFeed

from authz.held import Held
from authz.metrics import CheckMetrics as AuthorizerMetrics
from authz.workers import Supervisor
from cdc.freshness import Freshness
from cdc.store.store import Store
from server.observe.metrics import Metrics
from server.subscribers import Subscribers
from tests.plugins.prometheus import RULES
from tests.support import ROOT

if TYPE_CHECKING:
    from pathlib import Path

TESTS = RULES.with_name("pads-cdc.rules.test.yml")
RUNBOOK = ROOT / "docs/runbook.md"
FOREIGN = {
    "pads_cdc_auth_failures_total",
    "pads_cdc_tls_certificate_expiry_timestamp_seconds",
    "pads_cdc_peer_connected",
    "pads_cdc_standing_by",
    "pads_cdc_broker_connected",
    "pads_cdc_broker_fenced_total",
    "pads_cdc_relay_connected",
    "pads_cdc_relay_chain_breaks_total",
    "pads_cdc_relay_digest_mismatches_total",
    "up",
    "process_start_time_seconds",
    "pg_replication_slot_slot_is_active",
    "pg_replication_slot_safe_wal_size_bytes",
}
"""Metrics that the rules take from `server.security`, `PairGauges`, `server.broker.gauges`,
Prometheus, its client library and postgres_exporter.
"""


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def names() -> list[str]:
    return [rule["alert"] for rule in rules()]


def promtool(programs: Path, *arguments: str | Path) -> None:
    done = subprocess.run(
        [programs / "promtool", *arguments], check=False, capture_output=True, text=True, cwd=RULES.parent
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_finds_nothing_wrong(prometheus_programs: Path) -> None:
    promtool(prometheus_programs, "check", "rules", RULES)


def test_each_alert_fires_when_it_should_and_is_silent_when_it_should(prometheus_programs: Path) -> None:
    promtool(prometheus_programs, "test", "rules", TESTS)


def test_every_alert_has_a_case_that_fires_and_one_that_does_not() -> None:
    fired: set[str] = set()
    for test in yaml.safe_load(TESTS.read_text())["tests"]:
        checks = test.get("promql_expr_test", [])
        firing = {
            re.sub(r'.*"(\w+)".*', r"\1", sample["labels"])
            for check in checks
            for sample in check["exp_samples"]
        }
        assert not firing or any(not check["exp_samples"] for check in checks), (
            f"never silent: {test['name']}"
        )
        fired |= firing
    assert fired == set(names())


def test_every_alert_says_what_it_is_and_has_its_section_in_the_runbook() -> None:
    sections = re.findall(r"^## (PadsCdc\w+)$", RUNBOOK.read_text(), flags=re.MULTILINE)
    assert sections == names(), "in the order of the rules"
    for rule in rules():
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"]["runbook"] == f"docs/runbook.md#{rule['alert'].lower()}"
        assert rule["annotations"].keys() == {"summary", "description", "runbook"}


def test_every_section_of_the_runbook_has_its_three_parts() -> None:
    text = RUNBOOK.read_text()
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        for part in ("**Means**", "**Look at**", "**Type**"):
            assert part in section, f"{section.splitlines()[0]} lacks {part}"
    for target in re.findall(r"\]\(#(\w+)\)", text):
        assert target in {name.lower() for name in names()}


async def starts_nothing(_number: int, _late: bool) -> NoReturn:
    """Stand in for what starts workers."""
    raise NotImplementedError


def test_the_rules_ask_only_for_metrics_that_exist() -> None:
    registry = Metrics(
        version="1", store=Store(), freshness=Freshness(), subscribers=Subscribers(), audit_interval=300.0
    ).registry
    held = Held(lambda told: EndpointFeed("127.0.0.1:9", client_id="test", on_change=told), None)
    registries = (registry, AuthorizerMetrics("1", held).registry, Supervisor(1, starts_nothing).registry)
    ours = {
        f"{family.name}{suffix}"
        for each in registries
        for family in each.collect()
        for suffix in ("", "_total", "_bucket")
    }
    for rule in rules():
        asked = set(re.findall(r"\b((?:pads_cdc|pg|process)_\w+|up)\b(?!\.)", rule["expr"]))
        assert asked, rule["alert"]
        assert asked <= ours | FOREIGN, rule["alert"]
