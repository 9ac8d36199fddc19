"""What may ship, how it is timed, and the exports' fidelity."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn

from mljobs import export, onnx_files, onnx_session, optimize
from mljobs.choice import Choice
from mljobs.export import INT8, REFERENCE
from mljobs.failure import JobFailure
from mljobs.optimize import (
    LEAST_RUNS,
    ROUNDS,
    RUNS,
    WARM_UP,
    Latency,
    Measured,
    Score,
    choose_by,
    finish,
    interruptions,
    judge_onnx,
    latency,
    measure_latency,
    objections,
    timed,
)
from mljobs.report import Job
from mljobs.store import Store
from mljobs.tasks import EVALUATION_ROWS
from mljobs.tasks.tabular import TabularTask
from mljobs.tasks.tabular_model import TabularModel
from mljobs.tasks.targets import Binary
from mljobs.trained import Trained
from mlplatform.api import Data, Fairness, Gate, ModelVersionSpec, Optimization
from mlplatform.contract import TERMINATION_LIMIT, Artifacts, FailureClass, Stage


def candidate(
    name: str, *, p50: float = 1.0, p99: float = 2.0, size: int = 100, roc_auc: float = 0.9, **more: float
) -> Measured:
    fairness = {"demographic_parity_difference": {"sex": more.get("parity", 0.1)}}
    metrics = {"roc_auc": roc_auc, "log_loss": more.get("log_loss", 0.3)}
    return Measured(name, size, Latency(p50, p99), metrics, fairness, more.get("difference", 0.0))


FP32 = candidate("fp32")


def spec(*gates: Gate, on_failure: Literal["block", "warn"] = "block") -> ModelVersionSpec:
    return ModelVersionSpec(
        model="m",
        sequence=1,
        data=Data(uri="x", label="y"),
        gates=gates,
        fairness=Fairness(metrics={"demographic_parity_difference": 0.2}, on_failure=on_failure),
        optimization=Optimization(max_metric_drop=0.01),
    )


OBJECTIONS = [
    (candidate("x"), spec(), [], "as good as fp32"),
    (candidate("x", roc_auc=0.891), spec(), [], "a drop within the limit"),
    (candidate("x", roc_auc=0.88), spec(), ["roc_auc is 0.0200 worse than fp32's, over 0.01"], "a drop over it"),
    (candidate("x", roc_auc=0.95), spec(), [], "better than fp32"),
    (
        candidate("x", roc_auc=0.85, log_loss=0.32),
        spec(Gate(metric="log_loss", max=0.4)),
        ["log_loss is 0.0200 worse than fp32's, over 0.01"],
        "the drop is that of the gates' metrics; of a loss, more is worse",
    ),
    (
        candidate("x", roc_auc=0.895),
        spec(Gate(metric="roc_auc", min=0.899)),
        ["roc_auc 0.8950 is below the gate 0.899"],
        "below a gate that fp32 passes",
    ),
    (
        candidate("x"),
        spec(Gate(metric="log_loss", max=0.25)),
        ["log_loss 0.3000 is above the gate 0.25"],
        "above a gate",
    ),
    (
        candidate("x", parity=0.21),
        spec(),
        ["demographic_parity_difference by sex 0.2100 is above the bound 0.2"],
        "less fair than allowed",
    ),
    (candidate("x", parity=0.21), spec(on_failure="warn"), [], "a bound that only warns"),
    (candidate("x", difference=0.1), spec(), ["its file differs from the model by 0.1 in probability"], "a bad export"),
    (replace(FP32, difference=None), spec(), [], "quantised since: only its metrics count"),
]


@pytest.mark.parametrize(("judged", "asked", "wanted", "reason"), OBJECTIONS, ids=[case[-1] for case in OBJECTIONS])
def test_objections(judged: Measured, asked: ModelVersionSpec, wanted: list[str], reason: str) -> None:
    assert objections(judged, FP32, asked, Binary(CONFIG["label"])) == wanted, reason


@pytest.fixture
def calm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing interrupts."""
    monkeypatch.setattr(optimize, "interruptions", lambda: 0)


@pytest.mark.usefixtures("calm")
def test_runners_take_turns_call_by_call_in_either_order() -> None:
    calls: list[tuple[str, int]] = []
    runners = {name: lambda i, name=name: calls.append((name, i)) for name in "abc"}
    found = measure_latency(runners, rounds=2)
    assert calls[:9] == [(name, i) for i, names in enumerate(("abc", "cba", "abc")) for name in names], "on one record"
    assert len(calls) == 3 * (WARM_UP + 2 * RUNS)
    assert {name: times.shape for name, times in found.items()} == dict.fromkeys("abc", (2, RUNS)), (
        "without the warm-up"
    )
    assert all((times > 0).all() for times in found.values())


@pytest.mark.usefixtures("calm")
def test_slow_runners_have_fewer_runs_and_no_more_time() -> None:
    found = measure_latency(dict.fromkeys("ab", lambda _: time.sleep(0.005)), rounds=4, seconds=0.8)
    rounds, runs = found["a"].shape
    assert LEAST_RUNS <= runs <= 20, "of the 200 ms of a round, at 10 ms a turn"
    assert 1 <= rounds <= 4
    late = measure_latency(dict.fromkeys("ab", lambda _: time.sleep(0.005)), rounds=4, seconds=0.0)
    assert late["b"].shape == (1, LEAST_RUNS), "some time is better than none"


@pytest.mark.parametrize(
    ("interrupted", "wanted", "reason"),
    [
        ((0, 0), 1, "a run in peace counts"),
        ((0, 2, 2, 2), 2, "one that was interrupted is taken again"),
        ((0, 1, 1, 2, 2, 3), 3, "of a run that is always interrupted the last counts: some time is better than none"),
    ],
)
def test_an_interrupted_run_is_taken_again(
    monkeypatch: pytest.MonkeyPatch, interrupted: tuple[int, ...], wanted: int, reason: str
) -> None:
    counts, calls = iter(interrupted), []
    monkeypatch.setattr(optimize, "interruptions", lambda: next(counts))
    assert timed(calls.append, 7) > 0, reason
    assert calls == [7] * wanted, reason
    assert list(counts) == [], reason


def test_a_neighbour_on_the_same_cpu_interrupts() -> None:
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cpus)})
    neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        before, end = interruptions(), time.monotonic() + 30
        while interruptions() == before:
            assert time.monotonic() < end, "two on one CPU take turns within milliseconds"
    finally:
        neighbour.kill()
        neighbour.wait()
        os.sched_setaffinity(0, cpus)


def test_the_latency_of_a_candidate_is_that_of_its_middle_round() -> None:
    times = np.repeat([[1.0], [2.0], [90.0]], 100, axis=1)
    times[:, 95:] *= 2
    assert latency(times) == Latency(2.0, 4.0)


@pytest.mark.parametrize(
    ("objective", "wanted", "reason"),
    [
        ("latency_p99", "int8-dynamic", "fp32 has the longer tail"),
        ("latency_p50", "fp32", "but is faster mostly"),
        ("size", "int8-dynamic", "the smaller file"),
    ],
)
def test_the_objective_says_which_time_counts(objective: str, wanted: str, reason: str) -> None:
    times = {"fp32": np.ones((ROUNDS, RUNS)), "int8-dynamic": np.full((ROUNDS, RUNS), 2.0)}
    times["fp32"][:, : RUNS // 10] = 9.0
    found = choose_by(objective, [FP32, candidate("int8-dynamic", size=30)], times)
    assert found.name == wanted, reason


# ONNX files.


class ByScores(Binary):
    """Its metric is the share of positive rows with a score above one half."""

    metrics = ("roc_auc",)

    def evaluate(self, targets: np.ndarray, scores: np.ndarray) -> dict[str, float]:
        return {"roc_auc": float((scores > 0.5)[targets].mean())}


ROWS = 3 * EVALUATION_ROWS + 1


def judged(monkeypatch: pytest.MonkeyPatch, logits: dict[bytes, Tensor]) -> dict[str, dict[str, Any]]:
    """What `judge_onnx` says of files that give these logits; all rows are positive, the model's logit is 2."""

    def session(content: bytes, _threads: int) -> Score:
        def score(inputs: Sequence[Tensor]) -> Tensor:
            assert len(inputs[0]) <= EVALUATION_ROWS, "memory does not grow with the test split"
            return logits[content][inputs[0][:, 0].long()]

        return score

    monkeypatch.setattr(onnx_session, "Session", session)
    monkeypatch.setattr(optimize, "measure_latency", lambda runners, _rounds: dict.fromkeys(runners, np.ones((1, 1))))
    inputs = (torch.arange(ROWS, dtype=torch.float32)[:, None],)
    found = Trained(
        TabularTask({}),
        {},
        ByScores(CONFIG["label"]),
        Fixed(),
        pa.table({"row": range(ROWS)}),
        inputs,
        np.ones(ROWS, dtype=np.bool_),
        {"rows": ROWS, "of": ROWS},
    )
    reference = Measured("fp32", 1, Latency(1.0, 2.0), {"roc_auc": 1.0}, {}, 0.0)
    return judge_onnx(found, {REFERENCE: b"float", INT8: b"quantised"}, reference, spec(), threads=1)


class Fixed(nn.Module):
    """Gives every row the logit 2."""

    def forward(self, numeric: Tensor) -> Tensor:
        return torch.full((len(numeric),), 2.0)


def test_a_quantised_onnx_file_is_judged_by_its_metrics_not_by_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    quantised = torch.full((ROWS,), 2.0)
    quantised[-1] = -2.0
    report = judged(monkeypatch, {b"float": torch.full((ROWS,), 2.0), b"quantised": quantised})
    assert report["fp32"]["passed"] is True
    assert report["int8-dynamic"]["passed"] is True
    assert report["int8-dynamic"]["maxAbsDifference"] > 0.7


def test_a_quantised_onnx_file_that_is_worse_is_recorded_and_not_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    quantised = torch.full((ROWS,), 2.0)
    quantised[::10] = -2.0
    report = judged(monkeypatch, {b"float": torch.full((ROWS,), 2.0), b"quantised": quantised})
    assert report["fp32"]["passed"] is True
    assert report["int8-dynamic"]["passed"] is False
    assert "roc_auc is 0.1000 worse than fp32's" in report["int8-dynamic"]["reason"]


def test_a_float_onnx_file_that_differs_fails_the_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    differs = torch.full((ROWS,), 2.01)
    with pytest.raises(JobFailure, match="the ONNX file of fp32 differs from the model by") as caught:
        judged(monkeypatch, {b"float": differs, b"quantised": differs})
    assert caught.value.failure.reason is FailureClass.GATE_FAILED


def test_a_reason_is_short_in_the_summary_and_whole_in_the_report(tmp_path: Path) -> None:
    job = Job(Stage.OPTIMIZE, "m", "m-01234567", spec(), Store(str(tmp_path)))
    slow = candidate("int8-dynamic", roc_auc=1 / 3)
    reasons = {"fp32": [], "int8-dynamic": [f"difference by {'ü' * 128}"] * 32}
    chosen = Choice("fp32", (), "fp32 ships: it alone passed")
    summary = finish(job, [FP32, slow], reasons, chosen, {})
    assert len(summary.to_json()) <= TERMINATION_LIMIT
    short = summary.details["candidates"][1]
    assert short["reason"].startswith("difference by ü")
    assert short["metrics"]["roc_auc"] == 1 / 3, "gates judge what was measured"
    assert summary.details["choice"] == chosen.sentence
    whole = job.read_json(Artifacts.report(Stage.OPTIMIZE))["candidates"][1]
    assert whole["reason"] == "; ".join(reasons["int8-dynamic"])


# Exports.

CONFIG = {
    "features": [
        {"name": "age", "kind": "numeric", "edges": [20.0, 40.0, 60.0]},
        {"name": "job", "kind": "categorical", "categories": ["clerk", "pilot"]},
    ],
    "label": {"name": "rich", "classes": ["no", "yes"]},
    "model": {"hidden": [64, 32], "dropout": 0.1, "embedding": 4},
}
KINDS = [("numeric", "categorical"), ("numeric",), ("categorical",)]


def model_and_inputs(kinds: tuple[str, ...] = KINDS[0]) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    config = {**CONFIG, "features": [f for f in CONFIG["features"] if f["kind"] in kinds]}
    numeric = torch.rand(50, int("numeric" in kinds)) * 80
    numeric[::7] = torch.nan
    categorical = torch.randint(0, 4, (50, int("categorical" in kinds)))
    return TabularModel(config).eval(), (numeric, categorical)


def probabilities(logits: Tensor) -> np.ndarray:
    return torch.sigmoid(logits.detach()).numpy()


@pytest.mark.parametrize("kinds", KINDS, ids=" and ".join)
@pytest.mark.parametrize("form", ["fp32", "int8"])
def test_torchscript_computes_what_the_module_does(kinds: tuple[str, ...], form: str) -> None:
    model, inputs = model_and_inputs(kinds)
    module = export.int8(model) if form == "int8" else model
    loaded = export.load_torchscript(export.torchscript(module, inputs))
    for rows in (1, 3, 50):
        part = tuple(x[:rows] for x in inputs)
        with torch.inference_mode():
            assert np.allclose(probabilities(loaded(*part)), probabilities(module(*part)), atol=1e-6), rows


@pytest.mark.parametrize("kinds", KINDS, ids=" and ".join)
def test_onnx_computes_what_the_module_does(kinds: tuple[str, ...]) -> None:
    model, inputs = model_and_inputs(kinds)
    files = onnx_files.files(model, inputs, [REFERENCE, INT8])
    plain, small = (onnx_session.Session(files[name], 1) for name in (REFERENCE, INT8))
    for rows in (1, 3, 50):
        part = tuple(x[:rows] for x in inputs)
        wanted = probabilities(model(*part))
        assert np.allclose(probabilities(plain(part)), wanted, atol=1e-5)
        assert np.allclose(probabilities(small(part)), wanted, atol=0.01), "on a CPU without VNNI, too"


def test_an_onnx_file_holds_nothing_of_what_was_exported_with_it() -> None:
    model, inputs = model_and_inputs()
    both = onnx_files.files(model, inputs, [REFERENCE, INT8])
    (alone,) = onnx_files.files(model, inputs, [REFERENCE]).values()
    shapes = [
        sorted(tuple(item.dims) for item in onnx.load_model_from_string(content).graph.initializer)
        for content in (both[REFERENCE], alone)
    ]
    assert shapes[0] == shapes[1]


def test_int8_is_much_smaller_and_leaves_the_model_as_it_was() -> None:
    model, inputs = model_and_inputs()
    wide = copy.deepcopy(model)
    wide.blocks.append(nn.Sequential(nn.Linear(32, 2048), nn.Linear(2048, 32)))
    before = {name: weight.clone() for name, weight in wide.state_dict().items()}
    small = export.int8(wide)
    assert len(export.torchscript(small, inputs)) < 0.4 * len(export.torchscript(wide, inputs))
    assert all(torch.equal(before[name], weight) for name, weight in wide.state_dict().items())


class Branching(nn.Module):
    """Which way it goes depends on a value, which no graph of operators can express."""

    def forward(self, numeric: Tensor, _categorical: Tensor) -> Tensor:
        return numeric[:, 0] if numeric.sum() > 0 else -numeric[:, 0]


def test_a_model_without_linear_layers_cannot_be_quantised() -> None:
    with pytest.raises(JobFailure, match="needs linear layers") as caught:
        export.int8(Branching())
    assert caught.value.failure.reason is FailureClass.SPEC_INVALID


def test_a_model_that_cannot_be_exported_is_named() -> None:
    _, inputs = model_and_inputs()
    with pytest.raises(JobFailure, match="cannot be exported to ONNX") as caught:
        onnx_files.files(Branching().eval(), inputs, [REFERENCE])
    assert caught.value.failure.reason is FailureClass.SPEC_INVALID
    assert "spec.optimization.export" in caught.value.failure.next_action
