"""The alerts: sound rules over metrics that exist, each with a test that fires, one that does not, and a runbook."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from promql import TARGET_LABELS, exported, promtool, selectors, unknown

from mlplatform.cli.main import parser

REPOSITORY = Path(__file__).parents[2]
RULES = REPOSITORY / "alerts/mlplatform.rules.yaml"
TESTS = sorted((REPOSITORY / "alerts/tests").glob("*.yaml"))
RUNBOOKS = sorted(p for p in (REPOSITORY / "docs/runbooks").glob("*.md") if p.name != "README.md")


@cache
def alerts() -> dict[str, dict[str, Any]]:
    """Every rule by its alert's name."""
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


@cache
def cases() -> list[dict[str, Any]]:
    """Every test of promtool."""
    return [test for path in TESTS for test in yaml.safe_load(path.read_text())["tests"]]


def test_promtool_takes_the_rules() -> None:
    done = promtool("check", "rules", "--lint=all", "--lint-fatal", RULES)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", TESTS, ids=lambda path: str(path.stem))
def test_promtool_passes(path: Path) -> None:
    done = promtool("test", "rules", path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", alerts())
def test_every_alert_has_a_firing_and_a_silent_case(name: str) -> None:
    checks = [check for case in cases() for check in case["alert_rule_test"] if check["alertname"] == name]
    assert {bool(check["exp_alerts"]) for check in checks} == {True, False}


@pytest.mark.parametrize("name", alerts())
def test_alerts_rest_on_what_the_operator_exports(name: str) -> None:
    assert unknown(alerts()[name]["expr"]) == []


def test_the_series_of_the_cases_are_like_the_operators() -> None:
    """With labels that it does not give, a case would show nothing."""
    known = {**exported(), "up": set[str]()}
    for case in cases():
        for series in case["input_series"]:
            ((name, labels),) = selectors(series["series"])
            assert known[name] <= labels <= known[name] | TARGET_LABELS, f"{case['name']}: {series['series']}"


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ('sum by (kind) (rate(mlplatform_writes_total{kind="Job"}[5m])) > 1', "no such metric"),
        ("mlplatform_stage_seconds > 1", "a histogram has no sample of its plain name"),
        ('mlplatform_model_condition{condition="Ready"} == 1', "no such label"),
        ('{job="mlplatform"} and up == 1', "a selector without a name"),
    ],
)
def test_what_does_not_exist_is_found(expression: str, reason: str) -> None:
    assert len(unknown(expression)) == 1, reason


@pytest.mark.parametrize("name", alerts())
def test_an_alert_says_what_is_wrong_and_what_to_do(name: str) -> None:
    rule = alerts()[name]
    notes = rule["annotations"]
    assert set(rule["labels"]) == {"severity"}
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert set(notes) == {"summary", "description", "runbook"}
    assert "Next: kubectl " in notes["description"]
    if "by (namespace, model)" in rule["expr"]:
        assert all(
            f"$labels.{label}" in notes[key] for label in ("namespace", "model") for key in ("summary", "description")
        )


def test_alerts_and_runbooks_belong_to_each_other() -> None:
    assert {rule["annotations"]["runbook"] for rule in alerts().values()} == {
        str(p.relative_to(REPOSITORY)) for p in RUNBOOKS
    }
    for name, rule in alerts().items():
        assert rule["annotations"]["runbook"] == f"docs/runbooks/{name}.md"
        assert (REPOSITORY / rule["annotations"]["runbook"]).read_text().startswith(f"# {name}\n\n**Meaning.** ")


def test_the_list_of_runbooks_has_every_alert_with_its_severity() -> None:
    text = (REPOSITORY / "docs/runbooks/README.md").read_text()
    listed = dict(re.findall(r"^\| \[(\w+)\]\(\1\.md\) \| (\w+) \|", text, re.MULTILINE))
    assert listed == {name: rule["labels"]["severity"] for name, rule in alerts().items()}


def commands() -> Iterator[str]:
    """Every `kubectl mlmodel …` that an alert or a runbook tells people to run, with names for the placeholders."""
    texts = [rule["annotations"]["description"] for rule in alerts().values()] + [p.read_text() for p in RUNBOOKS]
    for text in texts:
        for command in re.findall(r"kubectl mlmodel ([^`;\n]+)", text):
            yield re.sub(r"<\w+>|\{\{ \$labels\.\w+ \}\}", "x", command)


@pytest.mark.parametrize("command", sorted(set(commands())))
def test_the_plugin_knows_the_commands(command: str) -> None:
    parser().parse_args(shlex.split(command))
