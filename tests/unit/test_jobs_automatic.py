"""What the specification leaves open: what the data and the machine make of it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from mljobs import automatic, processes
from mljobs.automatic import STEPS, Settled
from mljobs.processes import Topology
from mlplatform.api import Training

ONE = Topology(0, 1, torch.device("cpu"))


@dataclass(frozen=True)
class Rows:
    """Rows of a training part, and what is made of them."""

    reason: str
    rows: int
    batch: int
    epochs: int


@pytest.mark.parametrize(
    "case",
    [
        Rows("a handful: every pass is one step", 20, 32, 600),
        Rows("140 rows of 200 took ten steps once", 140, 32, 150),
        Rows("a tenth of the rows, as a power of two", 1300, 128, 60),
        Rows("from here on a batch grows no more", 6000, 512, 55),
        Rows("the example: what was the default", 34_000, 512, 10),
        Rows("more rows take larger batches, and no more passes", 400_000, 1024, 10),
        Rows("up to a bound", 10_000_000, 4096, 10),
    ],
    ids=lambda case: case.reason,
)
def test_batches_and_passes_follow_the_rows(case: Rows) -> None:
    batch = automatic.batch_size(case.rows)
    assert (batch, automatic.epochs(case.rows, batch)) == (case.batch, case.epochs)
    assert max(1, case.rows // batch) * case.epochs >= STEPS


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "total", lambda values, _device: list(values))


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("fast", "rows", "precision", "reason"),
    [
        (True, 34_000, "bf16", "a machine that multiplies fast in bfloat16"),
        (False, 34_000, "fp32", "one that does not"),
        (True, 140, "fp32", "in small batches the conversions cost more than they gain"),
    ],
)
def test_precision_follows_the_machine(
    monkeypatch: pytest.MonkeyPatch,
    fast: bool,  # noqa: FBT001  a table's column
    rows: int,
    precision: str,
    reason: str,
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: fast)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    settled = automatic.settle(Training(), rows, ONE)
    assert (settled.precision, settled.strategy) == (precision, "single"), reason


@pytest.mark.usefixtures("alone")
def test_what_is_said_stays_and_is_told_from_what_is_automatic() -> None:
    said = Training(precision="bf16", epochs=3, seed=9)
    settled = automatic.settle(said, 140, ONE)
    assert settled == Settled(strategy="single", precision="bf16", epochs=3, batch_size=32, seed=9)
    assert automatic.said(said, settled) == {
        "strategy": "single",
        "precision": "bf16",
        "batchSize": 32,
        "epochs": 3,
        "automatic": ["strategy", "batchSize"],
    }


def test_several_processes_shard_and_agree_on_the_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(processes, "total", lambda _values, _device: [1.0])
    settled = automatic.settle(Training(), 34_000, Topology(0, 2, torch.device("cpu")))
    assert (settled.strategy, settled.precision) == ("fsdp", "fp32"), "the other one's machine is not fast in bfloat16"
