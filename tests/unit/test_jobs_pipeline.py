"""Every stage, one after the other, on a small data set, as the operator runs them."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from jobs_kit import job_environment, people_spec, read_summary, write_people
from ts.context import RequestProcessor

from mljobs import audit, export, optimize, package, train
from mljobs.report import Job, run
from mlplatform.contract import (
    ENV_CPUS,
    ENV_ROWS,
    FAIRNESS_METRICS,
    TASK_METRICS,
    Artifacts,
    FailureClass,
    Stage,
    Summary,
)

pytestmark = [
    # TorchServe, which tries the archive, loads TorchScript and leaves files open.
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*(version.txt|metrics.yaml):pytest.PytestUnraisableExceptionWarning"),
]

STAGES: dict[Stage, Callable[[Job], Summary | None]] = {
    Stage.TRAIN: train.main,
    Stage.AUDIT: audit.main,
    Stage.OPTIMIZE: optimize.main,
    Stage.PACKAGE: package.main,
}
SAMPLE = 700
"""Of the 900 rows; a fifth of them are the test split."""


class Pipeline:
    """Runs stages on one folder of artifacts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.artifacts = folder / "artifacts"
        self.output: dict[Stage, str] = {}
        self.data = write_people(folder / "people")
        self.spec = people_spec(self.data.parent, checkpoint={"everySteps": 1000})

    def run(self, stage: Stage) -> tuple[int, Summary]:
        message = self.folder / f"{stage}-message"
        threads = torch.get_num_threads()
        with pytest.MonkeyPatch.context() as patch:
            environment = job_environment(self.spec, self.artifacts, stage, message)
            for name, value in {**environment, ENV_ROWS: str(SAMPLE), ENV_CPUS: "1"}.items():
                patch.setenv(name, value)
            with contextlib.redirect_stdout(io.StringIO()) as output:
                code = run(stage, STAGES[stage])
        self.output[stage] = output.getvalue()
        torch.set_num_threads(threads)
        return code, read_summary(message)

    def report(self, stage: Stage) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.artifacts / Artifacts.report(stage)).read_text())
        return found


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Pipeline, dict[Stage, Summary]]]:
    pipeline = Pipeline(tmp_path_factory.mktemp("pipeline"))
    summaries = {}
    for stage in STAGES:
        code, summaries[stage] = pipeline.run(stage)
        assert (code, summaries[stage].failure) == (0, None), stage
    yield pipeline, summaries
    if dist.is_initialized():
        dist.destroy_process_group()


Done = tuple[Pipeline, dict[Stage, Summary]]


@pytest.mark.parametrize("stage", list(STAGES))
def test_a_summary_points_to_the_report_by_digest(done: Done, stage: Stage) -> None:
    pipeline, summaries = done
    content = (pipeline.artifacts / Artifacts.report(stage)).read_bytes()
    assert summaries[stage].digest == f"sha256:{hashlib.sha256(content).hexdigest()}"
    assert summaries[stage].report == f"{pipeline.artifacts}/{Artifacts.report(stage)}"
    assert summaries[stage].duration_seconds > 0


@pytest.mark.parametrize("stage", list(STAGES))
def test_every_report_says_that_it_is_of_a_sample(done: Done, stage: Stage) -> None:
    assert done[0].report(stage)["sample"] == {"rows": SAMPLE, "of": 900}


def test_the_training_says_so_first_and_the_page_at_its_top(done: Done) -> None:
    pipeline, _ = done
    assert pipeline.output[Stage.TRAIN].startswith(f"rows={SAMPLE}/900 train=490 ")
    assert "700 of the data's 900 rows" in (pipeline.artifacts / audit.PAGE).read_text().partition("<h2>")[0]


def test_the_audit_reports_every_metric_and_the_groups(done: Done) -> None:
    pipeline, summaries = done
    summary = summaries[Stage.AUDIT]
    assert tuple(summary.metrics) == TASK_METRICS["tabular"] or set(summary.metrics) == set(TASK_METRICS["tabular"])
    for metric in FAIRNESS_METRICS:
        interval = summary.details["fairness"][metric]["group"]
        assert 0 <= interval["low"] <= interval["value"] <= interval["high"] <= 1
    assert summary.details["notAssessed"] == ["group=c"], "about 2% of 140 rows"
    groups = pipeline.report(Stage.AUDIT)["attributes"]["group"]["groups"]
    assert set(groups) == {"a", "b", "c"}
    assert sum(group["count"] for group in groups.values()) == 140


def test_the_audits_page_shows_the_groups_and_loads_nothing(done: Done) -> None:
    page = (done[0].artifacts / audit.PAGE).read_text()
    assert "roc_auc" in page
    assert "By group" in page
    assert page.count("<svg") == 3
    assert "<script" not in page
    assert "http" not in page


def test_the_candidates_are_measured_and_written(done: Done) -> None:
    pipeline, summaries = done
    details = summaries[Stage.OPTIMIZE].details
    assert [entry["name"] for entry in details["candidates"]] == ["fp32", "int8-dynamic"]
    assert details["selected"] in {entry["name"] for entry in details["candidates"] if entry["passed"]}
    [shipped] = [entry for entry in details["candidates"] if entry["name"] == details["selected"]]
    measured = summaries[Stage.OPTIMIZE].metrics
    assert shipped["metrics"].items() <= measured.items(), "the version's metrics are those of what ships"
    report = pipeline.report(Stage.OPTIMIZE)
    for entry in details["candidates"]:
        files = report["files"][entry["name"]]
        assert files == {
            "torchscript": f"{Artifacts.CANDIDATES}/{entry['name']}.pt",
            "onnx": f"{Artifacts.CANDIDATES}/{entry['name']}.onnx",
        }
        assert (pipeline.artifacts / files["torchscript"]).stat().st_size == entry["sizeBytes"]
        assert entry["latencyP50Ms"] <= entry["latencyP99Ms"]
        assert report["onnx"][entry["name"]]["passed"], report["onnx"]
    assert report["onnx"]["fp32"]["maxAbsDifference"] < 1e-4
    fp32, audited = details["candidates"][0]["metrics"], summaries[Stage.AUDIT].metrics
    assert fp32 == pytest.approx(audited, abs=1e-6), "the file that ships scores as the audited model did"


def test_the_choice_is_told_with_its_numbers(done: Done) -> None:
    pipeline, summaries = done
    details, report = summaries[Stage.OPTIMIZE].details, pipeline.report(Stage.OPTIMIZE)
    assert details["choice"] == report["choice"]
    assert details["choice"].startswith(f"{details['selected']} ships: ")
    assert f"by latency_p99 {details['choice']}\n" in pipeline.output[Stage.OPTIMIZE]
    [pair] = report["comparisons"]
    assert {pair["name"], pair["beside"]} == {"fp32", "int8-dynamic"}
    assert 0 < pair["low"] <= pair["ratio"] <= pair["high"]
    assert pair["rounds"] == optimize.ROUNDS
    assert (details["selected"] == pair["name"]) is pair["provenFaster"]


def test_the_example_is_a_record_that_the_archive_answers(done: Done, tmp_path: Path) -> None:
    pipeline, summaries = done
    example = json.loads((pipeline.artifacts / Artifacts.EXAMPLE).read_text())
    assert set(example) == {"age", "gain", "hours", "job", "group"}
    handler, context = package.load(Path(summaries[Stage.PACKAGE].details["archive"]), tmp_path)
    context.request_processor = [RequestProcessor({})]
    [answer] = handler.handle([{"body": {"features": example}}], context)
    assert json.loads(answer)["prediction"] in {"yes", "no"}


def test_the_shipped_file_loads_as_serving_loads_it(done: Done) -> None:
    pipeline, _ = done
    content = (pipeline.artifacts / Artifacts.CANDIDATES / "fp32.pt").read_bytes()
    config = json.loads((pipeline.artifacts / Artifacts.PREPROCESSOR).read_text())
    from mljobs.tasks.tabular_model import Preprocessor  # noqa: PLC0415  as the archive's handler does

    record = {"age": 45, "job": "pilot", "gain": 3000, "group": "a"}
    logits = export.load_torchscript(content)(*Preprocessor(config).transform([record]))
    assert logits.shape == (1,)


def test_data_that_changed_after_the_training_is_not_audited(tmp_path: Path, done: Done) -> None:
    pipeline = Pipeline(tmp_path)
    pipeline.artifacts = done[0].artifacts
    pipeline.data.write_text(pipeline.data.read_text() + "30,0,40,clerk,a,no\n")
    for stage in (Stage.AUDIT, Stage.OPTIMIZE):
        code, summary = pipeline.run(stage)
        assert code == 1
        assert summary.failure is not None
        assert summary.failure.reason is FailureClass.DATA_INVALID
        assert "changed after the training" in summary.failure.message
        assert "mlplatform.dev/retrain" in summary.failure.next_action


def test_no_candidate_that_passes_is_a_failed_gate(tmp_path: Path, done: Done) -> None:
    pipeline = Pipeline(tmp_path)
    pipeline.artifacts = done[0].artifacts
    pipeline.data = done[0].data
    pipeline.spec["data"]["uri"] = str(done[0].data.parent)
    pipeline.spec["gates"] = [{"metric": "roc_auc", "min": 0.999}]
    code, summary = pipeline.run(Stage.OPTIMIZE)
    assert code == 1
    assert summary.failure is not None
    assert summary.failure.reason is FailureClass.GATE_FAILED
    assert "below the gate 0.999" in summary.failure.message


def test_an_audit_without_a_training_names_what_is_missing(tmp_path: Path) -> None:
    code, summary = Pipeline(tmp_path).run(Stage.AUDIT)
    assert code == 1
    assert summary.failure is not None
    assert summary.failure.reason is FailureClass.DATA_MISSING
    assert "train/report.json" in summary.failure.message
