"""How many CPUs this container may use.

Called by train, audit and optimize before they start threads: libraries count the
node's cores, and a pod limited to one CPU that runs sixteen threads is throttled.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Final

CGROUP: Final = Path("/sys/fs/cgroup")


def cpu_limit(cgroup: Path = CGROUP) -> int:
    """Whole CPUs of the cgroup's quota, at most those the process may run on; at least 1.

    A thread beyond the quota would stall all the others; serving rounds down, too.

    Args:
        cgroup: Where the cgroup file system is mounted; version 1 and 2 are understood.
    """
    available = len(os.sched_getaffinity(0))
    quota = _quota(cgroup)
    return max(1, min(available, math.floor(quota))) if quota else available


def _quota(cgroup: Path) -> float | None:
    """CPUs per second of wall time; None without a limit."""
    unified = cgroup / "cpu.max"
    legacy = cgroup / "cpu" / "cpu.cfs_quota_us"
    if unified.is_file():
        quota, period = unified.read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    if legacy.is_file():
        micros = int(legacy.read_text())
        return micros / int(legacy.with_name("cpu.cfs_period_us").read_text()) if micros > 0 else None
    return None
