"""Choosing among candidates, and the exports' fidelity."""

from __future__ import annotations

import copy
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mljobs import export
from mljobs.failure import JobFailure
from mljobs.optimize import Latency, Measured, measure_latency, objections, select
from mljobs.tasks.tabular_model import TabularModel
from mlplatform.api import Data, Fairness, Gate, ModelVersionSpec, Optimization
from mlplatform.contract import FailureClass


def candidate(
    name: str, *, p50: float = 1.0, p99: float = 2.0, size: int = 100, roc_auc: float = 0.9, **more: float
) -> Measured:
    fairness = {"demographic_parity_difference": {"sex": more.get("parity", 0.1)}}
    metrics = {"roc_auc": roc_auc, "log_loss": more.get("log_loss", 0.3)}
    return Measured(name, size, Latency(p50, p99), metrics, fairness, more.get("difference", 0.0))


FP32 = candidate("fp32")
BOTH = {"fp32", "int8-dynamic"}

CHOICES = [
    (candidate("int8-dynamic", p99=1.0), BOTH, "latency_p99", "int8-dynamic", "twice as fast"),
    (candidate("int8-dynamic", p99=1.95), BOTH, "latency_p99", "fp32", "2.5% is noise: a tie goes to fp32"),
    (candidate("int8-dynamic", p99=2.0), BOTH, "latency_p99", "fp32", "equal"),
    (candidate("int8-dynamic", p99=3.0, p50=0.5), BOTH, "latency_p99", "fp32", "slower where it counts"),
    (candidate("int8-dynamic", p99=3.0, p50=0.5), BOTH, "latency_p50", "int8-dynamic", "faster where it counts"),
    (candidate("int8-dynamic", p99=9.0, size=30), BOTH, "size", "int8-dynamic", "smaller"),
    (candidate("int8-dynamic", p99=1.0), {"fp32"}, "latency_p99", "fp32", "the faster one did not pass"),
    (candidate("int8-dynamic", p99=9.0), {"int8-dynamic"}, "latency_p99", "int8-dynamic", "only it passed"),
]


@pytest.mark.parametrize(("other", "passed", "objective", "wanted", "reason"), CHOICES, ids=[c[-1] for c in CHOICES])
def test_select(other: Measured, passed: set[str], objective: str, wanted: str, reason: str) -> None:
    assert select([FP32, other], passed, objective) == wanted, reason
    assert select([other, FP32], passed, objective) == wanted, f"{reason}; the order does not matter"


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
]


@pytest.mark.parametrize(("judged", "asked", "wanted", "reason"), OBJECTIONS, ids=[case[-1] for case in OBJECTIONS])
def test_objections(judged: Measured, asked: ModelVersionSpec, wanted: list[str], reason: str) -> None:
    assert objections(judged, FP32, asked, "roc_auc") == wanted, reason


def test_runners_take_turns() -> None:
    calls: list[str] = []
    found = measure_latency({"a": lambda _: calls.append("a"), "b": lambda _: calls.append("b")}, rounds=2)
    order = [name for i, name in enumerate(calls) if i == 0 or calls[i - 1] != name]
    assert order == ["a", "b"] * 3, "a warm-up, then two rounds"
    assert 0 <= found["a"].p50 <= found["a"].p99


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
    content = export.to_onnx(model, inputs)
    small = export.onnx_int8(content)
    for rows in (1, 3, 50):
        part = tuple(x[:rows] for x in inputs)
        wanted = probabilities(model(*part))
        assert np.allclose(probabilities(export.run_onnx(export.onnx_session(content, 1), part)), wanted, atol=1e-5)
        assert np.allclose(probabilities(export.run_onnx(export.onnx_session(small, 1), part)), wanted, atol=0.05)


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
        export.to_onnx(Branching().eval(), inputs)
    assert caught.value.failure.reason is FailureClass.SPEC_INVALID
    assert "spec.optimization.export" in caught.value.failure.next_action
