"""What one row is answered does not depend on the rows beside it, in every form that may ship."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from mljobs import export, onnx_files
from mljobs.tasks.tabular_model import TabularModel

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


FORMS: dict[str, Callable[[nn.Module, Sequence[Tensor]], Score]] = {
    "fp32 TorchScript": torchscript,
    "int8-dynamic TorchScript": lambda model, inputs: torchscript(export.int8(model), inputs),
    "fp32 ONNX": lambda model, inputs: onnx_files.Session(onnx_files.to_onnx(model, inputs), 1),
    "int8-dynamic ONNX": lambda model, inputs: onnx_files.Session(onnx_files.int8(model, inputs), 1),
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
