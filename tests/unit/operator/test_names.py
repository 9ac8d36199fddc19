"""Which version an MLModel asks for: the one of its content, whatever a release makes of names, defaults and orders."""

from __future__ import annotations

import copy
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import crds
import pytest
from unit.operator_world import SPEC, Fake, Operator, mlmodel, play, run

from mlplatform import api, contract
from mlplatform.resources import modelversion
from mlplatform.snapshot import Object, name_of

WRITTEN: Object = {
    "data": {"uri": "s3://datasets/adult/", "label": "income", "sensitiveAttributes": ["sex", "race"]},
    "training": {"epochs": 5, "hyperparameters": {"hidden": [32, 16], "bins": 8}},
    "gates": [{"metric": "roc_auc", "min": 0.88}, {"metric": "f1", "min": 0.5}],
    "optimization": {"candidates": ["fp32", "int8-dynamic"], "export": ["torchscript", "onnx"]},
}
OLD = "adult-00000000"
"""A name that no rule of today makes."""


def stored(spec: Object, plural: str = "mlmodels") -> Object:
    """A spec as the API server keeps it, with the CRD's defaults."""
    found: Object = crds.with_defaults(crds.schema(plural, "spec"), copy.deepcopy(spec))
    return found


def version(spec: Object = WRITTEN, name: str = OLD, sequence: int = 1, trigger: str = "") -> Object:
    """A ModelVersion that an earlier release made of that spec, under a name of its own."""
    asked = {"model": "adult", "sequence": sequence, **({"trigger": trigger} if trigger else {}), **spec}
    return {"kind": "ModelVersion", "metadata": {"name": name}, "spec": stored(asked, "modelversions")}


def wanted(spec: Object, *versions: Object, taken: tuple[str, ...] = (), **annotations: str) -> str:
    model = mlmodel(spec=stored(spec), **annotations)
    decoded = api.decode(api.MLModelSpec, model["spec"])
    return modelversion.wanted(model, decoded, {name_of(v): v for v in versions}, taken)


def changed(path: str, value: Any) -> Object:
    spec = copy.deepcopy(WRITTEN)
    *parents, leaf = path.split(".")
    node = spec
    for parent in parents:
        node = node.setdefault(parent, {})
    node[leaf] = value
    return spec


SAME: list[tuple[str, Object, bool]] = [
    ("nothing has changed but how names are made", WRITTEN, True),
    ("sensitive attributes are a set", changed("data.sensitiveAttributes", ["race", "sex"]), True),
    ("exports are a set", changed("optimization.export", ["onnx", "torchscript"]), True),
    ("the choice has an order of its own", changed("optimization.candidates", ["int8-dynamic", "fp32"]), True),
    ("every gate must be passed, in whatever order", changed("gates", WRITTEN["gates"][::-1]), True),
    ("a default written out", changed("training.seed", 7), True),
    ("a precision is asked for that would follow the machine", changed("training.precision", "bf16"), False),
    ("a batch is asked for that would follow the data", changed("training.batchSize", 512), False),
    ("an object's keys have no order", changed("training.hyperparameters", {"bins": 8, "hidden": [32, 16]}), True),
    ("what becomes of it once it is gone shapes no artifact", changed("artifactRetention", "Delete"), True),
    ("how it is served shapes no artifact", changed("serving.replicas", {"min": 2, "max": 4}), True),
    ("the order of layers is their meaning", changed("training.hyperparameters.hidden", [16, 32]), False),
    ("another value of a free-form parameter", changed("training.hyperparameters.bins", 9), False),
    ("true is not 1, though Python says so", changed("training.hyperparameters.bins", True), False),
    ("an attribute less is audited less", changed("data.sensitiveAttributes", ["sex"]), False),
    ("a gate decides whether a version may serve", changed("gates", WRITTEN["gates"][:1]), False),
    ("a bound that moved", changed("gates", [WRITTEN["gates"][0], {"metric": "f1", "min": 0.6}]), False),
    ("a candidate less", changed("optimization.candidates", ["fp32"]), False),
    ("another default asked for", changed("training.epochs", 10), False),
]


@pytest.mark.parametrize(("reason", "spec", "same"), SAME, ids=[case[0] for case in SAME])
def test_a_version_is_known_by_its_content(reason: str, spec: Object, same: bool) -> None:  # noqa: FBT001  a table's column
    assert (wanted(spec, version()) == OLD) is same, reason


@pytest.mark.parametrize(("reason", "spec", "same"), SAME, ids=[case[0] for case in SAME])
def test_a_new_name_says_the_same(reason: str, spec: Object, same: bool) -> None:  # noqa: FBT001  likewise
    assert (wanted(spec) == wanted(WRITTEN)) is same, f"where nothing is made yet: {reason}"


def test_a_retrain_asks_for_another_version_of_the_same_content() -> None:
    retrained = version(name="adult-11111111", sequence=2, trigger="monday")
    asked = {contract.ANNOTATION_RETRAIN: "monday"}
    assert wanted(WRITTEN, version(), retrained, **asked) == "adult-11111111"
    assert wanted(WRITTEN, version(), **asked) not in {OLD, wanted(WRITTEN)}


def test_a_retrain_annotation_that_is_gone_asks_for_nothing() -> None:
    first, again = version(), version(name="adult-11111111", sequence=2, trigger="monday")
    assert wanted(WRITTEN, first, again) == "adult-11111111", "the newest of this content, not the one before"
    assert wanted(WRITTEN, first, again, **{contract.ANNOTATION_RETRAIN: ""}) == "adult-11111111"
    later = version(name="adult-22222222", sequence=3)
    assert wanted(WRITTEN, first, again, later) == "adult-22222222"
    assert wanted(changed("training.epochs", 6), first, again) not in {OLD, "adult-11111111"}
    reordered = version(changed("optimization.export", ["onnx", "torchscript"]), "adult-33333333", 3, "monday")
    assert wanted(WRITTEN, first, reordered) == "adult-33333333", "however it is written"


def test_of_several_of_one_content_it_is_the_one_written_so_else_the_newest() -> None:
    turned = version(changed("data.sensitiveAttributes", ["race", "sex"]), name="adult-11111111", sequence=2)
    assert wanted(WRITTEN, version(), turned) == OLD, "an earlier release told them apart: what serves goes on serving"
    assert wanted(WRITTEN, version(), version(name="adult-22222222", sequence=3)) == "adult-22222222"


def test_a_version_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = version(name="adult-33333333", sequence=33), version(name="adult-44444444", sequence=44)
    asked = api.decode(api.MLModelSpec, stored(WRITTEN))
    found, read, decode = {name_of(v): v for v in (one, other)}, list[str](), api.decode
    monkeypatch.setattr(api, "decode", lambda cls, *rest: read.append(cls.__name__) or decode(cls, *rest))
    for _ in range(3):
        assert modelversion.wanted(mlmodel(), asked, found) == "adult-44444444"
    assert len(read) == 2, "each pass of each version looks at all of its model's versions, and none of those changes"


def test_a_version_of_a_newer_release_is_nobody_elses() -> None:
    newer = version()
    newer["spec"]["training"]["mixup"] = 0.2
    assert wanted(WRITTEN, newer) == wanted(WRITTEN)


def test_a_name_that_is_taken_is_given_to_nothing_else() -> None:
    name = wanted(WRITTEN)
    another = version(changed("training.epochs", 6), name=name)
    assert wanted(WRITTEN, another) != name, "another default may make the same name of another content"
    assert wanted(WRITTEN, taken=(name,)) != name, "it still serves, though its version was deleted"
    assert wanted(WRITTEN, another) == wanted(WRITTEN, taken=(name,)), "the next name is a hash of its inputs, too"


FILLED: Object = {
    "training": {"epochs": 10, "batchSize": 512, "precision": "bf16", "strategy": "fsdp"},
    "data": WRITTEN["data"],
}
"""What the schema of earlier releases made of a model that says nothing of its training."""


def test_a_model_of_before_these_defaults_followed_the_data_keeps_its_version_and_its_names() -> None:
    assert wanted(FILLED, version(FILLED)) == OLD, "both objects have what the schema wrote into them"
    assert wanted(FILLED) == "adult-8f7ac09f", "the name that earlier releases made of it"
    silent = {"data": WRITTEN["data"]}
    assert wanted(silent, version(FILLED)) not in {OLD, wanted(FILLED)}, (
        "who leaves it open now asks for something else"
    )
    for name, value in FILLED["training"].items():
        assert wanted({**silent, "training": {name: value}}) != wanted(silent), f"{name} is asked for"


# A release that changes something, over a model that serves.


def old_default(monkeypatch: pytest.MonkeyPatch, fake: Fake) -> None:
    """This release's default of epochs is another one; the objects have the old one, written out by the API server."""
    monkeypatch.setattr(api.Training.__dataclass_fields__["epochs"], "default", 20)
    monkeypatch.setitem(api.Training.__init__.__kwdefaults__, "epochs", 20)
    for kind, plural in (("MLModel", "mlmodels"), ("ModelVersion", "modelversions")):
        for name in fake.names(kind):
            obj = fake.one(kind, name)
            fake.put({**obj, "spec": stored(obj["spec"], plural)})


def another_name(monkeypatch: pytest.MonkeyPatch, _fake: Fake) -> None:
    """This release makes names in another way."""
    monkeypatch.setattr(api, "version_name", lambda model, *_: f"{model}-ffffffff")


def other_order(_monkeypatch: pytest.MonkeyPatch, fake: Fake) -> None:
    """A GitOps tool writes lists in another order."""
    model = fake.one("MLModel", "adult")
    data = {**model["spec"]["data"], "sensitiveAttributes": ["sex", "race"]}
    fake.put({**model, "spec": {**model["spec"], "data": data, "optimization": {"export": ["onnx", "torchscript"]}}})


UPGRADES: list[Callable[[pytest.MonkeyPatch, Fake], None]] = [old_default, another_name, other_order]


@pytest.mark.parametrize("upgrade", UPGRADES, ids=lambda f: f.__doc__)
def test_a_release_renames_and_retrains_nothing(
    upgrade: Callable[[pytest.MonkeyPatch, Fake], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = {**SPEC, "data": {**SPEC["data"], "sensitiveAttributes": ["race", "sex"]}}
    fake = play([(0, lambda fake: fake.apply(mlmodel(spec=spec))), (300, lambda _fake: None)])
    upgrade(monkeypatch, fake)
    versions, fake.log[:] = fake.names("ModelVersion"), []
    run(fake, Operator(fake), fake.now + timedelta(seconds=600))
    assert fake.names("ModelVersion") == versions
    assert not [entry for entry in fake.log if entry.startswith(("create", "delete"))], fake.log
    assert fake.weights() == {versions[0]: 100}
    ready = {c["type"]: c["status"] for c in fake.one("MLModel", "adult")["status"]["conditions"]}
    assert ready["Ready"] == "True"


# A name is not reused for other content.


def places(fake: Fake, kind: str = "PyTorchJob") -> dict[str, str]:
    """Where the trainings put their artifacts, by version."""
    found = {}
    for name in fake.names(kind):
        (container,) = fake.one(kind, name)["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]["containers"]
        environment = {entry["name"]: entry["value"] for entry in container["env"]}
        found[environment[contract.ENV_VERSION]] = environment[contract.ENV_ARTIFACTS]
    return found


def applied(fake: Fake) -> None:
    fake.apply(mlmodel())


def nothing(_fake: Fake) -> None:
    """Time passes."""


def suspended(fake: Fake) -> None:
    fake.apply(mlmodel(spec={**SPEC, "suspend": True}))


def without_its_versions(fake: Fake) -> None:
    for name in fake.names("ModelVersion"):
        fake.remove("ModelVersion", name)


def made_anew(fake: Fake) -> None:
    fake.remove("MLModel", "adult")
    applied(fake)


AGAIN: list[tuple[str, list[tuple[float, Callable[[Fake], None]]], int]] = [
    ("deleted while it trains", [(20, without_its_versions), (40, nothing)], 2),
    ("deleted while it serves", [(300, without_its_versions), (320, nothing)], 2),
    ("deleted while nothing may begin", [(20, suspended), (30, without_its_versions), (40, applied), (60, nothing)], 2),
    ("deleted with its model", [(20, made_anew), (40, nothing)], 1),
]


@pytest.mark.parametrize(("reason", "deeds", "sequence"), AGAIN, ids=[case[0] for case in AGAIN])
def test_what_is_made_again_has_its_own_place(
    reason: str, deeds: list[tuple[float, Callable[[Fake], None]]], sequence: int
) -> None:
    before = set(places(play([(0, applied), (10, nothing)])).values())
    fake = play([(0, applied), *deeds])
    (name,) = fake.names("ModelVersion")
    assert fake.one("ModelVersion", name)["spec"]["sequence"] == sequence, reason
    assert not before & set(places(fake).values()), f"{reason}: it would resume from the checkpoints of another"


def test_a_number_is_not_given_twice() -> None:
    def second(fake: Fake) -> None:
        fake.apply(mlmodel(spec={**SPEC, "gates": [{"metric": "roc_auc", "min": 0.9}]}))

    fake = play([(0, applied), (300, second), (420, without_its_versions), (430, applied), (600, nothing)])
    numbers = [fake.one("ModelVersion", name)["spec"]["sequence"] for name in fake.names("ModelVersion")]
    assert min(numbers) > 2, numbers
    assert fake.one("MLModel", "adult")["status"]["highestSequence"] == max(numbers)


def test_the_same_version_made_twice_has_one_place() -> None:
    model = mlmodel()
    model["metadata"]["uid"] = "7d1c"
    spec = api.decode(api.MLModelSpec, model["spec"])
    ids = [
        modelversion.render({**model, "metadata": {**model["metadata"], "uid": uid}}, spec, "adult-1", number, "")[
            "spec"
        ]["artifactId"]
        for uid, number in (("7d1c", 1), ("7d1c", 1), ("7d1c", 2), ("8e2d", 1))
    ]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3, "another number, another model of the name"


def test_a_version_of_an_earlier_release_stays_where_it_is() -> None:
    fake = Fake()
    fake.apply(mlmodel())
    model = fake.one("MLModel", "adult")
    old = modelversion.render(model, api.decode(api.MLModelSpec, model["spec"]), OLD, 1, "")
    del old["spec"]["artifactId"]
    fake.put(old)
    run(fake, Operator(fake), fake.now + timedelta(seconds=10))
    assert places(fake) == {OLD: f"s3://mlplatform/default/adult/{OLD}"}


def test_the_id_is_no_business_of_the_jobs() -> None:
    fake = play([(0, applied), (10, nothing)])
    (job,) = (fake.one("PyTorchJob", name) for name in fake.names("PyTorchJob"))
    (container,) = job["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]["containers"]
    (spec,) = (entry["value"] for entry in container["env"] if entry["name"] == contract.ENV_SPEC)
    assert "artifactId" not in spec, "an image of an earlier release rejects what it does not know"
