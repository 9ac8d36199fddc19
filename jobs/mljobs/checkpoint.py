"""Checkpoints of a running training, in the artifact store.

Called by the trainer. Each rank writes its own shards (torch.distributed.checkpoint)
to local disk and uploads them; rank 0 writes the manifest when all have: a checkpoint
without a manifest does not exist, so a kill at any moment leaves the previous one.
A checkpoint can be resumed with another number of processes, but not on other data: the
split would be another one, and rows of the training could end in the test.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Final, Self

import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from mljobs.failure import RETRAIN, JobFailure
from mljobs.report import say
from mljobs.store import Store
from mlplatform.contract import Artifacts, FailureClass

MANIFEST: Final = "manifest.json"
METADATA: Final = ".metadata"

_METADATA_MODULE: Final = "torch.distributed.checkpoint.metadata"
ADMITTED: Final = frozenset(
    {
        (_METADATA_MODULE, "ChunkStorageMetadata"),
        (_METADATA_MODULE, "Metadata"),
        (_METADATA_MODULE, "MetadataIndex"),
        (_METADATA_MODULE, "StorageMeta"),
        (_METADATA_MODULE, "TensorProperties"),
        (_METADATA_MODULE, "TensorStorageMetadata"),
        (_METADATA_MODULE, "_MEM_FORMAT_ENCODING"),
        ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
        ("torch.serialization", "_get_layout"),
        ("torch", "Size"),
        *(("torch", name) for name in ("float64", "float32", "float16", "bfloat16", "int64", "int32", "uint8", "bool")),
        ("pathlib", "PosixPath"),
    }
)
"""Classes that the metadata of tensors consists of."""

Progress = dict[str, Any]
"""JSON values that the trainer needs to go on; see `trainer.Progress`."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What makes a checkpoint whole.

    Attributes:
        step: Optimiser steps done.
        data: Digest of the data that it was trained on.
        progress: Handed back on resuming.
        files: Name to ``sha256`` hex digest.
    """

    step: int
    data: str
    progress: Progress
    files: dict[str, str]

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """Reads the JSON that `Checkpoints.save` writes.

        Raises:
            ValueError: It is no JSON, lacks a field, or names a file outside the checkpoint's folder.
        """
        try:
            raw = json.loads(content)
            found = cls(raw["step"], raw["data"], dict(raw["progress"]), dict(raw["files"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error
        for name in found.files:
            if name != Path(name).name or name in {"", ".."}:
                raise ValueError(f"it names the file {name!r}")
        return found


class Checkpoints:
    """The checkpoints of one version.

    Args:
        store: The version's artifacts.
        keep: How many to keep.
        rank: Of this process.
        world_size: All processes.
        data: Digest of the data that is trained on.
    """

    def __init__(self, store: Store, keep: int, rank: int, world_size: int, data: str) -> None:
        self._store = store
        self._keep = keep
        self._rank = rank
        self._world_size = world_size
        self._data = data

    def save(self, step: int, tensors: Mapping[str, Tensor], progress: Progress) -> None:
        """Saves one checkpoint and deletes those beyond `keep`. All ranks must call it.

        Args:
            step: Optimiser steps done.
            tensors: This rank's tensors, sharded ones as DTensors.
            progress: JSON values; rank 0's are saved.

        Raises:
            JobFailure: The store refuses or does not answer.
        """
        folder = _folder(step)
        with tempfile.TemporaryDirectory() as scratch:
            save(dict(tensors), checkpoint_id=scratch)
            digests = {}
            for path in sorted(Path(scratch).iterdir()):
                content = path.read_bytes()
                digests[path.name] = hashlib.sha256(content).hexdigest()
                self._store.write(f"{folder}/{path.name}", content)
        gathered: list[dict[str, str]] = [{} for _ in range(self._world_size)]
        dist.all_gather_object(gathered, digests)  # also the barrier: all files are up
        if self._rank == 0:
            files = {name: value for part in gathered for name, value in part.items()}
            manifest = Manifest(step, self._data, progress, files)
            self._store.write(f"{folder}/{MANIFEST}", json.dumps(asdict(manifest)).encode())
            self._prune(f"{folder}/{MANIFEST}")

    def latest(self) -> Manifest | None:
        """The newest whole and undamaged checkpoint, as rank 0 sees it. All ranks must call it.

        Raises:
            JobFailure: It is of other data, or the store refuses or does not answer.
        """
        found: list[Any] = [self._read_latest() if self._rank == 0 else None]
        dist.broadcast_object_list(found, src=0)
        manifest: Manifest | None = found[0]
        if manifest and manifest.data != self._data:
            raise JobFailure(
                FailureClass.DATA_INVALID,
                f"the data changed after the checkpoint of step {manifest.step} ({self._data} is not {manifest.data})",
                RETRAIN,
            )
        return manifest

    def restore(self, manifest: Manifest, tensors: Mapping[str, Tensor]) -> None:
        """Loads a checkpoint into `tensors`, in place. All ranks must call it.

        Raises:
            JobFailure: The store refuses or does not answer.
            OSError: A file differs from its digest in the manifest.
        """
        with tempfile.TemporaryDirectory() as scratch:
            for name, digest in manifest.files.items():
                (Path(scratch) / name).write_bytes(self._read(manifest.step, name, digest))
            load(dict(tensors), storage_reader=SafeReader(scratch))

    def _manifests(self) -> list[str]:
        return [name for name in self._store.names(Artifacts.CHECKPOINTS) if name.endswith(f"/{MANIFEST}")]

    def _read_latest(self) -> Manifest | None:
        for name in reversed(self._manifests()):
            try:
                manifest = Manifest.parse(self._store.read(name))
                for file, digest in manifest.files.items():
                    self._read(manifest.step, file, digest)
            except (ValueError, OSError) as error:
                say(f"checkpoint skipped: {self._store.uri(name)} is damaged ({error})")
            except JobFailure as error:
                if error.failure.reason is not FailureClass.DATA_MISSING:
                    raise
                say(f"checkpoint skipped: {error}")
            else:
                return manifest
        return None

    def _read(self, step: int, name: str, digest: str) -> bytes:
        """A file of a checkpoint.

        Raises:
            JobFailure: It is not there, or the store refuses or does not answer.
            OSError: It differs from its digest.
        """
        content = self._store.read(f"{_folder(step)}/{name}")
        if hashlib.sha256(content).hexdigest() != digest:
            raise OSError(f"{self._store.uri(_folder(step))}/{name} is damaged: its SHA-256 differs")
        return content

    def _prune(self, newest: str) -> None:
        """Keeps this manifest and those before it; a later one is damaged, or the training would have gone on from it.

        Manifest first: a folder that is half deleted is no checkpoint.
        """
        for name in [name for name in self._manifests() if name <= newest][: -self._keep]:
            folder = name.removesuffix(f"/{MANIFEST}")
            try:
                self._store.delete([name])
                self._store.delete(self._store.names(folder))
            except JobFailure as error:  # the training is worth more than the space
                say(f"old checkpoint not deleted: {error}")


def _folder(step: int) -> str:
    """Padded, so that names sort by step."""
    return f"{Artifacts.CHECKPOINTS}/step-{step:010d}"


class SafeReader(FileSystemReader):
    """Reads a checkpoint's metadata without running what a forged file asks for.

    The library unpickles that file as it comes. This one admits only the classes that
    metadata of tensors consists of; the tensors are read with ``weights_only=True``.
    """

    def read_metadata(self, *_args: Any, **_kwargs: Any) -> Metadata:
        """The checkpoint's metadata.

        Raises:
            pickle.UnpicklingError: The file names a class that metadata has no use for.
        """
        content = (Path(str(self.path)) / METADATA).read_bytes()
        metadata: Metadata = _MetadataUnpickler(io.BytesIO(content)).load()
        return metadata


def _member(kind: Any, name: str) -> Enum:
    """Python 3.11.0 to 3.11.3 pickle a member of an enumeration as ``getattr(kind, name)``: just that is admitted.

    Raises:
        pickle.UnpicklingError: It is asked for anything else.
    """
    if not (isinstance(kind, type) and issubclass(kind, Enum) and name in kind.__members__):
        raise pickle.UnpicklingError(f"checkpoint metadata asks for {name!r} of {kind!r}, which is not admitted")
    return kind[name]


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):
            return _member
        if (module, name) not in ADMITTED:
            raise pickle.UnpicklingError(f"checkpoint metadata names {module}.{name}, which is not admitted")
        return super().find_class(module, name)
