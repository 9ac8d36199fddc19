"""What the doctor has seen of a cluster: all that a check may look at.

Filled by `gather`, read by `checks`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from mlplatform.resources import KINDS
from mlplatform.settings import Settings
from mlplatform.snapshot import Object, labels_of, namespace_of


@dataclass(frozen=True, slots=True)
class Unseen:
    """What could not be looked at.

    Attributes:
        why: In words.
    """

    why: str


Seen = Object | Unseen | None
"""An object; None where there is none."""

Listed = tuple[Object, ...] | Unseen

Rule = tuple[str, str, tuple[str, ...]]
"""API group, resource and verbs."""

_ALL: Final = ("get", "list", "watch", "create", "patch", "delete")

RULES: Final[tuple[Rule, ...]] = (
    ("mlplatform.dev", "mlmodels", ("get", "list", "watch", "patch")),
    ("mlplatform.dev", "modelversions", _ALL),
    ("mlplatform.dev", "mlmodels/status", ("get", "patch", "update")),
    ("mlplatform.dev", "modelversions/status", ("get", "patch", "update")),
    ("mlplatform.dev", "mlmodels/finalizers", ("update",)),
    ("mlplatform.dev", "modelversions/finalizers", ("update",)),
    ("kubeflow.org", "pytorchjobs", _ALL),
    ("batch", "jobs", _ALL),
    ("serving.kserve.io", "inferenceservices", _ALL),
    ("serving.kserve.io", "servingruntimes", _ALL),
    ("networking.k8s.io", "ingresses", ("get", "list", "watch", "delete")),
    ("networking.istio.io", "virtualservices", _ALL),
    ("", "services", _ALL),
    ("", "pods", ("get", "list", "watch")),
    ("", "events", ("create", "patch", "list")),
    ("apps", "deployments", ("get",)),
)
"""What the operator needs in each namespace that it watches; the chart gives it that and no more."""

EVERYWHERE: Final[tuple[Rule, ...]] = (
    ("apiextensions.k8s.io", "customresourcedefinitions", ("get", "list", "watch")),
    ("", "namespaces", ("get", "list", "watch")),
)
"""What it needs in the cluster, whatever it watches."""

OWN: Final[tuple[Rule, ...]] = (
    ("mlplatform.dev", "mlmodels", ("get", "list", "watch", "create", "patch", "delete")),
    ("mlplatform.dev", "modelversions", ("get", "list", "watch", "patch")),
)
"""What a person who works on models needs."""

READING: Final = {"get", "list", "watch"}

API_VERSIONS: Final = tuple(sorted({kind.api_version for kind in KINDS.values() if kind.add_on}))
KUEUE: Final = "kueue.x-k8s.io/v1beta1"
METRICS: Final = "metrics.k8s.io/v1beta1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stay:
    """A namespace in which models live.

    Attributes:
        namespace: Itself.
        accounts: The ServiceAccounts of its pods, by name.
        secret: The store's, of which nobody needs more than the names of its keys.
        trust: The ConfigMap with the authorities; None as well where the platform names none.
        pull: The pull secrets of its ServiceAccounts, by name.
        queues: Kueue's LocalQueues that its models name.
        own: What of `OWN` whoever asks may not do there; None where nobody asked.
        operators: The same of the operator and `RULES`.
        probe: How a pod there has used the store; None where none was made.
    """

    namespace: Seen = None
    accounts: Mapping[str, Seen] = field(default_factory=dict)
    secret: Seen = None
    trust: Seen = None
    pull: Mapping[str, Seen] = field(default_factory=dict)
    queues: Mapping[str, Seen] = field(default_factory=dict)
    own: tuple[str, ...] | Unseen | None = None
    operators: tuple[str, ...] | Unseen = ()
    probe: Probed | None = None


@dataclass(frozen=True, slots=True)
class Probed:
    """How a pod has used the store.

    Attributes:
        trouble: What went wrong; empty for nothing.
        next_action: What to do about it.
        skipped: Why there was none.
    """

    trouble: str = ""
    next_action: str = ""
    skipped: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All of it.

    Attributes:
        now: The clock.
        release: Of whoever asks.
        kubernetes: What the API server calls its version.
        wanted: The CRDs of this release, by name.
        crds: Those of the cluster, by name.
        served: The kinds of each apiVersion; none of one that is not served.
        operators: The Deployments of all releases.
        settings: Of the one that counts; None where there is none, or it cannot be read.
        mistake: Why it cannot.
        lease: What that one holds.
        kserve: KServe's controller.
        trainer: The Training Operator's.
        istio: Istio's.
        gateway: What the models' routes hang on.
        gateway_pods: What serves it.
        certificates: The Secrets that it names, by name.
        nodes: Of the cluster.
        models: Those that are looked at.
        stays: Their namespaces.
        cluster_rights: What of `EVERYWHERE` and of its Lease the operator may not do.
        url: What asking the gateway for a page has come to; None where nobody asked.
    """

    now: datetime
    release: str = ""
    kubernetes: str = ""
    wanted: Mapping[str, Object] = field(default_factory=dict)
    crds: Mapping[str, Seen] = field(default_factory=dict)
    served: Mapping[str, frozenset[str] | Unseen] = field(default_factory=dict)
    operators: Listed = ()
    settings: Settings | None = None
    mistake: str = ""
    lease: Seen = None
    kserve: Listed = ()
    trainer: Listed = ()
    istio: Listed = ()
    gateway: Seen = None
    gateway_pods: Listed = ()
    certificates: Mapping[str, Seen] = field(default_factory=dict)
    nodes: Listed = ()
    models: Listed = ()
    stays: Mapping[str, Stay] = field(default_factory=dict)
    cluster_rights: tuple[str, ...] | Unseen = ()
    url: tuple[str, str] | None = None


def environment(deployment: Object) -> dict[str, str]:
    """The operator's, as its Deployment has it."""
    containers = deployment["spec"]["template"]["spec"]["containers"]
    return {entry["name"]: entry.get("value", "") for entry in containers[0].get("env") or ()}


def settings_of(deployment: Object) -> Settings:
    """The settings of the operator that a Deployment runs.

    Raises:
        SettingsError: It has one that cannot be used.
    """
    return Settings.from_env(environment(deployment))


def account_of(deployment: Object) -> tuple[str, str]:
    """Namespace and name of the ServiceAccount that a Deployment's pods run as."""
    return namespace_of(deployment), str(deployment["spec"]["template"]["spec"].get("serviceAccountName") or "default")


def version_label(obj: Object) -> str:
    """The version that an object's labels name; empty for none."""
    return labels_of(obj).get("app.kubernetes.io/version", "")
