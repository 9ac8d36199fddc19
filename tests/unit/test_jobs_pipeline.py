"""What the stages leave and say of a small data set, run as a user without a cluster runs them: `mlplatform.run`."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch
from jobs_kit import job_environment, people_spec, read_summary, write_people
from standalone_kit import people_model

import mlplatform
from mljobs import adopt, audit, data, export, optimize
from mljobs.failure import JobFailure
from mljobs.report import Job, run
from mljobs.store import Store
from mlplatform.api import Data
from mlplatform.contract import ENV_VERSION, TARGET_FAIRNESS, TARGET_METRICS, Artifacts, FailureClass, Stage, Summary
from mlplatform.snapshot import Object
from mlplatform.standalone.result import Result

pytestmark = [
    pytest.mark.usefixtures("importable"),
    # TorchServe, which tries the archive, loads TorchScript and leaves files open.
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*(version.txt|metrics.yaml):pytest.PytestUnraisableExceptionWarning"),
]

SAMPLE = 700
"""Of the 900 rows; a fifth of them are the test split."""


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_people(tmp_path_factory.mktemp("people"))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, rows: Path) -> Result:
    store = tmp_path_factory.mktemp("store")
    result = mlplatform.run(model(rows), rows=SAMPLE, store=store)
    assert (result.passed, result.missed, result.failure) == (True, (), None)
    return result


def model(path: Path) -> Object:
    return people_model(path.parent)


def log(result: Result, stage: Stage) -> str:
    (path,) = (result.artifacts / "logs").glob(f"*-{stage}-*.log")
    return path.read_text()


@pytest.mark.parametrize("stage", Stage)
def test_a_stage_points_to_its_report_by_digest(done: Result, stage: Stage) -> None:
    path = done.artifacts / Artifacts.report(stage)
    assert done.stages[stage].digest == f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    assert done.stages[stage].report == str(path)
    assert done.stages[stage].outcome == "Succeeded"


@pytest.mark.parametrize("stage", Stage)
def test_every_report_says_that_it_is_of_a_sample(done: Result, stage: Stage) -> None:
    assert done.report(stage)["sample"] == {"rows": SAMPLE, "of": 900}


def test_the_training_says_so_first_and_the_page_at_its_top(done: Result) -> None:
    assert log(done, Stage.TRAIN).startswith(f"rows={SAMPLE}/900 train=490 ")
    assert "700 of the data's 900 rows" in (done.artifacts / audit.PAGE).read_text().partition("<h2>")[0]


def test_the_audit_reports_every_metric_and_the_groups(done: Result) -> None:
    found = done.stages[Stage.AUDIT]
    assert set(found.metrics) == set(TARGET_METRICS["binary"])
    for metric in TARGET_FAIRNESS["binary"]:
        interval = found.details["fairness"][metric]["group"]
        assert 0 <= interval["low"] <= interval["value"] <= interval["high"] <= 1
    assert found.details["notAssessed"] == ["group=c"], "about 2% of 140 rows"
    groups = done.report(Stage.AUDIT)["attributes"]["group"]["groups"]
    assert set(groups) == {"a", "b", "c"}
    assert sum(group["count"] for group in groups.values()) == 140


def test_the_audits_page_shows_the_groups_and_loads_nothing(done: Result) -> None:
    page = (done.artifacts / audit.PAGE).read_text()
    assert "roc_auc" in page
    assert "By group" in page
    assert page.count("<svg") == 3
    assert "<script" not in page
    assert "http" not in page


def test_the_candidates_are_measured_and_written(done: Result) -> None:
    details = done.stages[Stage.OPTIMIZE].details
    assert [entry["name"] for entry in details["candidates"]] == ["fp32", "int8-dynamic"]
    assert details["selected"] in {entry["name"] for entry in details["candidates"] if entry["passed"]}
    [shipped] = [entry for entry in details["candidates"] if entry["name"] == details["selected"]]
    assert shipped["metrics"].items() <= done.metrics.items(), "the version's metrics are those of what ships"
    report = done.report(Stage.OPTIMIZE)
    for entry in details["candidates"]:
        files = report["files"][entry["name"]]
        assert files == {
            "torchscript": f"{Artifacts.CANDIDATES}/{entry['name']}.pt",
            "onnx": f"{Artifacts.CANDIDATES}/{entry['name']}.onnx",
        }
        assert (done.artifacts / files["torchscript"]).stat().st_size == entry["sizeBytes"]
        assert entry["latencyP50Ms"] <= entry["latencyP99Ms"]
        assert report["onnx"][entry["name"]]["passed"], report["onnx"]
    assert report["onnx"]["fp32"]["maxAbsDifference"] < 1e-4
    fp32, audited = details["candidates"][0]["metrics"], done.stages[Stage.AUDIT].metrics
    assert fp32 == pytest.approx(audited, abs=1e-6), "the file that ships scores as the audited model did"


def test_the_choice_is_told_with_its_numbers(done: Result) -> None:
    details, report = done.stages[Stage.OPTIMIZE].details, done.report(Stage.OPTIMIZE)
    assert details["choice"] == report["choice"]
    assert details["choice"].startswith(f"{details['selected']} ships: ")
    assert f"by latency_p99 {details['choice']}\n" in log(done, Stage.OPTIMIZE)
    [pair] = report["comparisons"]
    assert {pair["name"], pair["beside"]} == {"fp32", "int8-dynamic"}
    assert 0 < pair["low"] <= pair["ratio"] <= pair["high"]
    assert pair["rounds"] == optimize.ROUNDS
    assert (details["selected"] == pair["name"]) is pair["provenFaster"]


def test_the_example_is_a_record_that_the_archive_answers(done: Result) -> None:
    example = json.loads((done.artifacts / Artifacts.EXAMPLE).read_text())
    assert set(example) == {"age", "gain", "hours", "job", "group"}
    [answer] = done.predict([example])
    assert answer["prediction"] in {"yes", "no"}


def test_the_shipped_file_loads_as_serving_loads_it(done: Result) -> None:
    content = (done.artifacts / Artifacts.CANDIDATES / "fp32.pt").read_bytes()
    config = json.loads((done.artifacts / Artifacts.PREPROCESSOR).read_text())
    from mljobs.tasks.tabular_model import Preprocessor  # noqa: PLC0415  as the archive's handler does

    record = {"age": 45, "job": "pilot", "gain": 3000, "group": "a"}
    logits = export.load_torchscript(content)(*Preprocessor(config).transform([record]))
    assert logits.shape == (1,)


def test_the_same_rows_in_another_format_make_the_same_model(done: Result, rows: Path, tmp_path: Path) -> None:
    table = data.load(Data(uri=str(rows), label="rich")).table
    pyarrow.parquet.write_table(table, tmp_path / "people.parquet")
    other = mlplatform.run(
        model(tmp_path / "people.parquet"), set={"data.format": "parquet"}, rows=SAMPLE, until="audit", store=tmp_path
    )
    assert other.passed, (other.missed, other.failure)
    assert other.version != done.version, "the format is part of the spec"
    for stage in (Stage.TRAIN, Stage.AUDIT):
        assert other.stages[stage].metrics == done.stages[stage].metrics


# A stage alone, on what no run would give it


def alone(stage: Stage, main: Callable[[Job], Summary | None], artifacts: Path, rows: Path, scratch: Path) -> Summary:
    """What a stage that fails says, in this process."""
    message = scratch / f"{stage}-message"
    spec = people_spec(rows, checkpoint={"everySteps": 1000})
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in job_environment(spec, artifacts, stage, message).items():
            patch.setenv(name, value)
        with contextlib.redirect_stdout(io.StringIO()):
            assert run(stage, main) == 1
    torch.set_num_threads(threads)
    summary = read_summary(message)
    assert summary.failure is not None
    return summary


@pytest.mark.parametrize(("stage", "main"), [(Stage.AUDIT, audit.main), (Stage.OPTIMIZE, optimize.main)])
def test_data_that_changed_after_the_training_is_not_audited(
    done: Result, rows: Path, tmp_path: Path, stage: Stage, main: Callable[[Job], Summary | None]
) -> None:
    changed = tmp_path / "people.csv"
    changed.write_text(rows.read_text() + "30,0,40,clerk,a,no\n")
    failure = alone(stage, main, done.artifacts, changed.parent, tmp_path).failure
    assert failure is not None
    assert failure.reason is FailureClass.DATA_INVALID
    assert "changed after the training" in failure.message
    assert "mlplatform.dev/retrain" in failure.next_action


def test_an_audit_without_a_training_names_what_is_missing(rows: Path, tmp_path: Path) -> None:
    failure = alone(Stage.AUDIT, audit.main, tmp_path / "artifacts", rows.parent, tmp_path).failure
    assert failure is not None
    assert failure.reason is FailureClass.DATA_MISSING
    assert "train/report.json" in failure.message


# A version that was restored without its status


@dataclass(frozen=True)
class Reader:
    """The container that adopts a stage.

    Attributes:
        artifacts: A copy of a version's, to be damaged.
        spec: The version's.
        version: Its name.
        scratch: For termination messages.
    """

    artifacts: Path
    spec: dict[str, Any]
    version: str
    scratch: Path

    def summary(self, stage: Stage, exits: int = 0) -> Summary:
        message = self.scratch / f"{stage}-adopted"
        environment = {**job_environment(self.spec, self.artifacts, stage, message), ENV_VERSION: self.version}
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            with contextlib.redirect_stdout(io.StringIO()):
                assert run(stage, adopt.main) == exits
        return read_summary(message)

    def adopted(self) -> list[Stage]:
        return [stage for stage in Stage if self.summary(stage).failure is None]

    def report(self, stage: Stage, **changes: Any) -> None:
        """Somebody writes another report."""
        path = self.artifacts / Artifacts.report(stage)
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def reader(done: Result, tmp_path: Path) -> Reader:
    moved = tmp_path / "artifacts"
    shutil.copytree(done.artifacts, moved)
    found = Reader(moved, json.loads((moved / "run.json").read_text())["version"]["spec"], done.version, tmp_path)
    # The archive's place is part of its report, which is the last one: nothing names that one's digest.
    details = json.loads((moved / Artifacts.report(Stage.PACKAGE)).read_text())["details"]
    found.report(Stage.PACKAGE, details={**details, "storageUri": str(moved / Artifacts.SERVING)})
    return found


def test_every_finished_stage_is_adopted_with_what_it_reported(done: Result, reader: Reader) -> None:
    assert reader.adopted() == list(Stage)
    for stage in Stage:
        found = reader.summary(stage)
        assert found.metrics == done.stages[stage].metrics
        assert found.details.keys() == done.stages[stage].details.keys()
        if stage is not Stage.PACKAGE:
            assert found.digest == done.stages[stage].digest
        if stage in {Stage.TRAIN, Stage.AUDIT}:
            assert found.details == done.stages[stage].details


DAMAGE: list[tuple[str, Callable[[Reader], object], Stage, str]] = [
    ("nothing was finished", lambda r: (r.artifacts / "train/report.json").unlink(), Stage.TRAIN, "no such file"),
    ("it had not got so far", lambda r: (r.artifacts / "package/report.json").unlink(), Stage.PACKAGE, "no such file"),
    ("a write was cut short", lambda r: (r.artifacts / "audit/report.json").write_text("{"), Stage.AUDIT, "cannot be read"),
    ("no object", lambda r: (r.artifacts / "audit/report.json").write_text("[]"), Stage.AUDIT, "does not say"),
    ("the model is another one", lambda r: (r.artifacts / Artifacts.MODEL).write_bytes(b"x"), Stage.TRAIN, "is not the file"),
    ("the archive is gone", lambda r: shutil.rmtree(r.artifacts / Artifacts.SERVING), Stage.PACKAGE, "no such file"),
    ("trained again since", lambda r: r.report(Stage.TRAIN, durationSeconds=9.0), Stage.AUDIT, "made of other reports"),
    ("audited again since", lambda r: r.report(Stage.AUDIT, durationSeconds=9.0), Stage.OPTIMIZE, "made of other reports"),
    ("of another version", lambda r: r.report(Stage.TRAIN, version="people-ffffffff"), Stage.TRAIN, "of train of people-ffffffff"),
    ("of another specification", lambda r: r.spec["training"].update(seed=8), Stage.TRAIN, "another specification"),
    ("of a release before this", lambda r: r.report(Stage.TRAIN, spec=None), Stage.TRAIN, "cannot be read"),
    ("in another bucket", lambda r: r.report(Stage.PACKAGE, details={"storageUri": "s3://old/x"}), Stage.PACKAGE, "not in this store"),
]  # fmt: skip


@pytest.mark.parametrize(("reason", "damage", "first", "cause"), DAMAGE, ids=[case[0] for case in DAMAGE])
def test_what_is_not_whole_is_run_again(
    reader: Reader, reason: str, damage: Callable[[Reader], object], first: Stage, cause: str
) -> None:
    damage(reader)
    summary = reader.summary(first)
    assert summary.failure is not None, reason
    assert summary.failure.reason is FailureClass.REPORT_LOST
    assert cause in summary.failure.message
    before = list(Stage)[: list(Stage).index(first)]
    assert [stage for stage in before if reader.summary(stage).failure is None] == before, "what was before it counts"


def test_an_order_that_means_nothing_is_the_same_specification(reader: Reader) -> None:
    reader.spec["optimization"] = {"export": ["onnx", "torchscript"]}
    assert reader.adopted() == list(Stage)


def test_a_store_that_does_not_answer_is_no_missing_report(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_store: Store, name: str) -> bytes:
        raise JobFailure(FailureClass.STORE_ACCESS, f"the store refused to read {name}", "Check the keys")

    monkeypatch.setattr(Store, "read", refuse)
    summary = reader.summary(Stage.TRAIN, exits=1)
    assert summary.failure is not None
    assert summary.failure.reason is FailureClass.STORE_ACCESS, "to train again would throw away what is there"
