"""A container as a group of processes: started, listened to, measured, ended.

Called by `mlplatform.standalone.controllers` for the stages' containers and by `mlplatform.standalone.serve` for
TorchServe. Nothing started here outlives this program: see `shepherd`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from mlplatform.standalone import shepherd

GRACE_SECONDS: Final = 30
"""Between SIGTERM and SIGKILL; Kubernetes' terminationGracePeriodSeconds."""


class Process:
    """One command with everything that it starts.

    Args:
        command: What to run.
        environment: All its variables.
        log: The file that its output is added to.
        line: Called with each line of its output, from a thread of its own.
        ended: Called with the exit code, from that thread, after the last line; 128 + n for signal n.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        line: Callable[[str], None],
        ended: Callable[[int], None],
    ) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log.open("ab", buffering=0)
        self._shepherd = subprocess.Popen(
            [sys.executable, "-I", "-S", shepherd.__file__, str(GRACE_SECONDS), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(environment),
        )
        self._line, self._ended = line, ended
        self._over = threading.Event()  # to join a thread is no way to wait: one that Ctrl-C interrupts is the last
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._shepherd.stdout is not None  # noqa: S101  a pipe was asked for
        with self._log, self._shepherd.stdout as output:
            for raw in output:
                with suppress(OSError):  # a full disk: what nobody reads from here would wait forever
                    self._log.write(raw)
                self._line(raw.decode(errors="replace").rstrip("\n"))
        code = self._shepherd.wait()
        self.terminate()  # closes its input
        self._ended(code if code >= 0 else 128 - code)
        self._over.set()

    def terminate(self) -> None:
        """Asks it to end: SIGTERM now, SIGKILL `GRACE_SECONDS` later. Does not wait."""
        assert self._shepherd.stdin is not None  # noqa: S101  a pipe was asked for
        with suppress(BrokenPipeError):
            self._shepherd.stdin.close()

    def kill(self) -> None:
        """Ends it at once with a SIGKILL to everything. Does not wait."""
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def wait(self, seconds: float | None = None) -> bool:
        """Waits until it has ended and `ended` was called; False if it has not within `seconds`."""
        while seconds is None and not self._over.wait(1):
            pass  # not without a limit: a Ctrl-C that comes just before such a wait would not end it
        return self._over.wait(seconds)

    def pids(self) -> list[int]:
        """The processes below the shepherd, parents first."""
        return descendants(self._shepherd.pid)

    def memory_above(self, limit: int) -> bool:
        """Whether its processes hold more than `limit` bytes that nothing but their end gives back.

        Of what several map each has its proportional share (PSS); pages of files are not counted, for a container's are
        given back before it is killed, and CUDA's libraries alone are gigabytes of them. Counting takes the kernel
        milliseconds, so it is asked only where resident pages make it possible.
        """
        pids = self.pids()
        return sum(map(_resident, pids)) > limit and sum(map(_held, pids)) > limit


def descendants(pid: int) -> list[int]:
    """Every process below `pid`, parents first."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):
                parent = int((entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
                parents.setdefault(parent, []).append(int(entry.name))
    found: list[int] = []
    waiting = [pid]
    while waiting:
        below = parents.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def _resident(pid: int) -> int:
    """Resident bytes of one process, shared pages in full; 0 once it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def _held(pid: int) -> int:
    """PSS of one process in bytes, less that of files; 0 once it has ended."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    sizes = {line.partition(":")[0]: int(line.split()[1]) * 1024 for line in text.splitlines()[1:]}
    return sizes["Pss"] - sizes.get("Pss_File", 0)  # Linux 5.4 and newer tell them apart.
