"""The built-in task `causal-lm`: a small GPT learns a column of text, and continues texts.

Loaded by `tasks.load_task`. The model is one of `transformers`, with fresh weights by a
configuration, or from a checkpoint in the store; nothing is fetched from elsewhere and nothing is unpickled. How texts are
read and continued travels to the serving pods (`causal_lm_served.py`).

What a model computes of a text is a few sums, and no tensor of a size by texts, tokens and vocabulary leaves it: every stage
takes these as the outputs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn

from mljobs import repeats
from mljobs.data import Parts, Rows, take
from mljobs.failure import JobFailure, row_words
from mljobs.features import Choice
from mljobs.tasks import HANDLER, Objective, Strata, Targets, Task, hyperparameters, lora, pretrained
from mljobs.tasks.causal_lm_served import BYTES, COUNTED, END, LOSS, RIGHT, TOKENS, Served, perplexity
from mljobs.tasks.text import column_of_text, texts
from mlplatform.api import Data
from mlplatform.contract import LANGUAGE_METRICS, FailureClass

MODEL: Final = {
    "model_type": "gpt2",
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}
"""The model where the specification names none: small enough for a CPU, and for a few passes over as many texts as that takes."""
START: Final = "<|endoftext|>"
ALPHABET: Final = 256
"""Tokens of a single byte, which every vocabulary of ours has."""
NEW_TOKENS: Final = 1000
"""By which a text is continued at most: each takes a run of the model."""
STRETCH: Final = 4096
"""Texts whose tokens are in memory as lists."""
EXAMPLE: Final = "This is"

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Hyperparameters(hyperparameters.Hyperparameters):
    """What `spec.training.hyperparameters` may hold.

    Attributes:
        maxLength: Tokens of a text that the model sees, the last ones, and the one before all texts.
        newTokens: By which a served text is continued at most.
        model: Configuration of the model, as `transformers` has it: ``model_type`` and what that type knows.
        vocabulary: Tokens that a tokenizer learns from the training rows.
        checkpoint: Folder in a store with ``config.json``, ``tokenizer.json`` and ``model.safetensors``: the model to
            start from, instead of `model` and `vocabulary`.
        lora: ``{rank, alpha, targets}``: of the checkpoint's weights only adapters learn, by `mljobs.tasks.lora`.
    """

    maxLength: int = 128  # noqa: N815  the name in the YAML
    newTokens: int = 16  # noqa: N815  likewise
    model: Mapping[str, Any] = field(default_factory=dict)
    vocabulary: int = 4000
    checkpoint: str = ""
    lora: Mapping[str, Any] = field(default_factory=dict)

    @property
    def checks(self) -> dict[str, bool]:
        """By name, whether a value makes sense."""
        return {
            "maxLength": type(self.maxLength) is int and self.maxLength > 1,
            "newTokens": type(self.newTokens) is int and 0 < self.newTokens <= NEW_TOKENS,
            "model": isinstance(self.model, Mapping),
            "vocabulary": type(self.vocabulary) is int and self.vocabulary > ALPHABET,
            "checkpoint": isinstance(self.checkpoint, str),
            "lora": isinstance(self.lora, Mapping),
        }


class LanguageModel(nn.Module):
    """A model of `transformers` that predicts tokens from those before, and what its predictions of a text are worth.

    Args:
        config: ``model`` (its configuration), ``start``, ``counts`` (of the training rows' tokens) and ``sizes`` (their bytes).
    """

    counted: Tensor
    sizes: Tensor

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        import transformers  # noqa: PLC0415  seconds, and not every refusal needs it

        settings = transformers.AutoConfig.for_model(**config["model"])
        heads: Any = transformers.AutoModelForCausalLM
        self.network = heads.from_config(settings, attn_implementation="sdpa")
        linear(self.network)
        self.start: int = config["start"]
        # One more of each, so that none is impossible (Laplace).
        counts = torch.tensor(config["counts"], dtype=torch.float64) + 1
        self.register_buffer("counted", -(counts / counts.sum()).log().float(), persistent=False)
        self.register_buffer("sizes", torch.tensor(config["sizes"], dtype=torch.float32), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps ``(n, maxLength)`` numbers of tokens to ``(n, 7)``, in the order of `causal_lm_served`.

        What is behind a text is seen by none of its tokens, so that nothing need be masked.
        """
        logits = self.network(input_ids=tokens, use_cache=False).logits.float()
        following = tokens[:, 1:]
        real = (following != self.start).to(logits.dtype)
        ends = real.sum(dim=1)
        losses = -logits.log_softmax(dim=-1)
        likeliest = logits.argmax(dim=-1)
        last = ends.long()[:, None]
        found = losses[:, :-1].gather(2, following[..., None]).squeeze(2)
        return torch.stack(
            [
                (found * real).sum(dim=1),
                ends,
                ((likeliest[:, :-1] == following).to(logits.dtype) * real).sum(dim=1),
                (self.sizes[following] * real).sum(dim=1),
                (self.counted[following] * real).sum(dim=1),
                losses[..., self.start].gather(1, last).squeeze(1),
                likeliest.gather(1, last).squeeze(1).to(logits.dtype),
            ],
            dim=1,
        )


def linear(network: nn.Module) -> None:
    """Makes linear layers of GPT-2's own, whose weights lie transposed: quantisation and adapters know these."""
    from transformers.pytorch_utils import Conv1D  # noqa: PLC0415  likewise

    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Conv1D):
                inputs, outputs = child.weight.shape
                layer = nn.Linear(inputs, outputs, device="meta")
                layer.weight = nn.Parameter(child.weight.detach().T.contiguous())
                layer.bias = child.bias
                setattr(module, name, layer)


class NextToken(Objective):
    """Each token of a text from those before it; see `tasks.Objective` for what it has.

    There are no targets beside the texts. Scores are the model's outputs, ``(rows, 7)``.

    Args:
        label: ``label`` of the configuration.
    """

    kind = "a text"
    metrics: Sequence[str] = LANGUAGE_METRICS
    unit = "nats a token"

    def __init__(self, label: Mapping[str, Any]) -> None:
        self.learned: Mapping[str, Any] = {"target": self.kind, "tokens": label["tokens"]}
        self.sentence = "Each token of a text is predicted from those before it."

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:  # noqa: ARG002  the texts are what is learned
        """Each row's share in the mean over all tokens, times the rows; the end of a text is one, too."""
        tokens = outputs[:, TOKENS] + 1
        return (outputs[:, LOSS] + outputs[:, END]) / tokens.mean()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean negative log-likelihood of a token."""
        return self.losses(outputs, targets).mean()

    def scores(self, outputs: Tensor) -> Tensor:
        """They mean what they are."""
        return outputs

    def evaluate(self, targets: npt.NDArray[Any], scores: Floats) -> dict[str, float]:  # noqa: ARG002  likewise
        """Bits per byte, which does not depend on the tokenizer, perplexity per token, and how often the likeliest token comes."""
        sums = scores.sum(axis=0)
        return {
            "bits_per_byte": float(sums[LOSS] / max(sums[BYTES], 1) / math.log(2)),
            "perplexity": perplexity(sums[LOSS], sums[TOKENS]),
            "token_accuracy": float(sums[RIGHT] / max(sums[TOKENS], 1)),
        }

    def difference(self, scores: Floats, wanted: Floats) -> float:
        """The largest difference of a text's mean."""
        return float(np.abs(_means(scores) - _means(wanted)).max())

    def off(self, answer: Mapping[str, Any], wanted: Any) -> float:
        """Of the perplexity that was answered, likewise."""
        return abs(math.log(answer["perplexity"]) - float(_means(wanted[None])[0]))

    def constant(self, targets: npt.NDArray[Any], scores: Floats) -> dict[str, Any]:  # noqa: ARG002  likewise
        """Beside the counts of the training rows' tokens."""
        sums = scores.sum(axis=0)
        floor = float(sums[COUNTED] / max(sums[BYTES], 1) / math.log(2))
        return {
            "metric": self.metrics[0],
            "instead": "to know no more than how often each token is in the training rows",
            "floor": floor,
            "always": False,
            "better": bool(sums[LOSS] < sums[COUNTED]),
        }


def _means(scores: Floats) -> Floats:
    found: Floats = scores[:, LOSS] / np.maximum(scores[:, TOKENS], 1)
    return found


class CausalLmTask(Task):
    """Continuation of a text; see `tasks.Task` for the methods.

    Args:
        hyperparameters: `spec.training.hyperparameters`.
    """

    modules: Sequence[str] = (HANDLER, "mljobs.tasks.causal_lm_served", "mljobs.tasks.text_served")

    def __init__(self, hyperparameters: Mapping[str, Any]) -> None:
        super().__init__(hyperparameters)
        self._hyper = Hyperparameters.read(hyperparameters)
        self._lora = lora.asked(hyperparameters)
        pretrained.alone(hyperparameters)

    def targets(self, table: pa.Table, data: Data) -> Targets:
        """None beside the texts, of which each row has one.

        Raises:
            JobFailure: There is no such column, it holds no text, or a row has none.
        """
        name = column_of_text(table, data.label, "spec.data.label", "causal-lm")
        lengths = pc.fill_null(pc.utf8_length(table.column(name)), 0).to_numpy()
        if len(empty := np.flatnonzero(lengths == 0)):
            row = int(empty[0])
            raise JobFailure(
                FailureClass.DATA_INVALID,
                f"{len(empty)} of {len(lengths)} rows have no text in the column {name!r}: first {row_words(row)}",
                "Remove these rows, or name another column in spec.data.label",
                row,
            )
        strata = Strata(np.zeros(len(lengths), dtype=np.int8), ("the data",), least=2)
        return Targets(np.zeros(len(lengths), dtype=np.int8), strata, {"name": name})

    def objective(self, config: Mapping[str, Any]) -> Objective:
        """What is learned."""
        return NextToken(config["label"])

    def choose(self, rows: Rows, targets: Targets, parts: Parts, asked: Data) -> Choice:
        """Texts that are in the training and in another part, by `mljobs.repeats`."""
        return repeats.counted(rows, {targets.label["name"]}, parts, asked.split.max_repeated, Choice({}, {}))

    def fit(self, table: pa.Table, targets: Targets, rows: npt.NDArray[np.int64]) -> dict[str, Any]:
        """The tokenizer, of the training rows or of the checkpoint, the model's configuration, and the tokens' counts.

        Raises:
            JobFailure: The checkpoint is incomplete or does not fit, or `transformers` knows no such model.
        """
        column, asked = targets.label["name"], self._hyper
        learned = take(table, rows)
        if asked.checkpoint:
            tokenizer, model, origin = pretrained.read(asked.checkpoint)
            start = _start(tokenizer, model, asked.checkpoint)
        else:
            tokenizer = learned_tokenizer(texts(learned, column), asked.vocabulary)
            start = tokenizer.get_vocab()[START]
            ends = {"bos_token_id": start, "eos_token_id": start, "vocab_size": tokenizer.get_vocab_size()}
            model, origin = {**MODEL, "max_position_embeddings": asked.maxLength, **asked.model, **ends}, {}
        config: dict[str, Any] = {
            "column": column,
            "maxLength": asked.maxLength,
            "newTokens": asked.newTokens,
            "tokenizer": tokenizer.to_str(),
            "start": start,
            "model": model,
            "ignored": {
                name: "spec.data.label names another one as the text" for name in table.column_names if name != column
            },
            **origin,
        }
        size = model["vocab_size"]
        counts, of = _counted(Served(config), texts(learned, column), asked.maxLength - 1, size)
        read = int(counts.sum())
        config["counts"], config["sizes"] = counts.tolist(), _sizes(tokenizer, size)
        config["label"] = {**targets.label, "tokens": {"learned": read, "of": of}}
        if read < of:
            seen = f"texts of over {asked.maxLength - 1} tokens: only their ends are learned from, {read / of:.1%} of all tokens"
            config["remarks"] = [f"{seen}; divide such texts into rows, or raise hyperparameters.maxLength"]
        network = self._network(config)
        if self._lora:
            lora.adapt(network, self._lora)  # what it would refuse is refused now
        return config

    def inputs(self, config: Mapping[str, Any], table: pa.Table) -> tuple[Tensor, ...]:
        """The tokens' numbers."""
        return Served(config).tokens(texts(table, config["column"]))

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        """A `LanguageModel`."""
        return LanguageModel(config)

    def start(self, config: Mapping[str, Any], model: nn.Module) -> nn.Module:  # noqa: ARG002  the weights come from the store
        """Takes the checkpoint's weights. Adapters come beside them where they are asked for.

        Raises:
            JobFailure: The weights are of another model.
        """
        if self._hyper.checkpoint:
            network: Any = model.network
            pretrained.load(network, self._hyper.checkpoint, linear)
            if self._lora:
                lora.adapt(network, self._lora)
        return model

    def finish(self, config: Mapping[str, Any], state: Mapping[str, Any]) -> Mapping[str, Any]:
        """Adds adapters to what they adapt."""
        if not self._lora:
            return state
        model: Any = self.build(config)
        return lora.merged(model, model.network, self._lora, state)

    def blocks(self, model: nn.Module) -> Sequence[nn.Module]:
        """The network's layers."""
        network: Any = model.network
        return pretrained.layers(network)

    def example(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """A beginning of nobody's."""
        return {config["column"]: EXAMPLE}

    def _network(self, config: Mapping[str, Any]) -> nn.Module:
        with pretrained.made("language model"):
            network: Any = LanguageModel(config).network
            room = int(getattr(network.config, "max_position_embeddings", self._hyper.maxLength))
        if room < self._hyper.maxLength:
            raise JobFailure(
                FailureClass.SPEC_INVALID,
                f"hyperparameters.maxLength is {self._hyper.maxLength}, and the model has room for {room} tokens",
                f"Lower it to {room} or less",
            )
        if not _is_causal(network.eval(), self._hyper.maxLength):
            raise JobFailure(
                FailureClass.SPEC_INVALID,
                f"the model of type {config['model'].get('model_type')} sees the tokens that it is to predict",
                "Name a decoder as model_type (gpt2, llama, …), or add is_decoder: true to hyperparameters.model",
            )
        found: nn.Module = network
        return found


def _is_causal(network: Any, length: int) -> bool:
    """Whether what a network says of the tokens before depends on the last one not at all: its gradient is nothing."""
    read: Tensor = network.get_input_embeddings()(torch.arange(length)[None] % ALPHABET).detach().requires_grad_()
    said: Tensor = network(inputs_embeds=read, use_cache=False).logits[:, :-1].square().sum()
    (gradient,) = torch.autograd.grad(said, read)
    return not gradient[:, -1].any()


def _start(tokenizer: Tokenizer, model: Mapping[str, Any], uri: str) -> int:
    """Number of the checkpoint's token that stands between texts.

    Raises:
        JobFailure: There is none, its tokens are not of bytes, or they are more than the model's.
    """
    known = json.loads(tokenizer.to_str())
    special = {token["id"] for token in known["added_tokens"] if token["special"]}
    named = [model.get(name) for name in ("bos_token_id", "eos_token_id")]
    found = next((number for number in named if number in special), None)
    why = ""
    if "ByteLevel" not in json.dumps(known["decoder"]):
        why = "has a tokenizer whose tokens are not of bytes"
    elif tokenizer.get_vocab_size() > model.get("vocab_size", 0):
        why = f"has {tokenizer.get_vocab_size()} tokens, and its model {model.get('vocab_size', 'no')} vocab_size"
    elif found is None:
        why = "names no special token in bos_token_id or eos_token_id"
    if why or found is None:
        raise JobFailure(
            FailureClass.DATA_INVALID,
            f"the checkpoint {uri} {why}",
            "Take one like GPT-2: with byte-level tokens, of which a special one stands between texts",
        )
    return int(found)


def _counted(served: Served, written: Sequence[str], length: int, size: int) -> tuple[npt.NDArray[np.int64], int]:
    """How often each token is in what is read of texts, and how many tokens they have in all.

    Args:
        served: Which reads them.
        written: The texts.
        length: Tokens that are read of each at most.
        size: Of the vocabulary.
    """
    counts, of = np.zeros(size, dtype=np.int64), 0
    for start in range(0, len(written), STRETCH):
        numbers = served.numbers(written[start : start + STRETCH])
        of += sum(map(len, numbers))
        counts += np.bincount(np.concatenate([found[-length:] for found in numbers]).astype(np.int64), minlength=size)
    return counts, of


def _sizes(tokenizer: Tokenizer, size: int) -> list[int]:
    """Bytes of each token: a byte-level one has a letter for each."""
    special = tokenizer.get_added_tokens_decoder()
    words = map(tokenizer.id_to_token, range(size))
    return [0 if number in special else len(word or "") for number, word in enumerate(words)]


def learned_tokenizer(written: Sequence[str], vocabulary: int) -> Tokenizer:
    """Byte-level pairs (Radford et al. 2019) of the training texts: any text has tokens, and is theirs to the letter."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[START],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(written, trainer)
    return tokenizer
