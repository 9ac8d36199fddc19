"""The one exception that a job raises for a failure it understands.

Raised by every module of the jobs; `report.run` turns it into the stage's summary,
which the operator shows as `status.failure`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
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
    """

    def __init__(self, reason: FailureClass, message: str, next_action: str) -> None:
        super().__init__(message)
        self.failure = Failure(reason, message, next_action)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`` (did you mean x?)`` for the nearest known word, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""
