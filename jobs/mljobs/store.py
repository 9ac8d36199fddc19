"""Files in any store that fsspec knows, with its errors in words that help.

Called by every job for data, checkpoints, models and reports. Credentials come from
the environment (the pod's Secret) and never appear in a message.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import ssl
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import fsspec

from mljobs.failure import JobFailure
from mlplatform.contract import FailureClass

SECRETS: Final = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
BUNDLE: Final = "AWS_CA_BUNDLE"
"""Variable with the path of the certificates that botocore trusts, where it is not those that it brings along."""
CONNECT_TIMEOUT_SECONDS: Final = 5
READ_TIMEOUT_SECONDS: Final = 60
ATTEMPTS: Final = 4
SECRET_LENGTH: Final = 8
"""Shorter values are no secrets: to blot them out would mangle words."""

_USER_INFO: Final = re.compile(r"(?<=://)[^/@\s]+@")


def redact(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """`text` without credentials: those of the environment, and ``user:password@`` of a URI."""
    for name in SECRETS:
        if len(value := environment.get(name, "")) >= SECRET_LENGTH:
            text = text.replace(value, "***")
    return _USER_INFO.sub("***@", text)


def options(uri: str, environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Options of the driver for `uri`.

    botocore takes the keys and AWS_ENDPOINT_URL from the environment by itself, but reads
    the region from AWS_DEFAULT_REGION, not AWS_REGION. Listings are not cached: other
    processes write to the same folders.
    """
    if _is_local(uri):
        return {"auto_mkdir": True}
    if not uri.startswith(("s3://", "s3a://")):
        return {}
    client = {"region_name": region} if (region := environment.get("AWS_REGION")) else {}
    config = {
        "connect_timeout": CONNECT_TIMEOUT_SECONDS,
        "read_timeout": READ_TIMEOUT_SECONDS,
        "retries": {"max_attempts": ATTEMPTS, "mode": "standard"},
    }
    return {"client_kwargs": client, "config_kwargs": config, "use_listings_cache": False}


def _botocore(*names: str) -> tuple[type[Exception], ...]:
    """These of botocore's exceptions: none where no driver has loaded it, for then nothing can raise them."""
    module = sys.modules.get("botocore.exceptions")
    return tuple(getattr(module, name) for name in names) if module else ()


def _is_local(uri: str) -> bool:
    return "://" not in uri or uri.startswith("file://")


class Store:
    """Files below one URI.

    Args:
        root: Any fsspec URI or local path of a folder; a trailing slash does not matter.

    Raises:
        JobFailure: No driver knows the URI's scheme.
    """

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")
        with translated("open", self.root):
            self._fs, self._path = fsspec.core.url_to_fs(self.root, **options(self.root))

    def uri(self, name: str) -> str:
        """The URI of the file `name`."""
        return f"{self.root}/{name}" if name else self.root

    def _at(self, name: str) -> str:
        return f"{self._path}/{name}" if name else self._path

    def read(self, name: str) -> bytes:
        """The content of a file.

        Raises:
            JobFailure: It is not there (DataMissing), or the store refuses or does not answer.
        """
        with translated("read", self.uri(name)):
            return bytes(self._fs.cat_file(self._at(name)))

    @contextmanager
    def open(self, name: str) -> Iterator[io.BufferedIOBase]:
        """A file to be read as it comes.

        Raises:
            JobFailure: It is not there (DataMissing), or the store refuses or does not answer.
        """
        with translated("read", self.uri(name)):
            file = self._fs.open(self._at(name), "rb")
        with file:
            yield file

    def local(self, name: str) -> str:
        """The path of a file on this machine; empty where the store is not here."""
        return self._at(name) if _is_local(self.root) else ""

    def write(self, name: str, content: bytes) -> str:
        """Writes a file whole and returns its URI.

        Raises:
            JobFailure: The store refuses or does not answer.
        """
        with translated("write", self.uri(name)):
            self._fs.pipe_file(self._at(name), content)
        return self.uri(name)

    def identity(self, name: str) -> str:
        """What tells one content of a file from another without reading a remote one: its SHA-256, or the store's tag.

        Raises:
            JobFailure: It is not there (DataMissing), or the store refuses or does not answer.
        """
        if _is_local(self.root):
            with translated("read", self.uri(name)), Path(self._at(name)).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        with translated("look at", self.uri(name)):
            info = self._fs.info(self._at(name))
        return " ".join(str(info.get(key)) for key in ("size", "ETag", "etag", "LastModified", "mtime"))

    def is_file(self) -> bool:
        """Whether the root itself is a file.

        Raises:
            JobFailure: The store refuses or does not answer.
        """
        with translated("look for", self.root):
            return bool(self._fs.isfile(self._path))

    def names(self, folder: str = "") -> list[str]:
        """Sorted names, relative to the root, of all files below `folder`; empty if it is not there.

        Raises:
            JobFailure: The store refuses or does not answer.
        """
        with translated("list", self.uri(folder)):
            base = f"{self._path}/"
            found = self._fs.find(self._at(folder))
        # Some stores list an emptied folder as a file of its name.
        return sorted(path.removeprefix(base) for path in found if path.startswith(base))

    def delete(self, names: list[str]) -> None:
        """Deletes files; one that is gone already counts as deleted.

        Raises:
            JobFailure: The store refuses or does not answer.
        """
        for name in names:
            with translated("delete", self.uri(name)):
                try:
                    self._fs.rm_file(self._at(name))
                except FileNotFoundError:
                    continue

    def remove(self) -> None:
        """Deletes the empty folders that files leave behind in a file system; an object store has none.

        Raises:
            JobFailure: The store refuses.
        """
        if _is_local(self.root) and self._fs.isdir(self._path):
            with translated("delete", self.root):
                self._fs.rm(self._path, recursive=True)


@contextmanager
def translated(action: str, uri: str) -> Iterator[None]:
    """Turns a driver's error into a `JobFailure` that says what was refused, why, and what to do.

    Args:
        action: A verb, for the message.
        uri: What it was done to.
    """
    try:
        yield
    except _errors() as error:
        raise _failure(error, action, redact(uri)) from error


def _errors() -> tuple[type[Exception], ...]:
    """What drivers raise."""
    return OSError, ImportError, ValueError, *_botocore("BotoCoreError", "ClientError")


def _failure(error: Exception, action: str, uri: str) -> JobFailure:
    """The first of these that fits."""
    code = _code(error)
    cause = redact(" ".join(f"{code or type(error).__name__}: {error}".split()))
    could_not = f"could not {action} {uri}"
    bundle = "" if _is_local(uri) else os.environ.get(BUNDLE, "")
    distrusted = "CERTIFICATE_VERIFY_FAILED" in cause
    no_credentials = _botocore("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError")
    rules = (
        (
            code == "NoSuchBucket",
            FailureClass.STORE_ACCESS,
            f"{could_not}: the bucket does not exist",
            "Create the bucket, or correct the URI",
        ),
        (
            isinstance(error, no_credentials),
            FailureClass.STORE_ACCESS,
            f"{could_not}: there are no credentials for the store",
            "Put AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY into the store's Secret in this namespace",
        ),
        (
            bool(bundle) and not Path(bundle).is_file(),
            FailureClass.STORE_ACCESS,
            f"{could_not}: the bundle of trusted authorities {bundle} is not there",
            f"Give this namespace the ConfigMap that the chart's trust.configMap names, with the key {bundle.rpartition('/')[2]}",
        ),
        (
            bool(bundle) and not _holds_certificates(bundle),
            FailureClass.STORE_ACCESS,
            f"{could_not}: the bundle of trusted authorities {bundle} holds no certificate in PEM",
            f"Put the PEM of the authorities into the key {bundle.rpartition('/')[2]} of the ConfigMap that the chart's trust.configMap names",
        ),
        (
            distrusted and "mismatch" in cause,
            FailureClass.STORE_ACCESS,
            f"{could_not}: {cause}",
            "Let AWS_ENDPOINT_URL in the store's Secret have a name that is in the store's certificate",
        ),
        (
            distrusted,
            FailureClass.STORE_ACCESS,
            f"{could_not}: {cause}",
            "Let the chart's trust.configMap name a ConfigMap with the authority that has signed the store's certificate",
        ),
        (
            isinstance(error, PermissionError) or code in {"AccessDenied", "403"},
            FailureClass.STORE_ACCESS,
            f"the store refused to {action} {uri}: {cause}",
            "Check the keys in the store's Secret and what they may do with this bucket",
        ),
        (
            isinstance(error, FileNotFoundError),
            FailureClass.DATA_MISSING,
            f"{could_not}: there is no such file",
            "Correct the URI, or write the file",
        ),
        (
            isinstance(error, _botocore("ParamValidationError")),
            FailureClass.SPEC_INVALID,
            f"{could_not}: {cause}",
            "Correct the URI: a bucket's name is 3 to 63 lower-case letters, digits, dots and hyphens",
        ),
        (
            isinstance(error, (IsADirectoryError, NotADirectoryError, FileExistsError)),
            FailureClass.SPEC_INVALID,
            f"{could_not}: {cause}",
            "Correct the URI, or move away what is in the place of the file or of its folder",
        ),
        (
            isinstance(error, (ImportError, ValueError)),
            FailureClass.SPEC_INVALID,
            f"{could_not}: {cause}",
            "Use a scheme that the job image has an fsspec driver for (s3://, file://), or an image with the driver",
        ),
        # From here on not permanent: a moment later it may go well, so the workload retries.
        (
            _is_local(uri),
            FailureClass.CRASHED,
            f"{could_not}: {cause}",
            "Check the volume that holds it, first its free space; the job retries by itself",
        ),
        (
            True,
            FailureClass.CRASHED,
            f"the store did not answer when asked to {action} {uri}: {cause}",
            "Check that the store runs and that AWS_ENDPOINT_URL in its Secret reaches it; the job retries by itself",
        ),
    )
    return next(JobFailure(kind, message, advice) for fits, kind, message, advice in rules if fits)


def _holds_certificates(bundle: str) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(bundle)
    except OSError:
        return False
    return True


def _code(error: BaseException | None) -> str:
    """The S3 error code in the chain of causes: s3fs raises OSError kinds from botocore's ClientError."""
    while error is not None:
        if isinstance(error, _botocore("ClientError")):
            response: Mapping[str, Any] = getattr(error, "response", {})
            return str(response.get("Error", {}).get("Code", ""))
        error = error.__cause__
    return ""
