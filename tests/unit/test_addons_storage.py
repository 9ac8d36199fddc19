"""The storage initializer: its signature against botocore's, its copying against a small S3 on the loopback."""

from __future__ import annotations

import http.server
import threading
import urllib.parse
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from local.addons import storage

KEY, SECRET = "AKIDEXAMPLE", "secret"
OBJECTS = {
    "m/v1/config/a.txt": b"a",
    "m/v1/model store/b.bin": b"\x00" * 70_000,
    "m/v1/": b"",
    "m/v10/other.txt": b"not below m/v1",
    "m/single.mar": b"s",
    "evil/../../etc/passwd": b"x",
    "cut/model.mar": b"ten bytes.",
}
CUT = 4
"""Bytes of an object below cut/ after which the store hangs up."""


class Bucket(http.server.BaseHTTPRequestHandler):
    """ListObjectsV2 in pages of two and GetObject; only our key may read."""

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        _, bucket, *key = urllib.parse.unquote(path).split("/", 2)
        if f"Credential={KEY}/" not in self.headers.get("Authorization", ""):
            self._answer(403, b"<Error/>")
        elif bucket != "models":
            self._answer(404, b"<Error/>")
        elif key:
            self._answer(200, OBJECTS[key[0]], CUT if key[0].startswith("cut/") else None)
        else:
            self._answer(200, self._page(dict(urllib.parse.parse_qsl(query))).encode())

    def _page(self, query: dict[str, str]) -> str:
        keys = sorted(name for name in OBJECTS if name.startswith(query.get("prefix", "")))
        start = int(query.get("continuation-token", "0"))
        more = f"<NextContinuationToken>{start + 2}</NextContinuationToken>" if start + 2 < len(keys) else ""
        items = "".join(f"<Contents><Key>{name}</Key></Contents>" for name in keys[start : start + 2])
        return f'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{items}{more}</ListBucketResult>'

    def _answer(self, status: int, body: bytes, sent: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:sent])

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the base class's name
        """Quiet."""


@pytest.fixture(scope="module")
def env() -> Iterator[dict[str, str]]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Bucket)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    yield {"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
    server.shutdown()
    server.server_close()


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_everything_below_the_prefix_is_copied_over_all_pages(env: dict[str, str], tmp_path: Path) -> None:
    copied = storage.copy("s3://models/m/v1", tmp_path, env)
    expected = {"config/a.txt": b"a", "model store/b.bin": b"\x00" * 70_000}
    assert files(tmp_path) == expected, "not the marker of the folder, and not m/v10, which only begins alike"
    assert len(copied) == 2


def test_a_single_object_keeps_its_name(env: dict[str, str], tmp_path: Path) -> None:
    storage.copy("s3://models/m/single.mar", tmp_path, env)
    assert files(tmp_path) == {"single.mar": b"s"}


FAILURES = [
    ("nothing there", "s3://models/none", {}, "no model found there"),
    ("an unknown bucket", "s3://other/m", {}, "answered 404"),
    (
        "wrong keys name the Secret",
        "s3://models/m/v1",
        {"AWS_ACCESS_KEY_ID": "other"},
        "check the keys in the ServiceA",
    ),
    ("no keys", "s3://models/m/v1", {"AWS_ACCESS_KEY_ID": ""}, "answered 403"),
    ("nobody answers", "s3://models/m/v1", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "cannot read from http://127"),
    ("another scheme", "gs://models/m", {}, "only s3://"),
    ("a key that climbs out of the folder", "s3://models/evil", {}, "would be written outside"),
]


@pytest.mark.parametrize("case", FAILURES, ids=[case[0] for case in FAILURES])
def test_failures_name_the_cause(
    env: dict[str, str], tmp_path: Path, case: tuple[str, str, dict[str, str], str]
) -> None:
    reason, uri, changes, words = case
    with pytest.raises(storage.StorageError, match=words):
        storage.copy(uri, tmp_path, env | changes)
    assert files(tmp_path) == {}, reason


def test_a_download_that_breaks_off_is_a_failure(env: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(storage.StorageError, match=r"s3://models/cut/model\.mar broke off after 4 of 10 bytes"):
        storage.copy("s3://models/cut", tmp_path, env)


@pytest.mark.parametrize(
    ("reason", "key", "query"),
    [
        ("an object", "m/v1/config/a.txt", {}),
        ("a key to be quoted", "m/a b+c=d/é~.bin", {}),
        ("a listing", "", {"list-type": "2", "prefix": "a/b c", "continuation-token": "x+/="}),
    ],
)
def test_the_signature_is_botocores(reason: str, key: str, query: dict[str, str]) -> None:
    store = storage.Store("http://store:8333", "eu-west-1", KEY, SECRET)
    now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    ours = store.request("bucket", key, query, now)
    theirs = AWSRequest("GET", ours.full_url, headers={"X-Amz-Content-SHA256": storage.EMPTY})
    theirs.context["timestamp"] = now.strftime("%Y%m%dT%H%M%SZ")
    theirs.headers["X-Amz-Date"] = theirs.context["timestamp"]
    signer = S3SigV4Auth(Credentials(KEY, SECRET), "s3", "eu-west-1")
    canonical = signer.canonical_request(theirs)
    signature = signer.signature(signer.string_to_sign(theirs, canonical), theirs)
    assert ours.get_header("Authorization", "").endswith(f"Signature={signature}"), reason
