"""The storage initializer: copies what lies below an ``s3://`` URI into a folder before a model server starts.

Run as an init container that ``kserve`` renders (``python3 -m addons storage-initializer URI FOLDER``).
It signs its requests itself: an S3 SDK would be most of the image for two calls.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import os
import shutil
import urllib.error
import urllib.request
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlencode, urlsplit

EMPTY: Final = hashlib.sha256(b"").hexdigest()
TIMEOUT: Final = 60.0
XML: Final = "{http://s3.amazonaws.com/doc/2006-03-01/}"


class StorageError(Exception):
    """The model could not be copied; the sentence is for the pod's termination message."""


@dataclass(frozen=True, slots=True)
class Store:
    """Where an S3 API answers, and as whom.

    Attributes:
        endpoint: URL without a trailing slash; buckets are addressed by path.
        region: Part of the signature.
        key: Access key id; empty for anonymous requests.
        secret: Its secret.
    """

    endpoint: str
    region: str
    key: str
    secret: str

    @classmethod
    def from_environment(cls, env: Mapping[str, str]) -> Store:
        """From the variables KServe sets: ``AWS_ENDPOINT_URL``, ``AWS_DEFAULT_REGION`` and the two keys."""
        region = env.get("AWS_DEFAULT_REGION") or env.get("AWS_REGION") or "us-east-1"
        endpoint = env.get("AWS_ENDPOINT_URL") or f"https://s3.{region}.amazonaws.com"
        keys = env.get("AWS_ACCESS_KEY_ID", ""), env.get("AWS_SECRET_ACCESS_KEY", "")
        return cls(endpoint.rstrip("/"), region, *keys)

    def request(self, bucket: str, key: str, query: Mapping[str, str], now: datetime) -> urllib.request.Request:
        """A signed GET of an object (or of the bucket, where ``key`` is empty)."""
        path = "/" + quote(f"{bucket}/{key}" if key else bucket, safe="/-_.~")
        text = urlencode(sorted(query.items()), quote_via=quote, safe="-_.~")
        headers = self._sign(path, text, now) if self.key else {}
        url = f"{self.endpoint}{path}" + (f"?{text}" if text else "")
        return urllib.request.Request(url, headers=headers)  # noqa: S310  the endpoint is the Secret's

    def _sign(self, path: str, query: str, now: datetime) -> dict[str, str]:
        """AWS Signature Version 4 (docs.aws.amazon.com, "Create a signed AWS API request")."""
        stamp, day = now.strftime("%Y%m%dT%H%M%SZ"), now.strftime("%Y%m%d")
        signed = {"host": urlsplit(self.endpoint).netloc, "x-amz-content-sha256": EMPTY, "x-amz-date": stamp}
        names = ";".join(signed)
        lines = [f"{name}:{value}" for name, value in signed.items()]
        canonical = "\n".join(["GET", path, query, *lines, "", names, EMPTY])
        scope = f"{day}/{self.region}/s3/aws4_request"
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        to_sign = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{digest}"
        key = f"AWS4{self.secret}".encode()
        for part in (day, self.region, "s3", "aws4_request"):
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        signature = hmac.new(key, to_sign.encode(), hashlib.sha256).hexdigest()
        credential = f"Credential={self.key}/{scope}, SignedHeaders={names}, Signature={signature}"
        del signed["host"]  # urllib sends it
        return signed | {"Authorization": f"AWS4-HMAC-SHA256 {credential}"}


def copy(uri: str, folder: Path, env: Mapping[str, str] | None = None) -> list[Path]:
    """Copies the object at ``uri``, or everything below it, into ``folder``.

    Returns:
        The files, in the order of their keys.

    Raises:
        StorageError: Nothing is there, or the store refuses or cannot be reached.
    """
    parts = urlsplit(uri)
    if parts.scheme != "s3" or not parts.netloc:
        raise StorageError(f"{uri}: only s3://<bucket>/<path> can be copied")
    store = Store.from_environment(os.environ if env is None else env)
    bucket, prefix = parts.netloc, parts.path.strip("/")
    try:
        targets = dict(_targets(_keys(store, bucket, prefix), prefix, folder))
        for key, target in targets.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            with _open(store, bucket, key, {}) as source, target.open("wb") as sink:
                size = source.length  # what the store promises; None where it does not say
                shutil.copyfileobj(source, sink)
                # A read that meets the end of the connection too early raises nothing.
                if size is not None and sink.tell() < size:
                    name = f"s3://{bucket}/{key}"
                    raise StorageError(f"{name} broke off after {sink.tell()} of {size} bytes; the pod tries again")
    except urllib.error.HTTPError as error:
        hint = "check the keys in the ServiceAccount's Secret" if error.code == http.HTTPStatus.FORBIDDEN else error.msg
        raise StorageError(f"{uri}: {store.endpoint} answered {error.code}: {hint}") from error
    except (OSError, http.client.HTTPException) as error:
        raise StorageError(f"{uri}: cannot read from {store.endpoint}: {error}") from error
    if not targets:
        raise StorageError(f"{uri}: no model found there; is the storageUri right?")
    return list(targets.values())


def _keys(store: Store, bucket: str, prefix: str) -> Iterator[str]:
    """All keys that begin with the prefix, page by page (ListObjectsV2)."""
    query = {"list-type": "2", "prefix": prefix}
    while True:
        with _open(store, bucket, "", query) as answer:
            page = ET.fromstring(answer.read())  # noqa: S314  the store's own answer
        for item in page.iter(f"{XML}Key"):
            yield item.text or ""
        token = page.findtext(f"{XML}NextContinuationToken")
        if not token:
            return
        query["continuation-token"] = token


def _targets(keys: Iterator[str], prefix: str, folder: Path) -> Iterator[tuple[str, Path]]:
    """Where each key goes: below the folder by its path after the prefix; the prefix itself by its last part.

    Keys that only share the beginning of a name (``model`` and ``model-old/x``) are not below the prefix.
    """
    root = folder.resolve()
    for key in keys:
        if key.endswith("/"):
            continue  # a marker of an empty folder
        if key == prefix:
            target = root / key.rsplit("/", 1)[-1]
        elif not prefix:
            target = root / key
        elif key.startswith(f"{prefix}/"):
            target = root / key[len(prefix) + 1 :]
        else:
            continue
        if not target.resolve().is_relative_to(root):
            raise StorageError(f"key {key!r} would be written outside of {folder}")
        yield key, target


def _open(store: Store, bucket: str, key: str, query: Mapping[str, str]) -> http.client.HTTPResponse:
    request = store.request(bucket, key, query, datetime.now(UTC))
    answer: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=TIMEOUT)  # noqa: S310  as above
    return answer
