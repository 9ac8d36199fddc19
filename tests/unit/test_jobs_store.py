"""The store's errors in words, against a real S3 server with credentials."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest
import s3_server
from s3_server import S3Server

from mljobs.failure import JobFailure
from mljobs.store import Store, redact
from mlplatform.contract import PERMANENT, FailureClass


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server.running(tmp_path_factory.mktemp("weed")) as running:
        yield running


@pytest.fixture
def environment(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """The server's environment; fsspec's drivers are made anew, because they keep credentials."""
    driver = fsspec.get_filesystem_class("s3")
    driver.clear_instance_cache()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    # No other source of credentials than the environment.
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    yield monkeypatch
    driver.clear_instance_cache()


@pytest.mark.usefixtures("environment")
def test_files_are_written_listed_read_and_deleted() -> None:
    store = Store(f"s3://{s3_server.BUCKET}/files/")
    assert store.write("a/b.json", b"hi") == f"s3://{s3_server.BUCKET}/files/a/b.json"
    store.write("c", b"you")
    assert store.read("a/b.json") == b"hi"
    assert store.names() == ["a/b.json", "c"]
    assert store.names("a") == ["a/b.json"]
    assert store.names("nothing") == []
    assert Store(f"s3://{s3_server.BUCKET}/files/c").is_file()
    assert not store.is_file()
    store.delete(["c", "a/b.json", "gone already"])
    assert store.names() == []


@pytest.mark.usefixtures("environment")
def test_a_missing_file_is_missing_data() -> None:
    with pytest.raises(JobFailure, match="there is no such file") as caught:
        Store(f"s3://{s3_server.BUCKET}/files").read("nothing")
    assert caught.value.failure.reason is FailureClass.DATA_MISSING


READ: Callable[[Store], object] = lambda store: store.read("x")  # noqa: E731  a row of a table
WRITE: Callable[[Store], object] = lambda store: store.write("x", b"1")  # noqa: E731  a row of a table
LIST: Callable[[Store], object] = lambda store: store.names()  # noqa: E731  a row of a table
DELETE: Callable[[Store], object] = lambda store: store.delete(["x"])  # noqa: E731  a row of a table
GOOD = f"s3://{s3_server.BUCKET}/files"

REFUSALS = [
    ("s3://no-such-bucket/x", {}, READ, "the bucket does not exist", "read from a bucket that is not there"),
    ("s3://no-such-bucket/x", {}, LIST, "the bucket does not exist", "list a bucket that is not there"),
    (GOOD, {"AWS_SECRET_ACCESS_KEY": "a-wrong-secret"}, READ, "refused to read", "a wrong secret, reading"),
    (GOOD, {"AWS_SECRET_ACCESS_KEY": "a-wrong-secret"}, WRITE, "SignatureDoesNotMatch", "a wrong secret, writing"),
    (GOOD, {"AWS_SECRET_ACCESS_KEY": "a-wrong-secret"}, LIST, "SignatureDoesNotMatch", "a wrong secret, listing"),
    (GOOD, {"AWS_SECRET_ACCESS_KEY": "a-wrong-secret"}, DELETE, "refused to delete", "a wrong secret, deleting"),
    (GOOD, {"AWS_ACCESS_KEY_ID": "an-unknown-key"}, LIST, "InvalidAccessKeyId", "an unknown key"),
    (GOOD, {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, READ, "no credentials", "no keys at all"),
]


@pytest.mark.parametrize(("uri", "changed", "act", "words", "reason"), REFUSALS, ids=[case[-1] for case in REFUSALS])
def test_a_refusal_is_store_access_and_shows_no_secret(
    environment: pytest.MonkeyPatch,
    uri: str,
    changed: dict[str, str],
    act: Callable[[Store], object],
    words: str,
    reason: str,
) -> None:
    for name, value in changed.items():
        environment.setenv(name, value) if value else environment.delenv(name)
    with pytest.raises(JobFailure) as caught:
        act(Store(uri))
    failure = caught.value.failure
    assert failure.reason is FailureClass.STORE_ACCESS, f"{reason}: {failure}"
    assert words in failure.message, reason
    assert failure.next_action, reason
    for secret in (s3_server.SECRET_KEY, s3_server.ACCESS_KEY, *changed.values()):
        assert not secret or secret not in f"{failure.message}{failure.next_action}", reason


def test_a_store_that_does_not_answer_is_worth_a_retry(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(JobFailure, match="did not answer") as caught:
        Store(GOOD).read("x")
    assert caught.value.failure.reason is FailureClass.CRASHED
    assert caught.value.failure.reason not in PERMANENT


@pytest.mark.parametrize(
    ("uri", "words", "reason"),
    [
        ("gopher://host/x", "Protocol not known: gopher", "a scheme that fsspec does not know"),
        ("gs://bucket/x", "gcsfs", "a scheme whose driver is not installed"),
    ],
)
def test_a_scheme_without_driver_is_a_mistake_in_the_specification(uri: str, words: str, reason: str) -> None:
    with pytest.raises(JobFailure) as caught:
        Store(uri)
    assert caught.value.failure.reason is FailureClass.SPEC_INVALID, reason
    assert words in caught.value.failure.message, reason


@pytest.mark.parametrize(
    ("text", "wanted", "reason"),
    [
        ("key K-123456 refused", "key *** refused", "an access key of the environment"),
        ("the man asked", "the man asked", "too short for a secret: words would lose parts"),
        ("ftp://user:pass@host/x failed", "ftp://***@host/x failed", "a password in a URI"),
        ("s3://bucket/me@home.csv", "s3://bucket/me@home.csv", "an @ in a path is no password"),
    ],
)
def test_redact(text: str, wanted: str, reason: str) -> None:
    secrets = {"AWS_ACCESS_KEY_ID": "K-123456", "AWS_SECRET_ACCESS_KEY": "man", "AWS_SESSION_TOKEN": ""}
    assert redact(text, secrets) == wanted, reason


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("act", [READ, WRITE, LIST], ids=["read", "write", "list"])
def test_a_bucket_that_cannot_exist_is_a_mistake_in_the_specification(act: Callable[[Store], object]) -> None:
    with pytest.raises(JobFailure, match="Invalid bucket name") as caught:
        act(Store("s3://Bad_Bucket!/x"))
    assert caught.value.failure.reason is FailureClass.SPEC_INVALID
    assert "a bucket's name is" in caught.value.failure.next_action


@pytest.mark.parametrize(
    ("name", "reason"), [("folder", "a folder in the file's place"), ("file/x", "a file in the folder's place")]
)
def test_a_local_path_that_is_something_else_is_named(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(JobFailure) as caught:
        Store(str(tmp_path)).write(name, b"x")
    failure = caught.value.failure
    assert failure.reason is FailureClass.SPEC_INVALID, reason
    assert str(tmp_path / name) in failure.message, reason
    assert "move away what is in the place" in failure.next_action, reason


def test_a_full_disk_is_no_matter_of_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("fsspec.implementations.local.LocalFileSystem.pipe_file", full)
    with pytest.raises(JobFailure, match="No space left") as caught:
        store.write("x", b"x")
    assert caught.value.failure.reason is FailureClass.CRASHED
    assert "free space" in caught.value.failure.next_action
    assert "AWS_ENDPOINT_URL" not in caught.value.failure.next_action


def test_local_folders_are_made_as_needed(tmp_path: Path) -> None:
    assert Store(str(tmp_path)).write("a/b/c", b"x") == f"{tmp_path}/a/b/c"
    assert (tmp_path / "a/b/c").read_bytes() == b"x"
