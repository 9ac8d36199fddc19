"""How texts become a language model's input, how they are continued, and what is answered.

Imported by the jobs as `mljobs.tasks.causal_lm_served`, and by the TorchServe handler from the archive, where this very file
lies beside `text_served.py`, which reads the records. It needs PyTorch and `tokenizers`; the tokenizer itself is in the
configuration, so that nothing is fetched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import torch
from tokenizers import Tokenizer
from torch import Tensor

LOSS, TOKENS, RIGHT, BYTES, COUNTED, END, NEXT = range(7)
"""What the model says of a text: the negative log-likelihood of its tokens, how many these are, how many were the likeliest
ones, their bytes, their negative log-likelihood by the counts of the training rows, that of the end after them, and the
likeliest next token. After `NEXT` come the tokens that `Served.run` continued it by."""
TOKEN: Final = 32
"""Values of a table that cost a small model about as much as a token that goes through one of these."""
STRETCH: Final = 512
"""Texts that are made into tokens at a time, as in `text_served.py`."""
LARGEST: Final = 700.0
"""Exponent of which a float64 has the power."""


def beside(name: str) -> Any:
    """A module that lies beside this file, here and in the archive."""
    module = ModuleType(name)
    module.__file__ = str(Path(__file__).with_name(f"{name}.py"))
    SourceFileLoader(name, module.__file__).exec_module(module)
    return module


def perplexity(loss: float, tokens: float) -> float:
    """Of so many tokens with this negative log-likelihood; 1 of none."""
    return math.exp(min(loss / max(tokens, 1.0), LARGEST))


class Served:
    """The task's half that travels; see `mljobs.tasks.Served` for what it has.

    Args:
        config: The parsed ``preprocessor.json``: ``tokenizer`` (its JSON, as text), ``start`` (number of the token before a
            text, after it, and in the room that is left), ``maxLength``, ``newTokens``, ``column``, ``ignored`` (columns
            that a record may have).
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._tokenizer = Tokenizer.from_str(config["tokenizer"])
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = True  # a text that has the words of one is a text
        self._start: int = config["start"]
        # Always as long: a text has the same tensors, and the same answer, whatever others are beside it.
        self._length: int = config["maxLength"]
        self._new: int = config["newTokens"]
        self.width = self._length * self._new * TOKEN
        self._column: str = config["column"]
        self.names = [self._column]
        self._texts: Callable[..., list[str]] = beside("text_served").texts
        self._known = frozenset({self._column}).union(config.get("ignored", ()))

    def read(self, records: Sequence[Any], first: int = 0) -> tuple[Tensor]:
        """The tokens' numbers, ``(n, maxLength)``, of texts or objects with the text's column.

        Raises:
            ValueError: A record is neither.
        """
        return self.tokens(self._texts(records, first, self._column, self._known))

    def tokens(self, texts: Sequence[str]) -> tuple[Tensor]:
        """Likewise, of texts."""
        found = torch.full((len(texts), self._length), self._start)
        for row, numbers in zip(found, self.numbers(texts), strict=True):
            last = numbers[1 - self._length :]  # what is continued is the end of a text
            row[1 : 1 + len(last)] = torch.tensor(last, dtype=torch.int64)
        return (found,)

    def numbers(self, texts: Sequence[str]) -> list[list[int]]:
        """Of all tokens of each."""
        found: list[list[int]] = []
        for first in range(0, len(texts), STRETCH):
            encoded = self._tokenizer.encode_batch_fast(list(texts[first : first + STRETCH]), add_special_tokens=False)
            found += [each.ids for each in encoded]
        return found

    def run(self, model: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Tensor:
        """The model's outputs, and the tokens by which it continues each text: the likeliest one, again and again.

        One text at a time: in a batch the last digits of what a model computes depend on the others, and of two tokens that
        are nearly as likely another one would be taken.

        Args:
            model: Maps `tokens` to what the names above say.
            inputs: The tokens.
        """
        return torch.cat([self._continued(model, row[None]) for row in inputs[0]])

    def _continued(self, model: Callable[..., Tensor], tokens: Tensor) -> Tensor:
        """Likewise, of one text."""
        first = outputs = model(tokens)
        made = outputs.new_full((1, self._new), self._start)
        for i in range(self._new):
            following, place = int(outputs[0, NEXT]), 1 + int(outputs[0, TOKENS])
            if following == self._start:  # the end
                break
            made[0, i] = following
            if i + 1 == self._new:
                break
            if place == self._length:  # no room: the oldest token makes some
                place -= 1
                tokens = torch.cat([tokens[:, :1], tokens[:, 2:], tokens[:, :1]], dim=1)
            tokens = tokens.clone()
            tokens[0, place] = following
            outputs = model(tokens)
        return torch.cat([first, made], dim=1)

    def answers(self, outputs: Tensor) -> Mapping[str, tuple[str, list[Any]]]:
        """By what each text is continued, and how little its own tokens were expected."""
        rows: list[list[float]] = outputs.tolist()
        return {
            "prediction": ("BYTES", [self._written(row[NEXT + 1 :]) for row in rows]),
            "perplexity": ("FP64", [perplexity(row[LOSS], row[TOKENS]) for row in rows]),
        }

    def _written(self, made: Sequence[float]) -> str:
        numbers = [int(number) for number in made if number != self._start]
        text: str = self._tokenizer.decode(numbers)
        return text
