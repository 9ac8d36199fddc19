"""The frames of `kubectl mlmodel`, whole, at fixed widths, and its lines without a terminal.

`pytest --update-golden` writes tests/golden/cli/ anew; read the difference before committing it.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from rich.console import Console
from unit import cli_objects as objects

from mlplatform.cli import render
from mlplatform.cli.view import ModelView, model_view

GOLDEN = Path(__file__).parent.parent / "golden" / "cli"


def view(moment: str) -> ModelView:
    model, versions = objects.LIFE[moment]
    return model_view(model, versions, objects.NOW)


def drawn(renderable: object, width: int, *, color: bool = False) -> str:
    file = io.StringIO()
    kind: Literal["truecolor"] | None = "truecolor" if color else None
    Console(file=file, width=width, force_terminal=color, color_system=kind, highlight=False).print(renderable)
    return file.getvalue()


@dataclass(frozen=True)
class Frame:
    """A moment at a width, and why it is kept."""

    reason: str
    moment: str
    width: int
    signs: render.Signs = render.UNICODE


FRAMES = [
    Frame("nothing is known yet, and the view says what it waits for", "applied", 100),
    Frame("the first stage runs, the rest is listed", "training", 100),
    Frame("what is tried again stands in a box of its own and is not called a failure", "retrying", 100),
    Frame("measurements appear as soon as their stage ends", "optimizing", 100),
    Frame("the whole story of a version that serves", "serving", 100),
    Frame("the weights are a bar and numbers", "rolling", 100),
    Frame("a failure names cause, next action, pod, log and who still serves", "failed", 100),
    Frame("a rejected spec has no stages to show", "rejected", 100),
    Frame("what waits to be mended stands in a yellow box, beside the stage that waits", "blocked", 100),
    Frame("an add-on that is missing is named, and is no failure", "without-add-on", 100),
    Frame("what the operator may not do is a failure with the API server's words", "refused", 100),
    Frame("what waits in a queue does not run, and who serves stays in sight", "queued", 80),
    Frame("on the way back: what is waited for, and who serves meanwhile", "going-back", 80),
    Frame("a stable version without pods is not said to serve; who stands in is named", "stood-in-for", 80),
    Frame("on 60 columns sentences wrap and no number is cut", "rolling", 60),
    Frame("where the terminal has no Unicode the same stands in ASCII", "failed", 100, render.PLAIN),
]


@pytest.mark.parametrize("case", FRAMES, ids=lambda case: case.reason)
def test_frame(case: Frame, request: pytest.FixtureRequest) -> None:
    found = "\n".join(
        line.rstrip() for line in drawn(render.frame(view(case.moment), case.signs), case.width).split("\n")
    )
    name = f"{case.moment}-{case.width}{'' if case.signs is render.UNICODE else '-ascii'}.txt"
    assert found == golden(request, name, found), case.reason


def golden(request: pytest.FixtureRequest, name: str, found: str) -> str:
    """What is kept under that name; `--update-golden` keeps what was found."""
    path = GOLDEN / name
    if request.config.getoption("--update-golden"):
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(found, encoding="utf-8")
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize("moment", objects.LIFE)
def test_colour_adds_nothing_that_words_do_not_say(moment: str) -> None:
    frame = render.frame(view(moment))
    colored = Console(file=io.StringIO(), width=100, force_terminal=True, color_system="truecolor", record=True)
    colored.print(frame)
    assert colored.export_text().split() == drawn(frame, 100).split()


@pytest.mark.parametrize(
    ("reason", "moment", "color"),
    [
        ("what failed is red", "failed", "31"),
        ("what the operator was refused is red", "refused", "31"),
        ("what is tried again is yellow", "retrying", "33"),
        ("an image that cannot be pulled yet is yellow", "blocked", "33"),
        ("a missing add-on is yellow", "without-add-on", "33"),
    ],
)
def test_boxes_have_the_colour_of_their_gravity(reason: str, moment: str, color: str) -> None:
    border = next(line for line in drawn(render.frame(view(moment)), 100, color=True).splitlines() if "╭" in line)
    assert border.startswith(f"\x1b[{color}m╭"), reason


def test_ascii_signs_are_ascii() -> None:
    for moment in objects.LIFE:
        drawn(render.frame(view(moment), render.PLAIN), 100).encode("ascii")


def test_changes_tell_the_life_of_a_model_once(request: pytest.FixtureRequest) -> None:
    told: list[str] = []
    before: dict[str, str] = {}
    for moment in ("applied", "training", "training", "optimizing", "serving", "rolling", "failed"):
        after = render.facts(view(moment))
        told += render.changes(before, after)
        before = after
    found = "\n".join(told) + "\n"
    assert found == golden(request, "life.txt", found)


def test_time_alone_changes_no_fact() -> None:
    model, versions = objects.LIFE["optimizing"]
    later = objects.NOW.replace(hour=13)
    assert render.facts(model_view(model, versions, objects.NOW)) == render.facts(model_view(model, versions, later))


def test_tables() -> None:
    views = [view("serving"), view("rolling"), view("failed"), view("rejected")]
    rows = drawn(render.models_table(views, wide=False, namespaces=True), 100).splitlines()
    assert [row.split() for row in rows] == [
        ["NAMESPACE", "NAME", "READY", "STAGE", "SERVING", "LATEST", "WEIGHT", "AGE"],
        ["default", "adult-income", "True", "Ready", "v1", "v1", "100", "%", "2m", "00s"],
        ["default", "adult-income", "Unknown", "RollingOut", "v1", "v2", "25", "%", "2m", "00s"],
        ["default", "adult-income", "False", "OOMKilled", "v1", "v2", "100", "%", "2m", "00s"],
        ["default", "adult-income", "False", "SpecInvalid", "-", "-", "-", "2m", "00s"],
    ]
    history = drawn(render.history_table(view("serving")), 120).splitlines()
    assert history[1].split()[:5] == ["2026-03-01T12:01:30Z", "v1", objects.V1, "Promoted", "FirstVersion"]
