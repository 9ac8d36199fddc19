"""A command with everything that it starts: how it ends, what is heard of it, and that nothing of it is left.

Real processes, small ones.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from standalone_kit import PACKAGES, PATIENCE_SECONDS, REFUSES_TO_END, WAITS, alive, eventually

from mlplatform.standalone import process
from mlplatform.standalone.process import Process

MARK = "STANDALONE_TEST"
MEBIBYTE = 2**20


class Started:
    """A process with what was heard of it.

    Attributes:
        lines: Its output so far.
        codes: Its exit code, once it has ended.
    """

    def __init__(self, folder: Path, *command: str, log: Path | None = None) -> None:
        self.log = log or folder / "logs" / "it.log"
        self.mark = str(folder)
        self.lines: list[str] = []
        self.codes: list[int] = []
        environment = {**os.environ, MARK: self.mark}
        self.process = Process(command, environment, self.log, self.lines.append, self.codes.append)

    def says(self, line: str) -> None:
        eventually(lambda: line in self.lines or self.codes, f"{line!r} in {self.lines}")
        assert line in self.lines

    def code(self) -> int:
        assert self.process.wait(PATIENCE_SECONDS), self.lines
        (code,) = self.codes
        return code

    def left(self) -> list[int]:
        return alive(MARK, self.mark)


Start = Callable[..., Started]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a Python program, or a command; whatever still runs at the end of the test is killed."""
    begun: list[Started] = []

    def begin(*command: str, log: Path | None = None) -> Started:
        words = command if len(command) > 1 else (sys.executable, "-c", *command)
        begun.append(Started(tmp_path, *words, log=log))
        return begun[-1]

    yield begin
    for started in begun:
        for pid in started.left():
            os.kill(pid, signal.SIGKILL)
        started.process.wait(PATIENCE_SECONDS)


@pytest.mark.parametrize(
    ("reason", "program", "code"),
    [
        ("it has done its work", "pass", 0),
        ("a code of its own", "raise SystemExit(3)", 3),
        ("Python's for an exception", "1 / 0", 1),
        ("killed: 128 and the signal's number", "import os; os.kill(os.getpid(), 9)", 137),
        ("ended by a signal that it could have caught", "import os; os.kill(os.getpid(), 15)", 143),
        ("what a child of it ends with is not its own end", "import os; os.system('exit 4')", 0),
    ],
)
def test_the_exit_code(start: Start, reason: str, program: str, code: int) -> None:
    assert start(program).code() == code, reason


@pytest.mark.parametrize(
    ("reason", "make", "why"),
    [
        ("there is no such file", None, "No such file or directory"),
        ("it may not be run", 0o600, "Permission denied"),
    ],
)
def test_a_program_that_cannot_be_started(
    start: Start, tmp_path: Path, reason: str, make: int | None, why: str
) -> None:
    program = tmp_path / "program"
    if make is not None:
        program.write_text("#!/bin/sh\n")
        program.chmod(make)
    found = start(str(program), "an argument")
    assert found.code() == 127, reason
    assert found.lines == [f"{program} cannot be started: {why}"], reason


def test_what_it_says_is_heard_by_lines_and_added_to_its_log(start: Start, tmp_path: Path) -> None:
    log = tmp_path / "logs" / "it.log"
    log.parent.mkdir()
    log.write_text("of a run before\n")
    program = """
import os
os.write(1, b"to the output\\n")
os.write(2, b"to the error output\\n")
os.write(1, b"no text: \\xff\\n\\nthe last line")
"""
    found = start(program)
    assert found.code() == 0
    assert found.lines == ["to the output", "to the error output", "no text: \ufffd", "", "the last line"]
    said = b"to the output\nto the error output\nno text: \xff\n\nthe last line"
    assert log.read_bytes() == b"of a run before\n" + said, "as it was said"


def test_a_full_disk_silences_the_log_and_nothing_else(start: Start) -> None:
    found = start("for i in range(10_000): print(i)", log=Path("/dev/full"))
    assert found.code() == 0, "it is listened to, or it would wait for that forever"
    assert found.lines == [str(i) for i in range(10_000)]


def test_it_has_no_input_and_finds_signals_as_they_are_by_default(start: Start) -> None:
    found = start("""
import os, signal, sys
print(repr(sys.stdin.read()))
print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
print(signal.getsignal(signal.SIGTERM) == signal.getsignal(signal.SIGHUP) == signal.SIG_DFL)
print(os.getsid(0) == os.getpid())
""")
    assert found.code() == 0
    assert found.lines == ["''", "True", "True", "True"], "a session of its own: no Ctrl-C of the terminal reaches it"


ENDS_IN_ORDER = """
import signal, sys
def end(*_):
    print("in order", flush=True)
    sys.exit(5)
signal.signal(signal.SIGTERM, end)
print("ready", flush=True)
while True: signal.pause()
"""


def test_asked_to_end_it_can_end_in_order(start: Start) -> None:
    found = start(ENDS_IN_ORDER)
    found.says("ready")
    assert not found.process.wait(0), "it runs"
    found.process.terminate()
    found.process.terminate()  # twice is once
    assert found.code() == 5
    assert found.lines == ["ready", "in order"]
    found.process.terminate()  # and afterwards nothing


def test_waiting_can_be_interrupted_and_taken_up_again(start: Start) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def wait() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        found.process.wait()

    found = start(ENDS_IN_ORDER)
    found.says("ready")
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            wait()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert not found.process.wait(0), "it runs still"
    found.process.terminate()
    assert found.process.wait()
    assert found.codes == [5], "only now it has ended"


def test_what_does_not_end_is_killed_after_the_grace(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "GRACE_SECONDS", 0.2)
    found = start(f"{REFUSES_TO_END}\nprint('ready', flush=True)\n{WAITS}")
    found.says("ready")
    found.process.terminate()
    assert found.code() == 137
    assert found.left() == []


def test_killed_it_has_no_grace(start: Start) -> None:
    found = start(f"{REFUSES_TO_END}\nprint('ready', flush=True)\n{WAITS}")
    found.says("ready")
    found.process.kill()
    assert found.code() == 137
    assert found.left() == []


def test_signals_for_the_terminals_programs_do_not_end_it(start: Start) -> None:
    found = start(ENDS_IN_ORDER)
    found.says("ready")
    shepherd = psutil.Process(found.process.pids()[0]).parent()
    assert shepherd is not None
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        shepherd.send_signal(number)
    found.process.terminate()
    assert found.code() == 5, "it was asked once, by the one who started it"


FAMILY = """
import os, signal, subprocess, sys
stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.signal(signal.SIGHUP, signal.SIG_IGN);"
stubborn += "import os; os.write(1, b'child\\\\n')\\nwhile True: signal.pause()"
command = [sys.executable, "-c", stubborn]
signal.signal(signal.SIGUSR1, lambda *_: os._exit(0))
subprocess.Popen(command, start_new_session=True)  # as torchrun starts its workers
if os.fork() == 0:  # a daemon: its parent ends, and nobody waits for it
    subprocess.Popen(command, start_new_session=True)
    os._exit(0)
os.write(1, f"{os.getpid()}\\n".encode())  # one write: others speak at the same time
while True: signal.pause()
"""


@pytest.mark.parametrize(
    ("reason", "act", "code"),
    [
        ("the command ends by itself", lambda _, command: os.kill(command, signal.SIGUSR1), 0),
        ("the command is asked to end", lambda found, _: found.terminate(), 143),
        ("the command dies", lambda _, command: os.kill(command, signal.SIGKILL), 137),
        ("everything is killed", lambda found, _: found.kill(), 137),
    ],
)
def test_nothing_that_it_started_outlives_it(
    start: Start, reason: str, act: Callable[[Process, int], None], code: int
) -> None:
    found = start(FAMILY)
    eventually(lambda: len(found.lines) == 3, "the command and two children are there")
    (command,) = [int(line) for line in found.lines if line != "child"]
    assert command in found.process.pids(), reason
    assert set(found.left()) - set(found.process.pids()) == {psutil.Process(command).ppid()}, reason
    assert len(found.left()) == 4, reason
    act(found.process, command)
    assert found.code() == code, reason
    assert found.left() == found.process.pids() == [], reason


def test_the_processes_of_one_are_found_parents_first(start: Start) -> None:
    found = start("""
import os, signal
for _ in range(2):
    if os.fork():
        break
os.write(1, f"{os.getpid()}\\n".encode())
signal.pause()
""")
    eventually(lambda: len(found.lines) == 3, "three generations")
    pids = found.process.pids()
    assert sorted(pids) == sorted(int(line) for line in found.lines)
    assert [psutil.Process(pid).ppid() for pid in pids[1:]] == pids[:-1]


PROGRAM = """
import os, signal, sys
from pathlib import Path
from mlplatform.standalone.process import Process
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell inherits it ignored
say = lambda line: print(line, flush=True)
Process([sys.executable, "-c", sys.argv[1]], os.environ, Path(sys.argv[2]), say, say).wait()
"""
"""A program that starts a command and waits for it."""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_it_ends_with_the_program_that_started_it(tmp_path: Path, number: signal.Signals) -> None:
    saved = tmp_path / "saved"
    command = f"""
import signal, subprocess, sys
from pathlib import Path
subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"], start_new_session=True)
def save(*_):
    Path({str(saved)!r}).write_text("all of it")
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
print("ready", flush=True)
while True: signal.pause()
"""
    environment = {**os.environ, "PYTHONPATH": PACKAGES, MARK: str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, command, str(tmp_path / "it.log")],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as program:  # fmt: skip
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"
        assert len(alive(MARK, str(tmp_path))) == 4, "the program, the shepherd, the command and its child"
        program.send_signal(number)
    eventually(lambda: not alive(MARK, str(tmp_path)), f"nothing is left: {alive(MARK, str(tmp_path))}")
    assert saved.read_text() == "all of it", "it was asked to end before it was killed"


def test_an_ended_process_holds_nothing_open(start: Start) -> None:
    before = psutil.Process().num_fds()
    found = start("print('it')")
    assert found.code() == 0
    assert psutil.Process().num_fds() == before


HOLDS = f"""
import os, signal
held = bytearray(b"x") * ({64 * MEBIBYTE})
for _ in range(CHILDREN):
    if os.fork() == 0:
        break
os.write(1, b"ready\\n")
while True: signal.pause()
"""


@pytest.mark.parametrize(
    ("reason", "children", "limit", "above"),
    [
        ("it holds more than it may", 0, 48, True),
        ("it holds less", 0, 256, False),
        ("what several share counts", 3, 48, True),
        ("but once: each has all of it mapped", 3, 192, False),
    ],
)
def test_its_memory(start: Start, reason: str, children: int, limit: int, above: bool) -> None:  # noqa: FBT001  a table's column
    found = start(HOLDS.replace("CHILDREN", str(children)))
    eventually(lambda: len(found.lines) == 1 + children, "all of them are there")
    assert found.process.memory_above(limit * MEBIBYTE) is above, reason
    found.process.kill()
    found.code()
    assert not found.process.memory_above(0), "what has ended holds nothing"


def test_pages_of_files_do_not_count(start: Start, tmp_path: Path) -> None:
    """A container's are given back before it is killed; a program that loads CUDA's libraries has gigabytes of them."""
    file = tmp_path / "large"
    file.write_bytes(b"1" * 100 * MEBIBYTE)
    found = start(
        f"import mmap, time\nfile = open({str(file)!r}, 'rb')\nheld = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)\n"
        f"print(sum(held[i] for i in range(0, len(held), 4096)), flush=True)\ntime.sleep(60)\n"
    )
    eventually(lambda: len(found.lines) == 1, "it has read all of it")
    assert resident(found.process) > 100 * MEBIBYTE, "it is there"
    assert not found.process.memory_above(60 * MEBIBYTE)


def resident(process: Process) -> int:
    return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in process.pids()) * os.sysconf(
        "SC_PAGE_SIZE"
    )
