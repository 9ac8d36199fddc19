"""What the cluster shows, gathered for one decision.

Filled by `mlplatform.reconciler` from the watch indexes, read by `plan`, which
is pure: all that a decision may depend on is a field here, or the clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from mlplatform import contract
from mlplatform.contract import Stage

Object = dict[str, Any]
"""A Kubernetes object as JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A write that this plan asked for, and that the API server has not carried out.

    Attributes:
        kind: Of the object.
        reason: A condition's, one CamelCase word.
        message: The request and the API server's own words.
        told: Whether it is to be told: it lasts, or it has failed before.
        lasting: Whether a person must mend it.
    """

    kind: str
    reason: str
    message: str
    told: bool
    lasting: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Errand:
    """A Job of a version that is none of its stages: it does something in the artifact store.

    Attributes:
        job: It.
        pods: Of it.
        absent: Why it has no pod, in the words of whoever cannot make it.
    """

    job: Object
    pods: tuple[Object, ...] = ()
    absent: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionSnapshot:
    """Everything that a plan for one ModelVersion may look at.

    Attributes:
        version: The ModelVersion itself, with the status last written.
        model: The MLModel that it belongs to; None when there is none (any more).
        siblings: That model's ModelVersions by name.
        children: The workload of each stage, where it exists: a PyTorchJob for train, else a Job.
        pods: Pods of each stage, also of earlier workloads of the same name.
        errands: What else is done for the version in the artifact store, by its name.
        absent: Why a stage's workload has fewer pods than it should, in the words of whoever cannot make them.
        missing: Kinds that the API server does not serve, e.g. ``PyTorchJob`` before the add-on is installed.
        refusals: What became of the plan for the rest of this snapshot, the one to tell of first.
    """

    version: Object
    model: Object | None = None
    siblings: Mapping[str, Object] = field(default_factory=dict)
    children: Mapping[Stage, Object] = field(default_factory=dict)
    pods: Mapping[Stage, tuple[Object, ...]] = field(default_factory=dict)
    errands: Mapping[str, Errand] = field(default_factory=dict)
    absent: Mapping[Stage, str] = field(default_factory=dict)
    missing: frozenset[str] = frozenset()
    refusals: tuple[Refusal, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSnapshot:
    """Everything that a plan for one MLModel may look at.

    Attributes:
        model: The MLModel itself, with the status last written.
        versions: Its ModelVersions by name.
        services: Its InferenceServices by name, which is the name of the version they serve.
        pods: Serving pods by the name of the version they serve.
        absent: Why a version's Deployment cannot make its pods, by the version's name, in its own words.
        runtimes: Its ServingRuntimes by name.
        ingresses: What KServe publishes its InferenceServices by, by their names.
        apex: The Service `<model>`; its selector is the record of which version is stable.
        route: The VirtualService `<model>`; it holds the weights, and the times of the rollout.
        claims: What of others names the host that the model asks for: MLModels, their VirtualServices, anybody's Ingresses.
        missing: Kinds that the API server does not serve, e.g. ``InferenceService``.
        refusals: What became of the plan for the rest of this snapshot, the one to tell of first.
    """

    model: Object
    versions: Mapping[str, Object] = field(default_factory=dict)
    services: Mapping[str, Object] = field(default_factory=dict)
    pods: Mapping[str, tuple[Object, ...]] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)
    runtimes: Mapping[str, Object] = field(default_factory=dict)
    ingresses: Mapping[str, Object] = field(default_factory=dict)
    apex: Object | None = None
    route: Object | None = None
    claims: tuple[Object, ...] = ()
    missing: frozenset[str] = frozenset()
    refusals: tuple[Refusal, ...] = ()


def name_of(obj: Object) -> str:
    """``metadata.name``."""
    return str(obj["metadata"]["name"])


def namespace_of(obj: Object) -> str:
    """``metadata.namespace``."""
    return str(obj["metadata"].get("namespace", ""))


def uid_of(obj: Object) -> str:
    """``metadata.uid``; empty for an object that has not been created."""
    return str(obj["metadata"].get("uid", ""))


def labels_of(obj: Object) -> dict[str, str]:
    """``metadata.labels``, empty when there are none."""
    return obj["metadata"].get("labels") or {}


def annotations_of(obj: Object) -> dict[str, str]:
    """``metadata.annotations``, empty when there are none."""
    return obj["metadata"].get("annotations") or {}


def status_of(obj: Object | None) -> Object:
    """``status``, empty when there is none."""
    return (obj or {}).get("status") or {}


def condition(obj: Object | None, kind: str) -> Object:
    """The condition of that type, empty when it is not there."""
    return next((c for c in status_of(obj).get("conditions") or () if c["type"] == kind), {})


def controlled_by(obj: Object, owner: Object) -> bool:
    """Whether `owner` (by uid: a namesake does not count) is the controller of `obj`."""
    references = obj["metadata"].get("ownerReferences") or ()
    return any(r.get("controller") and r["uid"] == uid_of(owner) for r in references)


def moment(text: str | None) -> datetime | None:
    """Reads an RFC 3339 time, as Kubernetes writes it."""
    return datetime.fromisoformat(text) if text else None


def written(obj: Object) -> datetime | None:
    """When this operator, be it a process before this one, last changed something about the object; its status aside."""
    fields = obj["metadata"].get("managedFields") or ()
    ours = (f for f in fields if f.get("manager") == contract.MANAGER and not f.get("subresource"))
    return max((when for f in ours if (when := moment(f.get("time")))), default=None)


def stamp(when: datetime) -> str:
    """Writes an RFC 3339 time in whole seconds, as metav1.Time does."""
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def precise(when: datetime) -> str:
    """Writes an RFC 3339 time in milliseconds: for intervals, which must not come out short."""
    return when.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def until(since: datetime, wait: timedelta, now: datetime) -> datetime:
    """When a wait that began at `since` is over.

    A beginning further ahead than the wait is long was written by a clock that has jumped: that wait is over now.
    """
    return since + wait if since <= now + wait else now
