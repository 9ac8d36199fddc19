"""Runs one command and lets none of its processes outlive the program that asked for it.

Run as a file by `mlplatform.standalone.process`, with ``-I -S``: it is there before each container, so it imports
nothing slow. Its standard input is a pipe that the asking program holds open: an end of file there means that it is
gone, whatever killed it. Processes that have left their parent (torchrun's workers have sessions of their own) become
children of this one, which is how it finds them all. Linux.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator

PR_SET_CHILD_SUBREAPER = 36
"""prctl(2): orphans below become this process's children."""


def main() -> int:
    """``shepherd.py GRACE COMMAND…``: runs it; returns its exit code, 128 + n after signal n.

    An end of file on standard input sends the command a SIGTERM and, GRACE seconds later, everything a SIGKILL.
    """
    grace, command = float(sys.argv[1]), sys.argv[2:]
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # The terminal's Ctrl-C is for the program that asked; it then says what becomes of this. A handler that does
    # nothing, because the command would inherit that a signal is ignored.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    except OSError as error:
        sys.stderr.write(f"{command[0]} cannot be started: {error.strerror}\n")
        return 127
    ended = os.pidfd_open(child.pid)
    select.select([0, ended], [], [])
    if child.poll() is None:  # an end of file
        with contextlib.suppress(ProcessLookupError):
            child.terminate()
        select.select([ended], [], [], grace)
    _sweep(child)
    code = child.wait()
    return code if code >= 0 else 128 - code


def _sweep(child: "subprocess.Popen[bytes]") -> None:
    """Kills everything below this process; what dies hands its own children up, so it looks again until none is left."""
    while running := list(_children()):
        for pid in running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in running:
            if pid == child.pid:
                child.wait()
            else:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, 0)


def _children() -> Iterator[int]:
    """Processes whose parent this one is, ended ones that nobody waited for included; not `child` once waited for."""
    me = str(os.getpid())
    for name in os.listdir("/proc"):  # noqa: PTH208  names are all that is wanted
        if name.isdecimal():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:  # noqa: PTH123  pathlib takes time to import
                # pid (command) state ppid …; the command may hold anything.
                if file.read().rpartition(")")[2].split()[1] == me:
                    yield int(name)


if __name__ == "__main__":
    sys.exit(main())
