"""A cluster in memory with a clock that jumps: the real reconcilers run against it.

Used by tests/unit/operator. The other controllers (training, jobs, KServe, the
garbage collector) are a few lines each, as the contract with them says.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import yaml

from mlplatform import contract
from mlplatform.actions import Apply, Create, Delete, Event, Patch, Ref, Write
from mlplatform.cluster import Cluster, ClusterError, Conflict, NameTaken, path
from mlplatform.contract import Failure, FailureClass, Stage, Summary
from mlplatform.reconciler import Reconciler, World
from mlplatform.resources import adoption, forgetting, inferenceservice, virtualservice
from mlplatform.resources.host import named
from mlplatform.resources.metadata import stray
from mlplatform.settings import Settings
from mlplatform.snapshot import Object, annotations_of, labels_of, name_of, stamp, uid_of

START = datetime(2026, 1, 1, tzinfo=UTC)
NAMESPACE = "default"
RUNTIME = yaml.safe_load((Path(__file__).parents[2] / "images/serving/servingruntime.yaml").read_text())["spec"]
PLATFORM = Settings(serving_runtime=json.dumps(RUNTIME))

SPEC: Object = {
    "data": {"uri": "s3://datasets/adult/", "label": "income", "sensitiveAttributes": ["sex"]},
    "training": {"workers": 2, "deadline": "20m"},
    "gates": [{"metric": "roc_auc", "min": 0.88}],
    "fairness": {"metrics": {"demographic_parity_difference": 0.2}},
    "rollout": {"steps": [5, 25, 50], "interval": "10s", "keepWarm": "1m", "maxDuration": "5m"},
}


def mlmodel(name: str = "adult", spec: Object | None = None, **annotations: str) -> Object:
    """An MLModel as a user applies it."""
    return {
        "apiVersion": contract.API_VERSION,
        "kind": "MLModel",
        "metadata": {"name": name, "namespace": NAMESPACE, "annotations": annotations},
        "spec": copy.deepcopy(spec or SPEC),
    }


def summary(stage: Stage, version: str, **changes: Any) -> Summary:
    """What a stage reports when all is well."""
    measured = {"value": 0.1, "low": 0.08, "high": 0.12}
    candidates = [
        {"name": "fp32", "sizeBytes": 400, "latencyP50Ms": 1.0, "latencyP99Ms": 2.0, "metrics": {"roc_auc": 0.91}},
        {
            "name": "int8-dynamic",
            "sizeBytes": 100,
            "latencyP50Ms": 0.5,
            "latencyP99Ms": 1.0,
            "metrics": {"roc_auc": 0.905},
        },
    ]
    details: dict[Stage, Object] = {
        Stage.TRAIN: {"epochs": 5, "worldSize": 2},
        Stage.AUDIT: {
            "fairness": {m: dict.fromkeys(("sex", "race"), measured) for m in contract.TARGET_FAIRNESS["binary"]}
        },
        Stage.OPTIMIZE: {"selected": "int8-dynamic", "candidates": candidates},
        Stage.PACKAGE: {"storageUri": f"s3://mlplatform/default/{version}/package/serving", "sizeBytes": 1000},
    }
    metrics = {} if stage is Stage.PACKAGE else {"roc_auc": 0.91}
    values: dict[str, Any] = {"metrics": metrics, "details": details[stage], "digest": "sha256:0", **changes}
    return Summary(stage, version, **values)


@dataclass
class Fake:
    """The API server and the other controllers.

    Attributes:
        now: The clock.
        served: Kinds the API server serves beside its own.
        report: What a stage's pod reports, by stage and version.
        train_seconds: How long a PyTorchJob runs.
        stage_seconds: How long a Job runs.
        serve_seconds: From an InferenceService to Ready pods.
        unready: Versions, or pods by name, that do not get ready.
        podless: Versions that KServe makes no pods for, and what it says of them.
        refused: Kinds whose pods the API server refuses, and its words: who makes them says so as the real ones do.
        store: The artifact store: reports of finished stages by the version's folder.
        store_away: Whether it refuses to be read, and to delete.
        forks: When set, takes a copy of the cluster before each write: where a crash at that point would leave it.
        played: How many entries of a scenario have been played.
        log: Every write that took effect, as ``verb kind/name``.
        events: Every event posted.
    """

    now: datetime = START
    served: set[str] = field(default_factory=lambda: {"PyTorchJob", "InferenceService", "VirtualService"})
    report: Callable[[Stage, str], Summary] = summary
    train_seconds: float = 60
    stage_seconds: float = 20
    serve_seconds: float = 15
    unready: set[str] = field(default_factory=set)
    podless: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    store: dict[str, dict[Stage, Summary]] = field(default_factory=dict)
    store_away: bool = False
    forks: list[Fake] | None = None
    played: int = 0
    log: list[str] = field(default_factory=list)
    events: list[tuple[str, Event]] = field(default_factory=list)
    _objects: dict[tuple[str, str], Object] = field(default_factory=dict)
    _revision: int = 0

    # What mlplatform.cluster.Cluster offers.

    def do(self, write: Write) -> Object | None:
        ref = Ref.to(write.manifest) if isinstance(write, (Create, Apply)) else write.ref
        self._count(f"{type(write).__name__.lower()} {ref.kind}/{ref.name}")
        return self._write(write, ref)

    def _write(self, write: Write, ref: Ref) -> Object | None:
        live = self._objects.get((ref.kind, ref.name))
        if isinstance(write, Delete):
            self.remove(ref.kind, ref.name)
            return None
        if isinstance(write, Patch):
            return self.put(_merged(live, write.body)) if live else None
        manifest = copy.deepcopy(write.manifest)
        if ref.kind == "InferenceService":
            manifest["metadata"]["managedFields"] = [{"manager": contract.MANAGER, "time": stamp(self.now)}]
        if live is None:
            return self.put(manifest)
        mine = {r["uid"] for r in write.manifest["metadata"]["ownerReferences"]}
        theirs = {r["uid"] for r in live["metadata"].get("ownerReferences") or ()}
        if mine != theirs and not stray(live, labels_of(write.manifest)):
            raise NameTaken(f"{ref.kind} {ref.name} exists and belongs to something else")
        if isinstance(write, Create):
            return live
        expected = write.manifest["metadata"].get("resourceVersion")
        if expected not in (None, live["metadata"]["resourceVersion"]):
            raise Conflict(f"{ref.kind} {ref.name} has been modified")
        manifest["metadata"] = {**live["metadata"], **manifest["metadata"]}
        return self.put({**manifest, "status": live.get("status", {})})

    def write_status(self, obj: Object, status: Object) -> Object | None:
        key = obj["kind"], name_of(obj)
        self._count(f"status {key[0]}/{key[1]}")
        live = self._objects.get(key)
        return self.put({**live, "status": status}) if live and uid_of(live) == uid_of(obj) else None

    def post(self, obj: Object, event: Event, _when: datetime) -> None:
        self.events.append((name_of(obj), event))

    def may_write(self) -> bool:
        return True

    def missing(self, kinds: dict[str, str]) -> frozenset[str]:
        return frozenset(kinds.keys() - self.served)

    def seen_missing(self, kinds: dict[str, str]) -> frozenset[str] | None:
        return self.missing(kinds)

    def get(self, ref: Ref) -> Object | None:
        path(ref)
        return self._objects.get((ref.kind, ref.name))

    def warnings(self, obj: Object) -> list[Object]:
        return [o for (k, _), o in self._objects.items() if k == "Event" and o["involvedObject"]["uid"] == uid_of(obj)]

    def _count(self, entry: str) -> None:
        if self.forks is not None:
            forks, self.forks = self.forks, None
            forks.append(self.fork())
            self.forks = forks
        self.log.append(entry)

    def fork(self) -> Fake:
        """Another cluster in the same state. Stored objects are replaced, never changed, so they can be shared."""
        return replace(
            self,
            log=[*self.log],
            events=[*self.events],
            unready={*self.unready},
            podless={**self.podless},
            refused={**self.refused},
            store={**self.store},
            _objects={**self._objects},
        )

    # What the watch indexes offer.

    def objects(self, kind: str, _namespace: str, model: str) -> list[Object]:
        def belongs(obj: Object) -> bool:
            if kind == "Ingress":
                return inferenceservice.model_of_ingress(obj["metadata"]) == model
            return name_of(obj) == model if kind == "MLModel" else labels_of(obj).get(contract.LABEL_MODEL) == model

        return [o for (k, _), o in self._objects.items() if k == kind and belongs(o)]

    def claims(self, host: str, _namespace: str, model: str) -> list[Object]:
        found = [o for (k, _), o in self._objects.items() if host in named(k, o)]
        return [o for o in found if o["kind"] == "Ingress" or name_of(o) != model]

    # What tests do.

    def put(self, obj: Object) -> Object:
        """Stores an object as the API server would."""
        key = obj["kind"], name_of(obj)
        live, obj = self._objects.get(key), json.loads(json.dumps(obj))
        self._revision += 1
        meta = obj["metadata"]
        meta.setdefault("uid", live["metadata"]["uid"] if live else f"uid-{key[0]}-{key[1]}-{self._revision}")
        meta.setdefault("creationTimestamp", stamp(self.now))
        meta["resourceVersion"] = str(self._revision)
        changed = live is None or live.get("spec") != obj.get("spec")
        if live is None and key[0] in {"MLModel", "ModelVersion"}:
            obj.setdefault("status", {"observedGeneration": -1})
        meta["generation"] = (live["metadata"]["generation"] if live else 0) + changed
        if live and "status" not in obj:
            obj["status"] = live.get("status", {})
        self._objects[key] = obj
        return obj

    def apply(self, model: Object) -> None:
        """What `kubectl apply` does with an MLModel."""
        self.put(model)

    def remove(self, kind: str, name: str) -> None:
        """Deletes an object and what it owns."""
        gone = self._objects.pop((kind, name), None)
        if gone:
            for (k, n), obj in list(self._objects.items()):
                if any(r["uid"] == uid_of(gone) for r in obj["metadata"].get("ownerReferences") or ()):
                    self.remove(k, n)

    def one(self, kind: str, name: str) -> Object:
        """An object that must be there."""
        return self._objects[kind, name]

    def names(self, kind: str) -> list[str]:
        """Names of all objects of a kind."""
        return sorted(name for k, name in self._objects if k == kind)

    def weights(self, model: str = "adult") -> dict[str, int]:
        """How the mesh splits traffic."""
        return virtualservice.weights(self._objects.get(("VirtualService", model)))

    # The other controllers.

    def act(self) -> datetime | None:
        """Lets them all act; returns when the next of them has something to do."""
        due: list[datetime] = []
        for (kind, _), obj in list(self._objects.items()):
            actor = {"PyTorchJob": self._train, "Job": self._batch, "InferenceService": self._serve}.get(kind)
            if actor:
                due += actor(obj)
        return min(due, default=None)

    def _train(self, job: Object) -> Iterator[datetime]:
        status = job.get("status") or {}
        if any(c["status"] == "True" and c["type"] in {"Succeeded", "Failed"} for c in status.get("conditions") or ()):
            return
        names = [f"{name_of(job)}-master-0", f"{name_of(job)}-worker-0"]
        if job["spec"]["runPolicy"]["suspend"]:
            for name in names:
                self.remove("Pod", name)
            if status.get("startTime") or not status:
                condition = {"type": "Suspended", "status": "True", "lastTransitionTime": stamp(self.now)}
                self.put({**job, "status": {"conditions": [condition]}})
            return
        if not status.get("startTime"):
            status = {"startTime": stamp(self.now), "conditions": status.get("conditions") or []}
            job = self.put({**job, "status": status})
        template = job["spec"]["pytorchReplicaSpecs"]["Master"]["template"]
        yield from self._run(job, template, names, Stage.TRAIN, self.train_seconds, "Succeeded")

    def _batch(self, job: Object) -> Iterator[datetime]:
        status = job.get("status") or {}
        if status.get("conditions") or job["spec"].get("parallelism") == 0:
            return
        if not status.get("startTime"):
            status = {"startTime": stamp(self.now)}
            job = self.put({**job, "status": status})
        names = [f"{name_of(job)}-abcde"]
        errand = {adoption.NAME: self._read, forgetting.NAME: self._forget}.get(labels_of(job)[contract.LABEL_STAGE])
        if errand:
            yield from errand(job, names[0])
            return
        stage = Stage(labels_of(job)[contract.LABEL_STAGE])
        yield from self._run(job, job["spec"]["template"], names, stage, self.stage_seconds, "Complete")

    def _run(
        self, job: Object, template: Object, names: list[str], stage: Stage, seconds: float, done: str
    ) -> Iterator[datetime]:
        for name in names:
            if ("Pod", name) not in self._objects:
                if job["kind"] in self.refused:
                    self._refuse(job, name)
                    yield self.now + timedelta(seconds=10)
                    return
                self.put(_pod(job, name, template["metadata"]["labels"], {"phase": "Running"}))
        ends = datetime.fromisoformat(job["status"]["startTime"]) + timedelta(seconds=seconds)
        if self.now < ends:
            yield ends
            return
        said = self.report(stage, labels_of(job)[contract.LABEL_VERSION])
        if not said.failure:
            self.store[_place(template)] = {**self.store.get(_place(template), {}), stage: said}
        ended = {"exitCode": 1 if said.failure else 0, "message": said.to_json(), "finishedAt": stamp(self.now)}
        container = {"name": "main", "state": {"terminated": ended}}
        phase = "Failed" if said.failure else "Succeeded"
        pod = _pod(job, names[0], template["metadata"]["labels"], {"phase": phase, "containerStatuses": [container]})
        self.put({**self._objects["Pod", names[0]], "status": pod["status"]})
        condition = {
            "type": "Failed" if said.failure else done,
            "status": "True",
            "lastTransitionTime": stamp(self.now),
        }
        self.put({**job, "status": {**job["status"], "conditions": [condition], "completionTime": stamp(self.now)}})

    def _read(self, job: Object, name: str) -> Iterator[datetime]:
        """mljobs.adopt: what the store has, as far as it goes."""
        pod = job["spec"]["template"]
        if ("Pod", name) not in self._objects:
            self.put(_pod(job, name, pod["metadata"]["labels"], {"phase": "Running"}))
        ends = datetime.fromisoformat(job["status"]["startTime"]) + timedelta(seconds=self.stage_seconds)
        if self.now < ends:
            yield ends
            return
        lost = Failure(FailureClass.REPORT_LOST, "there is no such file", "Nothing: the stage is run again")
        gone = Failure(FailureClass.STORE_ACCESS, "the store refused to read it", "Check the keys")
        found, version = self.store.get(_place(pod), {}), labels_of(job)[contract.LABEL_VERSION]
        said = {s: found.get(s) or Summary(s, version, failure=lost) for s in Stage}
        if self.store_away:
            said = {Stage.TRAIN: Summary(Stage.TRAIN, version, failure=gone)}
        ended = [
            {"name": stage, "state": {"terminated": {"exitCode": int(self.store_away), "message": summary.to_json()}}}
            for stage, summary in said.items()
        ]
        self._end(job, name, {"initContainerStatuses": ended[:3], "containerStatuses": ended[3:]})

    def _forget(self, job: Object, name: str) -> Iterator[datetime]:
        """mljobs.forget: some of the folder has gone when it has only begun."""
        pod, place = job["spec"]["template"], _place(job["spec"]["template"])
        if ("Pod", name) not in self._objects:
            self.put(_pod(job, name, pod["metadata"]["labels"], {"phase": "Running"}))
            if place in self.store and not self.store_away:
                self.store[place] = dict(list(self.store[place].items())[1:])
        ends = datetime.fromisoformat(job["status"]["startTime"]) + timedelta(seconds=self.stage_seconds)
        if self.now < ends:
            yield ends
            return
        refused = Failure(FailureClass.STORE_ACCESS, "the store refused to delete it", "Check the keys")
        said = Summary(Stage.PACKAGE, labels_of(job)[contract.LABEL_VERSION])
        if self.store_away:
            said = replace(said, failure=refused)
        else:
            self.store.pop(place, None)
        ended = {"exitCode": int(self.store_away), "message": said.to_json()}
        self._end(job, name, {"containerStatuses": [{"name": forgetting.NAME, "state": {"terminated": ended}}]})

    def _end(self, job: Object, pod: str, containers: Object) -> None:
        """A Job that works in the store comes to its end."""
        status = {"phase": "Failed" if self.store_away else "Succeeded", **containers}
        self.put({**self._objects["Pod", pod], "status": status})
        condition = {
            "type": "Failed" if self.store_away else "Complete",
            "status": "True",
            "lastTransitionTime": stamp(self.now),
        }
        self.put({**job, "status": {**job["status"], "conditions": [condition], "completionTime": stamp(self.now)}})

    def _refuse(self, job: Object, pod: str) -> None:
        """The Training Operator and the Job controller post an event at each try, and tell nothing else."""
        reason = {"PyTorchJob": "FailedCreatePod", "Job": "FailedCreate"}[job["kind"]]
        message = f'Error creating: pods "{pod}" is forbidden: {self.refused[job["kind"]]}'
        event = {
            "kind": "Event",
            "metadata": {"name": f"{name_of(job)}.{reason}", "namespace": NAMESPACE},
            "involvedObject": {"uid": uid_of(job)},
            "reason": reason,
            "message": message,
            "lastTimestamp": stamp(self.now),
        }
        self.put(event)

    def _deploy(self, version: str) -> bool:
        """KServe's Deployment, whose status says why its pods are refused; whether they are."""
        words = self.refused.get("InferenceService", "")
        failure = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": words}
        status = {"conditions": [failure] if words else []}
        live = self._objects.get(("Deployment", f"{version}-predictor"))
        if (live or {"status": {"conditions": []}})["status"] != status:
            metadata = {"name": f"{version}-predictor", "namespace": NAMESPACE}
            self.put({"kind": "Deployment", "metadata": metadata, "status": status})
        return bool(words)

    def _serve(self, isvc: Object) -> Iterator[datetime]:
        """KServe: pods of the present template, as many as the lower bound asks for; each is ready `serve_seconds` later.

        Those of an earlier template go when their successors are ready.
        """
        version, label = name_of(isvc), inferenceservice.pod_label(name_of(isvc))
        mine = {n: o for (k, n), o in self._objects.items() if k == "Pod" and n.startswith(f"{version}-predictor-")}
        replicas = 0 if version in self.podless else isvc["spec"]["predictor"]["minReplicas"]
        annotations = self._template(isvc)
        current = sorted(name for name, pod in mine.items() if annotations_of(pod) == annotations)
        for name in [*current[replicas:], *(mine if version in self.podless else ())]:
            self.remove("Pod", name)
        if version in self.podless:
            condition = {"type": "PredictorReady", "status": "False", "message": self.podless[version]}
            if isvc.get("status") != {"conditions": [condition]}:
                self.put({**isvc, "status": {"conditions": [condition]}})
            return
        free = (n for i in itertools.count() if (n := f"{version}-predictor-{i}") not in mine)
        names = [*current[:replicas], *itertools.islice(free, max(replicas - len(current), 0))]
        serving, refused = True, self._deploy(version)
        for name in names:
            if name not in mine and refused:
                serving = False
                continue
            live = mine.get(name) or _pod(isvc, name, {**labels_of(isvc), "app": label}, {})
            created = live["metadata"].setdefault("creationTimestamp", stamp(self.now))
            ready_at = datetime.fromisoformat(created) + timedelta(seconds=self.serve_seconds)
            ready = self.now >= ready_at and not {version, name} & self.unready
            status = {"conditions": [{"type": "Ready", "status": "True" if ready else "False"}]}
            if live["status"] != status:
                metadata = {**live["metadata"], "annotations": annotations}
                self.put({**live, "metadata": metadata, "status": status})
            if self.now < ready_at:
                yield ready_at
            serving = serving and ready
        if serving:
            for name in mine.keys() - set(names):
                self.remove("Pod", name)
            self._publish(isvc)

    def _template(self, isvc: Object) -> dict[str, str]:
        """What KServe makes pods from: its labels and annotations, all but the bounds of its spec, and its runtime."""
        predictor = {k: v for k, v in isvc["spec"]["predictor"].items() if "Replicas" not in k and "scale" not in k}
        runtime = self._objects.get(("ServingRuntime", inferenceservice.runtime(isvc)), {"spec": {}})["spec"]
        parts = [labels_of(isvc), annotations_of(isvc), predictor, runtime]
        return {"template": contract.digest(parts), **(runtime.get("annotations") or {})}

    def _publish(self, isvc: Object) -> None:
        """KServe's Ingress, which it makes unless it is told not to, and leaves when it is told later."""
        if not inferenceservice.is_local(isvc) and ("Ingress", name_of(isvc)) not in self._objects:
            meta = {"name": name_of(isvc), "namespace": NAMESPACE, "ownerReferences": [_reference(isvc)]}
            self.put({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": meta})


class Operator:
    """The operator's process: a reconciler an object, as the daemons hold them. Restarting it is making a new one."""

    def __init__(self, fake: Fake, settings: Settings | None = None) -> None:
        self._fake = fake
        self._world = World(cast("Cluster", fake), fake, settings or PLATFORM, lambda: fake.now)
        self._reconcilers: dict[tuple[str, str, str], Reconciler] = {}

    def settle(self) -> datetime | None:
        """Passes over every object until nothing is written any more.

        Returns:
            When one of them wants to look again.
        """
        return asyncio.run(self._settle())

    async def _settle(self) -> datetime | None:
        for _ in range(50):
            writes = len(self._fake.log)
            looks = [await reconciler.once() for reconciler in self._all()]
            self._fake.act()
            if len(self._fake.log) == writes:
                return min((look for look in looks if look), default=None)
        raise AssertionError(f"still writing after 50 passes: {self._fake.log[-10:]}")

    async def attempt(self) -> None:
        """One pass over every object, whatever the API server answers."""
        for reconciler in self._all():
            with contextlib.suppress(ClusterError):
                await reconciler.once()

    def _all(self) -> Iterable[Reconciler]:
        for kind in ("MLModel", "ModelVersion"):
            for name in self._fake.names(kind):
                obj = self._fake.one(kind, name)
                model = name if kind == "MLModel" else obj["spec"]["model"]
                key = (kind, name, uid_of(obj))
                if key not in self._reconcilers:
                    self._reconcilers[key] = Reconciler(self._world, kind, NAMESPACE, name, model)
                yield self._reconcilers[key]


Scenario = Sequence[tuple[float, Callable[[Fake], None]]]
"""What people do, and when: seconds from the start, and the deed. The last entry ends it."""


def play(scenario: Scenario, fake: Fake | None = None) -> Fake:
    """Plays a scenario from where `fake` is in it, with an operator that has just started."""
    fake = fake or Fake()
    operator = Operator(fake)
    while fake.played < len(scenario):
        seconds, deed = scenario[fake.played]
        run(fake, operator, START + timedelta(seconds=seconds))
        fake.played += 1
        deed(fake)
    return fake


def run(fake: Fake, operator: Operator, end: datetime) -> None:
    """Lets time pass until `end`, from one moment at which something happens to the next."""
    while True:
        fake.act()
        look = operator.settle()
        if fake.now >= end:
            return
        moments = [moment for moment in (look, fake.act()) if moment and moment > fake.now]
        fake.now = min([*moments, end])


def outcome(fake: Fake) -> Object:
    """What is left at the end, less names of moments: equal for two runs that came to the same."""
    model = fake.one("MLModel", "adult")["status"]
    return {
        "objects": sorted(f"{kind}/{name}" for kind, name in fake._objects if kind != "Pod"),  # noqa: SLF001  this module's own
        "weights": fake.weights(),
        "conditions": {c["type"]: (c["status"], c["reason"], c["message"]) for c in model["conditions"]},
        "stable": model.get("stable", {}).get("version"),
        "history": [(d["version"], d["decision"], d["reason"], d["message"]) for d in model.get("history") or ()],
        "versions": {
            name: [(s["name"], s["outcome"]) for s in fake.one("ModelVersion", name)["status"].get("stages") or ()]
            for name in fake.names("ModelVersion")
        },
    }


def failing(
    stage: Stage, failure: Failure | None = None, version: str = "", **changes: Any
) -> Callable[[Stage, str], Summary]:
    """A `Fake.report` in which one stage (of one version, if named) goes wrong or says something else."""

    def report(at: Stage, of: str) -> Summary:
        if at is stage and version in {"", of}:
            return summary(at, of, failure=failure, **changes)
        return summary(at, of)

    return report


def _reference(owner: Object) -> Object:
    return {"kind": owner["kind"], "name": name_of(owner), "uid": uid_of(owner), "controller": True}


def _place(template: Object) -> str:
    """Where a stage's pods put the version's artifacts."""
    (container,) = template["spec"]["containers"]
    return next(str(entry["value"]) for entry in container["env"] if entry["name"] == contract.ENV_ARTIFACTS)


def without_data(fake: Fake) -> None:
    """Someone applies a model whose data is not there yet."""
    fake.report = failing(Stage.TRAIN, Failure(FailureClass.DATA_MISSING, "nothing there", "Upload it"))
    fake.apply(mlmodel())


def retried(fake: Fake) -> None:
    """It was uploaded, and `kubectl mlmodel retry` asks for another attempt."""
    fake.report = summary
    [name] = fake.names("ModelVersion")
    version = fake.one("ModelVersion", name)
    asked = {**version["metadata"], "annotations": {contract.ANNOTATION_RETRY: "train/2"}}
    fake.put({**version, "metadata": asked})


def _pod(owner: Object, name: str, labels: dict[str, str], status: Object) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": labels, "ownerReferences": [_reference(owner)]},
        "status": status,
    }


def _merged(live: Object, patch: Object) -> Object:
    found = json.loads(json.dumps(live))
    for key, value in patch.items():
        if value is None:
            found.pop(key, None)
        else:
            found[key] = _merged(found.get(key, {}), value) if isinstance(value, dict) else value
    return cast("Object", found)
