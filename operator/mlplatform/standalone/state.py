"""What a run leaves behind, and what the next one need not do again.

Called by `mlplatform.standalone.engine`. A version's folder is laid out like the cluster's store
(``<store>/<namespace>/<model>/<version>/<stage>/…``); beside the stages lie ``run.json``, which stands for what the
cluster's API would remember of it, and ``logs/``.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any, Final

from mlplatform import api, contract
from mlplatform.contract import Artifacts, Stage
from mlplatform.errors import CliError
from mlplatform.snapshot import Object
from mlplatform.stages import PIPELINE

RECORD: Final = "run.json"
LIBRARIES: Final = ("torch", "fairlearn", "onnxruntime", "torchserve", "torch-model-archiver")
"""Whose release may change a result."""

SCRATCH: Final = re.compile(r"mlplatform-\w+")


@dataclass(slots=True)
class Record:
    """``run.json``.

    Attributes:
        version: The ModelVersion with the status that it had last.
        keys: By stage: the digest of everything that shapes its result.
        ended: By stage: its workload and its pods, once it has succeeded.
    """

    version: Object = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    ended: dict[str, Object] = field(default_factory=dict)


class Folder:
    """The folder of one version."""

    def __init__(self, store: Path, namespace: str, model: str, version: str) -> None:
        self.path = Path(contract.artifact_root(str(store.absolute()), namespace, model, version))
        self.version = version

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other runs out.

        Raises:
            CliError: One is at work here already, or the folder cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / ".lock").open("a+")
        except OSError as error:
            raise unwritable(self.path, error) from None
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                who = lock.read().strip()
                raise CliError(
                    f"another run (process {who or 'unknown'}) is at work on {self.version} in {self.path}",
                    "wait for it, end it with Ctrl-C, or give this one another folder with --store",
                ) from None
            lock.truncate(0)
            lock.write(f"{os.getpid()}\n")
            lock.flush()
            yield

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder for what is needed only while a run lasts; that of one that was killed goes now.

        Not in the store: where its disk is full, a stage must still be able to say so.
        """
        note, place = self.path / ".scratch", Path(tempfile.gettempdir())
        with suppress(OSError, ValueError):
            # A name only, and of our kind: a store may come from somebody else.
            if SCRATCH.fullmatch(name := note.read_text()):
                shutil.rmtree(place / name, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix="mlplatform-", ignore_cleanup_errors=True) as found:
            with suppress(OSError):
                note.write_text(Path(found).name)
            try:
                yield Path(found)
            finally:
                with suppress(OSError):
                    note.unlink()

    def load(self) -> Record:
        """What an earlier run left; nothing where it left nothing that can be read."""
        try:
            raw = json.loads((self.path / RECORD).read_text())
            return Record(dict(raw["version"]), dict(raw["keys"]), dict(raw["ended"]))
        except (OSError, ValueError, KeyError, TypeError):
            return Record()

    def save(self, record: Record) -> None:
        """Writes the record whole or not at all.

        Raises:
            CliError: The folder cannot be written.
        """
        text = json.dumps({"version": record.version, "keys": record.keys, "ended": record.ended}, indent=1)
        new = self.path / f"{RECORD}.new"
        try:
            new.write_text(text)
            new.replace(self.path / RECORD)
        except OSError as error:
            raise unwritable(self.path, error) from None

    def siblings(self) -> Iterator[Folder]:
        """The folders of the model's other versions, newest first."""
        found = [path for path in self.path.parent.iterdir() if path != self.path and (path / RECORD).is_file()]
        for path in sorted(found, key=lambda p: (p / RECORD).stat().st_mtime, reverse=True):
            sibling = Folder.__new__(Folder)
            sibling.path, sibling.version = path, path.name
            yield sibling

    def settle(self, record: Record, keys: dict[str, str]) -> list[str]:
        """Makes `record` and the folder hold what `keys` ask for, and nothing that came of other inputs.

        Args:
            record: What the folder holds; changed in place.
            keys: By stage, in the pipeline's order.

        Returns:
            Sentences about what was taken from another version.
        """
        taken = []
        others = [(other, other.load()) for other in self.siblings()]
        for stage, key in keys.items():
            if record.keys.get(stage) == key and (stage not in record.ended or (self.path / stage).is_dir()):
                continue
            record.ended.pop(stage, None)
            shutil.rmtree(self.path / stage, ignore_errors=True)
            record.keys[stage] = key
            usable = (
                o for o, r in others if r.keys.get(stage) == key and stage in r.ended and (o.path / stage).is_dir()
            )
            source = next(usable, None)
            if source is not None:
                self._take(stage, source, record)
                taken.append(f"{stage} is that of {source.version}: same inputs")
        return taken

    def _take(self, stage: str, source: Folder, record: Record) -> None:
        skipped = shutil.ignore_patterns(Path(Artifacts.CHECKPOINTS).name)
        shutil.copytree(source.path / stage, self.path / stage, ignore=skipped)
        # Reports and workloads carry the version's name, and where its artifacts lie.
        text = json.dumps(source.load().ended[stage])
        record.ended[stage] = json.loads(text.replace(source.version, self.version))


def unwritable(path: Path, error: OSError) -> CliError:
    """The folder of the results cannot be written."""
    return CliError(
        f"{path} cannot be written: {error.strerror or error}",
        "free some space there, or name another folder with --store DIR",
    )


def stage_keys(spec: api.ModelVersionSpec, version: str, inputs: str) -> dict[str, str]:
    """By stage: the digest of what shapes its result. A stage depends on all that those before it depend on.

    Args:
        spec: The version's.
        version: Its name, which the archive carries.
        inputs: The digest of what the spec only names: rows, code.
    """
    keys: dict[str, str] = {}
    before = inputs
    for stage in PIPELINE:
        parts: dict[str, Any] = {name: api.canonical(getattr(spec, name)) for name in stage.reads}
        if stage.name is Stage.PACKAGE:
            parts["version"] = version
        before = keys[stage.name.value] = _sha256(json.dumps([before, parts], sort_keys=True))
    return keys


def code_digest(task: str) -> str:
    """Of the code that makes a result: the stages', the handler's, the task's own, and the libraries' releases."""
    packages = ["mljobs", "mlhandlers"] + ([task.partition(":")[0].partition(".")[0]] if ":" in task else [])
    content = hashlib.sha256(sys.version.encode())
    for name in packages:
        for path in sources(name):
            content.update(path.name.encode() + path.read_bytes())
    for library in LIBRARIES:
        content.update(importlib.metadata.version(library).encode())
    return content.hexdigest()


def find(module: str) -> ModuleSpec | None:
    """Where a stage finds a module of this name: in the working folder first, where this program need not look."""
    return PathFinder.find_spec(module, [str(Path.cwd()), *sys.path]) or importlib.util.find_spec(module)


def sources(package: str) -> Sequence[Path]:
    """Every Python file of a package or module, which is not imported; empty where there is none of that name."""
    spec = find(package)
    if spec is None:
        return []
    if spec.submodule_search_locations is None:
        return [Path(spec.origin)] if spec.origin else []
    return [path for folder in spec.submodule_search_locations for path in sorted(Path(folder).rglob("*.py"))]


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
