"""How `kubectl mlmodel run` shows a run: the view of `watch`, less what only a cluster has."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from mlplatform.cli import run as command
from mlplatform.cli.main import parser
from mlplatform.cli.view import ModelView, Outcome
from mlplatform.snapshot import Object
from mlplatform.standalone.engine import Moment

NOW = datetime(2026, 3, 1, 12, 1, 0, tzinfo=UTC)
BEGAN = "2026-03-01T12:00:00Z"


def said(kind: str, status: str, reason: str, message: str = "") -> Object:
    return {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": BEGAN}


def a_moment(*conditions: Object, progress: dict[str, str] | None = None, **status: Any) -> Moment:
    """A version whose training has passed and whose audit runs, unless the conditions say otherwise."""
    stages = [
        {"name": "train", "outcome": "Succeeded", "startedAt": BEGAN, "finishedAt": "2026-03-01T12:00:20Z"},
        {"name": "audit", "outcome": "Running", "startedAt": BEGAN},
    ]
    model = {"metadata": {"name": "adult", "namespace": "default"}, "spec": {"data": {"uri": "x", "label": "y"}}}
    spec = {"model": "adult", "sequence": 1, "data": {"uri": "x", "label": "y"}}
    return Moment(
        model,
        {
            "metadata": {"name": "adult-1234abcd", "namespace": "default"},
            "spec": spec,
            "status": {
                "stage": "Auditing",
                "stages": stages,
                "conditions": [said("Accepted", "True", "SpecValid"), *conditions],
                **status,
            },
        },
        progress or {},
    )


def shown(moment: Moment) -> ModelView:
    return command.as_view(moment, NOW)


def states(view: ModelView) -> dict[str, str]:
    assert view.version is not None
    return {stage.name: stage.state for stage in view.version.stages}


def test_a_run_has_the_stages_and_no_rollout() -> None:
    view = shown(a_moment(said("Ready", "Unknown", "Auditing")))
    assert states(view) == {"train": "succeeded", "audit": "running", "optimize": "pending", "package": "pending"}
    assert (view.outcome, view.traffic, view.url) == (Outcome.PROGRESSING, None, "")


def test_a_version_that_passed_everything_is_ready() -> None:
    view = shown(a_moment(said("Ready", "True", "PipelinePassed"), stage="Ready"))
    assert view.outcome is Outcome.READY
    assert view.failure is None


def test_a_stage_that_failed_is_told_in_the_operators_words() -> None:
    failure = {"class": "OOMKilled", "message": "used more memory", "nextAction": "Raise it.", "stage": "audit"}
    view = shown(a_moment(said("Ready", "False", "AuditFailed", "audit failed"), stage="Failed", failure=failure))
    assert view.outcome is Outcome.FAILED
    assert view.failure is not None
    assert (view.failure.reason, view.failure.message, view.failure.next_action) == (
        "OOMKilled",
        "used more memory",
        "Raise it.",
    )


def test_a_gate_that_was_missed_shows_while_the_run_goes_on_and_fails_it_at_the_end() -> None:
    missed = said("Audited", "True", "GateFailed", "roc_auc is 0.7, below the gate's min 0.9. Train a better one.")
    running = shown(a_moment(missed, said("Ready", "Unknown", "Optimizing")))
    assert running.outcome is Outcome.PROGRESSING
    assert states(running)["audit"] == "failed"
    over = shown(a_moment(missed, said("Ready", "True", "PipelinePassed"), stage="Ready"))
    assert over.outcome is Outcome.FAILED
    assert over.failure is not None
    assert over.failure.message == "audit: roc_auc is 0.7, below the gate's min 0.9. Train a better one."


@pytest.mark.parametrize(
    ("progress", "words", "reason"),
    [
        ({}, "", "nothing has been said yet"),
        (
            {"epoch": "3/12", "step": "99/396", "loss": "0.3008", "rows_per_s": "14349", "eta_s": "83"},
            "epoch 3/12, step 99/396, loss 0.3008, 14,349 rows/s, 1m 23s left",
            "within an epoch",
        ),
        (
            {"epoch": "3/12", "step": "99/396", "val_roc_auc": "0.9185", "eta_s": "0"},
            "epoch 3/12, step 99/396, val_roc_auc 0.9185, 0s left",
            "at an epoch's end",
        ),
    ],
)
def test_progress_in_words(progress: dict[str, str], words: str, reason: str) -> None:
    assert command.progress_words(progress) == words, reason


def test_only_the_running_training_shows_progress() -> None:
    moment = a_moment(said("Ready", "Unknown", "Auditing"), progress={"epoch": "1/2"})
    view = shown(moment)
    assert view.version is not None
    assert [stage.summary for stage in view.version.stages] == [""] * 4


@pytest.mark.parametrize(
    ("program", "on_path", "kubectl", "said_so", "reason"),
    [
        ("bin/kubectl-mlmodel", True, True, "kubectl mlmodel run -f m.yaml", "kubectl finds the plugin"),
        ("bin/kubectl-mlmodel", True, False, "kubectl-mlmodel run -f m.yaml", "there is no kubectl"),
        ("bin/kubectl-mlmodel", False, True, "bin/kubectl-mlmodel run -f m.yaml", "it is not on PATH"),
        ("cli/main.py", False, True, "python -m mlplatform.cli.main run -f m.yaml", "started as a module"),
    ],
)
def test_the_command_to_type_again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    program: str,
    on_path: bool,  # noqa: FBT001  a column
    kubectl: bool,  # noqa: FBT001  likewise
    said_so: str,
    reason: str,
) -> None:
    own, path = tmp_path / program, tmp_path / "path"
    for folder in (own.parent, path):
        folder.mkdir()
    own.touch(mode=0o755)
    if on_path:
        (path / "kubectl-mlmodel").symlink_to(own)
    if kubectl:
        (path / "kubectl").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(own), "run", "-f", "m.yaml", "--serve"])
    assert command.command_line() == said_so, reason


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["run"], "no file"),
        (["run", "-f", "x", "--rows", "0"], "no rows are no sample"),
        (["run", "-f", "x", "--rows", "many"], "no number"),
        (["run", "-f", "x", "--port", "70000"], "no port"),
        (["run", "-f", "x", "--until", "rollout"], "a run has no rollout"),
        (["run", "-f", "x", "--ask", "age=38"], "no JSON"),
    ],
)
def test_wrong_usage_ends_with_2(words: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        parser().parse_args(words)
    assert raised.value.code == 2, reason
    assert "error:" in capsys.readouterr().err
