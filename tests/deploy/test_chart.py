"""The Helm chart: rendered, held against Kubernetes' own schemas, and against what the server can do."""

from __future__ import annotations

from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from gotpl.errors import TemplateError

from server.config.authorize_settings import AuthorizeSettings
from server.config.settings import RelaySettings, Settings
from tests.deploy.chart import CHART, only, render, values
from tests.plugins.prometheus import RULES
from tests.support import ROOT

OPEN: dict[str, Any] = {"database__existingSecret": "portal", "grpc__allowInsecure": True}
CLOSED: dict[str, Any] = {
    "database__existingSecret": "portal",
    "database__queryKey": "replica",
    "grpc__tls__existingSecret": "certificate",
    "grpc__tls__clientCertificates": True,
    "grpc__authTokens__existingSecret": "tokens",
}
FULL: dict[str, Any] = {
    **CLOSED,
    "monitoring__serviceMonitor": True,
    "monitoring__prometheusRule": True,
    "monitoring__dashboard": True,
    "monitoring__labels": {"release": "prometheus"},
    "settings": {"AUDIT_INTERVAL": "10m", "LOGGER_LEVEL": "debug"},
    "imagePullSecrets": [{"name": "registry"}],
    "podAnnotations": {"a": "b"},
    "nodeSelector": {"zone": "a"},
    "tolerations": [{"key": "database", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "priorityClassName": "important",
    "persistence__storageClass": "fast",
    "networkPolicy__database": [{"ipBlock": {"cidr": "10.1.2.3/32"}}],
    "image__tag": "1.2.3",
    "peer__address": "pads-cdc-other:10002",
}
RELAYED: dict[str, Any] = {
    **CLOSED,
    "broker__url": "tls://nats.nats:4222",
    "broker__replicas": 3,
    "broker__existingSecret": "nats",
    "broker__credentials": True,
    "broker__ca": True,
    "broker__seal": True,
    "relay__enabled": True,
    "relay__settings": {"MAX_STALENESS": "10m"},
}
AUTHORIZING: dict[str, Any] = {
    **CLOSED,
    "authorizer__enabled": True,
    "authorizer__feed__existingSecret": "feed",
    "authorizer__feed__ca": True,
    "authorizer__feed__token": True,
    "authorizer__feed__clientCertificate": True,
    "authorizer__tls__existingSecret": "envoy-side",
    "authorizer__tls__clientCertificates": True,
    "authorizer__settings": {"JWT_SUBJECT_HEADER": "jwt-user-id", "WORKERS": "2"},
}
BESIDE: dict[str, Any] = {
    **OPEN,
    "authorizer__enabled": True,
    "authorizer__envoy__existingConfigMap": "envoy",
}
CUSTOM = ("monitoring.coreos.com/v1",)
"""API versions of the Prometheus operator: Kubernetes has no schema of them."""


def container(manifests: list[dict[str, Any]]) -> dict[str, Any]:
    [one] = only(manifests, "StatefulSet")["spec"]["template"]["spec"]["containers"]
    assert isinstance(one, dict)
    return one


def environment(manifests: list[dict[str, Any]]) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in container(manifests)["env"]}


@pytest.mark.parametrize("version", ["1.26", "1.31", kubernetes_validate.latest_version()])
@pytest.mark.parametrize(
    "given",
    [OPEN, CLOSED, FULL, RELAYED, AUTHORIZING, BESIDE],
    ids=["open", "closed", "full", "relayed", "authorizing", "beside"],
)
def test_kubernetes_would_take_it(given: dict[str, Any], version: str) -> None:
    manifests = render(**given)
    assert {"StatefulSet", "Service", "NetworkPolicy"} <= {one["kind"] for one in manifests}
    for manifest in manifests:
        assert manifest["metadata"]["labels"]["app.kubernetes.io/name"] == "pads-cdc"
        if manifest["apiVersion"] not in CUSTOM:
            kubernetes_validate.validate(manifest, version, strict=True)


def test_it_wants_to_be_told_where_the_database_is_and_how_grpc_is_protected() -> None:
    with pytest.raises(TemplateError, match="name the secret that holds the connection string"):
        render(grpc__allowInsecure=True)
    for half in ({}, {"grpc__authTokens__existingSecret": "t"}, {"grpc__tls__existingSecret": "c"}):
        with pytest.raises(TemplateError, match="gRPC hands out API keys"):
            render(database__existingSecret="portal", **half)


def test_a_value_with_a_typing_error_is_refused() -> None:
    for wrong in ({"grpc__allowInsecur": True}, {"slotName": "Pads-CDC"}, {"settings": {"audit": "5m"}}):
        with pytest.raises(jsonschema.ValidationError):
            values(**wrong)
    with pytest.raises(jsonschema.ValidationError):
        values(settings={"POSTGRES_CONNECTION_STRING": "it belongs into a secret"})


@pytest.mark.parametrize("given", [OPEN, FULL], ids=["open", "full"])
def test_it_sets_what_the_server_knows_and_no_secret(given: dict[str, Any]) -> None:
    known = {name.upper() for name in Settings.model_fields}
    known |= {f"{name.upper()}_FILE" for name in Settings.secrets()}
    set_here = environment(render(**given))
    assert set(set_here) <= known
    assert not any("://" in value for value in set_here.values())
    mounted = {mount["mountPath"] for mount in container(render(**given))["volumeMounts"]}
    files = {value for name, value in set_here.items() if name.endswith("_FILE")}
    assert all(any(file.startswith(f"{folder}/") for folder in mounted) for file in files)


def test_it_listens_where_its_service_and_its_probes_ask() -> None:
    manifests = render(**OPEN, grpc__port=12345)
    pod = container(manifests)
    ports = {port["name"]: port["containerPort"] for port in pod["ports"]}
    assert ports == {"grpc": 12345, "metrics": 9090}
    assert environment(manifests)["PORT"] == "12345"
    assert environment(manifests)["METRICS_PORT"] == "9090"
    assert {port["targetPort"] for port in only(manifests, "Service")["spec"]["ports"]} == set(ports)
    asked = {probe: pod[probe]["httpGet"] for probe in ("readinessProbe", "livenessProbe")}
    assert asked == {
        "readinessProbe": {"path": "/readyz", "port": "metrics"},
        "livenessProbe": {"path": "/livez", "port": "metrics"},
    }


def test_an_update_does_not_wait_for_itself() -> None:
    """The old pod ends before the new one starts, and the volume stays."""
    spec = only(render(**OPEN), "StatefulSet")["spec"]
    assert spec["replicas"] == 1
    [claim] = spec["volumeClaimTemplates"]
    assert claim["metadata"]["name"] == "state"
    assert "podManagementPolicy" not in spec
    mounts = {mount["name"]: mount["mountPath"] for mount in container(render(**OPEN))["volumeMounts"]}
    assert mounts["state"] == "/var/lib/pads-cdc"
    assert "STATE_FILE=/var/lib/pads-cdc/" in (ROOT / "Dockerfile").read_text()


def test_it_runs_as_the_images_user_with_nothing_to_write_to_but_its_volume() -> None:
    pod = only(render(**OPEN), "StatefulSet")["spec"]["template"]["spec"]
    assert "USER 10001:10001" in (ROOT / "Dockerfile").read_text()
    assert pod["securityContext"]["runAsUser"] == pod["securityContext"]["fsGroup"] == 10001
    assert pod["automountServiceAccountToken"] is False
    own = container(render(**OPEN))["securityContext"]
    assert own["readOnlyRootFilesystem"] is True
    assert own["capabilities"] == {"drop": ["ALL"]}


def test_the_network_policy_lets_nobody_in_where_nobody_is_named() -> None:
    assert len(only(render(**OPEN), "NetworkPolicy")["spec"]["ingress"]) == 2
    closed = render(**OPEN, networkPolicy__gateways=[], networkPolicy__monitoring=[])
    assert not only(closed, "NetworkPolicy")["spec"]["ingress"]
    off = render(**OPEN, networkPolicy__enabled=False)
    assert "NetworkPolicy" not in {one["kind"] for one in off}


def test_a_pair_may_talk_and_nobody_is_let_in_for_it_who_is_alone() -> None:
    nobody = {**OPEN, "networkPolicy__gateways": [], "networkPolicy__monitoring": []}
    paired = render(**nobody, peer__address="pads-cdc-other:10002")
    assert environment(paired)["PEER_ADDRESS"] == "pads-cdc-other:10002"
    policy = only(paired, "NetworkPolicy")["spec"]
    assert [rule["ports"] for rule in policy["ingress"]] == [[{"port": "grpc"}]]
    assert len(policy["egress"]) == len(only(render(**OPEN), "NetworkPolicy")["spec"]["egress"]) + 1
    assert "PEER_ADDRESS" not in environment(render(**OPEN))


def relay_environment(manifests: list[dict[str, Any]]) -> dict[str, str]:
    [one] = only(manifests, "Deployment")["spec"]["template"]["spec"]["containers"]
    assert one["args"] == ["relay"]
    files = {entry["value"] for entry in one["env"] if entry["name"].endswith("_FILE")}
    mounted = {mount["mountPath"] for mount in one["volumeMounts"]}
    assert all(any(file.startswith(f"{folder}/") for folder in mounted) for file in files)
    return {entry["name"]: entry["value"] for entry in one["env"]}


def test_relays_are_a_deployment_that_grows_and_the_leader_stays_what_it_is() -> None:
    manifests = render(**RELAYED)
    known = {name.upper() for name in RelaySettings.model_fields}
    asked = relay_environment(manifests)
    assert set(asked) <= known
    assert asked["BROKER_URL"] == environment(manifests)["BROKER_URL"] == "tls://nats.nats:4222"
    assert environment(manifests)["BROKER_REPLICAS"] == "3"
    assert asked["MAX_STALENESS"] == "10m"
    assert only(manifests, "StatefulSet")["spec"]["replicas"] == 1
    relay = only(manifests, "Deployment")
    assert (
        only(manifests, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]["name"]
        == relay["metadata"]["name"]
    )
    labels = relay["spec"]["template"]["metadata"]["labels"]
    assert only(manifests, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"].items() <= labels.items()
    services = {one["metadata"]["name"]: one["spec"] for one in manifests if one["kind"] == "Service"}
    assert services["pads-cdc-relay"]["selector"].items() <= labels.items()
    assert not services["pads-cdc"]["selector"].items() <= labels.items(), "a relay is not the leader"


def test_a_relay_without_anything_to_follow_is_refused() -> None:
    with pytest.raises(TemplateError, match=r"broker\.url"):
        render(**OPEN, relay__enabled=True)
    direct = render(**OPEN, relay__enabled=True, relay__leaderAddress="pads-cdc:10002")
    assert relay_environment(direct)["LEADER_ADDRESS"] == "pads-cdc:10002"
    assert "BROKER_URL" not in relay_environment(direct)


def authorizer(manifests: list[dict[str, Any]]) -> dict[str, Any]:
    """The Deployment's pod, whose files are all mounted and whose settings are all known."""
    pod: dict[str, Any] = only(manifests, "Deployment")["spec"]["template"]
    one = pod["spec"]["containers"][0]
    assert one["args"] == ["authorize"]
    known = {name.upper() for name in AuthorizeSettings.model_fields}
    given = {entry["name"]: entry["value"] for entry in one["env"]}
    assert set(given) <= known
    mounted = {mount["mountPath"] for mount in one["volumeMounts"]}
    files = {value for name, value in given.items() if name.endswith("_FILE")}
    assert all(any(file.startswith(f"{folder}/") for folder in mounted) for file in files)
    AuthorizeSettings.load({"host": "0.0.0.0", **{name.lower(): value for name, value in given.items()}})  # noqa: S104
    return {"labels": pod["metadata"]["labels"], "env": given, "containers": pod["spec"]["containers"]}


def test_authorizers_are_a_deployment_that_envoy_finds_by_name() -> None:
    manifests = render(**AUTHORIZING)
    pod = authorizer(manifests)
    assert pod["env"]["FEED_ADDRESSES"] == "pads-cdc:10002", "this release's server"
    assert pod["env"]["JWT_SUBJECT_HEADER"] == "jwt-user-id"
    services = {one["metadata"]["name"]: one["spec"] for one in manifests if one["kind"] == "Service"}
    service = services["pads-cdc-authorizer"]
    assert service["clusterIP"] == "None", "so that Envoy sees every pod"
    assert service["selector"].items() <= pod["labels"].items()
    assert not services["pads-cdc"]["selector"].items() <= pod["labels"].items()
    policies = {one["metadata"]["name"]: one["spec"] for one in manifests if one["kind"] == "NetworkPolicy"}
    let_in = [peer for rule in policies["pads-cdc"]["ingress"] for peer in rule["from"]]
    assert any(
        peer["podSelector"].get("matchLabels", {}) == service["selector"]
        for peer in let_in
        if "podSelector" in peer
    )
    assert policies["pads-cdc-authorizer"]["egress"][1]["ports"] == [{"port": 10002}]


def test_an_authorizer_beside_its_envoy_is_reached_by_nobody_else() -> None:
    manifests = render(**BESIDE)
    pod = authorizer(manifests)
    assert pod["env"]["HOST"] == "127.0.0.1"
    [envoy] = pod["containers"][1:]
    assert envoy["ports"][0]["containerPort"] == 3070
    services = {one["metadata"]["name"]: one["spec"] for one in manifests if one["kind"] == "Service"}
    assert [port["name"] for port in services["pads-cdc-authorizer"]["ports"]] == ["http", "metrics"]


def test_an_authorizer_whose_callers_keys_would_travel_in_plaintext_is_refused() -> None:
    with pytest.raises(TemplateError, match=r"authorizer\.tls"):
        render(**OPEN, authorizer__enabled=True)
    assert render(**OPEN, authorizer__enabled=True, authorizer__allowInsecure=True)


def test_rules_and_dashboard_are_the_projects_own_and_the_job_has_the_rules_name() -> None:
    manifests = render("some-release", **FULL)
    assert only(manifests, "PrometheusRule")["spec"] == yaml.safe_load(RULES.read_text())
    dashboard = only(manifests, "ConfigMap")["data"]["pads-cdc.json"]
    assert dashboard.strip() == (ROOT / "deploy/grafana/pads-cdc.json").read_text().strip()
    assert only(manifests, "ServiceMonitor")["spec"]["jobLabel"] == "app.kubernetes.io/name"
    assert only(manifests, "Service")["metadata"]["labels"]["app.kubernetes.io/name"] == "pads-cdc"
    assert {one["metadata"]["labels"].get("release") for one in manifests if one["apiVersion"] in CUSTOM} == {
        "prometheus"
    }


def test_two_releases_do_not_collide() -> None:
    east, west = render("east", **FULL), render("west", **FULL)
    names = [{(one["kind"], one["metadata"]["name"]) for one in release} for release in (east, west)]
    assert not names[0] & names[1]
    selectors = [only(release, "Service")["spec"]["selector"] for release in (east, west)]
    assert selectors[0] != selectors[1]


def test_the_chart_has_the_servers_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert f'version = "{chart["appVersion"]}"' in (ROOT / "pyproject.toml").read_text()
