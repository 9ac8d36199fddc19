"""Can this machine carry the cluster? Asked before anything is changed.

Called by `__main__.py` at the start of `up` and `binaries`, and by `doctor`. Every check only looks (the
two that must try something do it in namespaces that end with the check).
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from local import layout, upstream
from local.upstream import ALTERNATIVE

ASSETS: Final = (
    "set KUBEBUILDER_ASSETS to a folder with kube-apiserver, etcd and kubectl (setup-envtest fetches one), "
    "and have helm on PATH"
)
CODENAME: Final = "bookworm"
MIN_MEMORY_GIB: Final = 7
"""What the kernel of an 8 GiB machine leaves of it, rounded down; the READMEs say 8."""
DISK_GIB: Final = {"to run": 3, "to build the programs": 12, "for the images": 10}
"""Etcd, logs and layers that change; modules' sources and what Go compiles; layers, and PyTorch with CUDA."""
V1_CONTROLLERS: Final = ("cpu", "cpuacct", "cpuset", "memory", "pids", "devices", "freezer")
V2_CONTROLLERS: Final = ("cpu", "cpuset", "memory", "pids")


@dataclass(frozen=True, slots=True)
class Check:
    """One question and its answer.

    Attributes:
        name: What was looked at.
        found: What is there.
        problem: Why that is not enough; empty when it is.
    """

    name: str
    found: str
    problem: str = ""


def parse_os_release(text: str) -> dict[str, str]:
    """``/etc/os-release`` as a dict, quotes removed (os-release(5))."""
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line and not line.startswith("#"))
    return {name.strip(): value.strip().strip("\"'") for name, _, value in pairs}


def check_distribution(os_release: str) -> Check:
    """Debian 12, because the cluster's programs are Debian 12's own packages and sources."""
    fields = parse_os_release(os_release)
    found = fields.get("PRETTY_NAME", "unknown")
    fits = fields.get("ID") == "debian" and fields.get("VERSION_CODENAME") == CODENAME
    return Check("distribution", found, "" if fits else f"it is {found}, not Debian 12")


def os_release() -> str:
    """This machine's ``/etc/os-release``; empty where there is none."""
    path = Path("/etc/os-release")
    return path.read_text() if path.exists() else ""


def check_processor(machine: str) -> Check:
    """x86_64, because nobody has run it elsewhere."""
    return Check("processor", machine, "" if machine == "x86_64" else f"it is {machine}, not x86_64")


def check_root(uid: int) -> Check:
    """Root, for namespaces, mounts and packages."""
    return Check("user", f"uid {uid}", "" if uid == 0 else "it needs root (packages, mounts, network namespaces)")


def check_overlap(routes: Iterable[dict[str, Any]]) -> Check:
    """The cluster's address ranges are free.

    Args:
        routes: ``ip -json route show table all`` of the host.
    """
    ours = [ipaddress.ip_network(cidr) for cidr in (layout.LINK_CIDR, layout.POD_CIDR, layout.SERVICE_CIDR)]
    for route in routes:
        target = str(route.get("dst", ""))
        if route.get("dev") == layout.HOST_LINK or not re.match(r"[0-9a-f]+[.:]", target):
            continue
        network = ipaddress.ip_network(target, strict=False)
        for mine in ours:
            if network.version == mine.version and network.prefixlen > 0 and network.overlaps(mine):
                return Check(
                    "addresses", str(network), f"{network} (dev {route.get('dev')}) overlaps the cluster's {mine}"
                )
    return Check("addresses", "free")


def check_controllers(present: Iterable[str], wanted: Iterable[str], version: str) -> Check:
    """The cgroup controllers that the kubelet insists on."""
    missing = sorted(set(wanted) - set(present))
    return Check("cgroups", version, f"cgroup controllers are missing: {', '.join(missing)}" if missing else "")


def cgroup_hierarchies(root: Path = Path("/sys/fs/cgroup")) -> list[Path]:
    """The roots a pod's cgroup is made in: one on v2, one a controller on v1 and hybrid."""
    if (root / "cgroup.controllers").exists():
        return [root]
    return sorted({folder.resolve() for folder in root.iterdir() if (folder / "cgroup.procs").exists()})


def our_link(links: Iterable[dict[str, Any]]) -> bool:
    """Whether ``HOST_LINK`` exists and bears our mark.

    Args:
        links: ``ip -json link show``.
    """
    return any(link.get("ifname") == layout.HOST_LINK and link.get("ifalias") == layout.LINK_ALIAS for link in links)


def check_link(links: list[dict[str, Any]]) -> Check:
    """The name of our one interface is free, or it is ours."""
    taken = any(link.get("ifname") == layout.HOST_LINK for link in links) and not our_link(links)
    return Check(
        "interface", layout.HOST_LINK, f"an interface {layout.HOST_LINK} exists that is not ours" if taken else ""
    )


def _cgroups() -> Check:
    root = Path("/sys/fs/cgroup")
    unified = root / "cgroup.controllers"
    if unified.exists():
        return check_controllers(unified.read_text().split(), V2_CONTROLLERS, "v2")
    names = {name for folder in cgroup_hierarchies(root) for name in folder.name.split(",")}
    return check_controllers(names, V1_CONTROLLERS, "v1 (or hybrid)")


def _namespaces() -> Check:
    """Tries mount, network and process namespaces, a veth pair, NAT rules and an overlay in them."""
    script = """set -e
d=$(mktemp -d /tmp/mlplatform-check.XXXXXX); trap 'cd /; umount "$d" 2>/dev/null; rmdir "$d"' EXIT
mount -t tmpfs none "$d"; mkdir "$d"/l "$d"/u "$d"/w "$d"/m
mount -t overlay -o lowerdir="$d"/l,upperdir="$d"/u,workdir="$d"/w none "$d"/m; umount "$d"/m"""
    argv = ["unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc", "--kill-child=KILL", "sh", "-c", script]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    reason = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
    return Check(
        "namespaces and overlay", "usable" if done.returncode == 0 else reason, reason if done.returncode else ""
    )


def _network() -> list[Check]:
    if shutil.which("ip") is None:
        return [Check("addresses", "not known until iproute2 is installed")]
    routes, links = (
        json.loads(subprocess.run(["ip", "-json", *what], capture_output=True, check=False).stdout or b"[]")
        for what in (("route", "show", "table", "all"), ("link", "show"))
    )
    return [check_overlap(routes), check_link(links)]


def _memory() -> Check:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return Check(
        "memory",
        f"{total:.0f} GiB",
        "" if total >= MIN_MEMORY_GIB else f"it has {total:.1f} GiB of memory, below {MIN_MEMORY_GIB}",
    )


def check_disk(free: float, wanted: Iterable[str], where: Path) -> Check:
    """There is room for what is still to be made, before anything of it is begun.

    Args:
        free: GiB.
        wanted: Keys of `DISK_GIB`.
        where: What was looked at.
    """
    needs = {what: DISK_GIB[what] for what in wanted}
    least = sum(needs.values())
    words = ", ".join(f"{size} {what}" for what, size in needs.items())
    problem = f"{where} has {free:.0f} GiB free, below {least} ({words})"
    return Check("disk", f"{free:.0f} GiB free in {where}", problem if free < least else "")


def _disk(cache: Path) -> Check:
    existing = next(path for path in (cache, *cache.parents) if path.exists())
    wanted = ["to run"]
    if not all(upstream.entry(cache, module).is_dir() for module in upstream.UPSTREAMS):
        wanted.append("to build the programs")
    if not (cache / "containerd").is_dir():
        wanted.append("for the images")
    return check_disk(shutil.disk_usage(existing).free / 2**30, wanted, existing)


def check_state(state: Path) -> Check:
    """No cluster of another kind lies there: its certificates and its etcd do not fit."""
    mark = state / "variant"
    found = mark.read_text() if mark.exists() else None
    if not (state / "kubeconfig").exists() or found == layout.VARIANT:
        return Check("state", str(state))
    made = "by an earlier version of this project" if found is None else f"with VARIANT={found or layout.PLAIN}"
    wanted = f"VARIANT={layout.VARIANT or layout.PLAIN} is asked for"
    return Check("state", str(state), f"{state} holds a cluster made {made}, and {wanted}: run `make down` first")


def examine(cache: Path) -> list[Check]:
    """All checks, cheapest first; those that need root are left out without it."""
    checks = [
        check_distribution(os_release()),
        check_processor(os.uname().machine),
        check_root(os.geteuid()),
        _memory(),
        _disk(cache),
        check_state(layout.STATE),
        _cgroups(),
        *_network(),
    ]
    return [*checks, _namespaces()] if os.geteuid() == 0 else checks


def examine_for_binaries(programs: Path) -> list[Check]:
    """What building the programs takes; what lies in their folder already needs no root."""
    checks = [check_distribution(os_release()), check_processor(os.uname().machine)]
    return checks if (programs / "kube-apiserver").exists() else [*checks, check_root(os.geteuid())]


def refusal(checks: Iterable[Check], what: str = "run the local cluster", instead: str = ALTERNATIVE) -> str:
    """One line with every problem and the alternative; empty when the machine will do."""
    problems = [check.problem for check in checks if check.problem]
    return f"this machine cannot {what}: {'; '.join(problems)}; {instead}" if problems else ""
