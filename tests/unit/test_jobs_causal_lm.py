"""The task `causal-lm`: what it reads, learns and answers, and what it refuses before it learns."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from jobs_kit import Torchrun, job_environment
from tokenizers import Tokenizer, models, pre_tokenizers

import mlplatform
from mljobs import export, onnx_files, package, served
from mljobs.failure import JobFailure
from mljobs.onnx_session import Session
from mljobs.tasks import load_task
from mljobs.tasks.causal_lm import START, CausalLmTask, LanguageModel
from mljobs.tasks.causal_lm_served import BYTES, COUNTED, LOSS, NEXT, TOKENS
from mlplatform.api import Data, ModelVersionSpec, Optimization
from mlplatform.contract import Artifacts, FailureClass, Stage

pytestmark = [
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
]

SAID = ["the cat sat on the mat", "the dog lay on the rug", "a bird flew over the house", "Zürich, 北京 🙂"]
TEXTS = [f"{said} {i}" for i, said in enumerate(SAID * 10)]
TABLE = pa.table({"text": TEXTS, "id": list(range(40))})
DATA = Data(uri="/d", label="text")
SMALL: dict[str, Any] = {
    "maxLength": 24,
    "newTokens": 5,
    "vocabulary": 300,
    "model": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
}


def fitted(table: pa.Table = TABLE, **hyper: Any) -> tuple[CausalLmTask, dict[str, Any]]:
    task = CausalLmTask({**SMALL, **hyper})
    targets = task.targets(table, DATA)
    return task, json.loads(json.dumps(task.fit(table, targets, np.arange(30))))


def fresh(task: CausalLmTask, config: dict[str, Any]) -> Any:
    """A model whose tokens differ more than those of one that has learned nothing."""
    torch.manual_seed(2)
    model = task.build(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3)
    return model


def test_many_texts_have_the_tokens_that_each_has_alone() -> None:
    half = served.load(*fitted())
    many = [TEXTS[i % len(TEXTS)] for i in range(1100)]  # two stretches and a part of one
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
    (more,) = half.read([TEXTS[0], {"text": TEXTS[0], "id": 7}])
    assert torch.equal(more[0], more[1])
    assert rows.shape == (8, 24)
    assert config["ignored"] == {"id": "spec.data.label names another one as the text"}
    assert [type(block).__name__ for block in task.blocks(task.build(config))] == ["GPT2Block"]


def test_what_is_said_of_a_text_is_what_the_network_says_without_any_padding() -> None:
    task, config = fitted()
    model = fresh(task, config)
    rows = task.inputs(config, TABLE)[0]
    with torch.inference_mode():
        found = model(rows)
        for row, sums, text in zip(rows, found, TEXTS, strict=True):
            tokens = [config["start"], *row[1:][row[1:] != config["start"]].tolist()]
            likely = model.network(input_ids=torch.tensor([tokens])).logits[0].log_softmax(dim=-1)
            wanted = -sum(float(likely[i, token]) for i, token in enumerate(tokens[1:]))
            assert float(sums[LOSS]) == pytest.approx(wanted, rel=1e-4)
            assert int(sums[TOKENS]) == len(tokens) - 1
            assert int(sums[NEXT]) == int(likely[-1].argmax())
            if len(tokens) < 24:
                assert int(sums[BYTES]) == len(text.encode())
    counts = np.array(config["counts"]) + 1
    wanted = -np.log(counts / counts.sum())[rows[0, 1:][rows[0, 1:] != 0].numpy()].sum()
    assert float(found[0, COUNTED]) == pytest.approx(wanted, rel=1e-5)


def test_of_a_long_text_the_end_is_read_and_the_log_says_how_much_that_is() -> None:
    table = pa.table({"text": [*TEXTS[:39], " ".join(TEXTS)]})
    task, config = fitted(table)
    (rows,) = task.inputs(config, table.slice(39))
    tokenizer = Tokenizer.from_str(config["tokenizer"])
    assert tokenizer.decode(rows[0, 1:].tolist()) == tokenizer.decode(tokenizer.encode(" ".join(TEXTS)).ids[-23:])
    assert "remarks" not in config, "the long one is no training row"
    _, config = fitted(pa.table({"text": [" ".join(TEXTS), *TEXTS[:39]]}))
    tokens = config["label"]["tokens"]
    assert tokens["learned"] < tokens["of"]
    share = f"{tokens['learned'] / tokens['of']:.1%}"
    (remark,) = config["remarks"]
    assert remark.startswith(
        f"texts of over 23 tokens: only their ends are learned from, {share} of all tokens; divide"
    )


def test_a_text_with_the_words_of_the_token_between_texts_is_a_text() -> None:
    task, config = fitted()
    (row,) = served.load(task, config).read([f"a{START}b"])
    assert Tokenizer.from_str(config["tokenizer"]).decode(row[0, 1:].tolist()) == f"a{START}b"


@pytest.mark.parametrize("form", ["fp32", "int8"])
def test_a_text_is_continued_by_the_likeliest_tokens_whoever_shares_the_batch(form: str) -> None:
    task, config = fitted()
    half = served.load(task, config)
    model = fresh(task, config)
    made = model if form == "fp32" else export.int8(model)
    rows = half.read([*TEXTS, "", " ".join(TEXTS)])
    ran = export.load_torchscript(export.torchscript(made, rows))
    with torch.inference_mode():
        together = half.run(ran, rows)
        drawn = np.random.default_rng(1)
        for _ in range(5):
            some = drawn.permutation(42)[:7]
            assert torch.equal(half.run(ran, (rows[0][some],)), together[some])
    if form == "int8":
        return
    for row, outputs in zip(rows[0], together, strict=True):
        tokens = [config["start"], *row[1:][row[1:] != config["start"]].tolist()]
        for token in outputs[NEXT + 1 :].int().tolist():
            seen = [tokens[0], *tokens[1:][-23:]]
            with torch.inference_mode():
                likely = model.network(input_ids=torch.tensor([seen])).logits[0, -1]
            assert float(likely[token]) == pytest.approx(float(likely.max()), abs=1e-4)
            if token == config["start"]:
                break
            tokens.append(token)


def test_it_has_every_form_that_the_specification_may_ask_for() -> None:
    task, config = fitted()
    model = fresh(task, config)
    inputs = task.inputs(config, TABLE)
    objective = task.objective(config)
    with torch.inference_mode():
        wanted = model(*inputs)
        assert objective.difference(export.int8(model)(*inputs).numpy(), wanted.numpy()) < 0.05
    most = {export.REFERENCE: 1e-4, export.INT8: 0.05}
    for name, content in onnx_files.files(model, inputs, list(most)).items():
        assert objective.difference(Session(content, 1)(inputs).numpy(), wanted.numpy()) < most[name], name


def test_metrics_are_of_all_tokens_and_held_beside_the_counts_of_the_training() -> None:
    task, config = fitted()
    objective = task.objective(config)
    scores = np.array([[6.0, 3, 1, 10, 8, 1, 5], [2.0, 1, 1, 4, 1, 1, 5]])
    assert objective.evaluate(np.zeros(2), scores) == {
        "bits_per_byte": pytest.approx(8 / 14 / math.log(2)),
        "perplexity": pytest.approx(math.exp(2)),
        "token_accuracy": 0.5,
    }
    beside = objective.constant(np.zeros(2), scores)
    assert (beside["better"], beside["floor"]) == (True, pytest.approx(9 / 14 / math.log(2)))
    assert objective.constant(np.zeros(2), np.add(scores, [2, 0, 0, 0, 0, 0, 0]))["better"] is False
    outputs = torch.from_numpy(scores)
    assert float(objective.loss(outputs, outputs[:, 0])) == pytest.approx((8 + 2) / (4 + 2))
    assert objective.off({"perplexity": math.exp(2.5)}, scores[0]) == pytest.approx(0.5)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*(version.txt|metrics.yaml):pytest.PytestUnraisableExceptionWarning")
def test_its_archive_reads_continues_and_answers_by_itself(tmp_path: Path) -> None:
    task, config = fitted()
    model = fresh(task, config)
    parts = package.Parts(
        export.torchscript(model, task.inputs(config, TABLE)), config, task.example(config), task.modules
    )
    handler, context = package.load(package.build(tmp_path, "talk", "talk-1", parts), tmp_path / "unpacked")
    records = [{"text": "the cat"}, "the dog lay on", {"txt": "x"}, {"text": 5}]
    found = package.predict(handler, context, records)
    assert [status for status, _ in found] == [200, 200, 400, 400]
    assert found[2][1]["message"] == "record 0: unknown column txt; the text's is text"
    half = served.load(task, config)
    with torch.inference_mode():
        wanted = half.answers(half.run(model, half.read(records[:2])).double())
    for i, (_, answer) in enumerate(found[:2]):
        assert answer["prediction"] == wanted["prediction"][1][i] != ""
        assert answer["perplexity"] == pytest.approx(wanted["perplexity"][1][i], rel=1e-4)


def written(folder: Path, texts: list[str]) -> Path:
    with (folder / "talk.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["text"], *([text] for text in texts)])
    return folder / "talk.csv"


@pytest.mark.usefixtures("importable")
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*(version.txt|metrics.yaml):pytest.PytestUnraisableExceptionWarning")
def test_it_goes_from_a_file_to_a_served_continuation(tmp_path: Path) -> None:
    drawn = np.random.default_rng(3)
    ends = {"cat": "sat on the mat", "dog": "lay on the rug", "bird": "flew over the house"}
    texts = [f"{drawn.integers(10**6)} {(animal := str(drawn.choice([*ends])))} {ends[animal]}" for _ in range(400)]
    model = {
        "apiVersion": "mlplatform.dev/v1alpha1",
        "kind": "MLModel",
        "metadata": {"name": "talk"},
        "spec": {
            "data": {"uri": str(written(tmp_path, texts)), "label": "text"},
            "training": {
                "task": "causal-lm",
                "precision": "fp32",
                "epochs": 10,
                "batchSize": 16,
                "optimizer": {"learningRate": 0.01},
                "hyperparameters": {**SMALL, "newTokens": 8, "model": {**SMALL["model"], "hidden_size": 32}},
            },
            "gates": [{"metric": "bits_per_byte", "max": 2.5}],
            "optimization": {"candidates": ["fp32"], "export": ["torchscript"]},
        },
    }
    done = mlplatform.run(model, store=tmp_path / "store")
    assert (done.passed, done.missed, done.failure) == (True, (), None)
    beside = done.stages[Stage.AUDIT].details["constant"]
    assert beside["metric"] == "bits_per_byte"
    assert beside["better"] is True
    assert done.report(Stage.TRAIN)["data"]["target"] == "a text"
    answers = done.predict([{"text": "771234 dog"}, "120033 cat sat", {"txt": "x"}])
    assert [answer.get("prediction") for answer in answers] == [" lay on the rug", " on the mat", None]
    assert answers[2]["message"] == "record 0: unknown column txt; the text's is text"


def specification(path: Path, **training: Any) -> dict[str, Any]:
    return {
        "model": "people",
        "sequence": 1,
        "data": {"uri": str(path), "label": "text"},
        "training": {
            "task": "causal-lm",
            "precision": "fp32",
            "epochs": 4,
            "batchSize": 8,
            "checkpoint": {"everySteps": 4},
            "hyperparameters": SMALL,
            **training,
        },
    }


def test_processes_share_it_and_a_resumed_training_ends_alike(tmp_path: Path) -> None:
    states = []
    spec = specification(written(tmp_path, TEXTS), strategy="fsdp", precision="bf16", activationCheckpointing=True)
    for name in "whole", "killed":
        environment = job_environment(spec, tmp_path / name, Stage.TRAIN, tmp_path / f"{name}.message")
        if name == "killed":
            first = Torchrun(environment, 2)
            first.wait_for("checkpoint step=4")
            first.kill()
        job = Torchrun(environment, 2)
        assert job.finish() == 0, job.output
        assert ("resumed from step" in job.output) is (name == "killed")
        states.append(torch.load(tmp_path / name / Artifacts.MODEL, weights_only=True))
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(weight, states[1][name]) for name, weight in states[0].items())


def saved(folder: Path, config: dict[str, Any]) -> Any:
    """A checkpoint as `transformers` writes it, with its weights as the library has them."""
    import transformers  # noqa: PLC0415  seconds

    torch.manual_seed(5)
    network: Any = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**config["model"]))
    network.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(config["tokenizer"])
    return network.eval()


def test_a_checkpoint_in_the_store_is_what_it_starts_from_and_adapters_are_merged(tmp_path: Path) -> None:
    _, config = fitted()
    before = saved(tmp_path, config)
    hyper = {"maxLength": 24, "checkpoint": str(tmp_path), "lora": {"rank": 2}}
    task = CausalLmTask(hyper)
    found = json.loads(json.dumps(task.fit(TABLE, task.targets(TABLE, DATA), np.arange(30))))
    assert found["checkpoint"]["digest"].startswith("sha256:")
    torch.manual_seed(1)
    model: Any = task.start(found, task.build(found))
    (rows,) = task.inputs(found, TABLE)
    with torch.inference_mode():
        assert torch.allclose(model.eval().network(input_ids=rows).logits, before(input_ids=rows).logits, atol=1e-5)
    learning = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert len(learning) == 2
    assert all("lora_" in name for name in learning)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_()
        wanted = model(rows)
    plain: Any = task.build(found).eval()
    plain.load_state_dict(task.finish(found, model.state_dict()))
    with torch.inference_mode():
        assert torch.allclose(plain(rows), wanted, atol=1e-3)
        frozen = before.transformer.wte.weight
        assert torch.equal(plain.network.transformer.wte.weight, frozen)


def test_a_checkpoint_that_does_not_fit_is_refused_by_name(tmp_path: Path) -> None:
    _, config = fitted()
    saved(tmp_path, config)

    def refusal(**hyper: Any) -> str:
        task = CausalLmTask({"maxLength": 24, "checkpoint": str(tmp_path), **hyper})
        with pytest.raises(JobFailure) as caught:
            task.fit(TABLE, task.targets(TABLE, DATA), np.arange(30))
        return caught.value.failure.message

    assert refusal(maxLength=64) == "hyperparameters.maxLength is 64, and the model has room for 24 tokens"
    kept = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**kept, "vocab_size": 9}))
    assert "tokens, and its model 9 vocab_size" in refusal()
    (tmp_path / "config.json").write_text(json.dumps({**kept, "bos_token_id": 7, "eos_token_id": None}))
    assert "names no special token in bos_token_id or eos_token_id" in refusal()
    words = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))  # noqa: S106  no password
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    (tmp_path / "tokenizer.json").write_text(words.to_str())
    assert "has a tokenizer whose tokens are not of bytes" in refusal()


def learn(hyper: dict[str, Any], table: pa.Table, label: str) -> None:
    task = load_task("causal-lm", hyper)
    task.fit(table, task.targets(table, Data(uri="/d", label=label)), np.arange(30))


@pytest.mark.parametrize(
    ("reason", "hyper", "label", "failure", "words"),
    [
        ("a name that is none", {"maxlength": 9}, "text", FailureClass.SPEC_INVALID, "unknown 'maxlength' (did you mean maxLength?)"),
        ("no room for text", {"maxLength": 1}, "text", FailureClass.SPEC_INVALID, "maxLength cannot be 1"),
        ("too long an answer", {"newTokens": 5000}, "text", FailureClass.SPEC_INVALID, "newTokens cannot be 5000"),
        ("not even the bytes", {"vocabulary": 200}, "text", FailureClass.SPEC_INVALID, "vocabulary cannot be 200"),
        ("two models", {"checkpoint": "/c", "vocabulary": 900}, "text", FailureClass.SPEC_INVALID, "take these out"),
        ("fresh weights", {"lora": {}}, "text", FailureClass.SPEC_INVALID, "lora adapts the weights of a checkpoint"),
        ("no such column", {}, "txt", FailureClass.DATA_INVALID, "no column 'txt' (did you mean text?)"),
        ("a column of numbers", {}, "id", FailureClass.DATA_INVALID, "'id' holds int64, and the task causal-lm reads text"),
        ("rows without a text", {}, "gaps", FailureClass.DATA_INVALID, "2 of 40 rows have no text in the column 'gaps': first row 4 of the data"),
        ("no such model", {"model": {"model_type": "gpt_of_ours"}}, "text", FailureClass.SPEC_INVALID, "makes no language model"),
        ("a model that reads both ways", {"model": {"model_type": "bert", "hidden_size": 16, "num_attention_heads": 2}}, "text", FailureClass.SPEC_INVALID, "sees the tokens that it is to predict"),
        ("heads that do not fit", {"model": {"hidden_size": 10, "num_attention_heads": 3}}, "text", FailureClass.SPEC_INVALID, "makes no language model"),
    ],
)  # fmt: skip
def test_what_cannot_be_learned_is_refused_by_name(
    reason: str, hyper: dict[str, Any], label: str, failure: FailureClass, words: str
) -> None:
    gaps = [*TEXTS[:3], None, "", *TEXTS[5:]]
    with pytest.raises(JobFailure) as caught:
        learn(hyper, TABLE.append_column("gaps", pa.array(gaps)), label)
    assert caught.value.failure.reason is failure, reason
    assert words in caught.value.failure.message, reason


def test_what_it_builds_is_a_language_model() -> None:
    task, config = fitted()
    model = task.build(config)
    assert isinstance(model, LanguageModel)
    assert {name.rpartition(".")[2] for name in model.state_dict()} == {"weight", "bias"}, "no buffer is saved"
