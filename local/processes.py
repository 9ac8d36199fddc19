"""Which process is ours: pid files that survive a reboot without lying.

Called by `node.py` (writes the record), `teardown.py` (kills by it) and `status`. A pid
alone may belong to a stranger after a reboot or a wrap-around, so a record also holds the
boot, the start time and the program, and nothing is killed unless all of them match.
"""

from __future__ import annotations

import json
import os
import select
import signal
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

PROC: Final = Path("/proc")


@dataclass(frozen=True, slots=True)
class Identity:
    """One process, unmistakably.

    Attributes:
        pid: As the host numbers it.
        start: Start time in clock ticks since boot (proc(5), stat field 22).
        exe: The program's path.
        boot: ``/proc/sys/kernel/random/boot_id``.
    """

    pid: int
    start: int
    exe: str
    boot: str


def parse_start(stat: str) -> int:
    """Field 22 of ``/proc/<pid>/stat``; the command in field 2 may hold blanks and brackets."""
    return int(stat.rpartition(")")[2].split()[19])


def identify(pid: int, proc: Path = PROC) -> Identity | None:
    """Who ``pid`` is now; None when it is nobody or a zombie."""
    folder = proc / str(pid)
    try:
        stat = (folder / "stat").read_text()
        exe = (folder / "exe").readlink()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    boot = (proc / "sys/kernel/random/boot_id").read_text().strip()
    return Identity(pid, parse_start(stat), str(exe).removesuffix(" (deleted)"), boot)


def alive(record: Identity, proc: Path = PROC) -> bool:
    """Whether exactly that process still runs."""
    return identify(record.pid, proc) == record


def write_records(path: Path, records: dict[str, Identity]) -> None:
    """Writes the pid file in one move."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({name: asdict(record) for name, record in records.items()}, indent=1))
    partial.replace(path)


def read_records(path: Path) -> dict[str, Identity]:
    """Reads the pid file; empty when it is missing or torn."""
    try:
        raw = json.loads(path.read_text())
        return {name: Identity(**record) for name, record in raw.items()}
    except (FileNotFoundError, ValueError, TypeError, AttributeError):
        return {}


def kill(record: Identity, timeout: float = 20.0) -> bool:
    """Ends that process and waits for it; False when it had already gone.

    Raises:
        TimeoutError: It did not end within ``timeout`` seconds.
    """
    try:
        handle = os.pidfd_open(record.pid)
    except ProcessLookupError:
        return False
    try:
        # The handle pins the process: checked after it was opened, the pid cannot change hands.
        if not alive(record):
            return False
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        if not poll.poll(timeout * 1000):
            raise TimeoutError(f"process {record.pid} ({record.exe}) did not end within {timeout:.0f} s of SIGKILL")
    finally:
        os.close(handle)
    return True


def child_of(pid: int, proc: Path = PROC) -> int | None:
    """The first child of ``pid``; None while it has none."""
    try:
        children = (proc / str(pid) / "task" / str(pid) / "children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(children[0]) if children else None


def members(init: int, proc: Path = PROC) -> dict[int, str]:
    """Host pid → command of every process in the process namespace of ``init``."""
    try:
        namespace = (proc / str(init) / "ns/pid").readlink()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    found = {}
    for folder in proc.iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            if (folder / "ns/pid").readlink() == namespace:
                found[int(folder.name)] = (folder / "comm").read_text().strip()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found
