"""The dashboards: what build.py makes, of queries that Prometheus reads, over metrics that exist, with words to each panel."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from promql import promtool, unknown

from dashboards import build

DASHBOARD: dict[str, Any] = json.loads(build.OUTPUT.read_text())
PANELS = {panel["title"]: panel for panel in DASHBOARD["panels"] if panel["type"] != "row"}
GRAFANA = {"$__rate_interval": "5m"}
"""Grafana's own variables, which PromQL does not know, with a value."""


def expressions() -> Iterator[str]:
    """Every query with values for Grafana's variables."""
    texts = [target["expr"] for panel in PANELS.values() for target in panel["targets"]]
    texts += [v["query"] for v in DASHBOARD["templating"]["list"] if v["type"] == "query"]
    for text in texts:
        query = re.sub(r"^label_values\((.*), \w+\)$", r"\1", text)
        for name, value in GRAFANA.items():
            query = query.replace(name, value)
        yield query


def test_the_file_is_what_build_makes() -> None:
    assert build.OUTPUT.read_text() == build.text(), "run `make manifests` and commit"


def test_prometheus_reads_every_query(tmp_path: Path) -> None:
    """As recording rules, which promtool checks without a server."""
    rules = [{"record": f"query:{number}", "expr": text} for number, text in enumerate(expressions())]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = promtool("check", "rules", tmp_path / "rules.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(rules)} rules found" in done.stdout


@pytest.mark.parametrize("expression", sorted(set(expressions())))
def test_queries_rest_on_what_the_operator_exports(expression: str) -> None:
    assert unknown(expression) == []


@pytest.mark.parametrize("title", PANELS)
def test_a_panel_says_what_it_shows(title: str) -> None:
    panel = PANELS[title]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"]["uid"] == "${datasource}"
    assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])


def test_panels_have_ids_and_places_of_their_own() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [(p["gridPos"]["x"] + x, p["gridPos"]["y"] + y) for p in panels for x in range(p["gridPos"]["w"]) for y in range(p["gridPos"]["h"])]  # fmt: skip
    assert len(set(places)) == len(places), "panels overlap"
    assert max(x for x, _ in places) < 24, "a panel is wider than Grafana's grid"


def test_every_variable_is_used() -> None:
    text = json.dumps([*PANELS.values(), DASHBOARD["templating"]["list"]])
    for variable in DASHBOARD["templating"]["list"]:
        assert f"${variable['name']}" in text.replace("${", "$"), variable["name"]


def test_alerts_that_a_panel_names_exist() -> None:
    rules = yaml.safe_load((build.OUTPUT.parents[1] / "alerts/mlplatform.rules.yaml").read_text())
    alerts = {rule["alert"] for group in rules["groups"] for rule in group["rules"]}
    named = {name for panel in PANELS.values() for name in re.findall(r"\bML[A-Z]\w+", panel["description"])}
    assert named, "the panels about failures lead to their alerts"
    assert named - {"MLModels"} <= alerts
