"""How many CPUs this container may use.

Called by train, audit and optimize before they start threads: libraries count the
node's cores, and a pod limited to one CPU that runs sixteen threads is throttled.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from mljobs.failure import JobFailure
from mlplatform.contract import ENV_CPUS, FailureClass

CGROUP: Final = Path("/sys/fs/cgroup")
_QUANTITY: Final = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(m?)", re.ASCII)


def cpu_limit(cgroup: Path = CGROUP, environment: Mapping[str, str] = os.environ) -> int:
    """Whole CPUs of the container's quota, at most those the process may run on; at least 1.

    A thread beyond the quota would stall all the others; serving rounds down, too.

    Args:
        cgroup: Where the cgroup file system is mounted; version 1 and 2 are understood.
        environment: `contract.ENV_CPUS` is the quota where it is set: without a container no cgroup has it.

    Raises:
        JobFailure: That variable is no CPU quantity.
    """
    available = len(os.sched_getaffinity(0))
    stated = environment.get(ENV_CPUS)
    quota = _quantity(stated) if stated else _quota(cgroup)
    return max(1, min(available, math.floor(quota))) if quota else available


def _quantity(text: str) -> float:
    """CPUs of a Kubernetes quantity: ``500m`` is 0.5."""
    match = _QUANTITY.fullmatch(text)
    if match is None or not float(match[1]):
        raise JobFailure(
            FailureClass.SPEC_INVALID, f"{ENV_CPUS} {text!r} is no CPU quantity", "Write it like 2, 1.5 or 500m"
        )
    return float(match[1]) / (1000 if match[2] else 1)


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
