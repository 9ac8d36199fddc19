"""Adapters: what of a checkpoint learns, what is saved of it, and what is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from jobs_kit import Torchrun, job_environment
from safetensors.torch import load_file

from mljobs import export
from mljobs.automatic import Settled
from mljobs.failure import JobFailure
from mljobs.parallel import Parallel
from mljobs.processes import Topology
from mljobs.tasks import load_task
from mljobs.tasks.text import Encoder, TextTask
from mljobs.trainer import make_optimizer
from mlplatform.api import Data
from mlplatform.contract import Artifacts, FailureClass, Stage

pytestmark = [
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
]

TEXTS = [f"{word} {i}" for i, word in enumerate(["love", "hate", "so so", "all fine", "neither nor", "fair"] * 6)]
TABLE = pa.table({"text": TEXTS, "mood": ["good", "bad", "fair"] * 12})
DATA = Data(uri="/d", label="mood")
SMALL: dict[str, Any] = {
    "maxLength": 8,
    "vocabulary": 40,
    "model": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32},
}
LORA = {"rank": 2, "alpha": 8}
ADAPTED = ("attention.self.query.weight", "attention.self.value.weight")
"""What `peft` adapts of a BERT by itself."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny encoder's, as `save_pretrained` writes it."""
    folder = tmp_path_factory.mktemp("checkpoint")
    task = TextTask(SMALL)
    config = task.fit(TABLE, task.targets(TABLE, DATA), np.arange(30))
    torch.manual_seed(5)
    encoder: Any = Encoder(config).encoder
    encoder.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(config["tokenizer"])
    return folder


def hyper(checkpoint: Path, **lora: Any) -> dict[str, Any]:
    return {"maxLength": 8, "checkpoint": str(checkpoint), "lora": {**LORA, **lora}}


def test_only_adapters_and_the_head_learn_and_what_is_saved_is_plain(checkpoint: Path) -> None:
    task = TextTask(hyper(checkpoint))
    config = json.loads(json.dumps(task.fit(TABLE, task.targets(TABLE, DATA), np.arange(30))))
    torch.manual_seed(1)
    model = task.start(config, task.build(config))
    learning = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert {name for name in learning if "lora_" not in name} == {
        "encoder.classifier.weight",
        "encoder.classifier.bias",
    }
    assert len(learning) == 2 + 2 * len(ADAPTED)
    topology = Topology(0, 1, torch.device("cpu"))
    prepared = Parallel(model, task.blocks(model), Settled(strategy="single", precision="fp32"), topology)
    (group,) = make_optimizer(Settled(), prepared).param_groups
    assert len(group["params"]) == len(learning)
    inputs = task.inputs(config, TABLE)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_()
        wanted = model.eval()(*inputs)
    state = task.finish(config, prepared.full_state())
    plain = task.build(config)
    assert state.keys() == plain.state_dict().keys()
    plain.load_state_dict(state)
    with torch.inference_mode():
        assert torch.allclose(plain.eval()(*inputs), wanted, atol=1e-5)
        traced = export.load_torchscript(export.torchscript(plain, inputs))
        assert torch.allclose(traced(*inputs), wanted, atol=1e-5)
        assert torch.allclose(export.int8(plain)(*inputs), wanted, atol=0.05)


def trained(folder: Path, checkpoint: Path, processes: int, *, kill: bool = False, **training: Any) -> dict[str, Any]:
    """The weights that a training leaves, killed once on its way or not."""
    with (folder.parent / "moods.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "mood"])
        writer.writerows(zip(*TABLE.to_pydict().values(), strict=True))
    spec = {
        "model": "people",
        "sequence": 1,
        "data": {"uri": str(folder.parent / "moods.csv"), "label": "mood"},
        "training": {
            "task": "text",
            "precision": "fp32",
            "epochs": 6,
            "batchSize": 8,
            "optimizer": {"learningRate": 0.01},
            "checkpoint": {"everySteps": 4},
            "hyperparameters": hyper(checkpoint),
            **training,
        },
    }
    environment = job_environment(spec, folder, Stage.TRAIN, folder.with_suffix(".message"))
    if kill:
        first = Torchrun(environment, processes)
        first.wait_for("checkpoint step=8")
        first.kill()
    job = Torchrun(environment, processes)
    assert job.finish() == 0, job.output
    assert ("resumed from step" in job.output) is kill
    state: dict[str, Any] = torch.load(folder / Artifacts.MODEL, weights_only=True)
    return state


@pytest.mark.parametrize(("strategy", "processes"), [("single", 1), ("ddp", 2), ("fsdp", 2)])
def test_frozen_weights_stay_to_the_bit_and_a_resumed_training_ends_alike(
    strategy: str, processes: int, checkpoint: Path, tmp_path: Path
) -> None:
    state = trained(tmp_path / "whole", checkpoint, processes, strategy=strategy)
    before = load_file(checkpoint / "model.safetensors")
    for name, weight in before.items():
        moved = name.endswith(ADAPTED) or name.startswith("classifier")
        assert torch.equal(weight, state[f"encoder.{name}"]) is not moved, name
    again = trained(tmp_path / "killed", checkpoint, processes, kill=True, strategy=strategy)
    assert state.keys() == again.keys()
    assert all(torch.equal(state[name], again[name]) for name in state)


@pytest.mark.parametrize(
    ("reason", "more", "words"),
    [
        ("fresh weights", {"lora": {}}, "lora adapts the weights of a checkpoint; name one in checkpoint, or take lora out"),
        ("no object", {"lora": 8, "checkpoint": "c"}, "lora cannot be 8"),
        ("a name that is none", {"lora": {"rnk": 8}, "checkpoint": "c"}, "lora: unknown 'rnk' (did you mean rank?)"),
        ("no rank", {"lora": {"rank": 0}, "checkpoint": "c"}, "lora: rank cannot be 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_adapted_is_refused_by_name(reason: str, more: dict[str, Any], words: str) -> None:
    with pytest.raises(JobFailure) as caught:
        load_task("text", more)
    assert caught.value.failure.reason is FailureClass.SPEC_INVALID, reason
    assert words in caught.value.failure.message, reason


def test_layers_that_are_not_there_are_refused_with_those_that_are(checkpoint: Path) -> None:
    task = TextTask(hyper(checkpoint, targets=["c_attn"]))
    with pytest.raises(JobFailure, match="peft adapts nothing of this model") as caught:
        task.fit(TABLE, task.targets(TABLE, DATA), np.arange(30))
    assert "lora.targets to some of its layers: query, key, value, dense" in caught.value.failure.next_action
