#!/usr/bin/env python3
"""Writes the dashboard pads-cdc.json from panels.toml. A test fails if the JSON is stale."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

HERE = Path(__file__).parent
DASHBOARD = HERE / "pads-cdc.json"
WIDTH = 24
"""Width of Grafana's grid."""
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
OURS = 'job=~"$job", instance=~"$instance"'


@dataclass(frozen=True)
class Panel:
    """One panel of panels.toml, where its fields are described."""

    title: str
    queries: list[list[str]]
    text: str = ""
    kind: Literal["stat", "timeseries", "heatmap", "state-timeline"] = "timeseries"
    unit: str = "short"
    width: int = 8
    height: int = 8
    steps: list[list[Any]] = field(default_factory=lambda: [["green"]])
    stacked: bool = False
    most: float | None = None


def dashboard() -> dict[str, Any]:
    """Return Grafana's JSON model. It has no uid and no id: Grafana assigns them at the import."""
    panels: list[dict[str, Any]] = []
    y = 0
    for row in tomllib.loads((HERE / "panels.toml").read_text())["row"]:
        panels.append(
            {
                "id": len(panels) + 1,
                "type": "row",
                "title": row["title"],
                "collapsed": False,
                "panels": [],
                "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1},
            }
        )
        x, y, tallest = 0, y + 1, 0
        for panel in (Panel(**given) for given in row["panel"]):
            if x + panel.width > WIDTH:
                x, y, tallest = 0, y + tallest, 0
            place = {"x": x, "y": y, "w": panel.width, "h": panel.height}
            panels.append({"id": len(panels) + 1, "gridPos": place, **_panel(panel)})
            x, tallest = x + panel.width, max(tallest, panel.height)
        y += tallest
    return {
        "title": "pads-cdc",
        "description": "Is every gateway's copy of who-may-call-what current, and if not, why not?",
        "tags": ["pads-cdc"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": _variables()},
        "annotations": {"list": []},
        "panels": panels,
    }


def _panel(panel: Panel) -> dict[str, Any]:
    steps = [{"color": color, "value": value[0] if value else None} for color, *value in panel.steps]
    defaults: dict[str, Any] = {
        "unit": panel.unit,
        "min": 0,
        "thresholds": {"mode": "absolute", "steps": steps},
        "color": {"mode": "thresholds" if panel.kind in ("stat", "state-timeline") else "palette-classic"},
        "custom": {},
    }
    if panel.most is not None:
        defaults["max"] = panel.most
    options: dict[str, Any] = {}
    match panel.kind:
        case "stat":
            options = {
                "colorMode": "background",
                "graphMode": "area",
                "reduceOptions": {"calcs": ["lastNotNull"]},
            }
        case "timeseries":
            defaults["custom"] = {
                "fillOpacity": 10,
                "showPoints": "never",
                "stacking": {"mode": "normal" if panel.stacked else "none"},
                "thresholdsStyle": {"mode": "dashed" if len(steps) > 1 else "off"},
            }
            options = {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}}
        case "heatmap":
            options = {
                "calculate": False,
                "color": {"mode": "scheme", "scheme": "Blues", "steps": 64},
                "yAxis": {"unit": panel.unit},
                "cellGap": 1,
                "tooltip": {"mode": "single", "yHistogram": True},
            }
        case "state-timeline":
            options = {
                "mergeValues": True,
                "showValue": "never",
                "legend": {"displayMode": "list", "placement": "bottom"},
            }
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.text,
        "datasource": SOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": [
            {
                "refId": chr(ord("A") + number),
                "datasource": SOURCE,
                "expr": _of_ours(query),
                "legendFormat": legend,
                "format": "heatmap" if panel.kind == "heatmap" else "time_series",
            }
            for number, (query, legend) in enumerate(panel.queries)
        ],
    }


def _of_ours(query: str) -> str:
    return re.sub(r"\{([^{}]*)\}", lambda own: "{" + (f"{own[1]}, " if own[1] else "") + OURS + "}", query)


def _variables() -> list[dict[str, Any]]:
    def label(name: str, metric: str) -> dict[str, Any]:
        query = f"label_values({metric}, {name})"
        return {
            "name": name,
            "label": name,
            "type": "query",
            "datasource": SOURCE,
            "query": {"query": query, "refId": name},
            "definition": query,
            "refresh": 2,
            "multi": True,
            "includeAll": True,
            "allValue": ".*",
            "current": {"text": "All", "value": "$__all"},
        }

    return [
        {
            "name": "datasource",
            "label": "Prometheus",
            "type": "datasource",
            "query": "prometheus",
            "refresh": 1,
        },
        label("job", "pads_cdc_build_info"),
        label("instance", 'pads_cdc_build_info{job=~"$job"}'),
    ]


def text() -> str:
    """Return the content of pads-cdc.json."""
    return json.dumps(dashboard(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    DASHBOARD.write_text(text())
