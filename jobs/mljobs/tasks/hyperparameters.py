"""How a built-in task reads `spec.training.hyperparameters`. Called by `tabular` and `text`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from mljobs.failure import did_you_mean


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """What they may hold: a field each, with its default."""

    @property
    @abstractmethod
    def checks(self) -> dict[str, bool]:
        """By name, whether a value makes sense."""

    @classmethod
    def read(cls, raw: Mapping[str, Any]) -> Self:
        """Checks and reads the free-form object; a list becomes a tuple.

        Raises:
            ValueError: A name is unknown or a value makes no sense.
        """
        known = [f.name for f in fields(cls)]
        for name in raw:
            if name not in known:
                raise ValueError(f"unknown {name!r}{did_you_mean(name, known)}; known: {', '.join(known)}")
        found = cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in raw.items()})
        for name, sound in found.checks.items():
            if not sound:
                raise ValueError(f"{name} cannot be {raw[name]!r}")
        return found
