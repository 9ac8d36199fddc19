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
HIDDEN: Final = "it or its folder"
INSTEAD: Final = {"csv": (".tsv", ".tab"), "jsonl": (".json",)}
"""Endings of those that are read where there is no file of the first."""
ADVICE: Final = (
    ((".parquet", ".pq"), "Set spec.data.format to parquet"),
    ((".csv", ".tsv"), "Set spec.data.format to csv"),
    ((".jsonl", ".ndjson"), "Set spec.data.format to jsonl"),
    ((".xlsx", ".xls", ".ods"), "Save the sheet as CSV"),
    (
        (".zip", ".xz", ".7z", ".tar", ".tgz", ".tar.gz", ".rar", ".lz4"),
        "Unpack it: of packed files gzip, zstd and bzip2 are read",
    ),
    (
        (".feather", ".arrow", ".orc", ".avro", ".h5", ".hdf5", ".sqlite", ".db", ".pkl", ".pickle", ".npy", ".npz"),
        "Write the rows as Parquet",
    ),
)
"""What to do about files of which there is nothing to read, by their endings."""
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
    wanted, ignored = _divided(present, data.format, ENDINGS[data.format])
    if not wanted and (instead := INSTEAD.get(data.format)):
        wanted, ignored = _divided(present, data.format, instead)
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
            _advice(present, ignored),
        )
    return Listing(wanted, ignored)


def _divided(present: list[str], file_format: str, endings: tuple[str, ...]) -> tuple[list[str], dict[str, str]]:
    """The files with one of these endings, and the others, with why."""
    wanted, ignored = [], dict[str, str]()
    for name in present:
        lower = name.lower()
        plain = lower.removesuffix(next((end for end in PACKED if lower.endswith(end)), ""))
        if any(part.startswith((".", "_")) for part in name.split("/")):
            ignored[name] = f"{HIDDEN} begins with . or _"
        elif not plain.endswith(endings):
            ignored[name] = f"it is no .{file_format} file"
        elif plain != lower and name[: len(plain)] in present:
            ignored[name] = f"{name[: len(plain)]} is there unpacked"
        else:
            wanted.append(name)
    return wanted, ignored


def _advice(present: list[str], ignored: dict[str, str]) -> str:
    """What to do where nothing can be read."""
    visible = [name.lower() for name in present if not ignored.get(name, "").startswith(HIDDEN)]
    said = next((said for endings, said in ADVICE if any(name.endswith(endings) for name in visible)), "")
    if said:
        return f"{said}, or correct spec.data.uri"
    return (
        "Correct spec.data.format or spec.data.uri; files that begin with . or _, or lie in such a folder, are not read"
    )


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
