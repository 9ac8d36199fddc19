"""Data that DVC keeps beside a Git repository, at one revision of it.

Called by `mljobs.files` where `spec.data.dvc` names a repository. DVC is an extra of its own, and imported here alone.
"""

from __future__ import annotations

import importlib.util
import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from mljobs.failure import JobFailure
from mljobs.store import Store, redact, translated
from mlplatform.api import Data, Dvc
from mlplatform.contract import FailureClass

SETTINGS: Final = {"DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(Path(tempfile.gettempdir()) / "dvc")}
"""A pod tells nobody that it ran, and has no /var to write to."""


class Repository(Store):
    """The files below `data.uri`, which is a path in the repository.

    Args:
        data: Where they are.
        asked: `data.dvc`.

    Attributes:
        commit: The revision's, in hexadecimal.

    Raises:
        JobFailure: DVC is not installed, or there is no such repository or revision.
    """

    def __init__(self, data: Data, asked: Dvc) -> None:
        if importlib.util.find_spec("dvc") is None:
            raise JobFailure(
                FailureClass.SPEC_INVALID,
                "spec.data.dvc needs the package dvc, which is not installed",
                "Set spec.training.image to a jobs image with it (pip install dvc dvc-s3), or pip install 'mlplatform[run,dvc]'",
            )
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        from dvc.api import DVCFileSystem  # noqa: PLC0415  it reads its settings when it is imported
        from dvc.exceptions import DvcException  # noqa: PLC0415
        from dvc.scm import RevError  # noqa: PLC0415

        self._path = data.uri.strip("/")
        self.root = f"dvc://{redact(asked.repo)}@{asked.rev}/{self._path}"
        try:
            self._fs = DVCFileSystem(asked.repo, rev=asked.rev)
            self.commit = str(self._fs.repo.get_rev())
        except RevError as error:
            raise JobFailure(
                FailureClass.DATA_MISSING,
                f"spec.data.dvc.rev: {redact(asked.repo)} has no revision {asked.rev!r}",
                f"Name a tag, a branch or a commit that it has (git ls-remote {redact(asked.repo)})",
            ) from error
        except (DvcException, OSError) as error:
            cause = redact(" ".join(f"{error.__cause__ or error}".split()))
            raise JobFailure(
                FailureClass.STORE_ACCESS,
                f"spec.data.dvc.repo: {redact(asked.repo)} cannot be read: {cause}",
                "Correct the address, or let this machine reach it; a private repository needs its credentials in the image",
            ) from error

    @contextmanager
    def open(self, name: str) -> Iterator[io.BufferedIOBase]:
        """As of any store.

        Raises:
            JobFailure: DVC knows the file, and no remote has it; or as of any store.
        """
        with self._pushed(name):
            file = self._fs.open(self._at(name), "rb")
        with file:
            yield file

    def is_file(self) -> bool:
        """Likewise."""
        with self._pushed(""):
            return super().is_file()

    def names(self, folder: str = "") -> list[str]:
        """Likewise; what a folder holds, a remote says."""
        with self._pushed(folder):
            return super().names(folder)

    def identity(self, name: str) -> str:
        """DVC's own digest of the content, or the commit of a file that Git keeps.

        Raises:
            JobFailure: As of any store.
        """
        with self._pushed(name), translated("look at", self.uri(name)):
            return str(self._fs.info(self._at(name)).get("md5") or self.commit)

    @contextmanager
    def _pushed(self, name: str) -> Iterator[None]:
        """Tells a file that nobody has pushed from a store's own troubles."""
        from dvc_data.index import DataIndexDirError  # noqa: PLC0415  DVC's, too

        try:
            with translated("read", self.uri(name)):
                yield
        except (DataIndexDirError, JobFailure) as error:
            if isinstance(error, JobFailure) and error.failure.reason is not FailureClass.DATA_MISSING:
                raise
            raise JobFailure(
                FailureClass.DATA_MISSING,
                f"{self.uri(name)} is in none of the repository's remotes",
                "Run dvc push where the file is, or correct the remote in .dvc/config",
            ) from error
