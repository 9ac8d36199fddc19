"""What one row is answered does not depend on the rows beside it, in every form that may ship."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mljobs import export, onnx_files, package
from mljobs.onnx_session import Session
from mljobs.tasks.tabular import TabularTask
from mljobs.tasks.tabular_model import Preprocessor, TabularModel

CONFIG = {
    "features": [
        *({"name": f"n{i}", "kind": "numeric", "edges": [float(edge) for edge in range(20)]} for i in range(6)),
        *({"name": f"c{i}", "kind": "categorical", "categories": [str(j) for j in range(9)]} for i in range(4)),
    ],
    "label": {"name": "rich", "classes": ["no", "yes"]},
    "model": {"hidden": [64, 32], "dropout": 0.1, "embedding": 8},
}
ROWS = 200
BATCHES = 50
Score = Callable[[Sequence[Tensor]], Tensor]


def model_and_inputs() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    numeric = torch.randn(ROWS, 6) * 10 + 8
    numeric[::7] = torch.nan
    return TabularModel(CONFIG).eval(), (numeric, torch.randint(0, 11, (ROWS, 4)))


def torchscript(model: nn.Module, inputs: Sequence[Tensor]) -> Score:
    loaded = export.load_torchscript(export.torchscript(model, inputs))
    return lambda batch: torch.Tensor(loaded(*batch))


def onnx(model: nn.Module, inputs: Sequence[Tensor], name: str) -> Score:
    return Session(onnx_files.files(model, inputs, [name])[name], 1)


FORMS: dict[str, Callable[[nn.Module, Sequence[Tensor]], Score]] = {
    "fp32 TorchScript": torchscript,
    "int8-dynamic TorchScript": lambda model, inputs: torchscript(export.int8(model), inputs),
    "fp32 ONNX": lambda model, inputs: onnx(model, inputs, export.REFERENCE),
    "int8-dynamic ONNX": lambda model, inputs: onnx(model, inputs, export.INT8),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_row_is_answered_alike_in_any_company(form: str) -> None:
    model, inputs = model_and_inputs()
    score = FORMS[form](model, inputs)
    with torch.inference_mode():
        alone = score([part[:1] for part in inputs])
        found = []
        for batch in range(BATCHES):
            company = torch.randperm(ROWS)[: 1 + batch]
            company[batch // 2] = 0
            found.append(score([part[company] for part in inputs])[batch // 2])
    worst = (torch.sigmoid(torch.stack(found)) - torch.sigmoid(alone)).abs().max().item()
    if form.startswith("int8"):
        assert worst == 0.0, "bit for bit: one scale for all rows of a run would move it by half a percent"
    assert worst <= export.PARITY_TOLERANCE, "float32 sums may be taken in another order"


def test_a_row_of_equal_values_has_no_range_to_be_scaled_by() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(8, 4)
    small = export.int8(nn.Sequential(layer))
    rows = torch.cat([torch.full((1, 8), 3.0), torch.zeros(1, 8), torch.randn(1, 8)])
    assert torch.allclose(small(rows), layer(rows), atol=0.05)
    assert torch.equal(small(rows)[:2], torch.cat([small(rows[:1]), small(rows[1:2])]))


def test_layers_without_bias_and_of_sequences_are_quantised_too() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 8, bias=False), nn.ReLU(), nn.Linear(8, 2)).eval()
    tokens = torch.randn(3, 5, 16)
    small = export.int8(model)
    assert torch.allclose(small(tokens), model(tokens), atol=0.05)
    assert torch.equal(small(tokens)[1], small(tokens[1:2])[0])


LABELS: dict[str, dict[str, Any]] = {
    "binary": CONFIG["label"],
    "multiclass": {"name": "kind", "kind": "multiclass", "classes": ["a", "b", "c"]},
    "regression": {"name": "price", "kind": "regression", "mean": 1000.0, "scale": 250.0},
}


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*(version.txt|metrics.yaml):pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("form", ["fp32", "int8-dynamic"])
def test_a_served_record_is_answered_alike_in_any_company(label: str, form: str, tmp_path: Path) -> None:
    config = {"format": 1, **CONFIG, "label": LABELS[label]}
    torch.manual_seed(0)
    model: nn.Module = TabularModel(config).eval()
    rng = random.Random(0)  # noqa: S311  no secret
    records = [
        {f"n{i}": rng.uniform(-5, 25) for i in range(6)} | {f"c{i}": str(rng.randrange(11)) for i in range(4)}
        for _ in range(60)
    ]
    inputs = Preprocessor(config).transform(records)
    content = export.torchscript(export.int8(model) if form == "int8-dynamic" else model, inputs)
    parts = package.Parts(content, config, records[0], TabularTask.modules)
    handler, context = package.load(package.build(tmp_path, "m", "m-1", parts), tmp_path / "unpacked")

    def answers(batch: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        found = package.predict(handler, context, batch)
        assert {status for status, _ in found} == {200}
        return [{key: value for key, value in answer.items() if key != "latency_ms"} for _, answer in found]

    alone = [answers([record])[0] for record in records]
    for _ in range(BATCHES):
        company = rng.sample(range(len(records)), rng.randint(2, 32))
        for i, answer in zip(company, answers([records[i] for i in company]), strict=True):
            if form == "int8-dynamic":
                assert answer == alone[i]
            elif label == "regression":
                assert answer["prediction"] == pytest.approx(alone[i]["prediction"], abs=export.PARITY_TOLERANCE * 250)
            else:
                assert answer["confidence"] == pytest.approx(alone[i]["confidence"], abs=export.PARITY_TOLERANCE)
