"""The step runner of the local cluster: order, failure report, what is shown."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from local import console, steps
from local.steps import (
    RunError,
    Shell,
    Step,
    StepError,
    Timing,
    check_graph,
    failure_report,
    ready,
    run_steps,
    timing_table,
)


def step(name: str, *needs: str) -> Step:
    return Step(name, f"do {name}", lambda _: "done", needs)


@pytest.mark.parametrize(
    ("begun", "done", "expected", "reason"),
    [
        ((), (), ["apt", "check"], "what needs nothing starts at once, in the given order"),
        (("apt", "check"), ("apt",), ["build", "wheels"], "independent builds start side by side once apt is done"),
        (("apt", "check", "build", "wheels"), ("apt", "check", "wheels"), [], "start waits for every need"),
        (("apt", "check", "build", "wheels"), ("apt", "build", "wheels"), ["start"], "start needs no unrelated step"),
    ],
)
def test_ready(begun: tuple[str, ...], done: tuple[str, ...], expected: list[str], reason: str) -> None:
    graph = [step("apt"), step("check"), step("build", "apt"), step("wheels", "apt"), step("start", "build", "wheels")]
    assert [s.name for s in ready(graph, frozenset(begun), frozenset(done))] == expected, reason


@pytest.mark.parametrize(
    ("graph", "message", "reason"),
    [
        ([step("a"), step("a")], "appears twice", "a log and a need are found by name"),
        ([step("a", "b")], "nobody provides", "a typing mistake in a need must not hang"),
        ([step("a", "b"), step("b", "a")], "circle", "a circle would never finish"),
    ],
)
def test_check_graph_refuses(graph: list[Step], message: str, reason: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_graph(graph)
    assert reason


def test_independent_steps_run_at_the_same_time(tmp_path: Path) -> None:
    meeting = threading.Barrier(2, timeout=10)
    graph = [
        Step("left", "meet", lambda _: str(meeting.wait() >= 0)),
        Step("right", "meet", lambda _: str(meeting.wait() >= 0)),
    ]
    timings = run_steps(graph, console.Console(io.StringIO()), tmp_path)
    assert {t.name for t in timings} == {"left", "right"}


def test_a_failure_stops_the_others_and_says_what_to_try(tmp_path: Path) -> None:
    started = threading.Event()

    def sleeper(shell: Shell) -> str:
        started.set()
        shell.run([sys.executable, "-c", "import time; time.sleep(60)"])
        return "never"

    def fails(shell: Shell) -> str:
        assert started.wait(10)
        shell.run([sys.executable, "-c", "print('cannot reach the mirror'); raise SystemExit(3)"])
        return "never"

    out = io.StringIO()
    graph = [
        Step("sleep", "wait", sleeper),
        Step("fetch", "get it", fails, hint="Check the mirror."),
        Step("later", "not reached", lambda _: "never", ("fetch",)),
    ]
    with pytest.raises(RunError):
        run_steps(graph, console.Console(out), tmp_path)
    text = out.getvalue()
    assert "step 'fetch' failed" in text
    assert "    cannot reach the mirror" in text
    assert "try: Check the mirror." in text
    assert "later" not in text, "a step whose need failed never starts"
    assert text.count("failed") == 1, "a stopped step is no second failure"


@pytest.mark.parametrize(
    ("hint", "expected", "reason"),
    [
        ("Do that.", "try: Do that.", "an error's own hint is the closest"),
        ("", "try: Run it again: finished parts are kept.", "else the step's"),
    ],
)
def test_failure_report(tmp_path: Path, hint: str, expected: str, reason: str) -> None:
    log = tmp_path / "x.log"
    log.write_text("\n".join(f"line {i}" for i in range(100)))
    report = failure_report(step("x"), "it broke", hint, log)
    assert report[0] == "step 'x' failed: it broke"
    assert report[-1].strip() == expected, reason
    assert [line.strip() for line in report if line.strip().startswith("line")] == [f"line {i}" for i in range(80, 100)]


def test_a_contained_command_leaves_no_child() -> None:
    """Without root there are no namespaces, so only the command line is looked at."""
    from local.steps import CONTAINED  # noqa: PLC0415 - used here only

    assert "--pdeathsig" in CONTAINED
    assert "--kill-child=KILL" in CONTAINED


@pytest.mark.parametrize(
    ("argv", "cause", "reason"),
    [
        (["/nonexistent/program"], "is not installed", "a missing program is named"),
        ([sys.executable, "-c", "raise SystemExit(7)"], "ended with status 7", "the status is told"),
    ],
)
def test_shell_errors(tmp_path: Path, argv: list[str], cause: str, reason: str) -> None:
    with pytest.raises(StepError, match=cause):
        Shell(tmp_path / "log").run(argv)
    assert reason


def test_shell_logs_and_captures(tmp_path: Path) -> None:
    shell = Shell(tmp_path / "logs" / "x.log")
    assert shell.run([sys.executable, "-c", "print(input())"], capture=True, stdin=b"fed\n") == "fed\n"
    shell.run([sys.executable, "-c", "print('logged')"])
    assert "logged" in shell.log.read_text()


@pytest.mark.parametrize(
    ("environ", "terminal", "wanted", "reason"),
    [
        ({}, True, True, "a terminal gets colours"),
        ({}, False, False, "a file or pipe does not"),
        ({"NO_COLOR": "1"}, True, False, "NO_COLOR turns them off"),
        ({"NO_COLOR": ""}, True, True, "an empty NO_COLOR does not count"),
        ({"TERM": "dumb"}, True, False, "a dumb terminal shows them as dirt"),
    ],
)
def test_colours(environ: dict[str, str], terminal: bool, wanted: bool, reason: str) -> None:  # noqa: FBT001 - a table
    assert console.colours_wanted(environ, is_terminal=terminal) is wanted, reason


@pytest.mark.parametrize(("value", "text"), [(0.04, "0.0 s"), (9.94, "9.9 s"), (12.4, "12 s"), (245.0, "4 min 05 s")])
def test_seconds(value: float, text: str) -> None:
    assert console.seconds(value) == text


def test_tail_shows_what_a_progress_line_ended_as() -> None:
    assert console.tail("10%\r50%\r100%\n\n  \ndone\n", 2) == ["100%", "done"]


def test_timing_table_ends_with_the_wall_time() -> None:
    lines = timing_table([Timing("packages", "all there", 0.4), Timing("kubernetes", "built", 245.0, 431.0)], 250.0)
    assert [re.split(r"\s{2,}", line)[:3] for line in lines] == [
        ["step", "took", "CPU"],
        ["packages", "0.4 s", "0.0 s"],
        ["kubernetes", "4 min 05 s", "7 min 11 s"],
        ["total (wall)", "4 min 10 s"],
    ]


def test_waiting_for_a_turn_is_not_counted(tmp_path: Path) -> None:
    shell, places = Shell(tmp_path / "log"), threading.Semaphore(0)
    releasing = threading.Timer(0.2, places.release)
    releasing.start()
    with shell.turn(places):
        assert shell.waited >= 0.1
    releasing.join()


def test_who_waits_long_is_told_what_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "STILL_SECONDS", 0.05)
    out = io.StringIO()
    told = threading.Event()

    def waits(_: Shell) -> str:
        assert told.wait(10)
        return "built"

    class Watched(console.Console):
        def line(self, text: str = "") -> None:
            super().line(text)
            if "still at it" in text:
                told.set()

    run_steps([Step("build kubernetes", "long", waits)], Watched(out), tmp_path)
    assert re.search(r"still at it: build kubernetes \(0\.\d s\)", out.getvalue())


def test_processor_time_counts_what_a_commands_children_took(tmp_path: Path) -> None:
    shell = Shell(tmp_path / "log")
    spin = "import time\nwhile time.process_time() < 0.3: pass"
    shell.run(["sh", "-c", f"{sys.executable} -c '{spin}'; true"])
    assert 0.2 <= shell.cpu < 10  # counted in hundredths, rounded down
    shell.run(["sleep", "0.1"])
    assert shell.cpu < 10, "waiting takes no processor"


@pytest.mark.parametrize(
    ("duration", "worked", "reason"),
    [(0.3, False, "an image that is there, an add-on that runs"), (21.0, True, "a build")],
)
def test_only_work_is_remembered(duration: float, worked: bool, reason: str) -> None:  # noqa: FBT001 - a table
    assert Timing("x", "", duration).worked is worked, reason


def test_help_has_examples() -> None:
    shown = subprocess.run([sys.executable, "-m", "local", "--help"], capture_output=True, text=True, check=True)
    for verb in ("up", "down", "status", "binaries", "images", "kubeconfig", "doctor"):
        assert verb in shown.stdout
    assert "examples:" in shown.stdout
    assert "\033" not in shown.stdout


def test_cancelling_a_command_that_has_just_ended_is_no_error(tmp_path: Path) -> None:
    with subprocess.Popen(["true"], start_new_session=True) as process:
        process.wait()
    shell = Shell(tmp_path / "log")
    # As between its end and the moment at which somebody asks for it.
    shell._running = cast("Any", SimpleNamespace(pid=process.pid, poll=lambda: None))  # noqa: SLF001
    shell.cancel()
