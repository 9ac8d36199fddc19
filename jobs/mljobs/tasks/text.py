"""The built-in task `text`: a transformer encoder reads one column and predicts another.

Loaded by `tasks.load_task`. The encoder is one of `transformers`, with fresh weights by
a configuration, or from a checkpoint in the store; nothing is fetched from elsewhere and nothing is unpickled. How texts
are read travels to the serving pods (`text_served.py`); what the label asks for is as of tables (`targets.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn

from mljobs import parting, repeats, spool
from mljobs.data import Parts, Rows, take
from mljobs.failure import JobFailure
from mljobs.features import Choice
from mljobs.tasks import HANDLER, Objective, Targets, Task, adjusting, hyperparameters, lora, pretrained, targets
from mljobs.tasks.tabular_model import answered, predictions
from mljobs.tasks.targets import WEIGHTS, describe
from mljobs.tasks.text_served import Served
from mlplatform.api import Data, Training
from mlplatform.contract import FailureClass

MODEL: Final = {
    "model_type": "bert",
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 512,
}
"""The encoder where the specification names none: small enough for a CPU."""
PADDING: Final = "[PAD]"
SPECIAL: Final = (PADDING, "[UNK]", "[CLS]", "[SEP]")
EXAMPLE: Final = "This is a text."


@dataclass(frozen=True, slots=True)
class Hyperparameters(hyperparameters.Hyperparameters):
    """What `spec.training.hyperparameters` may hold.

    Attributes:
        column: The text's.
        maxLength: Tokens that are read of a text.
        model: Configuration of the encoder, as `transformers` has it: ``model_type`` and what that type knows.
        vocabulary: Tokens that a tokenizer learns from the training rows.
        checkpoint: Folder in a store with ``config.json``, ``tokenizer.json`` and ``model.safetensors``: the encoder to
            start from, instead of `model` and `vocabulary`.
        lora: ``{rank, alpha, targets}``: of the checkpoint's weights only adapters learn, by `mljobs.tasks.lora`.
        classWeights: ``balanced`` lets every class count as much in the loss, however rare it is.
    """

    column: str = "text"
    maxLength: int = 128  # noqa: N815  the name in the YAML
    model: Mapping[str, Any] = field(default_factory=dict)
    vocabulary: int = 8000
    checkpoint: str = ""
    lora: Mapping[str, Any] = field(default_factory=dict)
    classWeights: str = "none"  # noqa: N815  likewise

    @property
    def checks(self) -> dict[str, bool]:
        """By name, whether a value makes sense."""
        return {
            "column": isinstance(self.column, str) and self.column != "",
            "maxLength": type(self.maxLength) is int and self.maxLength > 2,  # noqa: PLR2004  the first and the last are no text
            "model": isinstance(self.model, Mapping),
            "vocabulary": type(self.vocabulary) is int and self.vocabulary > len(SPECIAL),
            "checkpoint": isinstance(self.checkpoint, str),
            "lora": isinstance(self.lora, Mapping),
            "classWeights": self.classWeights in WEIGHTS,
        }


class Encoder(nn.Module):
    """An encoder of `transformers` with a head for the label.

    Args:
        config: ``model`` (its configuration), ``padding`` and ``label``.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        import transformers  # noqa: PLC0415  seconds, and not every refusal needs it

        settings = transformers.AutoConfig.for_model(**config["model"])
        settings.num_labels = predictions(config["label"]).outputs
        heads: Any = transformers.AutoModelForSequenceClassification
        self.encoder = heads.from_config(settings, attn_implementation="sdpa")
        self.padding: int = config["padding"]
        self.single: bool = settings.num_labels == 1

    def forward(self, tokens: Tensor) -> Tensor:
        """What `predictions` reads of ``(n, maxLength)`` numbers of tokens."""
        outputs: Tensor = self.encoder(input_ids=tokens, attention_mask=(tokens != self.padding).long()).logits
        # FSDP hooks the output, which must be no view; ONNX squeezes no dimension of several.
        return outputs.squeeze(1).clone() if self.single else outputs


class TextTask(Task):
    """Prediction of a column from a text; see `tasks.Task` for the methods.

    Args:
        hyperparameters: `spec.training.hyperparameters`.
    """

    modules: Sequence[str] = (HANDLER, "mljobs.tasks.text_served", "mljobs.tasks.tabular_model")

    def __init__(self, hyperparameters: Mapping[str, Any]) -> None:
        super().__init__(hyperparameters)
        self._hyper = Hyperparameters.read(hyperparameters)
        self._lora = lora.asked(hyperparameters)
        pretrained.alone(hyperparameters)

    def targets(self, table: pa.Table, data: Data) -> Targets:
        """What the label's column says, by `mljobs.tasks.targets`."""
        return targets.read(table, data)

    def objective(self, config: Mapping[str, Any]) -> Objective:
        """Likewise."""
        return targets.objective(config["label"])

    def choose(self, rows: Rows, targets: Targets, parts: Parts, asked: Data) -> Choice:
        """Texts that are in the training and in another part, by `mljobs.repeats`."""
        column = self._column(rows.table)
        if column in asked.predicted:
            raise JobFailure(
                FailureClass.SPEC_INVALID,
                f"spec.training.hyperparameters.column names {column!r}, which is the label",
                "Name the column of the text in spec.training.hyperparameters.column, and what it tells in spec.data.label",
            )
        if alike(rows.table, column):
            raise JobFailure(
                FailureClass.DATA_INVALID,
                f"the column {column!r} has the same text in every row",
                "Name the text's column in spec.training.hyperparameters.column",
            )
        learned = {column, *answered(targets.label)}
        return repeats.counted(rows, learned, parts, asked.split.max_repeated, Choice({}, {}))

    def fit(self, table: pa.Table, targets: Targets, rows: npt.NDArray[np.int64]) -> dict[str, Any]:
        """The tokenizer, of the training rows or of the checkpoint, and the encoder's configuration.

        Raises:
            JobFailure: There is no such column or it holds no text, the checkpoint is incomplete, or `transformers` knows no
                such encoder.
        """
        column, asked = self._column(table), self._hyper
        if asked.checkpoint:
            tokenizer, model, origin = pretrained.read(asked.checkpoint)
        else:
            tokenizer = learned_tokenizer(texts(take(table, rows), column), asked.vocabulary)
            model, origin = {**MODEL, **asked.model}, {}
        padding = tokenizer.token_to_id(str((tokenizer.padding or {}).get("pad_token", PADDING)))
        if padding is None:
            padding = int(model.get("pad_token_id") or 0)
        longest = {"max_position_embeddings": asked.maxLength} if not asked.checkpoint else {}
        config = {
            "column": column,
            "maxLength": asked.maxLength,
            "tokenizer": tokenizer.to_str(),
            "padding": padding,
            "model": {
                **model,
                "vocab_size": tokenizer.get_vocab_size(),
                "pad_token_id": padding,
                **longest,
                **asked.model,
            },
            "label": describe(targets, rows, self._hyper.classWeights),
            "ignored": {
                name: "hyperparameters.column names another one as the text"
                for name in table.column_names
                if name not in {column, *answered(targets.label)}
            },
            **origin,
        }
        with pretrained.made("encoder"):
            encoder = Encoder(config).encoder
        if self._lora:
            lora.adapt(encoder, self._lora)  # what it would refuse is refused now
        return config

    def adjust(
        self, config: Mapping[str, Any], targets: npt.NDArray[Any], outputs: Tensor, training: Training
    ) -> dict[str, Any]:
        """By `mljobs.tasks.adjusting`."""
        return {**config, "label": adjusting.adjusted(config["label"], targets, outputs, training)}

    def inputs(self, config: Mapping[str, Any], table: pa.Table) -> tuple[Tensor, ...]:
        """The tokens' numbers."""
        return Served(config).tokens(texts(table, config["column"]))

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        """An `Encoder`."""
        return Encoder(config)

    def start(self, config: Mapping[str, Any], model: nn.Module) -> nn.Module:  # noqa: ARG002  the weights come from the store
        """Takes the checkpoint's weights; the head stays as it is. Adapters come beside them where they are asked for.

        Raises:
            JobFailure: The weights are of another encoder.
        """
        if self._hyper.checkpoint:
            encoder: Any = model.encoder
            fresh = pretrained.load(encoder, self._hyper.checkpoint)
            if self._lora:
                lora.adapt(encoder, self._lora, fresh)
        return model

    def finish(self, config: Mapping[str, Any], state: Mapping[str, Any]) -> Mapping[str, Any]:
        """Adds adapters to what they adapt."""
        if not self._lora:
            return state
        model: Any = self.build(config)
        return lora.merged(model, model.encoder, self._lora, state)

    def blocks(self, model: nn.Module) -> Sequence[nn.Module]:
        """The encoder's embeddings and layers."""
        encoder: Any = model.encoder
        return pretrained.layers(encoder)

    def example(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """A sentence of nobody's."""
        return {config["column"]: EXAMPLE}

    def _column(self, table: pa.Table) -> str:
        return column_of_text(table, self._hyper.column, "spec.training.hyperparameters.column", "text")


def alike(table: pa.Table, column: str) -> bool:
    """Whether every row has the same text; none is one, too."""
    seen: set[str] = set()
    for chunk in spool.chunks(table.column(column)):
        for text in chunk.unique():
            seen.add((text.as_py() or "").strip())
            if len(seen) > 1:
                return False
    return True


def column_of_text(table: pa.Table, name: str, field: str, task: str) -> str:
    """The name of a column of text.

    Args:
        table: That should have it.
        name: The column's.
        field: Of the specification, which names it.
        task: Which reads it.

    Raises:
        JobFailure: There is no such column, or it holds something else.
    """
    parting.require(table, name, field)
    kind = table.schema.field(name).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise JobFailure(
            FailureClass.DATA_INVALID,
            f"the column {name!r} holds {kind}, and the task {task} reads text",
            f"Name the text's column in {field}",
        )
    return name


def texts(table: pa.Table, column: str) -> list[str]:
    """A column's texts; one that is missing is empty.

    Raises:
        JobFailure: There is no such column.
    """
    if column not in table.column_names:
        raise JobFailure(
            FailureClass.DATA_INVALID,
            f"the data lacks {column}, which the model was trained on",
            "Retrain the model on the present data",
        )
    return [text or "" for text in table.column(column).to_pylist()]


def learned_tokenizer(found: Sequence[str], vocabulary: int) -> Tokenizer:
    """Word pieces (Wu et al. 2016) of the training texts, as BERT's small-letter tokenizer divides words."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # noqa: S106  no password
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=vocabulary, special_tokens=list(SPECIAL), show_progress=False)
    tokenizer.train_from_iterator(found, trainer)
    ids: dict[str, int] = tokenizer.get_vocab()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    return tokenizer
