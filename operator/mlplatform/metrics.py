"""What the operator tells Prometheus about itself and its models.

Called by `mlplatform.reconciler` after each pass; served by `mlplatform.main`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

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
LEADER: Final = Gauge("mlplatform_leader", "1 while this operator may write, 0 while it waits for another one to go.")
for _stage in Stage:  # A counter that begins with its first event hides that event from `increase`.
    for _outcome in ("Succeeded", "Failed"):
        STAGE_SECONDS.labels(_stage.value, _outcome)
_CONDITIONS: Final = ("Accepted", "VersionReady", "Serving", "RolloutPassed", "Ready")
_STATUSES: Final = ("True", "False", "Unknown")


@dataclass(frozen=True, slots=True)
class _Shown:
    """What is shown of a model.

    Attributes:
        conditions: The status of each of `_CONDITIONS`.
        metrics: Test metrics of the version that serves.
    """

    conditions: tuple[str, ...]
    promoted: bool
    weight: int
    metrics: tuple[tuple[str, float], ...]


class Models(Collector):
    """The series of all models, made when they are asked for: kept as the library's gauges, a model's 20 take 40 KB."""

    def __init__(self) -> None:
        self.shown: dict[tuple[str, str], _Shown] = {}

    def collect(self) -> Iterator[Metric]:
        """Everything, as it is now."""
        families = self._families()
        version, state, promoted, weight = families
        for where, model in tuple(self.shown.items()):
            promoted.add_metric(where, float(model.promoted))
            weight.add_metric(where, model.weight)
            for kind, found in zip(_CONDITIONS, model.conditions, strict=True):
                for value in _STATUSES:
                    state.add_metric((*where, kind, value), float(found == value))
            for metric, number in model.metrics:
                version.add_metric((*where, metric), number)
        return iter(families)

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """What it shows, without a model's."""
        return iter(self._families())

    def _families(self) -> tuple[GaugeMetricFamily, ...]:
        of = ("namespace", "model")
        return (
            GaugeMetricFamily(
                "mlplatform_version_metric", "Test metric of the version that serves.", labels=(*of, "metric")
            ),
            GaugeMetricFamily(
                "mlplatform_model_condition",
                "1 when the MLModel's condition has this status, else 0.",
                labels=(*of, "type", "status"),
            ),
            GaugeMetricFamily(
                "mlplatform_model_promoted",
                "1 when a version of the MLModel was promoted, whether it has pods now or not, else 0.",
                labels=of,
            ),
            GaugeMetricFamily(
                "mlplatform_rollout_weight",
                "Percentage of traffic that the candidate takes; 0 when no rollout is under way.",
                labels=of,
            ),
        )


MODELS: Final = Models()
REGISTRY.register(MODELS)


def record_version(before: Object, after: Object) -> None:
    """Counts the stages that have ended between two statuses of a ModelVersion."""
    ended = {s["name"] for s in before.get("stages") or () if s["outcome"] != "Running"}
    for stage in after.get("stages") or ():
        started, finished = moment(stage.get("startedAt")), moment(stage.get("finishedAt"))
        if stage["outcome"] != "Running" and stage["name"] not in ended and started and finished:
            STAGE_SECONDS.labels(stage["name"], stage["outcome"]).observe((finished - started).total_seconds())


def record_model(model: Object, stable: Object | None) -> None:
    """Shows where a model stands, from its status and its stable version's."""
    status = status_of(model)
    MODELS.shown[namespace_of(model), name_of(model)] = _Shown(
        conditions=tuple(sys.intern(condition(model, kind).get("status", "Unknown")) for kind in _CONDITIONS),
        promoted="stable" in status,
        weight=(status.get("rollout") or {}).get("weight", 0),
        metrics=tuple((sys.intern(k), v) for k, v in (status_of(stable).get("metrics") or {}).items()),
    )


def forget_model(namespace: str, model: str) -> None:
    """Drops a deleted model's series."""
    MODELS.shown.pop((namespace, model), None)
