"""Which files hold the rows, and whether they have changed.

Called by `mljobs.data`, which reads them, and by `mlplatform.standalone`, which asks before it starts anything; so
this imports nothing that takes time.
"""

from __future__ import annotations

import hashlib
from typing import Final, NamedTuple

from mljobs.failure import JobFailure
from mljobs.store import Store
from mlplatform.api import Data
from mlplatform.contract import FailureClass

SHOWN: Final = 20
"""Names listed in a message."""
ENDINGS: Final = {"csv": (".csv",), "parquet": (".parquet",), "jsonl": (".jsonl", ".ndjson")}
"""Of each format's files."""
PACKED: Final = (".gz", ".zst", ".zstd", ".bz2")
"""Endings after that of the format."""


class Listing(NamedTuple):
    """What lies below `data.uri`.

    Attributes:
        names: The files of the rows, relative to it and in order; ``[""]`` where it is a file itself.
        ignored: The other files, with why.
    """

    names: list[str]
    ignored: dict[str, str]


def listing(store: Store, data: Data) -> Listing:
    """The files of the format below `data.uri`, plain or packed, and those that are none of the data.

    Raises:
        JobFailure: There is none (DataMissing), or the store refuses or does not answer.
    """
    if store.is_file():
        return Listing([""], {})
    present = store.names()
    wanted, ignored = [], {}
    for name in present:
        lower = name.lower()
        plain = lower.removesuffix(next((end for end in PACKED if lower.endswith(end)), ""))
        if any(part.startswith((".", "_")) for part in name.split("/")):
            ignored[name] = "it or its folder begins with . or _"
        elif not plain.endswith(ENDINGS[data.format]):
            ignored[name] = f"it is no .{data.format} file"
        elif plain != lower and name[: len(plain)] in present:
            ignored[name] = f"{name[: len(plain)]} is there unpacked"
        else:
            wanted.append(name)
    if not present:
        raise JobFailure(
            FailureClass.DATA_MISSING,
            f"there is nothing at {data.uri}",
            "Write the data there, or correct spec.data.uri",
        )
    if not wanted:
        raise JobFailure(
            FailureClass.DATA_MISSING,
            f"{data.uri} holds no .{data.format} file, only {', '.join(present[:SHOWN])}",
            "Correct spec.data.format or spec.data.uri; files that begin with . or _, or lie in such a folder, are not read",
        )
    return Listing(wanted, ignored)


def source(data: Data) -> Store:
    """Where the files are.

    Raises:
        JobFailure: No driver knows the URI's scheme, or there is no such repository or revision.
    """
    if data.dvc is None:
        return Store(data.uri)
    from mljobs.repository import Repository  # noqa: PLC0415  an extra

    return Repository(data, data.dvc)


def fingerprint(data: Data) -> str:
    """A digest that changes when the rows do: of the contents on this machine, of what a remote store says of them.

    Raises:
        JobFailure: As `listing`.
    """
    store = source(data)
    found = hashlib.sha256()
    for name in listing(store, data).names:
        found.update(f"{name}\n{store.identity(name)}\n".encode())
    return found.hexdigest()
