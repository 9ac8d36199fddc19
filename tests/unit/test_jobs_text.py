"""The task `text`: what it reads, learns and answers, and what it refuses before it learns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

import mlplatform
from mljobs import data, export, onnx_files, package, served
from mljobs.failure import JobFailure
from mljobs.onnx_session import Session
from mljobs.tasks import EVALUATION_ROWS, evaluation_rows, load_task
from mljobs.tasks.text import Encoder, TextTask
from mlplatform.api import Data, ModelVersionSpec, Optimization
from mlplatform.contract import FailureClass

pytestmark = [
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
]

TEXTS = ["I love it", "I hate it", "so so", "love, love", "hate", "neither nor", "it is fine", "all fine", None] * 4
LABELS = ["good", "bad", "fair", "good", "bad", "fair", "good", "fair", "bad"] * 4
TABLE = pa.table({"text": TEXTS, "mood": LABELS, "id": list(range(36))})
DATA = Data(uri="/d", label="mood")
SMALL: dict[str, Any] = {
    "maxLength": 8,
    "vocabulary": 40,
    "model": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32},
}


def fitted(**hyper: Any) -> tuple[TextTask, dict[str, Any]]:
    task = TextTask({**SMALL, **hyper})
    targets = task.targets(TABLE, DATA)
    return task, json.loads(json.dumps(task.fit(TABLE, targets, np.arange(30))))


def test_many_texts_have_the_tokens_that_each_has_alone() -> None:
    half = served.load(*fitted())
    many = [TEXTS[i % 8] for i in range(1100)]  # two stretches and a part of one
    (found,) = half.read(many)
    alone = {text: half.read([text])[0][0] for text in set(many)}
    assert torch.equal(found, torch.stack([alone[text] for text in many]))


def test_its_example_goes_the_whole_way_and_rows_are_read_as_records_are() -> None:
    task, config = fitted()
    spec = ModelVersionSpec(
        model="m", sequence=1, data=DATA, optimization=Optimization(candidates=("fp32", "int8-dynamic"))
    )
    served.rehearse(task, config, task.objective(config), spec)
    half = served.load(task, config)
    (rows,) = task.inputs(config, TABLE.slice(0, 8))
    (records,) = half.read([{"text": text} for text in TEXTS[:8]])
    assert torch.equal(rows, records)
    (with_ignored,) = half.read([{"text": TEXTS[0], "id": 7}])
    (plain,) = half.read([TEXTS[0]])
    assert torch.equal(with_ignored, plain)
    assert rows.shape == (8, 8)
    assert config["ignored"] == {"id": "hyperparameters.column names another one as the text"}
    model = task.build(config).eval()
    with torch.inference_mode():
        together, alone = model(rows), torch.cat([model(row[None]) for row in rows])
    assert torch.allclose(together, alone, atol=1e-6)
    assert [type(block).__name__ for block in task.blocks(model)] == ["BertEmbeddings", "BertLayer"]


@pytest.mark.parametrize(
    ("reason", "record", "words"),
    [
        ("a number", {"text": 5}, "record 3: text must be a text, got a JSON int"),
        ("nothing", {"text": None}, "record 3: text must be a text"),
        ("another column", {"txt": "x"}, "record 3: unknown column txt; the text's is text"),
        ("a list of several", ["a", "b"], "record 3: text must be a text, got a JSON list"),
    ],
)
def test_a_record_that_is_no_text_is_refused(reason: str, record: Any, words: str) -> None:
    task, config = fitted()
    with pytest.raises(ValueError, match=r"record 3") as caught:
        served.load(task, config).read([record], 3)
    assert str(caught.value).startswith(words), reason


def test_it_has_every_form_that_the_specification_may_ask_for() -> None:
    task, config = fitted()
    model = task.build(config).eval()
    inputs = task.inputs(config, TABLE)
    with torch.inference_mode():
        wanted = model(*inputs)
        assert torch.allclose(export.int8(model)(*inputs), wanted, atol=0.01)
    for name, content in onnx_files.files(model, inputs, [export.REFERENCE, export.INT8]).items():
        assert torch.allclose(Session(content, 1)(inputs), wanted, atol=0.01), name


def test_many_tokens_are_evaluated_in_fewer_rows() -> None:
    assert evaluation_rows((torch.zeros(9, 14),)) == EVALUATION_ROWS
    assert evaluation_rows((torch.zeros(9, 512),)) == 128
    assert evaluation_rows((torch.zeros(9, 1 << 20),)) == 1


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*(version.txt|metrics.yaml):pytest.PytestUnraisableExceptionWarning")
def test_its_archive_reads_and_answers_by_itself(tmp_path: Path) -> None:
    task, config = fitted()
    torch.manual_seed(2)
    model = task.build(config).eval()
    parts = package.Parts(
        export.torchscript(model, task.inputs(config, TABLE)), config, task.example(config), task.modules
    )
    handler, context = package.load(package.build(tmp_path, "moods", "moods-1", parts), tmp_path / "unpacked")
    assert {path.name for path in (tmp_path / "unpacked").iterdir()} >= {"text_served.py", "tabular_model.py"}
    records = [{"text": "I love it"}, "I hate it", {"txt": "x"}]
    found = package.predict(handler, context, records)
    assert [status for status, _ in found] == [200, 200, 400]
    assert found[2][1]["message"] == "record 0: unknown column txt; the text's is text"
    with torch.inference_mode():
        wanted = task.objective(config).scores(model(*served.load(task, config).read(records[:2])).double())
    for (_, answer), scores in zip(found, wanted.tolist(), strict=False):
        assert answer["prediction"] == config["label"]["classes"][int(np.argmax(scores))]
        assert answer["confidence"] == pytest.approx(max(scores), abs=1e-5)


@pytest.mark.usefixtures("importable")
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*(version.txt|metrics.yaml):pytest.PytestUnraisableExceptionWarning")
def test_it_goes_from_a_file_to_a_served_answer(tmp_path: Path) -> None:
    moods = {"bad": "awful terrible hate", "fair": "maybe fine average", "good": "love great happy"}
    drawn = np.random.default_rng(3)
    lines = ["text,mood"]
    for i in range(400):
        mood = [*moods][i % 3]
        words = [str(drawn.choice(moods[mood].split())), *drawn.choice(["the", "car", "flight", "we", "it"], 4)]
        lines.append(f"{' '.join(map(str, drawn.permutation(words)))} {i},{mood}")
    (tmp_path / "moods.csv").write_text("\n".join(lines) + "\n")
    model = {
        "apiVersion": "mlplatform.dev/v1alpha1",
        "kind": "MLModel",
        "metadata": {"name": "moods"},
        "spec": {
            "data": {"uri": str(tmp_path / "moods.csv"), "label": "mood"},
            "training": {
                "task": "text",
                "precision": "fp32",
                "epochs": 20,
                "batchSize": 16,
                "optimizer": {"learningRate": 0.002},
                # As small as SMALL it takes two classes for one with many a seed.
                "hyperparameters": {"model": {**SMALL["model"], "hidden_size": 64}, "vocabulary": 200, "maxLength": 24},
            },
            "gates": [{"metric": "balanced_accuracy", "min": 0.9}],
            "optimization": {"candidates": ["fp32"], "export": ["torchscript"]},
        },
    }
    done = mlplatform.run(model, store=tmp_path / "store")
    assert (done.passed, done.missed, done.failure) == (True, (), None)
    answers = done.predict([{"text": "we love the car it 9"}, "the awful flight we it 9", {"txt": "x"}])
    assert [answer.get("prediction") for answer in answers] == ["good", "bad", None]
    assert answers[2]["message"] == "record 0: unknown column txt; the text's is text"


def learn(hyper: dict[str, Any]) -> None:
    task = load_task("text", hyper)
    task.fit(TABLE, task.targets(TABLE, DATA), np.arange(30))


@pytest.mark.parametrize(
    ("reason", "hyper", "failure", "words"),
    [
        ("a name that is none", {"colum": "text"}, FailureClass.SPEC_INVALID, "unknown 'colum' (did you mean column?)"),
        ("no room for text", {"maxLength": 2}, FailureClass.SPEC_INVALID, "maxLength cannot be 2"),
        ("two encoders", {"checkpoint": "/c", "vocabulary": 9}, FailureClass.SPEC_INVALID, "take these out"),
        ("no such column", {"column": "tweet"}, FailureClass.DATA_INVALID, "no column 'tweet' (did you mean text?); it has text"),
        ("a column of numbers", {"column": "id"}, FailureClass.DATA_INVALID, "'id' holds int64"),
        ("no such encoder", {"model": {"model_type": "bart_of_ours"}}, FailureClass.SPEC_INVALID, "makes no encoder"),
        ("heads that do not fit", {"model": {"hidden_size": 10, "num_attention_heads": 3}}, FailureClass.SPEC_INVALID, "makes no encoder"),
    ],
)  # fmt: skip
def test_what_cannot_be_learned_is_refused_by_name(
    reason: str, hyper: dict[str, Any], failure: FailureClass, words: str
) -> None:
    with pytest.raises(JobFailure) as caught:
        learn(hyper)
    assert caught.value.failure.reason is failure, reason
    assert words in caught.value.failure.message, reason


@pytest.mark.parametrize(("column", "text", "words"), [
    (DATA.label, TABLE.column("text"), "which is the label"),
    ("text", [" no comment"] * len(TABLE), "has the same text in every row"),
    ("text", ["", " ", None] * (len(TABLE) // 3), "has the same text in every row"),
])  # fmt: skip
def test_a_text_that_tells_nothing_of_a_row_or_all_is_refused(column: str, text: Any, words: str) -> None:
    table = pa.table({"text": text, DATA.label: TABLE.column(DATA.label)})
    task = TextTask({"column": column})
    found = task.targets(table, DATA)
    rows = data.Rows(table, ["a.csv"], "", len(table))
    with pytest.raises(JobFailure, match=words):
        task.choose(rows, found, data.split(found.strata, DATA.split), DATA)


def test_a_checkpoint_in_the_store_is_what_it_starts_from(tmp_path: Path) -> None:
    _, config = fitted()
    torch.manual_seed(5)
    before: Any = Encoder(config)
    before.encoder.base_model.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(config["tokenizer"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    task = TextTask({"maxLength": 8, "checkpoint": str(tmp_path)})
    found = task.fit(TABLE, task.targets(TABLE, DATA), np.arange(30))
    assert found["checkpoint"]["digest"].startswith("sha256:")
    after: Any = task.build(found)
    task.start(found, after)
    for name, weight in before.encoder.base_model.state_dict().items():
        assert torch.equal(weight, after.encoder.base_model.state_dict()[name]), name
    other = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**other, "num_hidden_layers": 2}))
    wider = task.fit(TABLE, task.targets(TABLE, DATA), np.arange(30))
    with pytest.raises(JobFailure, match="not of its configuration"):
        task.start(wider, task.build(wider))
