"""Whole scenarios as files: everything the operator has made, and everything it says about it.

`pytest --update-golden` writes tests/golden/operator/ anew; read the difference before committing it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from unit.operator_world import NAMESPACE, Fake, Scenario, play

from mlplatform import api
from mlplatform.contract import Stage
from mlplatform.resources import inferenceservice, job, pytorchjob
from mlplatform.settings import Settings
from mlplatform.snapshot import Object

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests/golden/operator"
EXAMPLE = yaml.safe_load((ROOT / "examples/adult-income/mlmodel.yaml").read_text())
SERVER_SIDE = ("resourceVersion", "generation", "creationTimestamp", "managedFields")
KINDS = (
    "MLModel",
    "ModelVersion",
    "PyTorchJob",
    "Job",
    "ServingRuntime",
    "InferenceService",
    "Service",
    "VirtualService",
)


def example(**sections: Any) -> Any:
    """The example, or a change of it, is applied."""
    changed = {
        **EXAMPLE,
        "metadata": {**EXAMPLE["metadata"], "namespace": NAMESPACE},
        "spec": {**EXAMPLE["spec"], **sections},
    }
    return lambda fake: fake.apply(changed)


HARDER = {"gates": [{"metric": "roc_auc", "min": 0.9}]}
SCENARIOS: dict[str, Scenario] = {
    "first-version-serves": [(0, example()), (300, lambda _: None)],
    # 135 s of pipeline and start, then 5% from 136 s and 25% ten seconds later.
    "second-version-at-25-percent": [(0, example()), (300, example(**HARDER)), (449, lambda _: None)],
    "gate-failed": [(0, example()), (300, example(gates=[{"metric": "roc_auc", "min": 0.95}])), (600, lambda _: None)],
}


def compare(name: str, found: list[Object], request: pytest.FixtureRequest) -> None:
    """Holds objects against a golden file, as one YAML stream."""
    text = yaml.safe_dump_all(found, sort_keys=False, width=120)
    path = GOLDEN / f"{name}.yaml"
    if request.config.getoption("--update-golden"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert text == path.read_text(), (
        f"{path} differs; if that is meant, run pytest --update-golden and read the difference"
    )


def everything(fake: Fake) -> list[Object]:
    """All objects but pods, less what only the API server writes."""
    found = []
    for kind in KINDS:
        for name in fake.names(kind):
            obj = fake.one(kind, name)
            metadata = {key: value for key, value in obj["metadata"].items() if key not in SERVER_SIDE}
            kept = (
                {}
                if kind in {"PyTorchJob", "Job", "ServingRuntime", "InferenceService"}
                else {"status": obj.get("status", {})}
            )
            found.append(
                {**{k: v for k, v in obj.items() if k not in {"metadata", "status"}}, "metadata": metadata, **kept}
            )
    return found


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(name: str, request: pytest.FixtureRequest) -> None:
    compare(name, everything(play(SCENARIOS[name])), request)


def test_training_on_gpus_with_an_image_of_its_own(request: pytest.FixtureRequest) -> None:
    spec = {
        "model": "large",
        "sequence": 3,
        "trigger": "more data",
        "data": {"uri": "s3://datasets/large/", "label": "click", "format": "parquet"},
        "training": {
            "task": "my_package.my_task:Task",
            "image": "registry.example.com/ml/large:1.2",
            "workers": 4,
            "processesPerWorker": 8,
            "resources": {"cpu": "32", "memory": "256Gi", "gpu": 8},
        },
    }
    version = {
        "apiVersion": "mlplatform.dev/v1alpha1",
        "kind": "ModelVersion",
        "metadata": {"name": "large-0123abcd", "namespace": "research", "uid": "uid-large"},
        "spec": spec,
    }
    decoded = api.decode(api.ModelVersionSpec, spec)
    settings = Settings(jobs_image="registry.example.com/mlplatform/jobs:1.0", max_cpu_request="2")
    scheduling = api.Scheduling(queue="research")
    found = [
        pytorchjob.render(version, decoded, settings, scheduling),
        job.render(version, decoded, Stage.AUDIT, settings, scheduling),
    ]
    compare("gpu-training", found, request)


def test_serving_on_an_older_kserve(request: pytest.FixtureRequest) -> None:
    model = {**EXAMPLE, "metadata": {"name": "adult-income", "namespace": NAMESPACE, "uid": "uid-adult"}}
    spec = api.decode(api.MLModelSpec, EXAMPLE["spec"])
    settings = Settings(kserve_mode="RawDeployment", max_cpu_request="100m")
    uri = "s3://mlplatform/default/adult-income/adult-income-0123abcd/package/serving"
    compare("older-kserve", [inferenceservice.render(model, spec, "adult-income-0123abcd", uri, settings)], request)
