"""Process 1 of the node: sets its namespaces up, then keeps the daemons running.

Started by `node.py` as a script, under `unshare` with mount, network and process
namespaces of its own. That is what makes the cluster safe to remove: when this process
dies, the kernel ends every daemon and container, every mount, every interface and every
iptables rule of the node, and the host had none of them.

It reads one JSON file: ``{"setup": [argv, …], "daemons": [{"name", "argv", "env"}, …]}``.
SIGHUP makes it read the file again and start the daemons that were added.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RESTART_AFTER = 1.0
"""Seconds between a daemon's end and its next start."""
SIGNALS = (signal.SIGCHLD, signal.SIGHUP, signal.SIGTERM)


def _say(message: str) -> None:
    # Standard output speaks to the starter, which goes away.
    print(f"{time.strftime('%H:%M:%S')} {message}", file=sys.stderr, flush=True)


def _unblock() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


class Supervisor:
    """Starts daemons, reaps every orphan, restarts what ended."""

    def __init__(self, spec: Path, logs: Path) -> None:
        self._spec = spec
        self._logs = logs
        self._wanted: dict[str, dict[str, Any]] = {}
        self._running: dict[int, str] = {}
        self._due: dict[str, float] = {}

    def setup(self) -> None:
        """Runs the set-up commands.

        Raises:
            subprocess.CalledProcessError: One of them failed; its output is in the log.
        """
        for argv in json.loads(self._spec.read_text())["setup"]:
            _say("+ " + " ".join(argv))
            subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, stdout=sys.stderr)

    def reload(self) -> None:
        """Takes the daemons from the file; new ones are due at once."""
        daemons = {daemon["name"]: daemon for daemon in json.loads(self._spec.read_text())["daemons"]}
        for name in daemons.keys() - self._wanted.keys():
            self._due[name] = 0.0
        self._wanted = daemons

    def start_due(self) -> float | None:
        """Starts what is due; returns the seconds until the next one, None when nothing waits."""
        now = time.monotonic()
        for name in [name for name in self._wanted if self._due.get(name, now + 1) <= now]:
            del self._due[name]
            self._start(self._wanted[name])
        return max(0.05, min(self._due.values()) - now) if self._due else None

    def reap(self) -> None:
        """Collects every ended child; a daemon becomes due again."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            name = self._running.pop(pid, None)
            if name is not None:
                _say(f"{name} ended with {os.waitstatus_to_exitcode(status)}; it starts again")
                self._due[name] = time.monotonic() + RESTART_AFTER

    def _start(self, daemon: dict[str, Any]) -> None:
        with (self._logs / f"{daemon['name']}.log").open("ab") as log:
            process = subprocess.Popen(
                daemon["argv"],
                env=daemon["env"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_unblock,  # noqa: PLW1509 - this process has one thread
            )
        # This process reaps by waitpid(-1), so Popen's own bookkeeping must not warn.
        process.returncode = 0
        self._running[process.pid] = daemon["name"]
        _say(f"{daemon['name']} started")


def main() -> int:
    """Waits for the go-ahead on stdin (the host has wired the network), then supervises for ever."""
    spec, logs = Path(sys.argv[1]), Path(sys.argv[2])
    print("waiting", flush=True)
    if not sys.stdin.readline():
        _say("the starter went away before the network was wired")
        return 1
    supervisor = Supervisor(spec, logs)
    supervisor.setup()
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    supervisor.reload()
    print("ready", flush=True)
    while True:
        wait = supervisor.start_due()
        received = signal.sigtimedwait(SIGNALS, wait) if wait is not None else signal.sigwaitinfo(SIGNALS)
        if received is not None and received.si_signo == signal.SIGTERM:
            return 0
        if received is not None and received.si_signo == signal.SIGHUP:
            supervisor.reload()
        supervisor.reap()


if __name__ == "__main__":
    sys.exit(main())
