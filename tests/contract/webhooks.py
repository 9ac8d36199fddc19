"""Whom an API server asks before it stores what the platform writes, and how to read that from webhook configurations.

Called by test_webhooks.py with the configurations that upstream ships, and by tests/e2e with those of the cluster.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from written import manifests

Object = dict[str, Any]


@dataclass(frozen=True)
class Write:
    """A write and who is asked about it.

    Attributes:
        reason: What is written.
        group: Its API group; empty for the core's.
        resource: Its kind, as the API path has it; ``<kind>/status`` for its status.
        policies: Webhook → its failure policy.
        labels: Of the object.
        namespace: Labels of its namespace.
        operation: ``CREATE``, ``UPDATE`` or ``DELETE``.
    """

    reason: str
    group: str
    resource: str
    policies: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    namespace: dict[str, str] = field(default_factory=dict)
    operation: str = "CREATE"


TRAINING = {"validator.pytorchjob.training-operator.kubeflow.org": "Fail"}
KSERVE = {f"inferenceservice.kserve-webhook-server.{name}": "Fail" for name in ("defaulter", "validator")}
RUNTIME = {"servingruntime.kserve-webhook-server.validator": "Fail"}
MUTATOR = {"inferenceservice.kserve-webhook-server.pod-mutator": "Fail"}
ISTIO = {"validation.istio.io": "Ignore"}
"""istiod itself turns Ignore into Fail once it answers."""
SIDECAR = {"namespace.sidecar-injector.istio.io": "Fail"}

STAGE_POD = dict(manifests("Job")[0]["spec"]["template"]["metadata"]["labels"])
SERVING_POD = {"serving.kserve.io/inferenceservice": "adult-income-12345678"}
"""Of the labels that KServe gives it, the one that webhooks look at."""
MESHED = {"istio-injection": "enabled"}
"""A namespace whose pods get a sidecar."""

WRITES = [
    Write("training", "kubeflow.org", "pytorchjobs", TRAINING),
    Write("a version that serves", "serving.kserve.io", "inferenceservices", KSERVE),
    Write("what a new version's pods are made from", "serving.kserve.io", "servingruntimes", RUNTIME),
    Write("the weights", "networking.istio.io", "virtualservices", ISTIO),
    Write("the gateway that the chart installs", "networking.istio.io", "gateways", ISTIO),
    Write("a stage's Job", "batch", "jobs"),
    Write("the apex Service", "", "services"),
    Write("a model", "mlplatform.dev", "mlmodels"),
    Write("a version", "mlplatform.dev", "modelversions"),
    Write("a stage's pod", "", "pods", {}, STAGE_POD),
    Write("a stage's pod in the mesh, which its label keeps out", "", "pods", {}, STAGE_POD, MESHED),
    Write("a serving pod", "", "pods", MUTATOR, SERVING_POD),
    Write("a serving pod in the mesh", "", "pods", {**MUTATOR, **SIDECAR}, SERVING_POD, MESHED),
]


def asked(configurations: Iterable[Object], write: Write) -> dict[str, Object]:
    """The webhooks of these configurations that are asked about a write, by name."""
    return {
        webhook["name"]: webhook
        for configuration in configurations
        for webhook in configuration.get("webhooks") or ()
        if any(_covers(rule, write) for rule in webhook["rules"])
        and selects(webhook.get("objectSelector") or {}, write.labels)
        and selects(webhook.get("namespaceSelector") or {}, write.namespace)
    }


def _covers(rule: Object, write: Write) -> bool:
    wanted = {
        "apiGroups": {write.group, "*"},
        "resources": {write.resource, "*/*" if "/" in write.resource else "*"},
        "operations": {write.operation, "*"},
    }
    return all(values & set(rule[key]) for key, values in wanted.items())


def selects(selector: Object, labels: dict[str, str]) -> bool:
    """Whether a label selector selects an object with these labels; the empty one selects everything."""
    exact = (labels.get(key) == value for key, value in (selector.get("matchLabels") or {}).items())
    return all(exact) and all(_holds(expression, labels) for expression in selector.get("matchExpressions") or ())


def _holds(expression: Object, labels: dict[str, str]) -> bool:
    value, values = labels.get(expression["key"]), expression.get("values") or ()
    return {
        "In": value in values,
        "NotIn": value not in values,
        "Exists": value is not None,
        "DoesNotExist": value is None,
    }[expression["operator"]]
