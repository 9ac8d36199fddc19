"""What GitOps tools make of the two kinds, moment by moment of a model's life.

The tools' own code judges: kstatus from its Go module, and Argo CD's Lua interpreter with the script of docs/gitops.md
(tests/contract/gitops). The lives are those that the operator leads in the cluster in memory.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import yaml
from contract.modules import program
from unit.operator_world import SPEC, Fake, Operator, Scenario, mlmodel, play, retried, run, without_data

from mlplatform import api
from mlplatform.cli.view import Outcome, model_view
from mlplatform.snapshot import Object

DOCUMENT = Path(__file__).parents[2] / "docs" / "gitops.md"
KINDS = ("MLModel", "ModelVersion")
GATED = {**SPEC, "gates": [{"metric": "roc_auc", "min": 0.95}]}
SECOND = {**SPEC, "gates": [{"metric": "roc_auc", "min": 0.9}]}
V1, V2 = (api.version_name("adult", api.decode(api.MLModelSpec, spec)) for spec in (SPEC, SECOND))


@dataclass
class Recorder(Fake):
    """A cluster that keeps every state of our own kinds."""

    states: list[Object] = field(default_factory=list)

    def put(self, obj: Object) -> Object:
        stored = super().put(obj)
        if stored["kind"] in KINDS:
            self.states.append(stored)
        return stored


def applied(spec: Object = SPEC) -> Callable[[Fake], None]:
    return lambda fake: fake.apply(mlmodel(spec=spec))


def never_ready(fake: Fake) -> None:
    fake.unready.add(V2)
    applied(SECOND)(fake)


def pods_gone(fake: Fake) -> None:
    fake.unready.add(V1)


def pods_back(fake: Fake) -> None:
    fake.unready.clear()


def deleted(fake: Fake) -> None:
    live = fake.one("MLModel", "adult")
    fake.put({**live, "metadata": {**live["metadata"], "deletionTimestamp": "2026-01-02T00:00:00Z"}})


def nothing(_fake: Fake) -> None:
    """Time passes."""


@dataclass(frozen=True)
class Life:
    """What happens to a model, and what the tools say of it, one word a change.

    Attributes:
        reason: What it shows.
        scenario: What people do, and when.
        kstatus: kstatus' words for the MLModel, in order.
        argocd: Argo CD's.
        versions: kstatus' last words for its versions.
    """

    reason: str
    scenario: Scenario
    kstatus: tuple[str, ...]
    argocd: tuple[str, ...]
    versions: dict[str, str] = field(default_factory=lambda: {V1: "Current"})


SERVES, HEALTHY = ("InProgress", "Current"), ("Progressing", "Healthy")
LIVES = [
    Life("a model comes to serve", [(0, applied()), (400, nothing)], SERVES, HEALTHY),
    Life(
        "another spec: in progress at once, and current when it serves",
        [(0, applied()), (400, applied(SECOND)), (800, nothing)],
        (*SERVES, *SERVES),
        (*HEALTHY, *HEALTHY),
        {V1: "Current", V2: "Current"},
    ),
    Life(
        "a gate that is missed is final; taken back, it is mended",
        [(0, applied()), (400, applied(GATED)), (800, applied()), (900, nothing)],
        (*SERVES, "InProgress", "Failed", *SERVES),
        (*HEALTHY, "Progressing", "Degraded", *HEALTHY),
        {V1: "Current", "the gated one": "Failed"},
    ),
    Life(
        "a rollback is final",
        [(0, applied()), (400, never_ready), (1200, nothing)],
        (*SERVES, "InProgress", "Failed"),
        (*HEALTHY, "Progressing", "Degraded"),
        {V1: "Current", V2: "Current"},
    ),
    Life(
        "a spec that cannot be used fails, and is mended by another",
        [(0, applied({**SPEC, "data": {"uri": " ", "label": "y"}})), (60, applied()), (500, nothing)],
        ("InProgress", "Failed", *SERVES),
        ("Progressing", "Degraded", *HEALTHY),
    ),
    Life(
        "a stage that failed for good is in progress again once somebody asks for another attempt",
        [(0, without_data), (200, retried), (600, nothing)],
        ("InProgress", "Failed", *SERVES),
        ("Progressing", "Degraded", *HEALTHY),
    ),
    Life(
        "a suspended model waits for a person, who is known to Argo CD",
        [(0, applied({**SPEC, "suspend": True})), (60, applied()), (500, nothing)],
        SERVES,
        ("Progressing", "Suspended", *HEALTHY),
    ),
    Life(
        "a stable version without a pod is no failure of what was asked for, but nobody is served",
        [(0, applied()), (400, pods_gone), (500, pods_back), (600, nothing)],
        (*SERVES, *SERVES),
        (*HEALTHY, "Degraded", "Healthy"),
    ),
    Life("a model on its way out", [(0, applied()), (400, deleted)], (*SERVES, "Terminating"), HEALTHY),
]


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The document's health scripts, as arguments of the program."""
    blocks = re.findall(r"^```yaml\n(.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    (config,) = [found for block in blocks if (found := yaml.safe_load(block))["kind"] == "ConfigMap"]
    prefix = "resource.customizations.health.mlplatform.dev_"
    assert set(config["data"]) == {prefix + kind for kind in KINDS}
    folder = tmp_path_factory.mktemp("health")
    for kind in KINDS:
        (folder / kind).write_text(config["data"][prefix + kind])
    return [f"{kind}={folder / kind}" for kind in KINDS]


def judged(objects: list[Object], scripts: list[str]) -> list[dict[str, dict[str, str]]]:
    """Each tool's status and message for each object."""
    done = subprocess.run(
        [program("gitops"), *scripts], input=json.dumps(objects), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found: list[dict[str, dict[str, str]]] = json.loads(done.stdout)
    return found


def words(told: list[dict[str, dict[str, str]]], tool: str) -> tuple[str, ...]:
    """A tool's words, the same only once."""
    return tuple(word for word, _ in groupby(one[tool]["status"] for one in told))


@pytest.mark.parametrize("life", LIVES, ids=lambda life: life.reason)
def test_a_life_as_the_tools_read_it(life: Life, scripts: list[str]) -> None:
    fake = Recorder()
    play(life.scenario, fake)
    models = judged([state for state in fake.states if state["kind"] == "MLModel"], scripts)
    assert words(models, "kstatus") == life.kstatus, life.reason
    assert words(models, "argocd") == life.argocd, life.reason
    last = {state["metadata"]["name"]: state for state in fake.states if state["kind"] == "ModelVersion"}
    versions = dict(zip(last, judged(list(last.values()), scripts), strict=True))
    assert sorted(told["kstatus"]["status"] for told in versions.values()) == sorted(life.versions.values())
    health = {"Current": "Healthy", "Failed": "Degraded"}
    assert all(told["argocd"]["status"] == health[told["kstatus"]["status"]] for told in versions.values())


@pytest.mark.parametrize("life", LIVES, ids=lambda life: life.reason)
def test_the_plugin_and_the_tools_mean_the_same_by_failed(life: Life) -> None:
    fake = play(life.scenario)
    versions = [fake.one("ModelVersion", name) for name in fake.names("ModelVersion")]
    seen = model_view(fake.one("MLModel", "adult"), versions, fake.now)
    assert (seen.outcome is Outcome.FAILED) == (life.kstatus[-1] == "Failed"), seen


def test_before_the_operator_has_seen_it_nothing_is_current(scripts: list[str]) -> None:
    fake = Recorder()
    fake.apply(mlmodel())
    (told,) = judged(fake.states, scripts)
    assert (told["kstatus"]["status"], told["argocd"]["status"]) == ("InProgress", "Progressing")


def test_a_failure_is_told_in_the_operators_words(scripts: list[str]) -> None:
    fake = Recorder()
    play([(0, applied(GATED)), (400, nothing)], fake)
    run(fake, Operator(fake), fake.now)
    (told,) = judged([fake.one("MLModel", "adult")], scripts)
    assert {tool: "roc_auc of the test split is 0.91" in said["message"] for tool, said in told.items()} == {
        "kstatus": True, "argocd": True,
    }  # fmt: skip


def test_the_documents_recipes_are_sound() -> None:
    blocks = re.findall(r"^```yaml\n(.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    found: list[dict[str, Any]] = [yaml.safe_load(block) for block in blocks]
    assert [one["kind"] for one in found] == ["Kustomization", "ConfigMap", "Application"]
