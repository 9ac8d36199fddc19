"""The training: its plan, and real runs over two processes that are killed and resumed."""

from __future__ import annotations

import io
import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from jobs_kit import Torchrun, job_environment, people_spec, read_summary, two_pods, write_people
from standalone_kit import people_model
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING, Metadata

from mljobs import train
from mljobs.automatic import Settled
from mljobs.checkpoint import MANIFEST, METADATA, Checkpoints, SafeReader
from mljobs.failure import JobFailure
from mljobs.report import run
from mljobs.store import Store
from mljobs.trainer import Plan, less_is_better, watched_metric
from mlplatform import api
from mlplatform.api import EarlyStopping
from mlplatform.contract import ENV_ARTIFACTS, LOWER_IS_BETTER, TARGET_METRICS, Artifacts, FailureClass, Stage, Summary
from mlplatform.resources import modelversion, pod
from mlplatform.settings import Settings


@pytest.mark.parametrize(
    ("rows", "batch", "accumulation", "world", "wanted", "reason"),
    [
        (1000, 100, 1, 1, (100, 100, 10), "one process takes whole batches"),
        (1000, 100, 2, 2, (25, 100, 10), "a batch is shared among processes and micro-batches"),
        (1050, 100, 1, 1, (100, 100, 10), "rows that fill no step wait for another epoch"),
        (1000, 101, 2, 2, (25, 100, 10), "a batch that cannot be divided is made a little smaller"),
        (60, 512, 2, 2, (15, 60, 1), "a batch larger than the data is all the data"),
        (1000, 1, 2, 2, (1, 4, 250), "at least one row a micro-batch"),
    ],
)
def test_plan(rows: int, batch: int, accumulation: int, world: int, wanted: tuple[int, int, int], reason: str) -> None:
    plan = Plan(rows, Settled(batch_size=batch, gradient_accumulation_steps=accumulation, epochs=3), world)
    assert (plan.micro, plan.batch, plan.steps_per_epoch) == wanted, reason
    assert plan.steps == plan.steps_per_epoch * 3, reason


def test_too_few_rows_for_the_processes_are_named() -> None:
    with pytest.raises(JobFailure, match="3 training rows are fewer than 4") as caught:
        Plan(3, Settled(gradient_accumulation_steps=2), 2)
    assert caught.value.failure.reason is FailureClass.DATA_INVALID


def test_ranks_share_each_batch_without_overlap_and_epochs_differ() -> None:
    plan = Plan(103, Settled(batch_size=24, gradient_accumulation_steps=2), 3)
    order = plan.order(seed=1, epoch=0)
    for batch in order:
        shares = [plan.share(batch, rank) for rank in range(3)]
        assert {share.shape for share in shares} == {(2, 4)}
        assert np.array_equal(np.sort(np.concatenate([share.ravel() for share in shares])), np.sort(batch))
    assert len(np.unique(order)) == order.size, "no row twice in an epoch"
    assert np.array_equal(order, plan.order(seed=1, epoch=0))
    assert not np.array_equal(order, plan.order(seed=1, epoch=1))


def test_the_learning_rate_rises_and_falls_to_nothing() -> None:
    plan = Plan(1000, Settled(batch_size=100, epochs=10), 1)
    rates = [plan.learning_rate(0.1, step) for step in range(plan.steps)]
    peak = rates.index(max(rates))
    assert max(rates) == pytest.approx(0.1)
    assert peak <= 5
    assert rates[0] < rates[1] or peak == 0
    assert all(a >= b for a, b in zip(rates[peak:], rates[peak + 1 :], strict=False))
    assert 0 < rates[-1] < 0.001


@pytest.mark.parametrize(("target", "first"), [("binary", "roc_auc"), ("multiclass", "roc_auc"), ("regression", "r2")])
def test_the_first_metric_of_what_is_learned_is_watched_where_none_is_named(target: str, first: str) -> None:
    for stopping in None, EarlyStopping(), EarlyStopping(mode="max"):
        assert watched_metric(stopping, TARGET_METRICS[target]) == f"val_{first}"
        assert less_is_better(stopping, f"val_{first}", LOWER_IS_BETTER) is False
    assert watched_metric(EarlyStopping(metric="val_accuracy"), TARGET_METRICS[target]) == "val_accuracy"


@pytest.mark.parametrize(
    ("stopping", "metric", "wanted", "reason"),
    [
        (None, "val_roc_auc", False, "more of an area is better"),
        (None, "val_log_loss", True, "the metric that a task of one's own reports first may be a loss"),
        (EarlyStopping(metric="val_log_loss"), "val_log_loss", True, "a loss by its nature"),
        (EarlyStopping(metric="val_mae"), "val_mae", True, "an error, too"),
        (EarlyStopping(metric="val_r2"), "val_r2", False, "a share of what is explained is not"),
        (EarlyStopping(metric="val_log_loss", mode="max"), "val_log_loss", False, "what is asked for is obeyed"),
        (EarlyStopping(metric="val_own", mode="min"), "val_own", True, "of a metric of one's own nothing is known"),
    ],
)
def test_the_direction_of_the_watched_metric(
    stopping: EarlyStopping | None,
    metric: str,
    wanted: bool,  # noqa: FBT001  a table's column
    reason: str,
) -> None:
    assert less_is_better(stopping, metric, LOWER_IS_BETTER) is wanted, reason


# Real runs.


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_people(tmp_path_factory.mktemp("people")).parent


def weights(artifacts: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(artifacts / Artifacts.MODEL, weights_only=True)
    return state


def history(artifacts: Path) -> list[dict[str, float]]:
    report = json.loads((artifacts / Artifacts.report(Stage.TRAIN)).read_text())
    return [{k: v for k, v in record.items() if k != "rows_per_second"} for record in report["history"]]


@pytest.fixture(scope="module")
def undisturbed(people: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Summary, str]:
    """Artifacts, summary and output of an FSDP run over two processes."""
    folder = tmp_path_factory.mktemp("undisturbed")
    job = Torchrun(job_environment(people_spec(people), folder / "artifacts", Stage.TRAIN, folder / "message"))
    code = job.finish()
    assert code == 0, job.output
    return folder / "artifacts", read_summary(folder / "message"), job.output


def test_two_processes_train_with_fsdp(undisturbed: tuple[Path, Summary, str]) -> None:
    artifacts, summary, output = undisturbed
    assert summary.failure is None
    assert summary.details == {
        "rows": {"train": 630, "validation": 90, "test": 180},
        "epochs": 4,
        "worldSize": 2,
        "resumedFromStep": 0,
    }
    assert summary.metrics["val_roc_auc"] > 0.75, "the numbers of the made-up people tell who is rich"
    assert all(weight.dtype == torch.float32 for weight in weights(artifacts).values()), "only computing is in bfloat16"
    assert "epoch=4/4 step=76/76" in output
    assert "eta_s=" in output
    losses = [record["loss"] for record in history(artifacts)]
    assert losses[-1] < losses[0]


def test_only_the_newest_checkpoints_are_kept(undisturbed: tuple[Path, Summary, str]) -> None:
    folders = sorted((undisturbed[0] / Artifacts.CHECKPOINTS).iterdir())
    whole = [folder.name for folder in folders if (folder / MANIFEST).exists()]
    assert whole == ["step-0000000070", "step-0000000075"]
    assert all(not list(folder.iterdir()) for folder in folders if folder.name not in whole)
    shards = {path.name for path in folders[-1].iterdir()}
    assert {"__0_0.distcp", "__1_0.distcp"} <= shards, "each rank writes its own shard"


def test_a_killed_and_a_terminated_training_end_as_an_undisturbed_one(
    people: Path, tmp_path: Path, undisturbed: tuple[Path, Summary, str]
) -> None:
    environment = job_environment(people_spec(people), tmp_path / "artifacts", Stage.TRAIN, tmp_path / "message")

    killed = Torchrun(environment)
    killed.wait_for("checkpoint step=10/76")
    killed.kill()
    assert not (tmp_path / "artifacts" / Artifacts.MODEL).exists(), f"it was over before the kill:\n{killed.output}"

    terminated = Torchrun(environment)
    terminated.wait_for("checkpoint step=25/76")
    terminated.terminate()
    assert terminated.finish() != 0, "the pod must fail, or it would not be started again"
    assert "resumed from step" in terminated.output
    failure = read_summary(tmp_path / "message").failure
    assert failure is not None, terminated.output
    assert failure.reason is FailureClass.PREEMPTED, terminated.output
    assert "a checkpoint was saved" in failure.message

    last = Torchrun(environment)
    assert last.finish() == 0, last.output
    summary = read_summary(tmp_path / "message")
    assert summary.failure is None
    stopped_at = int(failure.message.split("at step ")[1].split()[0])
    assert summary.details["resumedFromStep"] == stopped_at, "it goes on from the checkpoint that SIGTERM asked for"
    wanted_artifacts, wanted_summary, _ = undisturbed
    assert summary.metrics == wanted_summary.metrics
    assert history(tmp_path / "artifacts") == history(wanted_artifacts)
    found, wanted = weights(tmp_path / "artifacts"), weights(wanted_artifacts)
    assert found.keys() == wanted.keys()
    for name, weight in wanted.items():
        assert torch.equal(found[name], weight), name


def test_rows_that_do_not_fit_are_learned_from_in_windows_and_a_kill_changes_nothing(
    people: Path, tmp_path: Path
) -> None:
    found = []
    for name in "undisturbed", "killed":
        spec = people_spec(people, epochs=2, resources={"memory": "128Ki"})
        environment = job_environment(spec, tmp_path / name, Stage.TRAIN, tmp_path / "message")
        if name == "killed":
            job = Torchrun(environment)
            job.wait_for("checkpoint step=10/38")
            job.kill()
        job = Torchrun(environment)
        assert job.finish() == 0, job.output
        found.append(weights(tmp_path / name))
    assert "resumed from step" in job.output
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_no_rank_succeeds_unless_the_model_is_saved(people: Path, tmp_path: Path) -> None:
    (tmp_path / "artifacts" / Artifacts.MODEL).mkdir(parents=True)  # in the way of the file
    spec = people_spec(people, strategy="ddp", epochs=1)
    pods = [tmp_path / "master", tmp_path / "worker"]
    master, worker = two_pods(*(job_environment(spec, tmp_path / "artifacts", Stage.TRAIN, pod) for pod in pods))
    codes = master.finish(), worker.finish()
    assert 0 not in codes, f"{codes}: a worker that has succeeded is not started again\n{worker.output}"
    failure = read_summary(pods[0]).failure
    assert failure is not None
    assert "model.pt" in failure.message


def test_ranks_that_loaded_different_data_fail(people: Path, tmp_path: Path) -> None:
    other = write_people(tmp_path / "other", rows=901).parent
    pods = [(people, tmp_path / "master"), (other, tmp_path / "worker")]
    runs = two_pods(
        *(
            job_environment(people_spec(data, strategy="ddp"), tmp_path / "artifacts", Stage.TRAIN, message)
            for data, message in pods
        )
    )
    for run_, (_, message) in zip(runs, pods, strict=True):
        assert run_.finish() != 0, run_.output
        failure = read_summary(message).failure
        assert failure is not None, run_.output
        assert failure.reason is FailureClass.DATA_INVALID, run_.output
        assert "changed while the processes loaded it" in failure.message
        assert "mlplatform.dev/retrain" in failure.next_action


# Runs in this process: a world of one.


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, people: Path) -> Iterator[Alone]:
    yield Alone(monkeypatch, tmp_path, people)
    if dist.is_initialized():
        dist.destroy_process_group()


class Alone:
    """Runs the stage in this process, after setting the environment."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, people: Path) -> None:
        self._monkeypatch = monkeypatch
        self.folder = folder
        self.people = people

    def train(self, spec: dict[str, Any], every_steps: int = 1000, artifacts: str = "artifacts") -> tuple[int, Summary]:
        """Without checkpoints unless asked for: most of them the runs over two processes try."""
        message = self.folder / "message"
        spec["training"]["checkpoint"] = {"everySteps": every_steps}
        for name, value in job_environment(spec, self.folder / artifacts, Stage.TRAIN, message).items():
            self._monkeypatch.setenv(name, value)
        threads = torch.get_num_threads()
        try:
            code = run(Stage.TRAIN, train.main)
        finally:
            torch.set_num_threads(threads)
        return code, read_summary(message)


@pytest.mark.parametrize(
    ("training", "reason"),
    [
        ({"strategy": "fsdp", "activationCheckpointing": True}, "FSDP with recomputed activations"),
        ({"strategy": "single", "precision": "bf16"}, "one process with automatic bfloat16"),
        ({"strategy": "fsdp", "precision": "fp32", "optimizer": {"name": "sgd", "learningRate": 0.1}}, "SGD"),
    ],
)
def test_a_world_of_one(alone: Alone, training: dict[str, Any], reason: str) -> None:
    code, summary = alone.train(people_spec(alone.people, **training))
    assert (code, summary.failure) == (0, None), reason
    assert summary.metrics["val_roc_auc"] > 0.75, reason


def test_recomputed_activations_change_no_weight(alone: Alone) -> None:
    found = []
    for flag in (False, True):
        alone.folder = alone.folder / str(flag)
        alone.folder.mkdir()
        spec = people_spec(alone.people, epochs=1, precision="fp32", activationCheckpointing=flag)
        assert alone.train(spec)[0] == 0
        found.append(weights(alone.folder / "artifacts"))
    assert all(torch.allclose(found[0][name], found[1][name]) for name in found[0])


def test_a_checkpoint_right_after_an_epoch_that_was_no_better(alone: Alone) -> None:
    stopping = {"metric": "val_log_loss", "mode": "max", "patience": 3}
    code, summary = alone.train(people_spec(alone.people, earlyStopping=stopping), every_steps=1)
    assert (code, summary.failure) == (0, None)
    assert (
        history(alone.folder / "artifacts")[-1]["val_log_loss"] < history(alone.folder / "artifacts")[0]["val_log_loss"]
    )


def test_a_checkpoint_of_two_processes_is_resumed_by_one(alone: Alone, undisturbed: tuple[Path, Summary, str]) -> None:
    artifacts, wanted, _ = undisturbed
    shutil.copytree(artifacts / Artifacts.CHECKPOINTS, alone.folder / "artifacts" / Artifacts.CHECKPOINTS)
    code, summary = alone.train(people_spec(alone.people))
    assert (code, summary.failure) == (0, None)
    assert summary.details["resumedFromStep"] == 75
    assert summary.metrics == pytest.approx(wanted.metrics, abs=0.01), "one small step is left"


def test_a_checkpoint_of_other_data_is_not_resumed(
    alone: Alone, undisturbed: tuple[Path, Summary, str], tmp_path: Path
) -> None:
    shutil.copytree(undisturbed[0] / Artifacts.CHECKPOINTS, alone.folder / "artifacts" / Artifacts.CHECKPOINTS)
    code, summary = alone.train(people_spec(write_people(tmp_path / "changed", rows=901).parent))
    assert code == 1
    assert summary.failure is not None
    assert summary.failure.reason is FailureClass.DATA_INVALID
    assert "the data changed after the checkpoint of step 75" in summary.failure.message
    assert "mlplatform.dev/retrain" in summary.failure.next_action


@pytest.mark.parametrize(("uid", "number"), [("1", 2), ("2", 1)], ids=["alone", "with its model"])
def test_a_version_that_was_deleted_and_made_again_learns_from_the_rows_of_today(
    alone: Alone, undisturbed: tuple[Path, Summary, str], tmp_path: Path, uid: str, number: int
) -> None:
    def place(uid: str, number: int) -> str:
        """Where the operator tells the training of a version to put its artifacts."""
        model = people_model("s3://rows/")
        model["metadata"] |= {"uid": uid, "namespace": "default"}
        spec = api.decode(api.MLModelSpec, model["spec"])
        version = modelversion.render(model, spec, "people-0123abcd", number, "")
        decoded = api.decode(api.ModelVersionSpec, version["spec"])
        environment = pod.environment(version, decoded, Stage.TRAIN, Settings(artifact_root="store"))
        return next(str(entry["value"]) for entry in environment if entry["name"] == ENV_ARTIFACTS)

    shutil.copytree(undisturbed[0], alone.folder / place("1", 1))
    before = (alone.folder / place("1", 1) / Artifacts.MODEL).read_bytes()
    changed = write_people(tmp_path / "changed", rows=901).parent
    code, summary = alone.train(people_spec(changed), artifacts=place(uid, number))
    assert (code, summary.failure) == (0, None)
    assert summary.details["resumedFromStep"] == 0, "from nobody else's checkpoint"
    assert sum(summary.details["rows"].values()) == 901
    assert (alone.folder / place("1", 1) / Artifacts.MODEL).read_bytes() == before, (
        "what still serves is not written over"
    )
    assert alone.train(people_spec(changed), artifacts=place("1", 1))[0] == 1, "as it would be without the id"


def test_only_early_stopping_names_a_best_epoch(alone: Alone, undisturbed: tuple[Path, Summary, str]) -> None:
    assert alone.train(people_spec(alone.people, epochs=1, earlyStopping=None))[0] == 0
    reports = [folder / Artifacts.report(Stage.TRAIN) for folder in (alone.folder / "artifacts", undisturbed[0])]
    assert ["bestEpoch" in json.loads(path.read_text()) for path in reports] == [False, True]


def test_early_stopping_ends_the_training_and_ships_the_best_weights(alone: Alone) -> None:
    stopping = {"metric": "val_log_loss", "patience": 2}
    optimizer = {"learningRate": 0.3}
    _, summary = alone.train(people_spec(alone.people, epochs=60, earlyStopping=stopping, optimizer=optimizer))
    records = history(alone.folder / "artifacts")
    best = min(record["val_log_loss"] for record in records)
    assert summary.details["epochs"] == len(records) < 60
    assert summary.metrics["val_log_loss"] == pytest.approx(best, abs=1e-6), "the last epochs were worse"
    assert records[-3]["val_log_loss"] == best


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_learn_what_one_process_learns(alone: Alone, tmp_path: Path, strategy: str) -> None:
    def spec(strategy: str) -> dict[str, Any]:
        return people_spec(
            alone.people,
            strategy=strategy,
            precision="fp32",
            gradientAccumulationSteps=2,
            # Unlike AdamW, it does not blow the rounding of a gradient near 0 up to a step of full length.
            optimizer={"name": "sgd", "learningRate": 0.1},
            earlyStopping=None,
            hyperparameters={"hidden": [16, 8], "bins": 8, "dropout": 0.0},
        )

    together = Torchrun(job_environment(spec(strategy), tmp_path / "both", Stage.TRAIN, tmp_path / "message"))
    assert alone.train(spec("single"))[0] == 0
    assert together.finish() == 0, together.output
    found, wanted = weights(tmp_path / "both"), weights(alone.folder / "artifacts")
    assert found.keys() == wanted.keys(), "the strategy's prefix is no part of a weight's name"
    for name, weight in wanted.items():
        assert torch.allclose(found[name], weight, atol=1e-5), name


FAILURES: list[tuple[dict[str, Any], FailureClass, str, str]] = [
    ({"training": {"optimizer": {"learningRate": 1e30}}}, FailureClass.NON_FINITE_LOSS, "loss is", "a step too large"),
    (
        {"training": {"optimizer": {"learningRate": 1e30}, "batchSize": 1000}},
        FailureClass.NON_FINITE_LOSS,
        "validation rows are not finite after step 1",
        "a step too large, the only one of its epoch",
    ),
    ({"training": {"task": "nowhere:Task"}}, FailureClass.TASK_IMPORT, "'nowhere'", "a task that is not installed"),
    ({"training": {"hyperparameters": {"hiden": [8]}}}, FailureClass.SPEC_INVALID, "mean hidden?", "a hyperparameter"),
    (
        {"training": {"earlyStopping": {"metric": "val_auc"}}},
        FailureClass.SPEC_INVALID,
        "val_auc",
        "an early stopping metric that is not reported",
    ),
    ({"data": {"label": "rch"}}, FailureClass.DATA_INVALID, "did you mean rich?", "a label column that is missing"),
    ({"data": {"uri": "/nonexistent/folder"}}, FailureClass.DATA_MISSING, "there is nothing at", "no data"),
    ({"data": {"positiveLabel": "maybe"}}, FailureClass.DATA_INVALID, "'maybe'", "a class that does not occur"),
    ({"data": {"sensitiveAttributes": ["grop"]}}, FailureClass.DATA_INVALID, "mean group?", "no such attribute"),
]


@pytest.mark.parametrize(("changes", "kind", "words", "reason"), FAILURES, ids=[case[-1] for case in FAILURES])
def test_an_understood_failure_is_in_the_termination_message(
    alone: Alone, changes: dict[str, Any], kind: FailureClass, words: str, reason: str
) -> None:
    spec = people_spec(alone.people)
    for section, values in changes.items():
        spec[section] = {**spec[section], **values}
    code, summary = alone.train(spec)
    assert code == 1, reason
    assert summary.stage is Stage.TRAIN, reason
    assert summary.failure is not None, reason
    assert summary.failure.reason is kind, f"{reason}: {summary.failure}"
    assert words in summary.failure.message, f"{reason}: {summary.failure}"
    assert summary.failure.next_action, reason


# Checkpoints.


@pytest.fixture
def group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def checkpoints_in(folder: Path, keep: int = 5) -> Checkpoints:
    return Checkpoints(Store(str(folder)), keep, rank=0, world_size=1, data="sha256:of-the-rows")


@pytest.mark.usefixtures("group")
def test_a_checkpoint_counts_once_its_manifest_is_there(tmp_path: Path) -> None:
    checkpoints = checkpoints_in(tmp_path)
    assert checkpoints.latest() is None
    for step in (3, 20):
        checkpoints.save(step, {"weight": torch.full((4,), float(step))}, {"step": step})
    newest = checkpoints.latest()
    assert newest is not None
    assert newest.step == 20
    (tmp_path / Artifacts.CHECKPOINTS / "step-0000000020" / MANIFEST).unlink()
    earlier = checkpoints.latest()
    assert earlier is not None
    tensors = {"weight": torch.zeros(4)}
    checkpoints.restore(earlier, tensors)
    assert earlier.progress == {"step": 3}
    assert tensors["weight"].tolist() == [3.0] * 4


def with_files(folder: Path, files: object) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, "files": files}))


@dataclass(frozen=True, kw_only=True)
class Damage:
    reason: str
    does: Callable[[Path], object]
    told: str


DAMAGES = [
    Damage(reason="a shard of other bytes", does=lambda folder: (folder / METADATA).write_bytes(b"damaged"),
           told="its SHA-256 differs"),
    Damage(reason="a shard that is gone", does=lambda folder: (folder / METADATA).unlink(), told="there is no such file"),
    Damage(reason="half a manifest", does=lambda folder: (folder / MANIFEST).write_text('{"step": 2'), told="is damaged"),
    Damage(reason="a manifest that is a list", does=lambda folder: (folder / MANIFEST).write_text("[2]"),
           told="TypeError"),
    Damage(reason="a manifest without the data's digest", does=lambda folder: (folder / MANIFEST).write_text(
               '{"step": 2, "progress": {}, "files": {}}'), told="'data'"),
    Damage(reason="a file above the folder", does=lambda folder: with_files(folder, {"../../../outside": "0"}),
           told="it names the file '../../../outside'"),
    Damage(reason="a file anywhere", does=lambda folder: with_files(folder, {"/etc/passwd": "0"}), told="'/etc/passwd'"),
    Damage(reason="the folder above as a file", does=lambda folder: with_files(folder, {"..": "0"}), told="'..'"),
    Damage(reason="files that are a number", does=lambda folder: with_files(folder, 2), told="TypeError"),
]  # fmt: skip


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("case", DAMAGES, ids=lambda case: case.reason)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], case: Damage
) -> None:
    checkpoints = checkpoints_in(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, {"weight": torch.full((4,), float(step))}, {})
    case.does(tmp_path / Artifacts.CHECKPOINTS / "step-0000000002")
    earlier = checkpoints.latest()
    out = capsys.readouterr().out
    assert earlier is not None, case.reason
    assert earlier.step == 1, case.reason
    assert "checkpoint skipped" in out, case.reason
    assert case.told in out, case.reason
    tensors = {"weight": torch.zeros(4)}
    checkpoints.restore(earlier, tensors)
    assert tensors["weight"].tolist() == [1.0] * 4, case.reason


@pytest.mark.usefixtures("group")
def test_what_is_damaged_after_the_choice_is_not_loaded(tmp_path: Path) -> None:
    checkpoints = checkpoints_in(tmp_path)
    checkpoints.save(1, {"weight": torch.ones(4)}, {})
    newest = checkpoints.latest()
    assert newest is not None
    (tmp_path / Artifacts.CHECKPOINTS / "step-0000000001" / METADATA).write_bytes(b"damaged")
    with pytest.raises(OSError, match="its SHA-256 differs"):
        checkpoints.restore(newest, {"weight": torch.ones(4)})


@pytest.mark.usefixtures("group")
def test_a_damaged_checkpoint_takes_no_place_from_those_that_follow(tmp_path: Path) -> None:
    checkpoints = checkpoints_in(tmp_path, keep=1)
    checkpoints.save(20, {"weight": torch.ones(4)}, {})
    (tmp_path / Artifacts.CHECKPOINTS / "step-0000000020" / METADATA).write_bytes(b"damaged")
    assert checkpoints.latest() is None
    checkpoints.save(5, {"weight": torch.ones(4)}, {})
    again = checkpoints.latest()
    assert again is not None
    assert again.step == 5


class Forged:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("this ran",))


class ByGetattr:
    """Pickles as ``getattr(owner, name)``, like a member of an enumeration on Python 3.11.0 to 3.11.3."""

    def __init__(self, owner: Any, name: str) -> None:
        self._read = (owner, name)

    def __reduce__(self) -> tuple[Any, ...]:
        return (getattr, self._read)


def test_a_member_of_an_enumeration_is_read_however_python_pickled_it(tmp_path: Path) -> None:
    member = next(iter(_MEM_FORMAT_ENCODING))
    (tmp_path / METADATA).write_bytes(pickle.dumps(ByGetattr(_MEM_FORMAT_ENCODING, member.name)))
    assert SafeReader(tmp_path).read_metadata() is member


@pytest.mark.parametrize(
    ("reason", "owner", "name"),
    [
        ("an attribute of an enumeration that is no member", _MEM_FORMAT_ENCODING, "__class__"),
        ("an attribute of a class that is no enumeration", Metadata, "__init__"),
    ],
)
def test_getattr_reads_nothing_else(reason: str, owner: Any, name: str, tmp_path: Path) -> None:
    (tmp_path / METADATA).write_bytes(pickle.dumps(ByGetattr(owner, name)))
    with pytest.raises(pickle.UnpicklingError, match="which is not admitted"):
        pytest.fail(f"{reason}: {SafeReader(tmp_path).read_metadata()}")


def test_forged_metadata_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    buffer = io.BytesIO()
    pickle.dump(Forged(), buffer)
    (tmp_path / METADATA).write_bytes(buffer.getvalue())
    with pytest.raises(pickle.UnpicklingError, match=r"builtins\.print, which is not admitted"):
        SafeReader(tmp_path).read_metadata()
    assert capsys.readouterr().out == ""
