"""The one exception for what a person who typed a command should read.

Raised by `mlplatform.cli` and `mlplatform.standalone`; `mlplatform.cli.main` prints it. A module of its own, so
that what needs no cluster imports no client of one.
"""

from __future__ import annotations

from typing import Final

EXIT_USAGE: Final = 2
"""Exit code of wrong usage: arguments, files, kubeconfig or context."""


class CliError(Exception):
    """What went wrong, in words for the user.

    Attributes:
        cause: One sentence.
        next_action: What to do or to run about it.
        code: The exit code.
    """

    def __init__(self, cause: str, next_action: str, code: int = 1) -> None:
        super().__init__(cause)
        self.cause = cause
        self.next_action = next_action
        self.code = code
