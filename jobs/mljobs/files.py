"""Which files hold the rows, and whether they have changed.

Called by `mljobs.data`, which reads them, and by `mlplatform.standalone`, which asks before it starts anything; so
this imports nothing that takes time.
"""

from __future__ import annotations

import hashlib
from typing import Final

from mljobs.failure import JobFailure
from mljobs.store import Store
from mlplatform.api import Data
from mlplatform.contract import FailureClass

SHOWN: Final = 20
"""Names listed in a message."""


def names(store: Store, data: Data) -> list[str]:
    """The files of the format below `data.uri`, relative to it and in order; ``[""]`` where it is a file itself.

    Raises:
        JobFailure: There is none (DataMissing), or the store refuses or does not answer.
    """
    if store.is_file():
        return [""]
    present = [name for name in store.names() if not name.rpartition("/")[2].startswith((".", "_"))]
    if not present:
        raise JobFailure(
            FailureClass.DATA_MISSING,
            f"there is nothing at {data.uri}",
            "Write the data there, or correct spec.data.uri",
        )
    wanted = [name for name in present if name.lower().endswith(f".{data.format}")]
    if not wanted:
        raise JobFailure(
            FailureClass.DATA_MISSING,
            f"{data.uri} holds no .{data.format} file, only {', '.join(present[:SHOWN])}",
            "Correct spec.data.format or spec.data.uri",
        )
    return wanted


def fingerprint(data: Data) -> str:
    """A digest that changes when the rows do: of the contents on this machine, of what a remote store says of them.

    Raises:
        JobFailure: As `names`.
    """
    store = Store(data.uri)
    found = hashlib.sha256()
    for name in names(store, data):
        found.update(f"{name}\n{store.identity(name)}\n".encode())
    return found.hexdigest()
