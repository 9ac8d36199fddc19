"""What the operator renders survives the models of Kubeflow's and KServe's own SDKs: no field of ours is unknown to them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kubernetes.client.models
import pytest
import yaml
from kserve import models as kserve_models
from kserve.api_client import ApiClient as KServeClient
from kubeflow.training.api_client import ApiClient as KubeflowClient
from written import lost, manifests

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def kubernetes_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """KServe's models name Kubernetes' own (V1ObjectMeta, V1Probe), which its deserializer does not look for."""
    for name, model in vars(kubernetes.client.models).items():
        if name.startswith("V1") and not hasattr(kserve_models, name):
            monkeypatch.setattr(kserve_models, name, model, raising=False)


@dataclass(frozen=True)
class Answer:
    """What the SDKs' deserializers read: an HTTP answer's body."""

    data: str


def through(client: Any, kind: str, manifest: dict[str, Any]) -> Any:
    """The manifest read into the SDK's model and written back."""
    return client.sanitize_for_serialization(client.deserialize(Answer(json.dumps(manifest)), kind))


def test_the_pytorchjob_is_kubeflows() -> None:
    for manifest in manifests("PyTorchJob"):
        assert (
            list(lost(manifest, through(KubeflowClient(), "KubeflowOrgV1PyTorchJob", manifest), manifest["kind"])) == []
        )


def test_the_inferenceservice_is_kserves() -> None:
    for manifest in manifests("InferenceService"):
        assert (
            list(lost(manifest, through(KServeClient(), "V1beta1InferenceService", manifest), manifest["kind"])) == []
        )


def test_the_serving_runtime_is_kserves() -> None:
    manifest = yaml.safe_load((REPOSITORY / "images/serving/servingruntime.yaml").read_text())
    assert list(lost(manifest, through(KServeClient(), "V1alpha1ServingRuntime", manifest), manifest["kind"])) == []


@pytest.mark.parametrize(
    ("client", "kind", "model"),
    [(KubeflowClient, "PyTorchJob", "KubeflowOrgV1PyTorchJob"), (KServeClient, "InferenceService", "V1beta1InferenceService")],
)  # fmt: skip
def test_a_misspelt_field_would_be_lost(client: type, kind: str, model: str) -> None:
    """The comparison notices what a model does not know."""
    manifest = json.loads(json.dumps(manifests(kind)[0]))
    manifest["spec"]["reticulateSplines"] = True
    assert "reticulateSplines" not in through(client(), model, manifest)["spec"]
