"""A task of a user's own: examples/own-task goes through all stages, and what could not be served is refused before training."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from jobs_kit import REPO
from torch import Tensor, nn

import mlplatform
from mljobs import served
from mljobs.failure import JobFailure
from mljobs.tasks import load_task
from mlplatform.api import Data, ModelVersionSpec, Optimization
from mlplatform.contract import FailureClass, Stage

pytestmark = [
    pytest.mark.usefixtures("importable"),
    # TorchServe, which tries the archive, loads TorchScript and leaves files open.
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*(version.txt|metrics.yaml):pytest.PytestUnraisableExceptionWarning"),
]

EXAMPLE = REPO / "examples/own-task"
TASK = "forecast.task:Forecast"
CONFIG: dict[str, Any] = {"readings": 4, "hidden": 8, "mean": 12.0, "scale": 5.0}
SPEC = ModelVersionSpec(model="readings", sequence=1, data=Data(uri="/d", label="next"))


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Where a person would run it."""
    monkeypatch.chdir(EXAMPLE)
    monkeypatch.syspath_prepend(str(EXAMPLE))
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "forecast"]:
        del sys.modules[name]


@pytest.mark.usefixtures("here")
def test_it_is_short_and_goes_from_its_data_to_a_served_answer(tmp_path: Path) -> None:
    code = [path.read_text().count("\n") for path in (EXAMPLE / "forecast").rglob("*.py")]
    assert sum(code) < 80, "what the seam asks for fits a screen or two"
    table = importlib.import_module("data").table(1200)
    pq.write_table(table, tmp_path / "readings.parquet")
    model = yaml.safe_load((EXAMPLE / "mlmodel.yaml").read_text())
    del model["spec"]["training"]["image"]  # of a registry that is not there
    done = mlplatform.run(
        model,
        data=tmp_path / "readings.parquet",
        set={
            "optimization.export": ["torchscript"],
            "training.batchSize": 32,
            "gates": [{"metric": "coverage", "min": 0.8}, {"metric": "pinball", "max": 0.25}],
        },
        store=tmp_path / "store",
    )
    assert (done.passed, done.missed, done.failure) == (True, (), None)
    assert set(done.stages[Stage.AUDIT].metrics) == {"pinball", "coverage"}
    assert done.report(Stage.PACKAGE)["smokeTest"]["rows"] == 16
    example = json.loads((done.artifacts / "package/example.json").read_text())
    rows = table.slice(0, 5).to_pylist()
    short = {"readings": [1.0]}
    answers = done.predict([example, *({"readings": row["readings"]} for row in rows), short])
    for answer in answers[:-1]:
        assert answer["low"] <= answer["prediction"] <= answer["high"]
    for row, answer in zip(rows, answers[1:-1], strict=True):
        assert answer["prediction"] == pytest.approx(row["next"], abs=4)
    assert answers[-1]["message"] == "record 0: readings must be a list of 24 numbers"
    assert answers[-1]["code"] == 400


class Broken:
    """What a case replaces of the example's task."""

    def __init__(self, **parts: Any) -> None:
        self._parts = parts

    def __getattr__(self, name: str) -> Any:
        return self._parts[name] if name in self._parts else getattr(load_task(TASK, {}), name)


def no_rows(_config: Any) -> nn.Module:
    class Mean(nn.Module):
        def forward(self, readings: Tensor) -> Tensor:
            return readings.mean().reshape(1)

    return Mean()


def by_value(_config: Any) -> nn.Module:
    class Loops(nn.Module):
        def forward(self, readings: Tensor) -> Tensor:
            return torch.stack([row[:3] for row in readings.unbind()])

    return Loops()


class Other:
    """An objective that means something else than is served."""

    unit = "degrees"

    def scores(self, outputs: Tensor) -> Tensor:
        return outputs * 2 + 1

    def off(self, answer: Any, wanted: Any) -> float:
        return float(abs(answer["prediction"] - wanted[1]))


SERVED = """
class Served:
    names, width = ("readings",), 4
    def __init__(self, config):
        pass
    def read(self, records, first=0):
        import torch
        return (torch.zeros(len(records), 4),)
    def answers(self, outputs):
        return {answer}
"""


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("reason", "parts", "words"),
    [
        ("the example is no record of its own", {"example": lambda _: {"reading": [1.0] * 4}},
         'example that does not round-trip: {"reading": [1.0, 1.0, 1.0, 1.0]} cannot be read: ValueError: record 0: readings must be'),
        ("the example is no JSON", {"example": lambda _: {"readings": np.float32(1)}}, "no plain JSON"),
        ("the model does not take what is read", {"build": lambda _: nn.Linear(3, 3)}, "the model does not take 2 record(s)"),
        ("an output for all", {"build": no_rows}, "2 record(s) gave (1,)"),
        ("a model that only knows the rows it was traced with", {"build": by_value}, "the model does not take 1 record(s)"),
        ("an objective that is not what is served", {"objective": lambda _: Other()}, "round-trip: the answer"),
        ("nothing to serve", {"modules": ("mlhandlers.records",)}, "has no module that could be served"),
        ("a module that is not there", {"modules": ("mlhandlers.records", "forecast.lost")}, "no module forecast.lost"),
        ("a half that needs the other one", {"modules": ("mlhandlers.records", "forecast.task")}, "gives no Served"),
    ],
)  # fmt: skip
def test_what_could_not_be_served_is_refused_by_name(reason: str, parts: dict[str, Any], words: str) -> None:
    task: Any = Broken(**parts)
    with pytest.raises(JobFailure) as caught:
        served.rehearse(task, CONFIG, task.objective(CONFIG), SPEC)
    assert caught.value.failure.reason is FailureClass.TASK_IMPORT, reason
    assert words in caught.value.failure.message, reason
    assert "example" in caught.value.failure.next_action or "image" in caught.value.failure.next_action


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("reason", "answer", "words"),
    [
        ("not finite", '{"prediction": ("FP64", [float("nan")] * len(outputs))}', "got no answer: ValueError"),
        ("tensors are no JSON", '{"prediction": ("FP64", list(outputs))}', "got no answer: TypeError"),
        ("fewer than were asked for", '{"prediction": ("FP64", [1.0])}', "got no answer: IndexError"),
        ("nothing is called the prediction", '{"high": ("FP64", [1.0] * len(outputs))}', "no prediction"),
    ],
)
def test_outputs_that_cannot_be_served_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str, answer: str, words: str
) -> None:
    (tmp_path / "bad_answers.py").write_text(SERVED.format(answer="ANSWER").replace("ANSWER", answer))
    monkeypatch.syspath_prepend(str(tmp_path))
    task: Any = Broken(modules=("mlhandlers.records", "bad_answers"), objective=lambda _: Plain())
    with pytest.raises(JobFailure) as caught:
        served.rehearse(task, CONFIG, task.objective(CONFIG), SPEC)
    assert "outputs that cannot be served" in caught.value.failure.message, reason
    assert words in caught.value.failure.message, reason


class Plain(Other):
    def off(self, _answer: Any, _wanted: Any) -> float:
        return 0.0


@pytest.mark.usefixtures("here")
def test_a_form_that_the_model_has_not_is_refused_before_the_training() -> None:
    spec = ModelVersionSpec(
        model="m", sequence=1, data=SPEC.data, optimization=Optimization(candidates=("fp32", "int8-dynamic"))
    )

    def without_linear(_config: Any) -> nn.Module:
        return nn.Sequential(nn.Conv1d(1, 3, 4), nn.Flatten())

    class Served:
        names: Sequence[str] = ("readings",)

    task: Any = Broken(build=lambda config: nn.Sequential(nn.Unflatten(1, (1, 4)), *without_linear(config)))
    with pytest.raises(JobFailure, match="int8-dynamic needs linear layers"):
        served.rehearse(task, CONFIG, task.objective(CONFIG), spec)


@pytest.mark.usefixtures("here")
def test_a_task_that_inherits_and_lacks_a_method_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_task.py").write_text("from forecast.task import Task\nclass Half(Task):\n    modules = ()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(JobFailure) as caught:
        load_task("half_task:Half", {})
    assert "lacks targets, fit, objective, build, example" in caught.value.failure.message
