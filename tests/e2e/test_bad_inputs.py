"""Every bad input names its cause and the next action, and the version that serves goes on serving.

All of them are applied at once, beside a model under load, and each row then
looks at its own: two cores import PyTorch once for all pods side by side.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from e2e.scenario import (
    FOLDER,
    NAMESPACE,
    PROMPT_SECONDS,
    SMALL,
    STAGE_SECONDS,
    Model,
    Object,
    Platform,
    find_condition,
    moment,
    told,
)

from benchmarks.load import Outcome
from local.access import STORE, AccessError

LOCKED = "e2e-locked"
"""A namespace whose store credentials are wrong."""
BARE = "e2e-bare"
"""A namespace that nobody has set up for models."""
FULL = "e2e-full"
"""A namespace whose quota leaves room for no pod."""
NARROW = "e2e-narrow"
"""A namespace whose quota leaves room for the pods of stages, not for those that serve."""


@dataclass(frozen=True)
class Bad:
    """A mistake and what its user must read.

    Attributes:
        reason: The mistake, in words.
        name: The model's name.
        change: Keys of the spec, by dotted path, and their bad values.
        condition: What becomes False; empty when `kubectl apply` itself refuses.
        names: What the status (or kubectl) must say: the cause, in these words.
        action: What it must say to do about it.
        namespace: Where it is applied.
    """

    reason: str
    name: str
    change: dict[str, Any]
    condition: str
    names: tuple[str, ...]
    action: str
    namespace: str = NAMESPACE


BAD = [
    Bad(
        "an unknown field",
        "e2e-unknown-field",
        {"training.epoch": 3},
        "",
        ("epoch",),
        "unknown field",
    ),
    Bad(
        "a value of the wrong type",
        "e2e-wrong-type",
        {"training.epochs": "many"},
        "",
        ("epochs",),
        "integer",
    ),
    Bad(
        "a gate on a metric that the task does not report",
        "e2e-unknown-metric",
        {"gates": [{"metric": "roc_acu", "min": 0.5}]},
        "",
        ("spec.gates",),
        "roc_auc",
    ),
    Bad(
        "a value that no rule of the API server can judge",
        "e2e-no-end",
        {"rollout.interval": "90000h"},
        "Accepted",
        ("spec.rollout.interval", "90000h"),
        "87600h",
    ),
    Bad(
        "a name that leaves no room for its children's",
        "e2e-a-name-that-is-too-long-for-its-pods-and-services",
        {},
        "",
        ("metadata.name",),
        "may not be more than 36",
    ),
    Bad(
        "an empty data URI",
        "e2e-empty-uri",
        {"data.uri": ""},
        "",
        ("spec.data.uri",),
        "at least 1 char",
    ),
    Bad(
        "a data URI under which nothing lies",
        "e2e-no-data",
        {"data.uri": f"s3://{FOLDER}/nothing-here/"},
        "VersionReady",
        ("DataMissing", f"{FOLDER}/nothing-here"),
        "spec.data.uri",
    ),
    Bad(
        "a label column that the data lacks",
        "e2e-no-label",
        {"data.label": "incom"},
        "VersionReady",
        ("DataInvalid", "incom"),
        "spec.data.label",
    ),
    Bad(
        "a task that cannot be imported",
        "e2e-no-task",
        {"training.task": "no_such_package.tasks:Task", "gates": []},
        "VersionReady",
        ("TaskImport", "no_such_package"),
        "spec.training",
    ),
    Bad(
        "an image that cannot be pulled",
        "e2e-no-image",
        {"training.image": "localhost/mlplatform/no-such-image:1"},
        "VersionReady",
        ("ImagePull", "localhost/mlplatform/no-such-image:1"),
        "image",
    ),
    Bad(
        "credentials that the store refuses",
        "e2e-no-access",
        {},
        "VersionReady",
        ("StoreAccess", "the store refused"),
        "keys in the store's Secret",
        namespace=LOCKED,
    ),
    Bad(
        "a namespace that is not set up for models",
        "e2e-no-namespace",
        {},
        "VersionReady",
        ("NamespaceNotSetUp", f"namespace '{BARE}' is not set up for models", "mlplatform-jobs"),
        "modelNamespaces",
        namespace=BARE,
    ),
    Bad(
        "a quota that leaves room for no pod",
        "e2e-no-room",
        {},
        "VersionReady",
        ("PodsRefused", "exceeded quota: few"),
        "Raise the namespace's quota",
        namespace=FULL,
    ),
]


@dataclass
class Trial:
    """All bad models, applied."""

    models: dict[str, Model] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    outcome: Outcome = field(default_factory=Outcome)


@pytest.fixture(scope="module")
def namespaces(platform: Platform) -> Iterator[set[str]]:
    """Namespaces that are set up like the chart does it, but for what is wrong with each."""
    wrong_key = _set_up(platform, LOCKED)
    for item in wrong_key:
        if item["kind"] == "Secret":
            item["stringData"] = {"AWS_SECRET_ACCESS_KEY": "not-the-key"}
    found = {
        LOCKED: wrong_key,
        BARE: [],
        FULL: [*_set_up(platform, FULL), _quota(FULL, {"pods": "0"})],
        # A stage asks for 1 GiB.
        NARROW: [*_set_up(platform, NARROW), _quota(NARROW, {"requests.memory": "1500Mi"})],
    }
    made = [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}} for name in found]
    everything = {"apiVersion": "v1", "kind": "List", "items": [*made, *(o for items in found.values() for o in items)]}
    platform.kubectl("apply", "-f", "-", stdin=json.dumps(everything))
    yield set(found)
    platform.kubectl("delete", "namespace", *found, "--wait=false")


def _set_up(platform: Platform, namespace: str) -> list[Object]:
    names = ("serviceaccount/mlplatform-jobs", "serviceaccount/mlplatform-serving", f"secret/{STORE}")
    return [_copied(platform.cluster.get(*name.split("/"), "-n", NAMESPACE), namespace) for name in names]


def _copied(item: Object, namespace: str) -> Object:
    meta = {key: item["metadata"][key] for key in ("name", "annotations") if key in item["metadata"]}
    kept: Object = {key: item[key] for key in ("apiVersion", "kind", "type", "data", "secrets") if key in item}
    return {**kept, "metadata": {**meta, "namespace": namespace}}


def _quota(namespace: str, hard: dict[str, str]) -> Object:
    meta = {"name": "few", "namespace": namespace}
    return {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": meta, "spec": {"hard": hard}}


@pytest.fixture(scope="module")
def trial(model: Model, platform: Platform, namespaces: set[str]) -> Iterator[Trial]:
    """Applies every bad model beside one that serves under load."""
    assert {bad.namespace for bad in BAD} == {NAMESPACE, *namespaces} - {NARROW}
    found = Trial()
    try:
        with model.under_load(5) as load:
            for bad in BAD:
                found.models[bad.name] = one = Model(platform, bad.name, bad.namespace)
                one.is_deleted()
                try:
                    one.is_applied(changed(SMALL, bad.change))
                except AccessError as error:
                    found.refused[bad.name] = str(error)
            for bad in BAD:
                if bad.condition and bad.name not in found.refused:
                    found.models[bad.name].fails(bad.condition, 2 * STAGE_SECONDS)
            found.outcome = load.outcome
        yield found
    finally:
        for one in found.models.values():
            one.is_deleted()
        # The last of it costs the operator a write or two, which belong to no idle minute.
        for one in found.models.values():
            one.is_gone()


def changed(spec: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """`spec` for one pod, with the values at these dotted paths replaced."""
    found = copy.deepcopy(spec)
    found["training"] |= {"workers": 1, "strategy": "single"}
    for path, value in change.items():
        *sections, key = path.split(".")
        target = found
        for section in sections:
            target = target[section]
        target[key] = value
    return found


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.reason)
def test_a_bad_input_names_its_cause_and_the_next_action(bad: Bad, trial: Trial) -> None:
    # Given the mistake, when it is applied, then kubectl refuses it or the status says what is wrong
    if bad.condition:
        seen = trial.models[bad.name].get()
        assert find_condition(seen, "Ready")["status"] == "False", bad.reason
        words = told(seen)
    else:
        assert bad.name in trial.refused, f"{bad.reason}: kubectl accepted it"
        words = trial.refused[bad.name]
    for name in bad.names:
        assert name in words, bad.reason
    assert bad.action in words, bad.reason


WITH_PODS = [b for b in BAD if b.condition == "VersionReady" and b.namespace not in {BARE, FULL}]


@pytest.mark.parametrize("bad", WITH_PODS, ids=lambda bad: bad.reason)
def test_a_cause_is_told_soon_after_it_is_known(bad: Bad, trial: Trial, platform: Platform) -> None:
    # Given a pod that told why it ended, then the condition followed within ten seconds
    one = trial.models[bad.name]
    pods = platform.list("pods", f"mlplatform.dev/model={bad.name}", bad.namespace)
    ends = [
        moment(state["terminated"]["finishedAt"])
        for pod in pods
        for container in pod["status"].get("containerStatuses", ())
        for state in (container.get("state", {}), container.get("lastState", {}))
        if state.get("terminated")
    ]
    known = min(ends, default=None)
    if known is None:  # its container never started: the pod's own condition says since when
        known = min(moment(c["lastTransitionTime"]) for pod in pods for c in pod["status"]["conditions"])
    reported = moment(find_condition(one.get(), "VersionReady")["lastTransitionTime"])
    assert (reported - known).total_seconds() <= PROMPT_SECONDS, bad.reason


def test_the_stable_version_serves_all_the_while(trial: Trial) -> None:
    # Given all these mistakes beside it, then a model that serves lost no request
    assert (trial.outcome.failed, trial.outcome.failures) == (0, [])
    assert trial.outcome.total > 0


@pytest.mark.nightly
def test_a_quota_that_serving_pods_exceed_is_told_and_goes_by_itself(platform: Platform, namespaces: set[str]) -> None:
    assert NARROW in namespaces
    one = Model(platform, "e2e-narrow", NARROW)
    try:
        # Given a quota that the pods of stages fit in, when its version is to serve with more, then the status says so
        one.is_applied(changed(SMALL, {"serving.resources.memory": "2Gi"}))
        seen = one.reaches(
            "tells of the quota",
            lambda m: m.get("status", {}).get("failure", {}).get("class") == "PodsRefused",
            6 * STAGE_SECONDS,
        )
        assert "exceeded quota: few" in told(seen)
        # and when the quota is raised, then it serves
        raised = json.dumps({"spec": {"hard": {"requests.memory": "8Gi"}}})
        platform.kubectl("-n", NARROW, "patch", "resourcequota", "few", "--type=merge", "-p", raised)
        assert "failure" not in one.becomes_ready()["status"]
    finally:
        one.is_deleted()
