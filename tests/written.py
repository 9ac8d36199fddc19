"""Everything the operator writes in whole scenarios, in order: what the contract tests hold against the API server and the SDKs.

Used by tests/contract, tests/apiserver and tests/e2e. The scenarios run the real reconcilers against the cluster in memory of
unit/operator_world, so a kind or a field that the operator starts to write is under test without a line here.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from unit.operator_world import SPEC, Fake, failing, mlmodel, play

from mlplatform.actions import Apply, Create, Patch, Ref, Write
from mlplatform.cluster import Cluster
from mlplatform.contract import Failure, FailureClass, Stage
from mlplatform.snapshot import Object

REPOSITORY = Path(__file__).parents[1]


@dataclass(frozen=True)
class Status:
    """A status written to an object."""

    obj: Object
    status: Object


@dataclass
class Recorder(Fake):
    """The cluster in memory, which also keeps what the user and the operator sent."""

    sent: list[Object | Write | Status] = field(default_factory=list)

    def do(self, write: Write) -> Object | None:
        """Keeps the write and carries it out."""
        self.sent.append(copy.deepcopy(write))
        return super().do(write)

    def write_status(self, obj: Object, status: Object) -> Object | None:
        """Keeps the status and writes it."""
        self.sent.append(Status(copy.deepcopy(obj), copy.deepcopy(status)))
        return super().write_status(obj, status)

    def apply(self, model: Object) -> None:
        """Keeps the user's MLModel and stores it."""
        self.sent.append(copy.deepcopy(model))
        super().apply(model)


def _end(_: Fake) -> None:
    """Nothing more happens."""


def _life(fake: Fake) -> None:
    """A first version, a second one, its rollout and promotion, the first one's end."""
    second = {**SPEC, "gates": [{"metric": "roc_auc", "min": 0.9}]}
    play([(0, lambda f: f.apply(mlmodel())), (400, lambda f: f.apply(mlmodel(spec=second))), (800, _end)], fake)


def _everything_set(fake: Fake) -> None:
    """Every field of the API in use: GPUs, workers, own image, bounds."""
    sample = yaml.safe_load((REPOSITORY / "manifests/samples/complete.yaml").read_text())
    model = mlmodel("complete", {**sample["spec"], "suspend": False}, **sample["metadata"]["annotations"])
    play([(0, lambda f: f.apply(model)), (400, _end)], fake)


def _deadline(fake: Fake) -> None:
    """Training hangs: the operator ends it."""
    fake.train_seconds = 10_000
    play([(0, lambda f: f.apply(mlmodel("late"))), (3000, _end)], fake)


def _failures(fake: Fake) -> None:
    """A stage fails for good and says why."""
    failure = Failure(FailureClass.DATA_MISSING, "no rows at s3://datasets/adult/", "Put the data there.")
    fake.report = failing(Stage.AUDIT, failure)
    play([(0, lambda f: f.apply(mlmodel("broken"))), (400, _end)], fake)


def _suspended(fake: Fake) -> None:
    """A training is stopped and goes on."""
    held = mlmodel("held", {**SPEC, "suspend": True})
    play([(0, lambda f: f.apply(mlmodel("held"))), (20, lambda f: f.apply(held)), (60, _resume), (400, _end)], fake)


def _resume(fake: Fake) -> None:
    fake.apply(mlmodel("held"))


SCENARIOS = {
    "life": _life,
    "everything set": _everything_set,
    "deadline": _deadline,
    "failures": _failures,
    "suspended": _suspended,
}


@cache
def scenario(name: str) -> tuple[Object | Write | Status, ...]:
    """What was sent in a scenario: MLModels as the user applied them, writes and statuses as the operator sent them."""
    recorder = Recorder()
    SCENARIOS[name](recorder)
    return tuple(recorder.sent)


def manifests(kind: str) -> list[Object]:
    """Every manifest of a kind that the operator sent in any scenario."""
    return [
        write.manifest
        for name in SCENARIOS
        for write in scenario(name)
        if isinstance(write, (Create, Apply)) and write.manifest["kind"] == kind
    ]


def patches(kind: str) -> list[Patch]:
    """Every merge patch to a kind."""
    return [w for name in SCENARIOS for w in scenario(name) if isinstance(w, Patch) and w.ref.kind == kind]


def lost(sent: Any, stored: Any, path: str) -> Iterator[str]:
    """Paths where what came back lacks or changes what was sent; what was added on the way is fine."""
    if isinstance(sent, dict) and isinstance(stored, dict):
        for key, value in sent.items():
            if key in stored:
                yield from lost(value, stored[key], f"{path}.{key}")
            elif value not in ({}, []):
                yield f"{path}.{key}: dropped"
    elif isinstance(sent, list) and isinstance(stored, list) and len(sent) == len(stored):
        for i, (a, b) in enumerate(zip(sent, stored, strict=True)):
            yield from lost(a, b, f"{path}[{i}]")
    elif sent != stored:
        yield f"{path}: sent {sent!r}, stored {stored!r}"


def send(cluster: Cluster, what: Object | Write | Status, namespace: str) -> tuple[Object, Object | None]:
    """Does to the server what was done to the cluster in memory; returns what was sent and what is stored."""
    if isinstance(what, Status):
        live = cluster.get(replace(Ref.to(what.obj), namespace=namespace))
        assert live is not None, f"a status was written to {Ref.to(what.obj)}, which is not there"
        return {"status": what.status}, cluster.write_status(live, what.status)
    if isinstance(what, Patch):
        return _kept(what.body), cluster.patch(replace(what.ref, namespace=namespace), what.body)
    manifest = what.manifest if isinstance(what, (Create, Apply)) else what
    assert isinstance(manifest, dict), f"{what} deletes, and stores nothing"
    manifest = {**manifest, "metadata": {**manifest["metadata"], "namespace": namespace}}
    expected = manifest["metadata"].pop("resourceVersion", "")
    if isinstance(what, Apply):
        return manifest, cluster.apply(_guarded(manifest, expected, cluster))
    if isinstance(what, dict) and cluster.get(Ref.to(manifest)):
        return manifest, cluster.patch(Ref.to(manifest), {"spec": manifest["spec"]})
    return manifest, cluster.create(manifest)


def _kept(patch: Object) -> Object:
    """What a merge patch leaves there: a null takes a field away (RFC 7396)."""
    found = {key: _kept(value) if isinstance(value, dict) else value for key, value in patch.items()}
    return {key: value for key, value in found.items() if value is not None}


def _guarded(manifest: Object, expected: str, cluster: Cluster) -> Object:
    """With the server's own version where the write asked for the one that the cluster in memory had counted."""
    live = cluster.get(Ref.to(manifest)) if expected else None
    if live is None:
        return manifest
    return {**manifest, "metadata": {**manifest["metadata"], "resourceVersion": live["metadata"]["resourceVersion"]}}
