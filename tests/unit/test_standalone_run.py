"""Whole runs of a small MLModel on this machine, with the real jobs in processes of their own.

One version is made from beginning to end; most other runs take from it what has not changed.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from jobs_kit import write_people
from standalone_kit import alive, eventually, people_model, written

from mlplatform import api, contract
from mlplatform.contract import Artifacts, FailureClass, Stage, Summary
from mlplatform.errors import CliError
from mlplatform.snapshot import Object, condition, name_of
from mlplatform.stages import PIPELINE
from mlplatform.standalone import engine
from mlplatform.standalone.controllers import Workload, stage_of
from mlplatform.standalone.engine import Moment, Outcome, Run, reports
from mlplatform.standalone.request import Request

pytestmark = pytest.mark.usefixtures("importable")

TIMED = ("latency_p50_ms", "latency_p99_ms")
"""Metrics of a clock's making."""
QUICK = ("optimization.candidates=[fp32]", "optimization.export=[torchscript]")
"""Less to measure: the training and the audit are the same."""
LONG = (
    "training.workers=1", "training.strategy=single", "training.earlyStopping=null", "training.epochs=150",
    "training.batchSize=300", "training.gradientAccumulationSteps=1", "training.checkpoint.everySteps=1000",
)  # fmt: skip
"""A training of one process that takes seconds after its first epochs."""


@dataclass
class Ran:
    """A run that has ended.

    Attributes:
        outcome: How.
        started: Stages of which processes were started, in order.
        progress: What the stages said of themselves.
        notes: Sentences beside that.
    """

    outcome: Outcome
    started: list[str]
    progress: list[dict[str, str]]
    notes: list[str]

    @property
    def status(self) -> Object:
        found: Object = self.outcome.moment.version["status"]
        return found

    def stage(self, name: str) -> api.StageStatus:
        return next(stage for stage in decoded(self.status).stages if stage.name == name)

    def says(self, stage: Stage) -> tuple[str, str, str]:
        found = condition(self.outcome.moment.version, next(s for s in PIPELINE if s.name == stage).condition)
        return found["status"], found["reason"], found["message"]


def decoded(status: Object) -> api.ModelVersionStatus:
    return api.decode(api.ModelVersionStatus, status, "status")


class People:
    """A file with an MLModel, and a store.

    Args:
        folder: Where both are put.
        data: Folder of the rows.
    """

    def __init__(self, folder: Path, data: Path) -> None:
        optimization = {"candidates": ["fp32", "int8-dynamic"]}
        model = people_model(data, optimization=optimization)
        model["spec"]["training"] |= {"workers": 2, "maxRestarts": 0, "checkpoint": {"everySteps": 50}}
        self.file = written(model, folder)
        self.store = folder / "store"

    def request(self, *changes: str, **options: Any) -> Request:
        return Request(**{"file": str(self.file), "store": self.store, "set": changes, **options})

    def run(self, *changes: str, **options: Any) -> Ran:
        started, progress, notes = [], [], []

        class Told(Workload):
            def __init__(self, manifest: Object, *rest: Any) -> None:
                started.append(stage_of(manifest).value)
                super().__init__(manifest, *rest)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engine, "Workload", Told)
            work = Run(self.request(*changes, **options), lambda m: progress.append(m.progress), notes.append)
            outcome = work.go()
        assert self.left() == [], "no process outlives a run"
        return Ran(outcome, started, [p for p in progress if p], notes)

    def left(self) -> list[int]:
        """Processes of a run in this store."""
        return [pid for version in self.versions() for pid in alive(contract.ENV_ARTIFACTS, str(version))]

    def versions(self) -> list[Path]:
        return sorted(self.store.glob("default/people/*"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_people(tmp_path_factory.mktemp("rows")).parent


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory, rows: Path) -> People:
    return People(tmp_path_factory.mktemp("people"), rows)


@pytest.fixture(scope="module")
def made(people: People) -> Ran:
    """The version that the file asks for: two workers, all stages."""
    return people.run()


# A version from beginning to end


def test_a_version_passes_every_stage(made: Ran, people: People) -> None:
    assert (made.outcome.complete, made.outcome.failed, made.outcome.missed) == (True, False, ())
    model = yaml.safe_load(people.file.read_text())
    version = api.version_name("people", api.decode(api.MLModelSpec, model["spec"]))
    assert name_of(made.outcome.moment.version) == version, "the name that it has in a cluster"
    assert made.outcome.folder == people.store / "default" / "people" / version
    assert made.status["stage"] == "Ready"
    assert made.started == [stage.value for stage in Stage]
    assert {stage.name: stage.outcome for stage in decoded(made.status).stages} == dict.fromkeys(Stage, "Succeeded")
    ready = condition(made.outcome.moment.version, "Ready")
    assert (ready["status"], ready["reason"]) == ("True", "PipelinePassed")


def test_its_training_had_two_workers(made: Ran) -> None:
    assert made.stage("train").details == {
        "rows": {"train": 630, "validation": 90, "test": 180},
        "epochs": 4,
        "worldSize": 2,
        "resumedFromStep": 0,
    }
    logs = made.outcome.folder / "logs"
    version = name_of(made.outcome.moment.version)
    assert sorted(path.name for path in logs.iterdir()) == sorted(
        f"{version}-{pod}.log" for pod in ("train-master-0", "train-worker-0", "audit-0", "optimize-0", "package-0")
    )
    assert "epoch=4/4 step=76/76" in (logs / f"{version}-train-master-0.log").read_text()


def test_its_evidence_is_there(made: Ran) -> None:
    found = reports(made.outcome)
    wanted = {"audit", "archive", "train report", "audit report", "optimize report", "package report"}
    assert found.keys() == wanted
    assert found["archive"].endswith("package/serving/model-store/people.mar")
    for stage in decoded(made.status).stages:
        assert stage.report == found[f"{stage.name} report"], "the URI is a path of this machine"
    assert not (made.outcome.folder / ".scratch").exists()


# Once more


def test_the_same_again_starts_nothing_and_says_the_same(made: Ran, people: People) -> None:
    logs = made.outcome.folder / "logs"
    before = {path: path.stat().st_mtime_ns for path in logs.iterdir()}
    again = people.run()
    assert again.started == []
    assert {path: path.stat().st_mtime_ns for path in logs.iterdir()} == before
    assert again.status["stages"] == made.status["stages"], "to the second"
    for stage in PIPELINE:
        assert again.says(stage.name) == made.says(stage.name)
    assert (again.outcome.complete, again.notes) == (True, [])
    assert again.outcome.moment.version["spec"] == made.outcome.moment.version["spec"]


def test_what_serves_it_is_no_part_of_a_version(made: Ran, people: People) -> None:
    again = people.run("serving.replicas.max=3", "rollout.steps=[50]")
    assert again.started == []
    assert again.outcome.folder == made.outcome.folder
    assert again.outcome.moment.model["spec"]["serving"]["replicas"]["max"] == 3


def test_other_candidates_train_and_audit_nothing(made: Ran, people: People) -> None:
    other = people.run(*QUICK)
    version = name_of(made.outcome.moment.version)
    assert other.started == ["optimize", "package"]
    assert other.notes == [f"{stage} is that of {version}: same inputs" for stage in ("train", "audit")]
    assert other.outcome.complete
    assert other.outcome.folder != made.outcome.folder
    assert other.stage("audit").metrics == made.stage("audit").metrics
    assert other.stage("audit").report == str(other.outcome.folder / Artifacts.report(Stage.AUDIT))
    assert other.outcome.moment.version["spec"]["sequence"] == 2
    assert not (other.outcome.folder / Artifacts.CHECKPOINTS).exists()


# Gates


UNFAIR = (*QUICK, "fairness.metrics.demographic_parity_difference=0.0001")
BAD = (*QUICK, "gates[0].min=0.999")


def test_a_missed_gate_ends_the_run_in_the_operators_words(made: Ran, people: People) -> None:
    found = people.run(*UNFAIR)
    assert found.started == ["audit"]
    assert (found.outcome.failed, found.outcome.complete) == (True, False)
    status, reason, message = found.says(Stage.AUDIT)
    assert (status, reason) == ("False", "GateFailed")
    there = Summary(Stage.AUDIT, "v", made.stage("audit").metrics, made.stage("audit").details)
    verdict = PIPELINE[1].judge(there, decoded_spec(found))
    assert message == f"{verdict.message}. {verdict.next_action}", "of what the same model was measured before"
    assert message.startswith("demographic_parity_difference by group is ")
    (missed,) = found.outcome.missed
    assert message.startswith(missed)
    assert found.status["failure"]["class"] == FailureClass.GATE_FAILED
    assert found.status["stage"] == "Failed"
    assert found.says(Stage.OPTIMIZE)[1] == "NotReached"
    assert "archive" not in reports(found.outcome)

    # And again: it is measured once
    again = people.run(*UNFAIR)
    assert again.started == []
    assert again.says(Stage.AUDIT) == (status, reason, message)

    # And who goes on is told what comes of it, of the same measurements
    lenient = people.run(*UNFAIR, keep_going=True)
    assert lenient.started == ["optimize"]
    assert lenient.says(Stage.AUDIT) == ("True", reason, message)
    assert lenient.outcome.missed[0] == message
    assert (lenient.outcome.failed, lenient.outcome.complete) == (True, False)

    # And who does not is told as before: a verdict is not kept
    strict = people.run(*UNFAIR)
    assert strict.started == []
    assert strict.says(Stage.AUDIT) == (status, reason, message)
    assert strict.outcome.missed == (missed,)


def test_going_on_after_a_missed_gate_shows_all_of_them(made: Ran, people: People) -> None:
    assert made.outcome.complete
    found = people.run(*BAD, keep_going=True)
    assert found.started == ["audit", "optimize"]
    value = f"{made.stage('audit').metrics['roc_auc']:.4f}"
    first, second = found.outcome.missed
    assert first.startswith(
        f"roc_auc of the test split is {value.rstrip('0')}, below the gate's min 0.999. Train a model"
    )
    assert f"no candidate may ship: fp32: roc_auc {value} is below the gate 0.999" in second
    assert (found.outcome.failed, found.outcome.complete) == (True, False)


def decoded_spec(ran: Ran) -> api.ModelVersionSpec:
    return api.decode(api.ModelVersionSpec, ran.outcome.moment.version["spec"])


# Less of it


def worked(stage: api.StageStatus) -> api.StageStatus:
    """The record less how long it took, which counts what of the other workers was seen."""
    return dataclasses.replace(stage, worked_seconds=0, worked_until="")


def test_a_sample_up_to_a_stage(made: Ran, people: People, tmp_path: Path, rows: Path) -> None:
    found = people.run(rows=400, until="train")
    assert found.started == ["train"]
    assert (found.outcome.complete, found.outcome.failed) == (False, False)
    assert found.outcome.folder != made.outcome.folder
    assert sum(found.stage("train").details["rows"].values()) == 400
    report = json.loads((found.outcome.folder / Artifacts.report(Stage.TRAIN)).read_text())
    assert report["sample"] == {"rows": 400, "of": 900}
    assert sorted(path.name for path in found.outcome.folder.iterdir()) == [".lock", "logs", "run.json", "train"]

    # And once more: nothing is left to do
    again = people.run(rows=400, until="train")
    assert again.started == []
    assert worked(again.stage("train")) == worked(found.stage("train"))

    # And of rows that have changed: it is the same version, made anew
    lines = (rows / "people.csv").read_text().splitlines()
    (tmp_path / "people.csv").write_text("\n".join(lines[:601]) + "\n")
    changed = people.run(rows=400, until="train", data=str(tmp_path))
    assert changed.started == ["train"]
    assert changed.outcome.folder == found.outcome.folder
    report = json.loads((found.outcome.folder / Artifacts.report(Stage.TRAIN)).read_text())
    assert report["sample"] == {"rows": 400, "of": 600}


# A stage that fails


def test_a_stage_says_why_it_failed(rows: Path, tmp_path: Path) -> None:
    mine = People(tmp_path, rows)
    found = mine.run("training.workers=1", "training.maxRestarts=3", "training.hyperparameters.hiden=[4]")
    assert found.started == ["train"]
    assert (found.outcome.failed, found.outcome.missed) == (True, ())
    failure = decoded(found.status).failure
    assert failure is not None
    assert (failure.class_, failure.stage) == (FailureClass.SPEC_INVALID, "train")
    assert failure.pod == f"{name_of(found.outcome.moment.version)}-train-master-0"
    assert "hiden" in failure.message
    log = (found.outcome.folder / "logs" / f"{failure.pod}.log").read_text()
    assert log.count("train failed (SpecInvalid)") == 1, "what no retry can mend is not tried again"


def test_a_run_without_rows_starts_nothing(people: People, tmp_path: Path) -> None:
    with pytest.raises(CliError, match="there is nothing at") as caught:
        Run(people.request(data=str(tmp_path / "nowhere")), lambda _: None, lambda _: None).go()
    assert "--data" in caught.value.next_action


# Interrupted


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, rows: Path) -> Ran:
    """A training that nothing has interrupted."""
    return People(tmp_path_factory.mktemp("undisturbed"), rows).run(*LONG, until="train")


def test_what_a_training_says_is_shown_while_it_runs(undisturbed: Ran) -> None:
    assert {p["epoch"].partition("/")[2] for p in undisturbed.progress} == {"150"}
    assert undisturbed.progress[0].keys() >= {"epoch", "step", "loss", "val_roc_auc", "rows_per_s", "eta_s"}
    steps = [int(p["step"].partition("/")[0]) for p in undisturbed.progress]
    assert len(set(steps)) > 2
    assert steps == sorted(steps)


def test_an_interrupted_training_goes_on_from_its_checkpoint(undisturbed: Ran, rows: Path, tmp_path: Path) -> None:
    # Given a run that is interrupted in the middle of a training
    mine = People(tmp_path, rows)
    notes: list[str] = []

    def interrupt(moment: Moment) -> None:
        if int(moment.progress.get("epoch", "0/1").partition("/")[0]) >= 2:
            raise KeyboardInterrupt

    interrupted = Run(mine.request(*LONG, until="train"), interrupt, notes.append)
    with pytest.raises(KeyboardInterrupt):
        interrupted.go()

    # Then nothing runs on, and a checkpoint is there
    assert mine.left() == []
    assert notes == ["stopping: the training saves a checkpoint; Ctrl-C again does not wait for it"]
    (log,) = (interrupted.folder.path / "logs").iterdir()
    stopped = re.search(r"stopped by SIGTERM at step (\d+) of (\d+); a checkpoint was saved", log.read_text())
    assert stopped is not None, log.read_text()
    assert not (interrupted.folder.path / ".scratch").exists()

    # And the next run goes on from there, to the same model
    found = mine.run(*LONG, until="train")
    train = found.stage("train")
    assert train.details["resumedFromStep"] == int(stopped[1]) > 0
    assert f"resumed from step {stopped[1]}/{stopped[2]}" in log.read_text()
    assert train.metrics == undisturbed.stage("train").metrics
    assert train.details | {"resumedFromStep": 0} == undisturbed.stage("train").details
    content = [(run.outcome.folder / Artifacts.PREPROCESSOR).read_bytes() for run in (found, undisturbed)]
    assert content[0] == content[1]


def test_a_run_that_is_killed_leaves_no_process(rows: Path, tmp_path: Path) -> None:
    # Given the command in the middle of a training of two workers
    mine = People(tmp_path, rows)
    changes = [word for change in ("training.epochs=1000", "training.earlyStopping=null") for word in ("--set", change)]
    command = [sys.executable, "-m", "mlplatform.cli.main", "run", "-f", str(mine.file), "--store", str(mine.store)]
    with subprocess.Popen(
        [*command, *changes, "-o", "json"], env=dict(os.environ), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as program:
        eventually(lambda: program.poll() is not None or any("epoch=2/" in text for text in logs(mine)), "it trains")
        assert program.poll() is None, program.stderr.read() if program.stderr else ""
        assert len(mine.left()) >= 6, "two shepherds, two launchers, two workers"

        # When it is killed, then all of them go
        program.send_signal(signal.SIGKILL)
    eventually(lambda: mine.left() == [], f"nothing is left of {mine.left()}")

    # And nothing is in the way of the next run, which goes on
    (version,) = mine.versions()
    assert json.loads((version / "run.json").read_text())["ended"] == {}
    assert list((version / Artifacts.CHECKPOINTS).iterdir()) != []


def logs(people: People) -> list[str]:
    return [path.read_text() for version in people.versions() for path in version.glob("logs/*.log")]
