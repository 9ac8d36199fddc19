"""What the words of the API server mean where it refuses something.

Called by `mlplatform.cluster`, `mlplatform.reconciler` and `mlplatform.cli.cluster`.
Webhooks, quotas, Pod Security and admission policies answer 403 like the
authorizer does, and only the message tells them apart: what to do differs.
"""

from __future__ import annotations

import re
from typing import Final

_UNAUTHORIZED: Final = re.compile(r'(\S+( "[^"]*")? is )?(forbidden: )?User ".*" cannot ')
"""From its beginning on: a webhook that lacks a right of its own quotes the same words."""


_DETAIL: Final = re.compile(r'(Post "[^"]*"|exceeded quota: [^,]*|did not answer).*', re.DOTALL)
"""What follows these alternates from one try to the next: refused, timed out; how much of a quota is used."""


def gist(message: str) -> str:
    """The part of a message that stays the same while the cause does."""
    return _DETAIL.sub(r"\1", message)


def lacks_right(message: str) -> bool:
    """Whether a 403 with this message is the authorizer's: whoever asked may not do that at all."""
    return _UNAUTHORIZED.match(message) is not None
