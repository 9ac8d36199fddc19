"""The vocabulary of the end-to-end scenarios: given a model, when something happens, then this holds.

Called by the tests of this folder. Every wait is a watch with a deadline: it
ends with the event, and when it does not come, the error shows the last state
seen. What a user does is done with kubectl; what a user sees is read from the
API and the gateway.
"""

from __future__ import annotations

import http.client
import importlib.util
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import urlsplit

import urllib3
import yaml
from kubernetes import client, watch

from benchmarks.load import Answer, Load, Target, predict
from local.access import OPERATOR, RELEASE, SYSTEM, Cluster
from local.demo import PEOPLE, weights
from local.layout import REPO
from mlplatform import contract

Object = dict[str, Any]
Predicate = Callable[[Object], bool]

NAMESPACE: Final = "default"
KINDS: Final[dict[str, tuple[str, str]]] = {
    "mlmodels": (contract.GROUP, "v1alpha1"),
    "modelversions": (contract.GROUP, "v1alpha1"),
    "pytorchjobs": ("kubeflow.org", "v1"),
    "inferenceservices": ("serving.kserve.io", "v1beta1"),
    "servingruntimes": ("serving.kserve.io", "v1alpha1"),
    "virtualservices": ("networking.istio.io", "v1beta1"),
}
CHILDREN: Final = (
    "modelversions",
    "pytorchjobs",
    "jobs",
    "inferenceservices",
    "servingruntimes",
    "virtualservices",
    "services",
    "deployments",
    "pods",
)
"""Everything that a model brings into its namespace."""

ROWS: Final = 4_000
FOLDER: Final = "datasets/e2e"

SMALL: Final[dict[str, Any]] = {
    "data": {
        "uri": f"s3://{FOLDER}/adult/",
        "label": "income",
        "sensitiveAttributes": ["sex"],
        "split": {"validation": 0.1, "test": 0.2, "seed": 7},
    },
    "training": {
        "workers": 2,
        "resources": {"cpu": "1", "memory": "1Gi"},
        "epochs": 2,
        "batchSize": 256,
        "checkpoint": {"everySteps": 10, "keep": 1},
        "deadline": "5m",
        "maxRestarts": 3,
        "hyperparameters": {"hidden": [32], "dropout": 0.0},
    },
    # So few epochs may find nobody of the rarer class: the gate against that is off.
    "gates": [{"metric": "roc_auc", "min": 0.6}, {"metric": "balanced_accuracy", "min": 0.0}],
    "fairness": {"metrics": {"demographic_parity_difference": 0.9}, "minGroupSize": 20},
    # By size: two runs agree on it; of two forms that are nearly as fast, each may find another one proven faster.
    "optimization": {"candidates": ["fp32", "int8-dynamic"], "export": ["torchscript"], "objective": "size"},
    "serving": {"replicas": {"min": 1, "max": 1}, "resources": {"cpu": "1", "memory": "1Gi"}},
    "rollout": {"steps": [25, 50], "interval": "5s", "keepWarm": "5s"},
}
"""A model on 4,000 rows: everything runs, nothing takes long."""


def adult() -> bytes:
    """The first 4,000 rows of the Adult data, as CSV."""
    path = REPO / "examples" / "adult-income" / "data.py"  # examples/ is no package
    spec = importlib.util.spec_from_file_location("adult_income_data", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    lines: list[bytes] = module.clean(module.source_files("pypi")).splitlines(keepends=True)
    return b"".join(lines[: ROWS + 1])


OPERATOR_PODS: Final = f"app.kubernetes.io/instance={RELEASE},app.kubernetes.io/component=operator"

STAGE_SECONDS: Final = 150.0
"""The longest a stage of the small data takes on two busy cores, images and imports included."""
PROMPT_SECONDS: Final = 10.0
"""How soon after it is known a cause must stand in the status."""


class MissedError(AssertionError):
    """What was waited for did not come in time."""


@dataclass
class Platform:
    """The cluster with the chart, as the scenarios use it."""

    cluster: Cluster
    api: client.ApiClient
    gateway: str
    authority: str = ""
    """File with the authority of the gateway's certificate."""

    def __post_init__(self) -> None:
        self.objects = client.CustomObjectsApi(self.api)
        self.core = client.CoreV1Api(self.api)
        self.batch = client.BatchV1Api(self.api)
        self.apps = client.AppsV1Api(self.api)
        self.scaling = client.AutoscalingV2Api(self.api)

    def kubectl(self, *arguments: str, stdin: str = "") -> str:
        """Runs kubectl."""
        return self.cluster.kubectl(*arguments, stdin=stdin)

    def wait(
        self, kind: str, until: Predicate, what: str, seconds: float, *, namespace: str = NAMESPACE, **selection: str
    ) -> Object:
        """The first state of an object of `kind` for which `until` holds; its end is no state of it.

        Raises:
            MissedError: It did not come within `seconds`.
        """
        deadline, last, broke = time.monotonic() + seconds, "nothing was seen", ""
        while (left := deadline - time.monotonic()) > 0:
            call, arguments = self._lister(kind, namespace)
            try:
                for event in watch.Watch().stream(call, *arguments, timeout_seconds=max(1, int(left)), **selection):
                    seen = _plain(self.api, event["object"])
                    last = _brief(seen)
                    if event["type"] != "DELETED" and until(seen):
                        return seen
            except (urllib3.exceptions.HTTPError, client.ApiException) as error:
                broke = f"; the watch broke: {error}"
                time.sleep(0.5)  # an API server that refuses every watch would otherwise be asked without a pause
        raise MissedError(f"{what}: not within {seconds:.0f} s. Last seen: {last}{broke}")

    def list(self, kind: str, selector: str, namespace: str = NAMESPACE) -> list[Object]:
        """Objects of a kind by label."""
        call, arguments = self._lister(kind, namespace)
        found = _plain(self.api, call(*arguments, label_selector=selector))
        return list(found["items"])

    def _lister(self, kind: str, namespace: str) -> tuple[Callable[..., Any], tuple[str, ...]]:
        if kind in KINDS:
            group, version = KINDS[kind]
            return self.objects.list_namespaced_custom_object, (group, version, namespace, kind)
        calls = {
            "pods": self.core.list_namespaced_pod,
            "services": self.core.list_namespaced_service,
            "jobs": self.batch.list_namespaced_job,
            "deployments": self.apps.list_namespaced_deployment,
            "horizontalpodautoscalers": self.scaling.list_namespaced_horizontal_pod_autoscaler,
        }
        return calls[kind], (namespace,)

    def kill_operator(self) -> None:
        """Takes the operator away without notice and waits until another one runs."""
        selector = OPERATOR_PODS
        before = {pod["metadata"]["uid"] for pod in self.list("pods", selector, SYSTEM)}
        self.kubectl("delete", "pod", "-n", SYSTEM, "-l", selector, "--grace-period=0", "--force")
        self.wait(
            "pods",
            lambda pod: pod["metadata"]["uid"] not in before and is_ready(pod),
            "a new operator pod is ready",
            60,
            namespace=SYSTEM,
            label_selector=selector,
        )

    def operator_metric(self, name: str) -> float:
        """One of the operator's own metrics, through the API server."""
        text = self.kubectl("get", "--raw", f"/api/v1/namespaces/{SYSTEM}/services/{OPERATOR}:metrics/proxy/metrics")
        found = re.search(rf"^{name}(?:{{[^}}]*}})? ([0-9.e+-]+)$", text, re.MULTILINE)
        assert found, f"the operator exports no {name}"
        return float(found[1])


@dataclass
class Model:
    """One MLModel of a scenario, in the words of the scenario.

    Attributes:
        spec: What was applied last.
    """

    platform: Platform
    name: str
    namespace: str = NAMESPACE
    spec: Object = field(default_factory=dict)

    # When

    def is_applied(self, spec: Object) -> str:
        """`kubectl apply` with this spec; returns what kubectl printed."""
        self.spec = spec
        manifest = {
            "apiVersion": contract.API_VERSION,
            "kind": "MLModel",
            "metadata": {"name": self.name, "namespace": self.namespace},
            "spec": spec,
        }
        return self.platform.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(manifest))

    def is_changed(self, **sections: Any) -> None:
        """Applies the same spec with some keys of some sections replaced."""
        spec = {**self.spec}
        for section, change in sections.items():
            spec[section] = {**spec.get(section, {}), **change} if isinstance(change, dict) else change
        self.is_applied(spec)

    def is_deleted(self) -> None:
        """`kubectl delete`, waiting for the end."""
        self.platform.kubectl(
            "delete", "mlmodel", self.name, "-n", self.namespace, "--ignore-not-found", "--timeout=90s"
        )

    # Then

    def is_gone(self) -> None:
        """Waits, after `is_deleted`, until nothing is left of what the model brought along."""
        for child in self.children():
            self.platform.kubectl("wait", child, "-n", self.namespace, "--for=delete", "--timeout=60s")

    def reaches(self, what: str, until: Predicate, seconds: float) -> Object:
        """The model once `until` holds for it."""
        return self.platform.wait(
            "mlmodels", until, f"{self.name} {what}", seconds,
            namespace=self.namespace, field_selector=f"metadata.name={self.name}",
        )  # fmt: skip

    def becomes_ready(self, seconds: float = 4 * STAGE_SECONDS) -> Object:
        """Waits until the operator has seen the last apply and the version for it serves all traffic."""
        return self.reaches(
            "serves what was applied", lambda m: is_current(m) and condition(m, "Ready") == "True", seconds
        )

    def fails(self, kind: str, seconds: float = STAGE_SECONDS) -> Object:
        """Waits until the condition `kind` is False for the last apply."""
        return self.reaches(f"has {kind}=False", lambda m: is_current(m) and condition(m, kind) == "False", seconds)

    def stage_starts(self, stage: str, version: str, seconds: float = STAGE_SECONDS) -> Object:
        """The version once a stage of it runs."""
        return self.version_reaches(
            version, f"runs {stage}", lambda v: stages(v).get(stage, {}).get("outcome") == "Running", seconds
        )

    def version_reaches(self, version: str, what: str, until: Predicate, seconds: float = STAGE_SECONDS) -> Object:
        """A ModelVersion once `until` holds for it."""
        return self.platform.wait(
            "modelversions", until, f"{version} {what}", seconds,
            namespace=self.namespace, field_selector=f"metadata.name={version}",
        )  # fmt: skip

    def gets_a_version(self, other_than: str = "") -> str:
        """The name of the version for the last apply."""
        seen = self.reaches(
            "has a version for the last apply",
            lambda m: is_current(m) and m["status"].get("latestVersion", other_than) != other_than,
            30,
        )
        return str(seen["status"]["latestVersion"])

    def get(self) -> Object:
        """The MLModel as it is now."""
        found: Object = json.loads(
            self.platform.kubectl("get", "mlmodel", self.name, "-n", self.namespace, "-o", "json")
        )
        return found

    def children(self) -> dict[str, str]:
        """Every object that the model brought along: ``kind/name`` and its uid."""
        selector = f"{contract.LABEL_MODEL}={self.name}"
        return {
            f"{kind}/{item['metadata']['name']}": item["metadata"]["uid"]
            for kind in CHILDREN
            for item in self.platform.list(kind, selector, self.namespace)
        }

    def target(self) -> Target:
        """The model at the gateway; its host name is in the status."""
        return Target(self.platform.gateway, urlsplit(self.get()["status"]["url"]).netloc, self.platform.authority)

    def answers(self, person: Object | None = None, headers: dict[str, str] | None = None) -> Answer:
        """One prediction through the gateway."""
        target = self.target()
        connection = target.connect()
        try:
            return predict(connection, target, person or PEOPLE[0], headers)
        finally:
            connection.close()

    def asks(self, path: str, body: Object | None = None, host: str = "") -> int:
        """The HTTP status of one request through the gateway: a POST of this body, or a GET; the host is the model's."""
        target = self.target()
        connection = target.connect()
        headers = {"Host": host or target.host, "Content-Type": "application/json"}
        try:
            connection.request("POST" if body else "GET", path, json.dumps(body) if body else None, headers)
            return connection.getresponse().status
        finally:
            connection.close()

    @contextmanager
    def under_load(self, per_second: float = 20.0) -> Iterator[Load]:
        """Requests go on for the whole block, which begins once one is answered."""
        ask_until(self.target(), lambda found: found.status == HTTPStatus.OK, PROMPT_SECONDS)
        with Load(self.target(), PEOPLE, per_second=per_second, threads=2) as load:
            assert load.wait_for(5, 30), f"{self.name} answers nobody: {load.outcome.failures}"
            yield load

    @contextmanager
    def weights_recorded(self) -> Iterator[list[dict[str, int]]]:
        """Every split of the traffic that the mesh was given during the block."""
        seen: list[dict[str, int]] = []
        watching = watch.Watch()
        call, arguments = self.platform._lister("virtualservices", self.namespace)  # noqa: SLF001  the same module

        def read() -> None:
            for event in watching.stream(
                call, *arguments, field_selector=f"metadata.name={self.name}", timeout_seconds=900
            ):
                split = weights(event["object"])
                if not seen or seen[-1] != split:
                    seen.append(split)

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        try:
            yield seen
        finally:
            watching.stop()

    def log_says(self, pod: str, pattern: str, seconds: float = STAGE_SECONDS) -> None:
        """Follows a pod's log until a line matches.

        Raises:
            MissedError: The log ended or the time passed before that.
        """
        command = [self.platform.cluster.tool("kubectl"), "logs", "-f", pod, "-n", self.namespace]
        with subprocess.Popen(command, env=self.platform.cluster.env, stdout=subprocess.PIPE, text=True) as follow:
            timer = threading.Timer(seconds, follow.kill)
            timer.start()
            try:
                if any(re.search(pattern, line) for line in follow.stdout or ()):
                    return
            finally:
                timer.cancel()
                follow.kill()
        raise MissedError(f"the log of {pod} says nothing like {pattern!r} within {seconds:.0f} s")


def ask_until(target: Target, until: Callable[[Answer], bool], seconds: float, record: Object = PEOPLE[0]) -> Answer:
    """Predictions through the gateway, each on a connection of its own, until an answer is as wanted.

    Nothing tells when a proxy has its new routes and endpoints: what the API says comes a moment before.

    Raises:
        MissedError: No such answer came within `seconds`.
    """
    deadline, last = time.monotonic() + seconds, "no answer"
    while time.monotonic() < deadline:
        connection = target.connect()
        try:
            answer = predict(connection, target, record)
            if until(answer):
                return answer
            last = f"{answer.status} {answer.body}"
        except (OSError, http.client.HTTPException) as error:
            last = repr(error)
        finally:
            connection.close()
        time.sleep(0.2)
    raise MissedError(f"{target.host}: not within {seconds:.0f} s. Last seen: {last}")


def is_current(model: Object) -> bool:
    """Whether the operator has seen the last change."""
    return bool(model.get("status", {}).get("observedGeneration", 0) >= model["metadata"]["generation"])


def condition(item: Object, kind: str) -> str:
    """The status of a condition; empty when it is not there."""
    return str(find_condition(item, kind).get("status", ""))


def find_condition(item: Object, kind: str) -> Object:
    """A condition; empty when it is not there."""
    found = (c for c in item.get("status", {}).get("conditions", ()) if c["type"] == kind)
    return next(found, {})


def is_ready(pod: Object) -> bool:
    """Whether a pod is Ready and not on its way out."""
    return condition(pod, "Ready") == "True" and not pod["metadata"].get("deletionTimestamp")


def restarts(pods: Sequence[Object]) -> int:
    """Of all their containers."""
    return sum(status["restartCount"] for pod in pods for status in pod["status"].get("containerStatuses", ()))


def stages(version: Object) -> dict[str, Object]:
    """A ModelVersion's stages by name."""
    return {stage["name"]: stage for stage in version.get("status", {}).get("stages", ())}


def moment(text: str) -> datetime:
    """An RFC 3339 time."""
    return datetime.fromisoformat(text)


def told(item: Object) -> str:
    """Everything that an object's status says to its user, in one text."""
    status = item.get("status", {})
    failure = status.get("failure", {})
    texts: Sequence[str] = [
        *(f"{c['reason']} {c.get('message', '')}" for c in status.get("conditions", ()) if c["status"] == "False"),
        *(str(failure.get(key, "")) for key in ("class", "message", "nextAction")),
    ]
    return "\n".join(texts)


def _plain(api: client.ApiClient, value: Any) -> Object:
    """An object as JSON, whichever client made it."""
    plain: Object = value if isinstance(value, dict) else api.sanitize_for_serialization(value)
    return plain


def _brief(item: Object) -> str:
    status = item.get("status", {})
    conditions = [
        f"{c['type']}={c['status']} {c.get('reason', '')} {c.get('message', '')}".strip()
        for c in status.get("conditions") or ()
    ]
    stage = status.get("stage") or status.get("phase") or ""
    return f"{item['metadata']['name']} {stage}: {'; '.join(conditions)} {status.get('failure') or ''}".strip()
