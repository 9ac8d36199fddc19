"""The one exception that a job raises for a failure it understands.

Raised by every module of the jobs; `report.run` turns it into the stage's summary,
which the operator shows as `status.failure`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import Final

from mlplatform.contract import ANNOTATION_RETRAIN, Failure, FailureClass

RETRAIN: Final = f"Retrain the model: annotate it with a new value of {ANNOTATION_RETRAIN}"
"""What to do when the data is no longer that of the training."""


class JobFailure(Exception):  # noqa: N818  named after what the contract calls it
    """The stage cannot do its work, for a cause it can name.

    Args:
        reason: The class of the failure; `contract.PERMANENT` says which a retry cannot mend.
        message: One sentence with the cause and the values in it.
        next_action: One sentence: what to change or to run.
        row: Of the table, which the message calls by `row_words`; -1 if it is about none.
    """

    def __init__(self, reason: FailureClass, message: str, next_action: str, row: int = -1) -> None:
        super().__init__(message)
        self.failure = Failure(reason, message, next_action)
        self.row = row

    def at(self, place: Callable[[int], str]) -> JobFailure:
        """The same with the row's place in the files."""
        if self.row < 0:
            return self
        told = self.failure.message.replace(row_words(self.row), place(self.row))
        return JobFailure(self.failure.reason, told, self.failure.next_action)


def row_words(row: int) -> str:
    """A row of the table, by whoever does not know the files."""
    return f"row {row + 1} of the data"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`` (did you mean x?)`` for the nearest known word, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""
