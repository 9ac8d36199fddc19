"""What the operator tells Prometheus about itself and its models.

Called by `mlplatform.reconciler` after each pass; served by `mlplatform.main`.
"""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

from mlplatform.contract import Stage
from mlplatform.snapshot import Object, condition, moment, name_of, namespace_of, status_of

RECONCILE_SECONDS: Final = Histogram(
    "mlplatform_reconcile_seconds",
    "Time of one pass over one object: gather, plan, write.",
    ["kind"],
    buckets=(0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 30),
)
RECONCILE_ERRORS: Final = Counter("mlplatform_reconcile_errors", "Passes that ended in an error.", ["kind", "error"])
WRITES: Final = Counter(
    "mlplatform_api_writes", "Requests that change something; an idle operator sends none.", ["kind", "verb"]
)
STAGE_SECONDS: Final = Histogram(
    "mlplatform_stage_seconds",
    "From a stage's start to its end, restarts included.",
    ["stage", "outcome"],
    buckets=(5, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 86400),
)
VERSION_METRIC: Final = Gauge(
    "mlplatform_version_metric",
    "Test metric of the version that serves.",
    ["namespace", "model", "metric"],
)
CONDITION: Final = Gauge(
    "mlplatform_model_condition",
    "1 when the MLModel's condition has this status, else 0.",
    ["namespace", "model", "type", "status"],
)
PROMOTED: Final = Gauge(
    "mlplatform_model_promoted",
    "1 when a version of the MLModel was promoted, whether it has pods now or not, else 0.",
    ["namespace", "model"],
)
ROLLOUT_WEIGHT: Final = Gauge(
    "mlplatform_rollout_weight",
    "Percentage of traffic that the candidate takes; 0 when no rollout is under way.",
    ["namespace", "model"],
)
LEADER: Final = Gauge("mlplatform_leader", "1 while this operator may write, 0 while it waits for another one to go.")
for _stage in Stage:  # A counter that begins with its first event hides that event from `increase`.
    for _outcome in ("Succeeded", "Failed"):
        STAGE_SECONDS.labels(_stage.value, _outcome)
_CONDITIONS: Final = ("Accepted", "VersionReady", "Serving", "RolloutPassed", "Ready")
_STATUSES: Final = ("True", "False", "Unknown")
_shown: Final[dict[tuple[str, str], set[str]]] = {}
"""Namespace and name of a model → the metrics of its version that are shown."""


def record_version(before: Object, after: Object) -> None:
    """Counts the stages that have ended between two statuses of a ModelVersion."""
    ended = {s["name"] for s in before.get("stages") or () if s["outcome"] != "Running"}
    for stage in after.get("stages") or ():
        started, finished = moment(stage.get("startedAt")), moment(stage.get("finishedAt"))
        if stage["outcome"] != "Running" and stage["name"] not in ended and started and finished:
            STAGE_SECONDS.labels(stage["name"], stage["outcome"]).observe((finished - started).total_seconds())


def record_model(model: Object, stable: Object | None) -> None:
    """Shows where a model stands, from its status and its stable version's."""
    where, status = (namespace_of(model), name_of(model)), status_of(model)
    PROMOTED.labels(*where).set("stable" in status)
    ROLLOUT_WEIGHT.labels(*where).set((status.get("rollout") or {}).get("weight", 0))
    for kind in _CONDITIONS:
        found = condition(model, kind).get("status", "Unknown")
        for value in _STATUSES:
            CONDITION.labels(*where, kind, value).set(found == value)
    measured = status_of(stable).get("metrics") or {}
    for metric in _shown.get(where, set()) - measured.keys():
        VERSION_METRIC.remove(*where, metric)  # Of the version that served before, or of one that is gone.
    for metric, number in measured.items():
        VERSION_METRIC.labels(*where, metric).set(number)
    _shown[where] = set(measured)


def forget_model(namespace: str, model: str) -> None:
    """Drops a deleted model's series."""
    # By their labels: an operator that ends forgets all its models, and each search would go through the series of all.
    for metric in _shown.pop((namespace, model), set()):
        VERSION_METRIC.remove(namespace, model, metric)
    for kind in _CONDITIONS:
        for value in _STATUSES:
            CONDITION.remove(namespace, model, kind, value)
    PROMOTED.remove(namespace, model)
    ROLLOUT_WEIGHT.remove(namespace, model)
