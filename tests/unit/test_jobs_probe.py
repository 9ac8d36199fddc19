"""The program in the doctor's pod: nothing of it stays in the store, and what the store will not do is said."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import s3_server
from s3_server import S3Server

from mljobs import probe
from mljobs.failure import JobFailure
from mljobs.report import run
from mljobs.store import Store
from mlplatform import contract
from mlplatform.contract import FailureClass, Stage, Summary


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server.running(tmp_path_factory.mktemp("weed")) as running:
        yield running


@pytest.fixture
def root(server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where a platform keeps its artifacts."""
    driver = fsspec.get_filesystem_class("s3")
    driver.clear_instance_cache()  # it keeps credentials
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    yield f"s3://{s3_server.BUCKET}/{tmp_path.name}"
    driver.clear_instance_cache()


def probed(root: str, message: Path, monkeypatch: pytest.MonkeyPatch) -> Summary:
    spec = {"model": "_doctor", "sequence": 1, "data": {"uri": root, "label": "doctor"}}
    environment = {
        contract.ENV_SPEC: json.dumps(spec),
        contract.ENV_ARTIFACTS: f"{root}/team-a/_doctor/mlplatform-doctor-0a1b2c3d",
        contract.ENV_MODEL: "_doctor",
        contract.ENV_VERSION: "mlplatform-doctor-0a1b2c3d",
        contract.ENV_TERMINATION_LOG: str(message),
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    code = run(Stage.PACKAGE, probe.main)
    found = Summary.from_json(message.read_text())
    assert code == (found.failure is not None)
    return found


def test_nothing_stays(root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert probed(root, tmp_path / "message", monkeypatch).failure is None
    assert Store(root).names() == []


def test_a_key_that_the_store_does_not_know(root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-key")
    failure = probed(root, tmp_path / "message", monkeypatch).failure
    assert failure is not None
    assert failure.reason is FailureClass.STORE_ACCESS, failure
    assert "the store refused to write" in failure.message, failure
    assert "Check the keys" in failure.next_action


def test_who_may_write_and_not_read_leaves_nothing(root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: object) -> bytes:
        raise JobFailure(FailureClass.STORE_ACCESS, "the store refused to read", "Check the keys")

    with monkeypatch.context() as patched:
        patched.setattr(Store, "read", refuses)
        failure = probed(root, tmp_path / "message", patched).failure
    assert failure is not None
    assert failure.message == "the store refused to read"
    assert Store(root).names() == []


def test_what_is_read_must_be_what_was_written(root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "read", lambda *_: b"<html>log in</html>")
    failure = probed(root, tmp_path / "message", monkeypatch).failure
    assert failure is not None
    assert "something else was read" in failure.message
    assert "a cache or a proxy" in failure.next_action
