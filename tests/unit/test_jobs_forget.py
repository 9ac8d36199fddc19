"""Deleting a version's artifacts, in a folder and in a real S3 store: all of its own, and nothing beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import s3_server
from s3_server import S3Server

from mljobs import forget
from mljobs.failure import JobFailure
from mljobs.report import run
from mljobs.store import Store
from mlplatform import contract
from mlplatform.contract import FailureClass, Stage, Summary

VERSION, ID = "adult-0a1b2c3d", "11112222"
FILES = ("train/report.json", "train/checkpoints/step-1/part-0", "package/serving/model-store/adult.mar")
NEIGHBOURS = (
    f"{VERSION}/train/report.json",  # as an earlier release laid it out
    f"{VERSION}-11112223/train/report.json",
    f"{VERSION}-{ID}0/train/report.json",  # this folder's name, and more
    f"{VERSION}-{ID}.json",
    "adult-ffffffff-11112222/train/report.json",
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server.running(tmp_path_factory.mktemp("weed")) as running:
        yield running


@pytest.fixture(params=["folder", "S3"])
def root(
    request: pytest.FixtureRequest, server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """The folder of a model, empty."""
    driver = fsspec.get_filesystem_class("s3")
    driver.clear_instance_cache()  # it keeps credentials
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    yield f"{tmp_path}/adult" if request.param == "folder" else f"s3://{s3_server.BUCKET}/{tmp_path.name}/adult"
    driver.clear_instance_cache()


@pytest.fixture
def message(tmp_path: Path) -> Path:
    return tmp_path / "message"


def forgotten(root: str, message: Path, monkeypatch: pytest.MonkeyPatch, *, folder: str = f"{VERSION}-{ID}") -> int:
    spec = {"model": "adult", "sequence": 1, "data": {"uri": "/d", "label": "income"}}
    environment = {
        contract.ENV_SPEC: json.dumps(spec),
        contract.ENV_ARTIFACTS: f"{root}/{folder}",
        contract.ENV_MODEL: "adult",
        contract.ENV_VERSION: VERSION,
        contract.ENV_TERMINATION_LOG: str(message),
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return run(Stage.PACKAGE, forget.main)


def test_everything_of_the_version_goes_and_nothing_else(
    root: str, message: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(root)
    for name in (*NEIGHBOURS, *(f"{VERSION}-{ID}/{name}" for name in FILES)):
        store.write(name, b"x")
    assert forgotten(root, message, monkeypatch) == 0
    assert store.names() == sorted(NEIGHBOURS)
    assert Summary.from_json(message.read_text()).details == {"files": 3}
    if "://" not in root:
        assert not Path(root, f"{VERSION}-{ID}").exists(), "no empty folders are left"

    assert forgotten(root, message, monkeypatch) == 0, "what is gone already counts as deleted"
    assert Summary.from_json(message.read_text()).details == {"files": 0}


def test_a_folder_of_an_earlier_release_has_no_id(root: str, message: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(root)
    for name in NEIGHBOURS:
        store.write(name, b"x")
    assert forgotten(root, message, monkeypatch, folder=VERSION) == 0
    assert store.names() == sorted(NEIGHBOURS[1:])


def test_what_is_cut_short_is_finished_by_the_next_try(
    root: str, message: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(root)
    for name in FILES:
        store.write(f"{VERSION}-{ID}/{name}", b"x")
    delete = Store.delete

    def refused(self: Store, names: list[str]) -> None:
        delete(self, names[:1])
        raise JobFailure(
            FailureClass.STORE_ACCESS, f"the store refused to delete {self.uri(names[1])}", "Check the keys"
        )

    with monkeypatch.context() as patch:
        patch.setattr(Store, "delete", refused)
        assert forgotten(root, message, monkeypatch) == 1
    failure = Summary.from_json(message.read_text()).failure
    assert failure is not None
    assert failure.reason is FailureClass.STORE_ACCESS
    assert len(store.names()) == 2
    assert forgotten(root, message, monkeypatch) == 0
    assert store.names() == []


def test_who_goes_on_writing_there_is_told_of(root: str, message: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(f"{root}/{VERSION}-{ID}")
    store.write(FILES[0], b"x")
    remove = Store.remove

    def late(self: Store) -> None:
        remove(self)
        self.write(FILES[1], b"x")

    monkeypatch.setattr(Store, "remove", late)
    assert forgotten(root, message, monkeypatch) == 1
    failure = Summary.from_json(message.read_text()).failure
    assert failure is not None
    assert f"1 files are left in {store.root}" in failure.message
    assert failure.reason not in contract.PERMANENT


@pytest.mark.parametrize(
    ("folder", "reason"),
    [
        ("", "the model's own folder"),
        ("adult-ffffffff-11112222", "another version's"),
        (f"{VERSION}0", "one whose name begins likewise"),
        (f"{VERSION}-{ID}/train", "a part of it"),
    ],
)
def test_any_other_folder_is_refused(
    tmp_path: Path, message: Path, monkeypatch: pytest.MonkeyPatch, folder: str, reason: str
) -> None:
    root = f"{tmp_path}/adult"
    kept = Path(Store(f"{root}/{folder}").write("report.json", b"x"))
    assert forgotten(root, message, monkeypatch, folder=folder) == 1, reason
    assert kept.exists(), reason
