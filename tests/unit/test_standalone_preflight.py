"""What is refused before anything is trained, and in which words."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from mlplatform import api
from mlplatform.errors import CliError
from mlplatform.standalone import preflight

TABULAR = api.Training()


def spec(training: api.Training = TABULAR) -> api.MLModelSpec:
    return api.MLModelSpec(data=api.Data(uri="/data", label="rich"), training=training)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, which is not on this program's path."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in {"", "."}])
    return folder


@pytest.fixture
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Says how many GPUs this machine has."""
    devices = tmp_path / "dev"
    devices.mkdir()
    monkeypatch.setattr(preflight, "GPU_DEVICES", devices)

    def have(count: int) -> None:
        for name in ("nvidiactl", "nvidia-uvm", "nvidia-modeset", "sda1", *(f"nvidia{i}" for i in range(count))):
            (devices / name).touch()

    return have


def test_what_is_sound_passes(here: Path) -> None:
    preflight.check(spec(), here / "a" / "store")
    assert list((here / "a" / "store").iterdir()) == [], "the folder is there, and nothing is left of the probe"


def test_only_linux_has_what_a_run_needs(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(CliError) as caught:
        preflight.check(spec(), here)
    assert caught.value.cause == "a run needs Linux, this is darwin"
    assert "container" in caught.value.next_action


# Packages


@pytest.mark.parametrize(
    ("reason", "packages", "cause"),
    [
        ("one is missing", ("torch", "no_such"), "no_such is not installed, which the stages need"),
        ("two are", ("no_such", "yaml", "nor_this"), "no_such, nor_this are not installed, which the stages need"),
    ],
)
def test_packages_that_are_missing(
    monkeypatch: pytest.MonkeyPatch, reason: str, packages: tuple[str, ...], cause: str
) -> None:
    monkeypatch.setattr(preflight, "PACKAGES", packages)
    with pytest.raises(CliError) as caught:
        preflight.check(spec(), Path())
    assert caught.value.cause == cause, reason
    assert caught.value.next_action.startswith("pip install 'mlplatform[run]'"), reason
    assert caught.value.code == 1, reason


# The store


def test_a_store_that_cannot_be_written(here: Path) -> None:
    (here / "file").touch()
    for store in (here / "file", here / "file" / "store"):
        with pytest.raises(CliError) as caught:
            preflight.check(spec(), store)
        assert caught.value.cause in {f"{store} cannot be written: {why}" for why in ("Not a directory", "File exists")}
        assert caught.value.next_action == "free some space there, or name another folder with --store DIR"


def test_a_disk_without_room(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "FREE_BYTES", 2**60)
    with pytest.raises(CliError) as caught:
        preflight.check(spec(), here)
    start, end = f"the disk of {here} has ", f" MiB left, below {2**40}"
    assert caught.value.cause.startswith(start)
    assert caught.value.cause.endswith(end)
    assert caught.value.cause.removeprefix(start).removesuffix(end).isdecimal()
    assert "--store DIR" in caught.value.next_action


# GPUs


@dataclass(frozen=True)
class Gpus:
    """What a training asks for, what there is, and what is said; nothing where it may run."""

    reason: str
    each: int
    workers: int
    there: int
    cause: str = ""


GPUS = [
    Gpus("none is asked for, none is there", 0, 2, 0),
    Gpus("none is asked for", 0, 2, 4),
    Gpus("as many as there are", 2, 2, 4),
    Gpus("one and none", 1, 1, 0, "1 GPU is asked for, this machine has none"),
    Gpus("two and one", 2, 1, 1, "2 GPUs are asked for, this machine has 1"),
    Gpus("one each and none", 1, 2, 0, "2 GPUs are asked for (2 workers with 1 each), this machine has none"),
    Gpus("two each and three", 2, 2, 3, "4 GPUs are asked for (2 workers with 2 each), this machine has 3"),
]


@pytest.mark.parametrize("case", GPUS, ids=lambda case: case.reason)
def test_gpus(case: Gpus, here: Path, gpus: Callable[[int], None]) -> None:
    gpus(case.there)
    assert preflight.gpu_count() == case.there
    wanted = spec(api.Training(workers=case.workers, resources=api.TrainingResources(gpu=case.each)))
    if not case.cause:
        preflight.check(wanted, here)
        return
    with pytest.raises(CliError) as caught:
        preflight.check(wanted, here)
    assert caught.value.cause == f"spec.training.resources.gpu: {case.cause}"
    assert caught.value.next_action.startswith("add --set training.resources.gpu=0")


# A task of the user's own


@dataclass(frozen=True)
class OwnTask:
    """Files of the working folder, and what is said of the task; nothing where it may run.

    Attributes:
        reason: What it shows.
        files: Their content by name.
        task: As the spec names it.
        cause: What is said, less what is said of the image.
        next_action: What to do.
        code: The exit code.
    """

    reason: str
    files: dict[str, str]
    task: str = "ranking.task:Ranking"
    cause: str = ""
    next_action: str = ""
    code: int = 1


SOUND = "import json\nimport torch.nn as nn\nfrom collections import abc\nclass Ranking: ...\n"
TASKS = [
    OwnTask("a package of the working folder", {"ranking/__init__.py": "", "ranking/task.py": SOUND}),
    OwnTask("a module of the working folder", {"ranking.py": SOUND}, "ranking:Ranking"),
    OwnTask("one that is installed", {}, "mljobs.tasks.tabular:TabularTask"),
    OwnTask("the built-in one is no package", {}, "tabular"),
    OwnTask(
        "files that import each other",
        {"ranking/task.py": "from ranking.loss import x\nfrom . import loss\nfrom .loss import x\nimport helpers", "ranking/loss.py": "x = 1",
         "helpers.py": ""},
    ),
    OwnTask(
        "what may be missing, may",
        {"ranking/task.py": "try:\n    import no_such\nexcept ImportError:\n    no_such = None\n"
         "def late():\n    import nor_this\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import not_this\n"},
    ),
    OwnTask(
        "a module that is nowhere", {}, cause="spec.training.task 'ranking.task:Ranking': there is no module ranking",
        next_action="run this in the folder that has ranking, or install it: pip install ranking", code=2,
    ),
    OwnTask(
        "a misspelt package", {"rankings/task.py": SOUND},
        cause="spec.training.task 'ranking.task:Ranking': there is no module ranking (did you mean rankings?)",
        next_action="run this in the folder that has ranking, or install it: pip install ranking", code=2,
    ),
    OwnTask(
        "a misspelt module", {"rankings.py": SOUND}, "rankngs:Ranking",
        "spec.training.task 'rankngs:Ranking': there is no module rankngs (did you mean rankings?)",
        "run this in the folder that has rankngs, or install it: pip install rankngs", 2,
    ),
    OwnTask(
        "a folder of data by that name", {"ranking/rows.csv": ""},
        cause="spec.training.task 'ranking.task:Ranking': there is no module ranking",
        next_action="run this in the folder that has ranking, or install it: pip install ranking", code=2,
    ),
    OwnTask(
        "it imports what is not there", {"ranking/task.py": "import json, no_such.deep\n"},
        cause="ranking imports no_such, which is not installed",
        next_action="pip install no_such (if they are called that on the package index)",
    ),
    OwnTask(
        "it and the package around it do; what a test beside it imports is not asked",
        {"ranking/task.py": "import no_such", "ranking/__init__.py": "from nor_this.x import y", "ranking/test_x.py": "import z_z"},
        cause="ranking imports no_such, nor_this, which are not installed",
        next_action="pip install no_such nor_this (if they are called that on the package index)",
    ),
    OwnTask(
        "it is no Python", {"ranking/task.py": "import json\ndef x(:\n"},
        cause="{here}/ranking/task.py, line 2: invalid syntax", next_action="correct it",
    ),
]  # fmt: skip


@pytest.mark.parametrize("image", ["", "registry/ranking:1"])
@pytest.mark.parametrize("case", TASKS, ids=lambda case: case.reason)
def test_a_task_of_the_users_own(case: OwnTask, image: str, here: Path) -> None:
    for name, content in case.files.items():
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).write_text(content)
    wanted = spec(api.Training(task=case.task, image=image))
    if not case.cause:
        preflight.check(wanted, here / "store")
        return
    with pytest.raises(CliError) as caught:
        preflight.check(wanted, here / "store")
    whose = f"spec.training.image {image} is not used here, so its packages must be importable: " if image else ""
    cause = case.cause.format(here=here)
    assert caught.value.cause == (cause if cause.startswith("/") else whose + cause)
    assert caught.value.next_action == case.next_action
    assert caught.value.code == case.code


def test_a_task_is_not_imported_to_look_at_it(here: Path) -> None:
    (here / "loud_task.py").write_text("raise SystemExit('imported')\n")
    preflight.check(spec(api.Training(task="loud_task:Task")), here)
    assert "loud_task" not in sys.modules
