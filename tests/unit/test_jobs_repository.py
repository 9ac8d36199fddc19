"""Rows of a DVC repository: a real one, with a remote, of which a revision is read and what is lacking is named."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from mljobs import data, files
from mljobs.failure import JobFailure
from mlplatform.api import Data, Dvc
from mlplatform.contract import FailureClass
from mlplatform.standalone.engine import located
from mlplatform.standalone.request import Request

OLD = "age,grade\n1,a\n2,b\n"
NEW = "age,grade\n3,a\n4,b\n"


@dataclass
class Kept:
    """A repository with two revisions of one file, and a file that Git keeps itself."""

    folder: Path
    first: str

    @property
    def repo(self) -> str:
        return str(self.folder / "repo")

    def asked(self, rev: str = "v1", uri: str = "data/", repo: str = "") -> Data:
        return Data(uri=uri, label="grade", dvc=Dvc(repo=repo or self.repo, rev=rev))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    folder = tmp_path_factory.mktemp("dvc")
    repo, data_folder = folder / "repo", folder / "repo/data"
    data_folder.mkdir(parents=True)
    env = {
        **os.environ,
        **{f"GIT_{who}_{what}": "a@example.com" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
        **{f"DVC_{name}_DIR": str(folder / name) for name in ("SITE_CACHE", "GLOBAL_CONFIG", "SYSTEM_CONFIG")},
        "DVC_NO_ANALYTICS": "1",
    }

    def run(*command: str) -> str:
        return subprocess.run(command, cwd=repo, env=env, check=True, capture_output=True, text=True).stdout.strip()

    def dvc(*command: str) -> None:
        run(sys.executable, "-m", "dvc", *command)

    def committed(rows: str) -> str:
        (data_folder / "a.csv").write_text(rows)
        dvc("add", "-q", "data")
        dvc("push", "-q")
        run("git", "add", "-A")
        run("git", "commit", "-qm", "rows")
        return run("git", "rev-parse", "HEAD")

    run("git", "init", "-q", "-b", "main")
    dvc("init", "-q")
    dvc("remote", "add", "-d", "store", str(folder / "remote"))
    (repo / "plain.csv").write_text(NEW)
    first = committed(OLD)
    run("git", "tag", "v1")
    committed(NEW)
    return Kept(folder, first)


def test_the_rows_of_a_revision_are_read_and_its_commit_is_told(kept: Kept) -> None:
    old, new = data.load(kept.asked()), data.load(kept.asked("main"))
    assert old.table.column("age").to_pylist() == [1, 2]
    assert new.table.column("age").to_pylist() == [3, 4]
    assert old.commit == kept.first
    assert len(new.commit) == 40
    assert new.commit != old.commit
    assert data.load(kept.asked(kept.first[:10])).digest == old.digest, "a commit names the same rows"
    assert old.files == [f"dvc://{kept.repo}@v1/data/a.csv"]


def test_a_file_and_what_git_keeps_itself_are_read_too(kept: Kept) -> None:
    assert data.load(kept.asked(uri="data/a.csv")).table.column("age").to_pylist() == [1, 2]
    assert data.load(kept.asked(uri="plain.csv")).table.column("age").to_pylist() == [3, 4]


def test_a_fingerprint_follows_the_content(kept: Kept) -> None:
    assert files.fingerprint(kept.asked()) == files.fingerprint(kept.asked(kept.first))
    assert files.fingerprint(kept.asked()) != files.fingerprint(kept.asked("main"))


def test_what_is_not_there_is_named(kept: Kept) -> None:
    refused = [
        (kept.asked("v9"), "has no revision 'v9'", "git ls-remote", FailureClass.DATA_MISSING),
        (
            kept.asked(uri="nothing/"),
            "there is nothing at nothing/",
            "correct spec.data.uri",
            FailureClass.DATA_MISSING,
        ),
        (kept.asked(repo=str(kept.folder / "none")), "cannot be read", "address", FailureClass.STORE_ACCESS),
    ]
    for asked, words, action, reason in refused:
        with pytest.raises(JobFailure) as caught:
            data.load(asked)
        failure = caught.value.failure
        assert words in failure.message
        assert action in failure.next_action
        assert failure.reason is reason


def test_a_file_that_was_never_pushed_is_named(kept: Kept, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(kept.repo, copy)
    shutil.rmtree(copy / ".dvc/cache")
    config = copy / ".dvc/config"
    config.write_text(config.read_text().replace(str(kept.folder / "remote"), str(tmp_path / "empty")))
    subprocess.run(["git", "-C", copy, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qam", "x"], check=True)
    with pytest.raises(JobFailure, match=r"data\S* is in none of the repository's remotes") as caught:
        data.load(kept.asked("main", repo=str(copy)))
    assert "dvc push" in caught.value.failure.next_action


def test_without_dvc_it_says_what_to_install(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(JobFailure, match="needs the package dvc") as caught:
        data.load(kept.asked())
    assert "mlplatform[run,dvc]" in caught.value.failure.next_action


def test_a_password_is_in_no_message() -> None:
    asked = Data(uri="x", label="y", dvc=Dvc(repo="https://me:secret@127.0.0.1:1/data", rev="v1"))
    with pytest.raises(JobFailure) as caught:
        data.load(asked)
    assert "secret" not in json.dumps([caught.value.failure.message, caught.value.failure.next_action])


def test_a_run_reads_the_repository_unless_it_is_told_another_place(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(kept.folder)
    here = Data(uri="data/", label="y", dvc=Dvc(repo="repo", rev="v1"))
    assert located(Request(file="m.yaml"), here) == Data(uri="data/", label="y", dvc=Dvc(repo=kept.repo, rev="v1"))
    there = Data(uri="data/", label="y", dvc=Dvc(repo="https://git.example.com/data", rev="v1"))
    assert located(Request(file="m.yaml"), there) == there
    other = located(Request(file="m.yaml", data="rows"), here)
    assert (other.uri, other.dvc) == (str(kept.folder / "rows"), None)
