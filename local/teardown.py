"""Ends the cluster, and clears what a crash or a reboot left of it.

Called by `cluster.py` for `down`, and by `up` before a start from scratch. The node lives in
namespaces of its own, so ending its process 1 ends everything in it; what remains on the
host is one interface, cgroups and the state folder. Each is checked to be ours first.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

from local import processes
from local.api import wait_until
from local.layout import CGROUP, HOST_LINK, Layout
from local.machine import cgroup_hierarchies, our_link
from local.steps import StepError


def mounts_below(mountinfo: str, folder: Path) -> list[str]:
    """Mount points in ``folder``, deepest first (proc(5), mountinfo field 5)."""
    points = [line.split()[4].replace("\\040", " ") for line in mountinfo.splitlines() if line.strip()]
    below = [point for point in points if point == str(folder) or point.startswith(f"{folder}/")]
    return sorted(below, key=len, reverse=True)


def remove_link() -> bool:
    """Removes the host's end of the veth pair; False when there is none of ours."""
    if shutil.which("ip") is None:
        return False  # `up` needs it, so there was none
    done = subprocess.run(["ip", "-json", "link", "show"], capture_output=True, check=True)
    if not our_link(json.loads(done.stdout)):
        return False
    # The kernel may take it first: its other end dies with the node.
    subprocess.run(["ip", "link", "delete", HOST_LINK], capture_output=True, check=False)
    return True


def cgroup_processes(root: Path = Path("/sys/fs/cgroup")) -> set[int]:
    """Processes in our pods' cgroups."""
    files = [file for hierarchy in cgroup_hierarchies(root) for file in (hierarchy / CGROUP).rglob("cgroup.procs")]
    found: set[int] = set()
    for file in files:
        try:
            found.update(int(pid) for pid in file.read_text().split())
        except OSError:  # the cgroup was removed meanwhile
            continue
    return found


def remove_cgroups(root: Path = Path("/sys/fs/cgroup")) -> int:
    """Removes our cgroups, deepest first; returns how many.

    Raises:
        StepError: One still holds a process.
    """
    removed = 0
    for hierarchy in cgroup_hierarchies(root):
        top = hierarchy / CGROUP
        folders = sorted((f for f in top.rglob("*") if f.is_dir()), key=lambda f: len(f.parts), reverse=True)
        for folder in [*folders, *([top] if top.exists() else [])]:
            try:
                folder.rmdir()
                removed += 1
            except FileNotFoundError:
                continue
            except OSError as error:
                raise StepError(
                    f"cgroup {folder} is still in use: {error.strerror}", "Run `make down` again."
                ) from error
    return removed


def stop(layout: Layout) -> list[str]:
    """Ends the node and clears the host of it; the state folder stays.

    Returns:
        What was done, for the person.

    Raises:
        StepError: Something of ours would not go.
    """
    done = []
    records = processes.read_records(layout.supervisor_record)
    inside = len(processes.members(records["init"].pid)) if _lives(records, "init") else 0
    # Process 1 first: its end is the end of its whole process namespace.
    ended = [name for name in ("init", "unshare") if name in records and processes.kill(records[name])]
    if ended:
        done.append(f"ended the node ({inside} processes)")
    if not wait_until(lambda: not cgroup_processes(), timeout=20):
        raise StepError(f"processes {sorted(cgroup_processes())} of our pods would not end", "Run `make down` again.")
    if remove_link():
        done.append(f"removed the link {HOST_LINK}")
    if count := remove_cgroups():
        done.append(f"removed {count} cgroups")
    layout.supervisor_record.unlink(missing_ok=True)
    layout.containerd_socket.unlink(missing_ok=True)
    return done


def _lives(records: dict[str, processes.Identity], name: str) -> bool:
    return name in records and processes.alive(records[name])


def remove_state(layout: Layout) -> list[str]:
    """Removes the state folder.

    Raises:
        StepError: Something is mounted in it, which removing would destroy.
    """
    if not layout.state.exists():
        return []
    mounted = mounts_below(Path("/proc/self/mountinfo").read_text(), layout.state)
    if mounted:
        raise StepError(f"{mounted[0]} is mounted inside {layout.state}", f"Unmount it: `umount {mounted[0]}`.")
    shutil.rmtree(layout.state)
    return [f"removed {layout.state}"]


def forget_cluster(layout: Layout) -> None:
    """Removes what a damaged cluster remembers: etcd, the kubelet's folder and which add-ons were applied."""
    for name in ("etcd", "kubelet", "root", "addons"):
        if (layout.state / name).exists():
            shutil.rmtree(layout.state / name)
    os.sync()
