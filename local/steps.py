"""Runs the steps of an `up`: side by side where they do not need each other.

Called by `cluster.py`. A step is a name, a sentence of why, the steps it needs and a
function; every command it runs goes to the step's own log, so a failure can show it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from local.console import Console, seconds, table, tail

STILL_SECONDS: Final = 60.0
"""How long nothing may end before the person who waits is told what goes on."""


class StepError(Exception):
    """A step cannot go on.

    Attributes:
        cause: One sentence of what is wrong.
        hint: One sentence of what to try; empty: the step's own.
    """

    def __init__(self, cause: str, hint: str = "") -> None:
        super().__init__(cause)
        self.cause = cause
        self.hint = hint


CONTAINED: Final = (
    *("setpriv", "--pdeathsig", "KILL", "--"),
    *("unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child=KILL", "--"),
)
"""Puts a command, its children and its mounts in namespaces that end when we do, even by SIGKILL."""


class CancelledError(Exception):
    """Another step failed, so this one was stopped."""


class Shell:
    """Runs one step's commands into its log, and stops them when told to.

    Attributes:
        log: The step's log file.
        cpu: Seconds of processor time that its commands took; those whose output was asked for are not counted.
        waited: Seconds in which it waited for its turn.
    """

    def __init__(self, log: Path) -> None:
        self.log = log
        self.cpu = 0.0
        self.waited = 0.0
        self._lock = threading.Lock()
        self._running: subprocess.Popen[bytes] | None = None
        self._cancelled = False
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_bytes(b"")

    def run(  # noqa: PLR0913 - keyword-only options of one command
        self,
        argv: Sequence[str | Path],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        capture: bool = False,
        stdin: bytes | None = None,
        must_finish: bool = False,
        contained: bool = False,
        check: bool = True,
    ) -> str:
        """Runs a command; output goes to the log.

        Args:
            argv: Program and arguments.
            cwd: Folder to run in.
            env: Variables beside the inherited ones.
            capture: Return standard output instead of logging it.
            stdin: Bytes to feed; nothing by default.
            must_finish: A cancelled run still waits for it (a package manager, half-way).
            contained: Nothing of it, no child and no mount, outlives this process.
            check: Raise on another exit status than 0.

        Returns:
            Standard output when captured, else the empty string.

        Raises:
            StepError: It could not be started or failed.
            CancelledError: The run was stopped.
        """
        words = [*(CONTAINED if contained else ()), *(str(word) for word in argv)]
        with self.log.open("ab") as log:
            log.write(f"+ {' '.join(words)}\n".encode())
            log.flush()
            process = self._start(
                words, log, cwd, env, capture=capture, feed=stdin is not None, tracked=not must_finish
            )
            if not capture and stdin is None:
                os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
                self.cpu += _cpu_seconds(process.pid)
            out, _ = process.communicate(stdin)
        with self._lock:
            self._running = None
            if self._cancelled:
                raise CancelledError(words[0])
        if check and process.returncode != 0:
            shown = words[len(CONTAINED) :] if contained else words
            raise StepError(f"`{' '.join(shown[:5])}` ended with status {process.returncode}")
        return out.decode(errors="replace") if capture else ""

    def _start(  # noqa: PLR0913 - what `run` was given
        self,
        words: list[str],
        log: IO[bytes],
        cwd: Path | None,
        env: Mapping[str, str] | None,
        *,
        capture: bool,
        feed: bool,
        tracked: bool,
    ) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._cancelled:
                raise CancelledError(words[0])
            try:
                process = subprocess.Popen(
                    words,
                    cwd=cwd,
                    env={**os.environ, **env} if env else None,
                    stdin=subprocess.PIPE if feed else subprocess.DEVNULL,
                    stdout=subprocess.PIPE if capture else log,
                    stderr=log,
                    start_new_session=True,
                )
            except FileNotFoundError:
                raise StepError(f"the program {words[0]} is not installed") from None
            if tracked:
                self._running = process
            return process

    @contextmanager
    def turn(self, places: threading.Semaphore) -> Iterator[None]:
        """Waits for one of few places, in the order in which they are asked for."""
        start = time.monotonic()
        with places:
            self.waited += time.monotonic() - start
            yield

    def note(self, text: str) -> None:
        """Adds a line to the log."""
        with self.log.open("a") as log:
            log.write(text + "\n")

    def cancel(self) -> None:
        """Stops the running command with its children; later ones do not start."""
        with self._lock:
            self._cancelled = True
            if self._running is not None and self._running.poll() is None:
                with suppress(ProcessLookupError):  # it has just ended by itself
                    os.killpg(self._running.pid, signal.SIGKILL)


def _cpu_seconds(pid: int) -> float:
    """Processor time of an ended process that nobody has waited for yet, and of its children (proc(5), stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(ticks) for ticks in fields[11:15]) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to bring about.

    Attributes:
        name: Short, in lower case; also its log's name.
        why: What happens, for the person who waits.
        run: Does it; returns a note for the done line, e.g. ``cached``.
        needs: Names of the steps that must have ended well before.
        hint: What to try when it fails.
    """

    name: str
    why: str
    run: Callable[[Shell], str]
    needs: tuple[str, ...] = ()
    hint: str = "Run it again: finished parts are kept."


@dataclass(frozen=True, slots=True)
class Timing:
    """How long a step took, once it had its turn."""

    name: str
    note: str
    duration: float
    cpu: float = 0.0

    @property
    def worked(self) -> bool:
        """Whether there was something to do: a step that finds its work done needs no second to see that."""
        return self.duration >= 1


class RunError(Exception):
    """A run ended early; the console has already told why."""


def ready(steps: Sequence[Step], begun: frozenset[str], done: frozenset[str]) -> list[Step]:
    """The steps that may start now, in the order they were given."""
    return [step for step in steps if step.name not in begun and done.issuperset(step.needs)]


def check_graph(steps: Sequence[Step]) -> None:
    """Refuses a graph that could never finish.

    Raises:
        ValueError: A name twice, an unknown need, or a circle.
    """
    names = [step.name for step in steps]
    if len(set(names)) != len(names):
        raise ValueError(f"a step's name appears twice in {names}")
    for step in steps:
        if unknown := set(step.needs) - set(names):
            raise ValueError(f"step {step.name} needs {sorted(unknown)}, which nobody provides")
    done: frozenset[str] = frozenset()
    while len(done) < len(steps):
        found = ready(steps, done, done)
        if not found:
            raise ValueError(f"steps need each other in a circle: {sorted(set(names) - done)}")
        done |= {step.name for step in found}


def failure_report(step: Step, cause: str, hint: str, log: Path) -> list[str]:
    """What a person needs: which step, why, the end of its log, what to try."""
    lines = tail(log.read_text(errors="replace")) if log.exists() else []
    return [
        f"step {step.name!r} failed: {cause}",
        *(f"    {line}" for line in lines),
        f"  log: {log}",
        f"  try: {hint or step.hint}",
    ]


@dataclass(slots=True)
class _Run:
    steps: Sequence[Step]
    console: Console
    logs: Path
    begun: set[str] = field(default_factory=set)
    done: set[str] = field(default_factory=set)
    shells: dict[str, Shell] = field(default_factory=dict)
    timings: list[Timing] = field(default_factory=list)
    since: dict[str, float] = field(default_factory=dict)
    failed: bool = False

    def running(self, steps: Iterable[Step]) -> list[str]:
        now, begun = time.monotonic(), (step.name for step in steps if step.name in self.since)
        return [f"{name} ({seconds(now - self.since[name])})" for name in begun]

    def one(self, step: Step) -> Timing:
        start = self.since[step.name] = time.monotonic()
        self.console.started(step.name, step.why)
        note = step.run(self.shells[step.name])
        shell = self.shells[step.name]
        timing = Timing(step.name, note, time.monotonic() - start - shell.waited, shell.cpu)
        self.console.finished(step.name, note, timing.duration)
        return timing

    def collect(self, step: Step, future: Future[Timing]) -> None:
        error = future.exception()
        if error is None:
            self.timings.append(future.result())
            self.done.add(step.name)
            return
        if not isinstance(error, CancelledError):
            cause, hint = (error.cause, error.hint) if isinstance(error, StepError) else (_describe(error), "")
            report = failure_report(step, cause, hint, self.shells[step.name].log)
            self.console.problem(report[0])
            for line in report[1:]:
                self.console.line(line)
        self.failed = True
        self.cancel()

    def cancel(self) -> None:
        for shell in self.shells.values():
            shell.cancel()


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def run_steps(steps: Sequence[Step], console: Console, logs: Path, workers: int = 24) -> list[Timing]:
    """Runs the graph.

    Args:
        steps: The graph; of two that may start, the earlier one does.
        console: Where to tell.
        logs: Folder of the steps' logs.
        workers: Most steps at a time; what is heavy limits itself further.

    Returns:
        How long each took, in the order they ended.

    Raises:
        RunError: A step failed; it has been reported and the others were stopped.
    """
    check_graph(steps)
    run = _Run(steps, console, logs)
    pending: dict[Future[Timing], Step] = {}
    with ThreadPoolExecutor(max_workers=workers) as pool:
        try:
            while True:
                if not run.failed:
                    for step in ready(steps, frozenset(run.begun), frozenset(run.done)):
                        run.begun.add(step.name)
                        run.shells[step.name] = Shell(logs / f"{step.name.replace(' ', '-')}.log")
                        pending[pool.submit(run.one, step)] = step
                if not pending:
                    break
                ended = wait(pending, timeout=STILL_SECONDS, return_when=FIRST_COMPLETED).done
                if not ended:
                    console.line(f"  still at it: {', '.join(run.running(pending.values()))}")
                for future in ended:
                    run.collect(pending.pop(future), future)
        except KeyboardInterrupt:
            run.cancel()
            raise
    if run.failed:
        raise RunError
    return run.timings


def timing_table(timings: Sequence[Timing], total: float) -> list[str]:
    """The steps, their times (side by side, and of the processors alone), and the wall time."""
    rows = [(timing.name, seconds(timing.duration), seconds(timing.cpu), timing.note) for timing in timings]
    return table([("step", "took", "CPU", ""), *rows, ("total (wall)", seconds(total), "", "")])
