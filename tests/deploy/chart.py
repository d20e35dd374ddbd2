"""Renders the Helm chart as `helm template` would, as far as our templates go: no package brings a helm.

The template language with its functions is gotpl's; what Helm adds (values, their schema, files) is here.
"""

from __future__ import annotations

from typing import Any

import jsonschema
import yaml
from gotpl.exts.helm import HelmTemplateEngine

from tests.support import ROOT

CHART = ROOT / "deploy/helm/pads-cdc"


class _Files:
    """Helm's .Files, of which the templates call Get."""

    def Get(self, name: str) -> str:  # noqa: N802 (Helm's name)
        return (CHART / name).read_text()


def values(**overrides: Any) -> dict[str, Any]:
    """The chart's values with these on top, by dotted names with __ for the dot; held against the schema."""
    given: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
    for name, value in overrides.items():
        *path, last = name.split("__")
        place = given
        for step in path:
            place = place[step]
        place[last] = value
    jsonschema.validate(given, yaml.safe_load((CHART / "values.schema.json").read_text()))
    return given


def render(release: str = "pads-cdc", **overrides: Any) -> list[dict[str, Any]]:
    """Return all manifests."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    context = {
        "Values": values(**overrides),
        "Release": {"Name": release, "Namespace": "portal", "Service": "Helm"},
        "Chart": {"Name": chart["name"], "Version": chart["version"], "AppVersion": chart["appVersion"]},
        "Files": _Files(),
    }
    sources = {path.name: path.read_text() for path in (CHART / "templates").iterdir()}
    rendered = HelmTemplateEngine.from_sources(sources).render(
        {name: context for name in sources if name.endswith((".yaml", ".txt"))}
    )
    manifests = []
    for name, text in sorted(rendered.items()):
        assert "<no value>" not in text, name
        if name.endswith(".yaml"):
            manifests += [one for one in yaml.safe_load_all(text) if one]
        else:
            assert "pads-cdc" in text
    return manifests


def only(manifests: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """Return the one manifest of a kind."""
    [one] = [manifest for manifest in manifests if manifest["kind"] == kind]
    return one
