"""What a run leaves behind, and what the next one keeps of it, drops, or takes from another version."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from standalone_kit import PACKAGES, people_model

from mlplatform import api, contract
from mlplatform.contract import Artifacts, Stage
from mlplatform.errors import CliError
from mlplatform.resources import modelversion
from mlplatform.snapshot import Object
from mlplatform.stages import PIPELINE
from mlplatform.standalone.state import Folder, Record, code_digest, sources, stage_keys

ALL = [stage.value for stage in Stage]
OLD, NEW = "people-00000001", "people-00000002"


# Which stages run again


def keys(change: Callable[[Object], object] = lambda _: None, inputs: str = "rows and code") -> dict[str, str]:
    """The keys of the version that a changed MLModel asks for."""
    model = people_model("/data")
    change(model["spec"])
    spec = api.decode(api.MLModelSpec, model["spec"])
    name = api.version_name("people", spec)
    version = modelversion.render(model, spec, name, 1, "")
    return stage_keys(api.decode(api.ModelVersionSpec, version["spec"]), name, inputs)


@dataclass(frozen=True)
class Change:
    """A change of the spec, and the first stage whose result it may change."""

    reason: str
    change: Callable[[Object], object]
    first: Stage | None


CHANGES = [
    Change("nothing", lambda _: None, None),
    Change(
        "the order of what is written",
        lambda spec: spec.update(training=dict(reversed(spec["training"].items()))),
        None,
    ),
    Change("a default, spelt out", lambda spec: spec["training"].update(seed=7), None),
    Change("the rows' place", lambda spec: spec["data"].update(uri="/other"), Stage.TRAIN),
    Change("the split", lambda spec: spec["data"].update(split={"test": 0.3}), Stage.TRAIN),
    Change("who is compared", lambda spec: spec["data"].update(sensitiveAttributes=["job"]), Stage.TRAIN),
    Change("the training", lambda spec: spec["training"].update(epochs=5), Stage.TRAIN),
    Change("a hyperparameter", lambda spec: spec["training"]["hyperparameters"].update(bins=9), Stage.TRAIN),
    Change("what a training may take", lambda spec: spec["training"].update(resources={"memory": "4Gi"}), Stage.TRAIN),
    Change("a gate", lambda spec: spec["gates"][0].update(min=0.7), Stage.AUDIT),
    Change("no gates", lambda spec: spec.update(gates=[]), Stage.AUDIT),
    Change("a bound of fairness", lambda spec: spec["fairness"].update(minGroupSize=30), Stage.AUDIT),
    Change("the candidates", lambda spec: spec.update(optimization={"candidates": ["fp32"]}), Stage.OPTIMIZE),
    Change("what may be lost", lambda spec: spec.update(optimization={"maxMetricDrop": 0.1}), Stage.OPTIMIZE),
    Change("how it is served", lambda spec: spec.update(serving={"replicas": {"max": 3}}), None),
    Change("how traffic moves", lambda spec: spec.update(rollout={"steps": [50]}), None),
    Change("how many versions are kept", lambda spec: spec.update(revisionHistoryLimit=2), None),
    Change("what becomes of their artifacts", lambda spec: spec.update(artifactRetention="Delete"), None),
]


@pytest.mark.parametrize("case", CHANGES, ids=lambda case: case.reason)
def test_which_stages_a_change_runs_again(case: Change) -> None:
    before, after = keys(), keys(case.change)
    assert list(after) == ALL
    changed = [stage for stage in ALL if before[stage] != after[stage]]
    assert changed == (ALL[ALL.index(case.first) :] if case.first else [])


def test_other_rows_or_code_run_everything_again() -> None:
    before, after = keys(), keys(inputs="other rows")
    assert all(before[stage] != after[stage] for stage in ALL)


def test_an_archive_is_that_of_one_version() -> None:
    spec = api.decode(api.ModelVersionSpec, {"model": "people", "sequence": 1, "data": {"uri": "/d", "label": "rich"}})
    before, after = stage_keys(spec, OLD, "inputs"), stage_keys(spec, NEW, "inputs")
    assert [stage for stage in ALL if before[stage] != after[stage]] == [Stage.PACKAGE]


def test_a_versions_number_shapes_nothing() -> None:
    raw = {"model": "people", "data": {"uri": "/d", "label": "rich"}}
    first, second = (api.decode(api.ModelVersionSpec, {**raw, "sequence": i}) for i in (1, 2))
    assert stage_keys(first, OLD, "inputs") == stage_keys(second, OLD, "inputs")


def test_every_section_of_a_version_shapes_some_stage() -> None:
    assert {section for stage in PIPELINE for section in stage.reads} == set(api.VERSIONED)


# The code


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, which is not on this program's path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder not in {"", "."}])
    return tmp_path


def test_the_code_of_a_result(here: Path) -> None:
    built_in = code_digest("tabular")
    assert built_in == code_digest("tabular")
    package = here / "ranking_task"
    (package / "parts").mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('it is not imported')\n")
    (package / "task.py").write_text("class Task: ...\n")
    (package / "data.csv").write_text("1\n")
    first = code_digest("ranking_task.task:Task")
    assert first != built_in
    assert "ranking_task" not in sys.modules
    (package / "data.csv").write_text("2\n")
    assert code_digest("ranking_task.task:Task") == first
    (package / "parts" / "loss.py").write_text("x = 1\n")
    second = code_digest("ranking_task.task:Task")
    assert second != first, "a file deep within is part of it"
    (package / "parts" / "loss.py").write_text("x = 2\n")
    assert code_digest("ranking_task.task:Task") not in {first, second}


@pytest.mark.parametrize(
    ("reason", "files", "package", "found"),
    [
        ("a module", ["one_task.py"], "one_task", ["one_task.py"]),
        ("a package", ["a_task/__init__.py", "a_task/b.py"], "a_task", ["a_task/__init__.py", "a_task/b.py"]),
        ("a folder without __init__.py", ["n_task/b.py"], "n_task", ["n_task/b.py"]),
        ("a folder without Python", ["d_task/data.csv"], "d_task", []),
        ("nothing", [], "no_task", []),
    ],
)
def test_the_files_of_a_package_in_the_working_folder(
    here: Path, reason: str, files: list[str], package: str, found: list[str]
) -> None:
    for name in files:
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).touch()
    assert [str(path.relative_to(here)) for path in sources(package)] == found, reason


def test_the_files_of_an_installed_package() -> None:
    assert "trainer.py" in {path.name for path in sources("mljobs")}


def test_a_module_of_the_working_folder_comes_before_one_that_is_installed(here: Path) -> None:
    (here / "psutil.py").touch()
    (here / "yaml").mkdir()
    assert sources("psutil") == [here / "psutil.py"], "as in the processes that run there"
    assert len(sources("yaml")) > 1, "a folder that is no package hides none"


# What is kept


def filled(store: Path, version: str, digests: dict[str, str], ended: list[str]) -> Folder:
    """A version's folder after a run: files of all stages, a record of those that have ended."""
    folder = Folder(store, "default", "people", version)
    for stage in digests:
        (folder.path / stage).mkdir(parents=True)
        (folder.path / stage / "report.json").write_text(f'{{"made by": "{version}"}}')
    (folder.path / Artifacts.CHECKPOINTS / "5").mkdir(parents=True)
    (folder.path / Artifacts.CHECKPOINTS / "5" / "shard").touch()
    (folder.path / "optimize" / "candidates").mkdir(exist_ok=True, parents=True)
    (folder.path / "optimize" / "candidates" / "fp32.pt").touch()
    (folder.path / "logs").mkdir()
    kept = {stage: {"workload": {"metadata": {"name": f"{version}-{stage}"}}, "pods": []} for stage in ended}
    folder.save(Record({"metadata": {"name": version}}, dict(digests), kept))
    return folder


def files(folder: Folder) -> list[str]:
    return sorted(str(p.relative_to(folder.path)) for p in folder.path.rglob("*") if p.is_file())


@dataclass(frozen=True)
class Settled:
    """A folder before, the keys that are wanted, and what is left.

    Attributes:
        reason: What it shows.
        had: Keys of the folder's stages.
        ended: Its stages that have ended.
        wanted: Keys of the same stages now.
        kept: Stages whose files are left.
        done: Stages that need not run.
    """

    reason: str
    had: str
    ended: int
    wanted: str
    kept: list[str]
    done: list[str]
    gone: list[str] = field(default_factory=list)


SETTLED = [
    Settled("nothing has changed", "abcd", 4, "abcd", ALL, ALL),
    Settled("the last stage", "abcd", 4, "abcx", ALL[:3], ALL[:3]),
    Settled("the middle", "abcd", 4, "abxy", ALL[:2], ALL[:2]),
    Settled("everything", "abcd", 4, "wxyz", [], []),
    Settled("a training that was interrupted goes on from what it left", "abcd", 0, "abcd", ALL, []),
    Settled("a training that was interrupted, of other rows", "abcd", 0, "wxyz", [], []),
    Settled("an audit that failed is done again", "abcd", 1, "abcd", ALL, ALL[:1]),
    Settled(
        "what somebody has deleted is made again", "abcd", 4, "abcd", ["train", "audit", "package"],
        ["train", "audit", "package"], ["optimize"],
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", SETTLED, ids=lambda case: case.reason)
def test_what_is_kept_of_the_same_version(case: Settled, tmp_path: Path) -> None:
    folder = filled(tmp_path, OLD, dict(zip(ALL, case.had, strict=True)), ALL[: case.ended])
    for stage in case.gone:
        shutil.rmtree(folder.path / stage)
    record = folder.load()
    assert folder.settle(record, dict(zip(ALL, case.wanted, strict=True))) == []
    assert list(record.ended) == case.done
    assert record.keys == dict(zip(ALL, case.wanted, strict=True))
    assert sorted(path.name for path in folder.path.iterdir()) == sorted([*case.kept, "logs", "run.json"])


def test_a_stage_that_another_version_has_run_is_taken_from_it(tmp_path: Path) -> None:
    other = filled(tmp_path, OLD, dict(zip(ALL, "abcd", strict=True)), ALL)
    before = files(other)
    mine = Folder(tmp_path, "default", "people", NEW)
    mine.path.mkdir()
    record = mine.load()
    said = mine.settle(record, dict(zip(ALL, "abcx", strict=True)))
    assert said == [f"{stage} is that of {OLD}: same inputs" for stage in ALL[:3]]
    assert files(mine) == [
        "audit/report.json",
        "optimize/candidates/fp32.pt",
        "optimize/report.json",
        "train/report.json",
    ]
    assert not (mine.path / Artifacts.CHECKPOINTS).exists(), "what has ended needs none"
    assert record.ended["train"] == {"workload": {"metadata": {"name": f"{NEW}-train"}}, "pods": []}
    assert (mine.path / "train" / "report.json").read_text() == f'{{"made by": "{OLD}"}}', "evidence is not rewritten"
    assert files(other) == before, "and the other keeps it"


@dataclass(frozen=True)
class Untaken:
    """Another version's folder, and why nothing comes of it."""

    reason: str
    had: str
    ended: list[str]
    spoil: Callable[[Folder], object] = lambda _: None


UNTAKEN = [
    Untaken("it was made of other inputs", "wxyz", ALL),
    Untaken("it has not ended", "abcd", []),
    Untaken("its files are gone", "abcd", ["train"], lambda folder: shutil.rmtree(folder.path / "train")),
    Untaken("its record cannot be read", "abcd", ALL, lambda folder: (folder.path / "run.json").write_text("{")),
    Untaken("it has no record", "abcd", ALL, lambda folder: (folder.path / "run.json").unlink()),
]


@pytest.mark.parametrize("case", UNTAKEN, ids=lambda case: case.reason)
def test_what_is_not_taken(case: Untaken, tmp_path: Path) -> None:
    case.spoil(filled(tmp_path, OLD, dict(zip(ALL, case.had, strict=True)), case.ended))
    mine = Folder(tmp_path, "default", "people", NEW)
    mine.path.mkdir()
    record = mine.load()
    assert mine.settle(record, {"train": "a"}) == []
    assert files(mine) == []
    assert record.ended == {}


def test_of_two_other_versions_the_one_that_ran_last(tmp_path: Path) -> None:
    older = filled(tmp_path, "people-0000000a", {"train": "a"}, ["train"])
    newer = filled(tmp_path, "people-0000000b", {"train": "a"}, ["train"])
    for folder, seconds in ((older, 1000), (newer, 2000)):
        os.utime(folder.path / "run.json", (seconds, seconds))
    filled(tmp_path / "elsewhere", "people-0000000c", {"train": "a"}, ["train"])
    mine = Folder(tmp_path, "default", "people", NEW)
    mine.path.mkdir()
    assert [sibling.version for sibling in mine.siblings()] == [newer.version, older.version]
    assert mine.settle(Record(), {"train": "a"}) == [f"train is that of {newer.version}: same inputs"]


# The record


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    folder = filled(tmp_path, OLD, {"train": "a"}, ["train"])
    found = folder.load()
    assert found.version == {"metadata": {"name": OLD}}
    assert found.keys == {"train": "a"}
    assert found.ended["train"]["workload"]["metadata"]["name"] == f"{OLD}-train"
    assert folder.path == tmp_path / "default" / "people" / OLD, "laid out like the cluster's store"
    assert not list(folder.path.glob("*.new"))


@pytest.mark.parametrize(
    ("reason", "content"),
    [
        ("there is none", None),
        ("it is empty", b""),
        ("it breaks off", b'{"version": {"spec": {"seq'),
        ("it is no text", b"\xff\xfe\x00"),
        ("it is another thing", b"[1, 2]"),
        ("it is nothing", b"null"),
        ("a part is missing", b'{"version": {}, "keys": {}}'),
        ("a part is nothing", b'{"version": null, "keys": {}, "ended": {}}'),
        ("a part is another thing", b'{"version": {}, "keys": "abc", "ended": {}}'),
    ],
)
def test_a_record_that_cannot_be_read_is_none(tmp_path: Path, reason: str, content: bytes | None) -> None:
    folder = filled(tmp_path, OLD, dict(zip(ALL, "abcd", strict=True)), ALL)
    (folder.path / "run.json").unlink()
    if content is not None:
        (folder.path / "run.json").write_bytes(content)
    found = folder.load()
    assert found == Record(), reason
    assert folder.settle(found, dict(zip(ALL, "abcd", strict=True))) == [], reason
    assert not (folder.path / "train").exists(), "whose files these are, nobody knows"


# The lock


HOLDS = """
import sys
from pathlib import Path
from mlplatform.standalone.state import Folder
with Folder(Path(sys.argv[1]), "default", "people", "people-00000001").locked():
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_one_run_at_a_time(tmp_path: Path) -> None:
    # Given a run that is at work
    folder = Folder(tmp_path, "default", "people", OLD)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": PACKAGES}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as other:  # fmt: skip
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"

        # When another is to work on the same version, then it says who is there
        with pytest.raises(CliError) as caught, folder.locked():
            pass
        assert caught.value.cause == f"another run (process {other.pid}) is at work on {OLD} in {folder.path}"
        assert "--store" in caught.value.next_action

        # And on another version it may
        with Folder(tmp_path, "default", "people", NEW).locked():
            pass

        # And when the first was killed, nothing is in the way
        other.kill()
    with folder.locked():
        assert (folder.path / ".lock").read_text() == f"{os.getpid()}\n"
    with folder.locked():
        pass


def test_who_holds_the_lock_may_be_unknown(tmp_path: Path) -> None:
    folder = Folder(tmp_path, "default", "people", OLD)
    folder.path.mkdir(parents=True)
    with (folder.path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(CliError, match=r"another run \(process unknown\) is at work"), folder.locked():
            pass


def test_what_is_raised_within_gives_the_lock_back(tmp_path: Path) -> None:
    folder = Folder(tmp_path, "default", "people", OLD)
    with pytest.raises(KeyboardInterrupt), folder.locked():
        raise KeyboardInterrupt
    with folder.locked():
        pass


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = Folder(tmp_path / "file", "default", "people", OLD)
    with pytest.raises(CliError) as caught, folder.locked():
        pass
    assert caught.value.cause == f"{folder.path} cannot be written: Not a directory"
    assert caught.value.next_action == "free some space there, or name another folder with --store DIR"
    with pytest.raises(CliError, match="cannot be written: Not a directory"):
        folder.save(Record())


def test_a_record_that_could_not_be_written_leaves_the_last_one(tmp_path: Path) -> None:
    folder = filled(tmp_path, OLD, {"train": "a"}, ["train"])
    (folder.path / "run.json.new").symlink_to("/dev/full")
    with pytest.raises(CliError, match="cannot be written: No space left on device"):
        folder.save(Record())
    assert folder.load().keys == {"train": "a"}


def test_a_relative_store_is_told_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Folder(Path("store"), "a", "b", "c").path == tmp_path / "store" / "a" / "b" / "c"
    assert str(tmp_path / "store/a/b/c") == contract.artifact_root(f"{tmp_path}/store", "a", "b", "c")


@pytest.mark.parametrize(
    ("left", "goes", "reason"),
    [
        ("mlplatform-abc_123", True, "of a run that was killed"),
        ("somebody-elses", False, "of another kind"),
        ("../mlplatform-abc", False, "a path out of the temporary folder"),
        ("mlplatform-abc/../../home", False, "likewise"),
    ],
)
def test_scratch_of_a_killed_run_goes_and_nothing_else(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    left: str,
    goes: bool,  # noqa: FBT001  a column
    reason: str,
) -> None:
    place = tmp_path / "tmp" / "deep"
    place.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    (place / left).mkdir(parents=True, exist_ok=True)
    folder = Folder(tmp_path / "store", "default", "adult", "adult-1")
    folder.path.mkdir(parents=True)
    (folder.path / ".scratch").write_text(left)
    with folder.scratch() as found:
        assert found.is_dir()
        assert (place / left).exists() is not goes, reason
    assert not found.exists()
    assert not (folder.path / ".scratch").exists()
