"""Where pods run: the model's wishes over the platform's, on every pod, without a new version and without a roll unasked."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from unit.operator_world import NAMESPACE, SPEC, mlmodel

from mlplatform import api
from mlplatform.contract import Stage
from mlplatform.resources import adoption, forgetting, inferenceservice, job, pytorchjob, scheduling
from mlplatform.settings import Settings, SettingsError
from mlplatform.snapshot import Object

TOLERATION = {"key": "reserved-for", "operator": "Exists", "effect": "NoSchedule"}
ANYWHERE_BUT = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
    {"matchExpressions": [{"key": "spot", "operator": "DoesNotExist"}]}
]}}}  # fmt: skip
SPREAD = {
    "maxSkew": 1,
    "topologyKey": "kubernetes.io/hostname",
    "whenUnsatisfiable": "ScheduleAnyway",
    "labelSelector": {},
    "matchLabelKeys": ["mlplatform.dev/version"],
}
POD = {
    "nodeSelector": {"pool": "ml"},
    "tolerations": [TOLERATION],
    "affinity": ANYWHERE_BUT,
    "topologySpreadConstraints": [SPREAD],
    "priorityClassName": "batch",
    "runtimeClassName": "nvidia",
}
WISHES = {**POD, "labels": {"cost-center": "42"}, "annotations": {"example.com/owner": "a"}, "ephemeralStorage": "20Gi"}
NAME = "adult-0123abcd"
VERSION = {
    "apiVersion": "mlplatform.dev/v1alpha1",
    "kind": "ModelVersion",
    "metadata": {"name": NAME, "namespace": NAMESPACE, "uid": "uid-v"},
    "spec": {"model": "adult", "sequence": 1, "data": SPEC["data"], "training": {"resources": {"gpu": 2}}},
}
VERSION_SPEC = api.decode(api.ModelVersionSpec, VERSION["spec"])
MODEL = {**mlmodel(), "metadata": {"name": "adult", "namespace": NAMESPACE, "uid": "uid-adult"}}
URI = "s3://x"


def stages(model: Object | None = None, settings: Settings | None = None) -> list[Object]:
    """The pod templates of training, of a Job and of the two that are no stage's: adoption and forgetting."""
    settings = settings or Settings()
    wanted = scheduling.of_stages(api.decode(api.Scheduling, model or {}), settings)
    train = pytorchjob.render(VERSION, VERSION_SPEC, settings, wanted)
    jobs = (
        job.render(VERSION, VERSION_SPEC, Stage.AUDIT, settings, wanted),
        adoption.render(VERSION, VERSION_SPEC, settings, wanted),
        forgetting.render(VERSION, VERSION_SPEC, settings, wanted),
    )
    return [train["spec"]["pytorchReplicaSpecs"]["Master"]["template"], *(made["spec"]["template"] for made in jobs)]


def serving(model: Object | None = None, settings: Settings | None = None) -> Object:
    return inferenceservice.render(MODEL, asked(model), NAME, URI, settings or Settings())


def asked(model: Object | None = None, **serving: Any) -> api.MLModelSpec:
    return api.decode(api.MLModelSpec, {**SPEC, "serving": {"scheduling": model or {}, **serving}})


def test_every_stages_pods_are_what_the_model_asks_for() -> None:
    for template in stages(WISHES):
        assert {key: template["spec"].get(key) for key in POD} == POD, "the fields of a pod, as they were written"
        assert template["metadata"]["annotations"] == {"example.com/owner": "a"}
        assert (
            template["metadata"]["labels"].items() >= {"cost-center": "42", "sidecar.istio.io/inject": "false"}.items()
        )
        for container in template["spec"]["containers"]:
            for kind in ("requests", "limits"):
                assert container["resources"][kind]["ephemeral-storage"] == "20Gi"


def test_so_are_the_serving_pods() -> None:
    made = serving(WISHES)
    predictor = made["spec"]["predictor"]
    assert {key: predictor.get(key) for key in POD} == POD
    assert predictor["labels"] == {"cost-center": "42"}
    assert predictor["annotations"] == {"example.com/owner": "a"}
    assert predictor["model"]["resources"]["limits"]["ephemeral-storage"] == "20Gi"


def test_what_a_model_says_stands_in_place_of_what_the_platform_says() -> None:
    text = json.dumps({**WISHES, "nodeSelector": {"pool": "ml", "zone": "a"}})
    settings = Settings(jobs_scheduling=text, serving_scheduling=text)
    own = {"nodeSelector": {"zone": "b"}, "tolerations": [{"operator": "Exists"}], "affinity": {}}
    for pod in (stages(own, settings)[0]["spec"], serving(own, settings)["spec"]["predictor"]):
        assert pod["nodeSelector"] == {"pool": "ml", "zone": "b"}, "maps are joined"
        assert pod["tolerations"] == [{"operator": "Exists"}], "lists are not"
        assert pod["affinity"] == {}, "nor is what is empty on purpose"
        assert pod["priorityClassName"] == "batch", "of what it says nothing the platform decides"


def test_gpus_and_shared_memory_are_the_clusters() -> None:
    (train, audit, *_) = stages({"gpuResource": "amd.com/gpu", "sharedMemory": "8Gi"})
    assert train["spec"]["containers"][0]["resources"]["limits"]["amd.com/gpu"] == "2"
    assert {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}} in train["spec"]["volumes"]
    assert "amd.com/gpu" not in audit["spec"]["containers"][0]["resources"]["limits"]
    mig = Settings(jobs_scheduling='{"gpuResource": "nvidia.com/mig-1g.5gb"}')
    assert stages(None, mig)[0]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/mig-1g.5gb"] == "2"


def test_where_the_cluster_assigns_user_ids_no_stage_names_one() -> None:
    for template in stages(None, Settings(run_as_user="")):
        restricted = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
        assert template["spec"]["securityContext"] == restricted
    for template in stages(None, Settings(run_as_user="1001")):
        assert template["spec"]["securityContext"]["fsGroup"] == 1001


def test_every_stage_trusts_the_authorities_of_one_config_map() -> None:
    for template in stages(None, Settings(trust_config_map="company", trust_key="all.pem")):
        volume = {"name": "trust", "configMap": {"name": "company", "optional": True}}
        assert volume in template["spec"]["volumes"]
        (container, *_) = template["spec"]["containers"]
        assert {"name": "trust", "mountPath": "/etc/mlplatform/trust"} in container["volumeMounts"]
        env = {entry["name"]: entry["value"] for entry in container["env"]}
        for name in ("AWS_CA_BUNDLE", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
            assert env[name] == "/etc/mlplatform/trust/all.pem", name


def test_it_shapes_no_artifact() -> None:
    plain = api.decode(api.MLModelSpec, SPEC)
    placed = api.decode(api.MLModelSpec, {**SPEC, "scheduling": WISHES, "serving": {"scheduling": WISHES}})
    assert api.version_name("adult", placed) == api.version_name("adult", plain)
    assert api.content(placed) == api.content(plain)


# What serves already.


def moved(live: Object, spec: api.MLModelSpec, settings: Settings | None = None) -> Object | None:
    return inferenceservice.change(live, spec, URI, settings or Settings())


def test_the_platforms_defaults_are_no_wish_of_the_users() -> None:
    later = Settings(serving_scheduling=json.dumps(WISHES))
    assert moved(serving(), asked(), later) is None, "a live version keeps its place"
    assert moved(serving(POD), asked(POD), later) is None, "also one whose user asks for something"


def test_a_users_wish_moves_the_pods_and_its_end_moves_them_back() -> None:
    live = serving({"nodeSelector": {"pool": "ml"}, "affinity": ANYWHERE_BUT, "ephemeralStorage": "1Gi"})
    assert (
        moved(live, asked({"nodeSelector": {"pool": "ml"}, "affinity": ANYWHERE_BUT, "ephemeralStorage": "1Gi"}))
        is None
    )
    patch = moved(live, asked({"nodeSelector": {"zone": "b"}}))
    assert patch == {
        "metadata": {"annotations": {scheduling.ASKED: '{"nodeSelector":{"zone":"b"}}'}},
        "spec": {
            "predictor": {
                "nodeSelector": {"pool": None, "zone": "b"},
                "affinity": None,
                "model": {"resources": {kind: {"ephemeral-storage": None} for kind in ("requests", "limits")}},
            }
        },
    }
    platform = Settings(serving_scheduling='{"nodeSelector": {"pool": "serving"}}')
    patch = moved(live, asked(), platform)
    assert patch is not None
    assert patch["spec"]["predictor"]["nodeSelector"] == {"pool": "serving"}, "the platform's, as for a new version"
    assert patch["metadata"] == {"annotations": {scheduling.ASKED: None}}


# What the platform's administrator wrote.


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "expected an object"),
        ("{", "Expecting"),
        ('{"nodeSelectors": {"pool": "gpu"}}', "did you mean nodeSelector"),
        ('{"labels": {"app": "x"}}', "scheduling.serving.labels: has a key that the platform sets"),
    ],
)
def test_a_default_that_cannot_be_used_is_told_at_the_start(text: str, words: str) -> None:
    with pytest.raises(SettingsError, match=rf"MLPLATFORM_SERVING_SCHEDULING.*{words}"):
        scheduling.check(Settings(serving_scheduling=text))
    assert scheduling.check(replace(Settings(), jobs_scheduling=json.dumps({**WISHES, "queue": "team-a"}))) is None
