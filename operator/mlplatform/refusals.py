"""Whether a 403 of the API server means a missing right or an object that is refused: what to do differs.

Called by `mlplatform.cluster` and `mlplatform.cli.cluster`. Webhooks, quotas,
Pod Security and admission policies answer 403 like the authorizer does, and
only the message tells them apart.
"""

from __future__ import annotations

import re
from typing import Final

_UNAUTHORIZED: Final = re.compile(r'(\S+( "[^"]*")? is )?(forbidden: )?User ".*" cannot ')
"""From its beginning on: a webhook that lacks a right of its own quotes the same words."""


def lacks_right(message: str) -> bool:
    """Whether a 403 with this message is the authorizer's: whoever asked may not do that at all."""
    return _UNAUTHORIZED.match(message) is not None
