"""mljobs.package: the job on files as the earlier stages leave them, with the real archiver and the real handler."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from unit import serving_model as small

from mljobs import data, export, package
from mljobs.failure import JobFailure
from mljobs.report import Job, read_spec
from mljobs.store import Store
from mljobs.tasks.tabular import TabularTask
from mljobs.tasks.tabular_model import Preprocessor
from mlplatform.contract import PERMANENT, Artifacts, FailureClass, Stage

pytestmark = [
    # TorchServe loads TorchScript.
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
    # TorchServe leaves these files open.
    pytest.mark.filterwarnings("ignore:.*(version.txt|metrics.yaml):pytest.PytestUnraisableExceptionWarning"),
]

ROWS = 200
SPEC: dict[str, Any] = {
    "model": small.MODEL,
    "sequence": 1,
    "data": {"uri": "", "label": "income"},
    "training": {"task": "tabular", "hyperparameters": {"hidden": [8], "dropout": 0.0, "bins": 4}},
}


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A version that was trained, audited and optimised."""
    source = tmp_path / "data"
    source.mkdir()
    jobs = ("clerk", "cook", "pilot", "")
    lines = [f"{17 + i % 70},{jobs[i % 4]},{1 + i % 60}.5,{'>50K' if i % 3 else '<=50K'}" for i in range(ROWS)]
    (source / "rows.csv").write_text("\n".join(["age,job,hours,income", *lines]))
    spec = {**SPEC, "data": {**SPEC["data"], "uri": str(source)}}
    job = Job(
        Stage.PACKAGE, small.MODEL, small.VERSION, read_spec(json.dumps(spec)), Store(str(tmp_path / "artifacts"))
    )
    rows = data.load(job.spec.data)
    task = TabularTask(job.spec.training.hyperparameters)
    targets = task.targets(rows.table, job.spec.data)
    config = task.fit(rows.table, targets, data.split(targets.strata, job.spec.data.split).train)
    torch.manual_seed(3)
    model = task.build(config).eval()
    write_json(job, Artifacts.report(Stage.TRAIN), {"data": {"digest": rows.digest}})
    write_json(job, Artifacts.PREPROCESSOR, config)
    state = io.BytesIO()
    torch.save(model.state_dict(), state)
    job.store.write(Artifacts.MODEL, state.getvalue())
    example = Preprocessor(config).transform([{"age": 39}, {"job": "cook"}])
    for name, module in {"fp32": model, "int8-dynamic": export.int8(model)}.items():
        job.store.write(f"{Artifacts.CANDIDATES}/{name}.pt", export.torchscript(module, example))
    select(job, "fp32")
    return job


def select(job: Job, name: str) -> None:
    files = {name: {"torchscript": f"{Artifacts.CANDIDATES}/{name}.pt"}}
    write_json(job, Artifacts.report(Stage.OPTIMIZE), {"selected": name, "files": files})


def write_json(job: Job, name: str, value: Any) -> None:
    job.store.write(name, json.dumps(value).encode())


def test_the_archive_is_built_tried_and_uploaded_in_kserves_layout(job: Job) -> None:
    summary = package.main(job)
    archive = f"{Artifacts.SERVING}/model-store/{small.MODEL}.mar"
    content = job.store.read(archive)
    assert summary.details == {
        "storageUri": job.store.uri(Artifacts.SERVING),
        "archive": job.store.uri(archive),
        "sizeBytes": len(content),
    }
    assert job.store.names(Artifacts.SERVING) == [f"{Artifacts.SERVING}/config/config.properties", archive]
    assert (
        f"load_models={small.MODEL}={small.MODEL}.mar"
        in job.store.read(f"{Artifacts.SERVING}/config/config.properties").decode()
    )
    report = job.read_json(Artifacts.report(Stage.PACKAGE))
    assert report["archiveDigest"] == f"sha256:{hashlib.sha256(content).hexdigest()}"
    assert report["smokeTest"]["rows"] == package.SMOKE_ROWS
    assert report["smokeTest"]["maxProbabilityDifference"] < 1e-5
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        assert sorted(file.namelist()) == [
            "MAR-INF/MANIFEST.json", "example.json", "model-config.yaml", "model.pt", "preprocessor.json", "records.py",
            "tabular_model.py",
        ]  # fmt: skip
        manifest = json.loads(file.read("MAR-INF/MANIFEST.json"))
    assert manifest["model"]["modelName"] == small.MODEL
    assert manifest["model"]["modelVersion"] == small.VERSION


def test_a_quantised_archive_answers_what_its_own_file_does(job: Job) -> None:
    select(job, "int8-dynamic")
    assert package.main(job).failure is None
    tried = job.read_json(Artifacts.report(Stage.PACKAGE))["smokeTest"]
    assert tried["maxProbabilityDifference"] <= tried["tolerance"] == 1e-4


@pytest.mark.parametrize(("candidate", "other"), [("fp32", "int8-dynamic"), ("int8-dynamic", "fp32")])
def test_an_archive_that_answers_a_little_otherwise_never_serves(
    job: Job, monkeypatch: pytest.MonkeyPatch, candidate: str, other: str
) -> None:
    select(job, candidate)
    build = package.build

    def with_other_weights(folder: Path, model: str, version: str, parts: package.Parts) -> Path:
        weights = job.store.read(f"{Artifacts.CANDIDATES}/{other}.pt")
        return build(folder, model, version, replace(parts, serialized=weights))

    monkeypatch.setattr(package, "build", with_other_weights)
    with pytest.raises(JobFailure, match="differs by") as raised:
        package.main(job)
    assert raised.value.failure.reason is FailureClass.GATE_FAILED
    assert raised.value.failure.reason in PERMANENT, "another try builds the same archive"
    assert job.store.names(Artifacts.SERVING) == []


def test_equal_inputs_give_equal_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serialized = small.torchscript(small.model())
    digests = []
    for run, zone in (("a", "UTC"), ("b", "Asia/Tokyo")):
        monkeypatch.setenv("TZ", zone)
        folder = tmp_path / run
        folder.mkdir()
        config = dict(sorted(small.CONFIG.items(), reverse=run == "b"))
        path = package.build(
            folder, small.MODEL, small.VERSION, package.Parts(serialized, config, small.RECORD, TabularTask.modules)
        )
        digests.append(hashlib.sha256(path.read_bytes()).hexdigest())
    assert digests[0] == digests[1]
    other = tmp_path / "c"
    other.mkdir()
    path = package.build(
        other,
        small.MODEL,
        "adult-income-00000000",
        package.Parts(serialized, small.CONFIG, small.RECORD, TabularTask.modules),
    )
    assert hashlib.sha256(path.read_bytes()).hexdigest() != digests[0], "the version is in the archive"


@dataclass(frozen=True, kw_only=True)
class Broken:
    reason: str
    breaks: Callable[[Job], None]
    failure: FailureClass
    names: str


def other_format(job: Job) -> None:
    write_json(job, Artifacts.PREPROCESSOR, {**job.read_json(Artifacts.PREPROCESSOR), "format": 9})


def no_torchscript(job: Job) -> None:
    files = {"fp32": {"onnx": f"{Artifacts.CANDIDATES}/fp32.onnx"}}
    write_json(job, Artifacts.report(Stage.OPTIMIZE), {"selected": "fp32", "files": files})


def nothing_selected(job: Job) -> None:
    write_json(job, Artifacts.report(Stage.OPTIMIZE), {"selected": None, "files": {}})


def lost_candidate(job: Job) -> None:
    job.store.delete([f"{Artifacts.CANDIDATES}/fp32.pt"])


def changed_data(job: Job) -> None:
    path = Path(job.spec.data.uri) / "rows.csv"
    path.write_text(path.read_text() + "\n20,cook,3.5,>50K")


BROKEN = [
    Broken(reason="preprocessing that its own task does not read", breaks=other_format,
           failure=FailureClass.TASK_IMPORT, names="format 9"),
    Broken(reason="TorchServe needs TorchScript", breaks=no_torchscript,
           failure=FailureClass.SPEC_INVALID, names="TorchScript"),
    Broken(reason="no candidate passed", breaks=nothing_selected, failure=FailureClass.SPEC_INVALID, names="None"),
    Broken(reason="the candidate's file is gone", breaks=lost_candidate,
           failure=FailureClass.DATA_MISSING, names="fp32.pt"),
    Broken(reason="the test rows would not be the same ones", breaks=changed_data,
           failure=FailureClass.DATA_INVALID, names="changed after the training"),
]  # fmt: skip


@pytest.mark.parametrize("case", BROKEN, ids=lambda case: case.reason)
def test_what_would_not_serve_is_never_uploaded(job: Job, case: Broken) -> None:
    case.breaks(job)
    with pytest.raises(JobFailure, match=case.names) as raised:
        package.main(job)
    assert raised.value.failure.reason is case.failure, case.reason
    assert raised.value.failure.next_action, case.reason
    assert job.store.names(Artifacts.SERVING) == [], case.reason


def test_a_lean_archive_setting_is_read_by_torchserve(tmp_path: Path) -> None:
    path = small.archive(tmp_path)
    _, context = package.load(path, tmp_path / "unpacked")
    assert context.model_yaml_config == {
        "minWorkers": 1,
        "maxWorkers": 1,
        "batchSize": 32,
        "maxBatchDelay": 1,
        "responseTimeout": 10,
        "startupTimeout": 120,
        "task": "tabular_model.py",
    }
