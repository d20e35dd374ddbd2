"""The documents: what they link to is there, and they name no metric that is not."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from pads_cdc_client import EndpointFeed

from authz.held import Held
from authz.metrics import CheckMetrics as AuthorizerMetrics
from authz.workers import Supervisor
from cdc.freshness import Freshness
from cdc.relay.intake import Received
from cdc.relay.leader import LeaderFreshness
from cdc.store.store import Store
from server.broker.gauges import PublishedGauges, ReceivedGauges
from server.broker.publishing import PublishingCounts
from server.observe.log_counters import LogCounters
from server.observe.metrics import Metrics
from server.subscribers import Subscribers
from tests.deploy.test_rules import starts_nothing
from tests.support import ROOT

if TYPE_CHECKING:
    from pathlib import Path

DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
OF_SECURITY = {"pads_cdc_auth_failures_total", "pads_cdc_tls_certificate_expiry_timestamp_seconds"}


def anchors(document: Path) -> set[str]:
    """What its headings can be linked to as, by GitHub's rule."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda one: one.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        to = document.parent / path if path else document
        assert to.exists(), f"{document.name}: {target}"
        if anchor and to.suffix == ".md":
            assert anchor in anchors(to), f"{document.name}: {target}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda one: one.name)
def test_metrics_that_are_named_are_there(document: Path) -> None:
    registry = Metrics(
        version="1", store=Store(), freshness=Freshness(), subscribers=Subscribers(), audit_interval=300.0
    ).registry
    registry.register(LogCounters(lambda: 0))
    registry.register(PublishedGauges(PublishingCounts(), Store()))
    registry.register(ReceivedGauges(Received(), LeaderFreshness()))
    held = Held(lambda told: EndpointFeed("127.0.0.1:9", client_id="test", on_change=told), None)
    registries = (registry, AuthorizerMetrics("1", held).registry, Supervisor(1, starts_nothing).registry)
    known = {
        f"{family.name}{suffix}"
        for each in registries
        for family in each.collect()
        for suffix in ("", "_total", "_bucket", "_sum", "_count")
    }
    named = set(re.findall(r"\bpads_cdc_\w+(?:_total|_seconds|_bytes)\b", document.read_text()))
    assert named <= known | OF_SECURITY, document.name
