"""How texts become a text model's input, and what its outputs say.

Imported by the jobs as `mljobs.tasks.text_served`, and by the TorchServe handler from the archive, where this very file
lies beside `tabular_model.py`, whose answers it gives. It needs PyTorch and `tokenizers`; the tokenizer itself is in the
configuration, so that nothing is fetched.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import torch
from tokenizers import Tokenizer
from torch import Tensor

STRETCH: Final = 512
"""Texts that are made into tokens at a time: what the tokenizer says of a token takes a hundred times its number."""


def beside(name: str) -> Any:
    """A module that lies beside this file, here and in the archive."""
    module = ModuleType(name)
    SourceFileLoader(name, str(Path(__file__).with_name(f"{name}.py"))).exec_module(module)
    return module


def texts(records: Sequence[Any], first: int, column: str, known: Collection[str]) -> list[str]:
    """The text of each record.

    Args:
        records: Texts, or objects with the text's column.
        first: Number of the first of them, for messages.
        column: The text's.
        known: Columns that an object may have.

    Raises:
        ValueError: A record is neither.
    """
    return [_text(record, i, column, known) for i, record in enumerate(records, first)]


def _text(record: Any, index: int, column: str, known: Collection[str]) -> str:
    if isinstance(record, list) and len(record) == 1:
        record = record[0]
    if isinstance(record, Mapping):
        if strange := next((str(name) for name in record if name not in known), ""):
            raise ValueError(f"record {index}: unknown column {strange:.80}; the text's is {column}")
        record = record.get(column)
    if not isinstance(record, str):
        raise ValueError(  # noqa: TRY004  the seam's word for a record that cannot be read
            f"record {index}: {column} must be a text, got a JSON {type(record).__name__}"
        )
    return record


class Served:
    """The task's half that travels; see `mljobs.tasks.Served` for what it has.

    Args:
        config: The parsed ``preprocessor.json``: ``tokenizer`` (its JSON, as text), ``padding`` (the token's number),
            ``maxLength``, ``column``, ``ignored`` (columns that a record may have) and ``label``.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._tokenizer = Tokenizer.from_str(config["tokenizer"])
        # Always as long: a text has the same tensors, and the same answer, whatever others are beside it.
        self.width: int = config["maxLength"]
        self._tokenizer.enable_truncation(self.width)
        padding: int = config["padding"]
        self._tokenizer.enable_padding(
            length=self.width, pad_id=padding, pad_token=self._tokenizer.id_to_token(padding)
        )
        self._column: str = config["column"]
        self._known = frozenset({self._column}).union(config.get("ignored", ()))
        self.names = [self._column]
        self._predictions = beside("tabular_model").predictions(config["label"])

    def read(self, records: Sequence[Any], first: int = 0) -> tuple[Tensor]:
        """The tokens' numbers, ``(n, maxLength)``, of texts or objects with the text's column.

        Raises:
            ValueError: A record is neither.
        """
        return self.tokens(texts(records, first, self._column, self._known))

    def tokens(self, written: Sequence[str]) -> tuple[Tensor]:
        """Likewise, of texts."""
        tokens = torch.empty((len(written), self.width), dtype=torch.int64)
        for first in range(0, len(written), STRETCH):
            encoded = self._tokenizer.encode_batch_fast(list(written[first : first + STRETCH]))
            tokens[first : first + len(encoded)] = torch.tensor([found.ids for found in encoded], dtype=torch.int64)
        return (tokens,)

    def answers(self, outputs: Tensor) -> Mapping[str, tuple[str, list[Any]]]:
        """What the label's kind answers."""
        found: Mapping[str, tuple[str, list[Any]]] = self._predictions.columns(self._predictions.scores(outputs))
        return found
