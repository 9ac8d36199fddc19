"""Things that are expensive to make, kept by a hash over what they are made from.

Called by every module that builds something. An entry appears in one rename, so a build
that was killed half-way leaves nothing that looks finished.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

KEPT = 2
"""Entries of a kind that stay: the current one and the one before."""


def key(*parts: Any) -> str:
    """12 hexadecimal digits over JSON-like parts; order of parts counts, order of dict keys does not."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, and whether it is executable."""
    mode = "x" if path.stat().st_mode & 0o111 else "-"
    return mode + hashlib.sha256(path.read_bytes()).hexdigest()


def entry(root: Path, kind: str, name: str, build: Callable[[Path], None]) -> tuple[Path, bool]:
    """Finds or builds ``root/kind/name``.

    Args:
        root: The cache.
        kind: What it is, e.g. ``kubernetes``.
        name: Its key.
        build: Fills the empty folder it is given.

    Returns:
        The folder, and whether it had to be built.
    """
    final = root / kind / name
    if final.is_dir():
        final.touch()
        return final, False
    partial = root / kind / f".{name}.partial"
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    build(partial)
    partial.rename(final)
    prune(root / kind)
    return final, True


def prune(folder: Path, kept: int = KEPT) -> None:
    """Removes all but the most recently used entries, and remains of interrupted builds."""
    entries = sorted((e for e in folder.iterdir() if e.is_dir()), key=lambda e: e.stat().st_mtime, reverse=True)
    whole = [e for e in entries if not e.name.startswith(".")]
    for stale in [*whole[kept:], *(e for e in entries if e.name.endswith(".partial"))]:
        shutil.rmtree(stale)


def write(path: Path, text: str) -> None:
    """Writes a file in one rename, so that nobody ever reads half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)


@contextmanager
def lock(root: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Holds the cache's lock, so that two runs do not build or start the same thing.

    Args:
        root: The cache.
        waiting: Called once when another run holds it.
    """
    root.mkdir(parents=True, exist_ok=True)
    with (root / "lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
