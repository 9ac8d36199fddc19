"""The local cluster's view of the machine: checks, apt sources, pid files, what is ours."""

from __future__ import annotations

import ipaddress
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from local import layout, machine, packages, processes, teardown
from local.machine import Check

BOOKWORM = 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nID=debian\nVERSION_CODENAME=bookworm\n'


@pytest.mark.parametrize(
    ("os_release", "fits", "reason"),
    [
        (BOOKWORM, True, "Debian 12 is what the recipe was made for"),
        (BOOKWORM.replace("bookworm", "trixie"), False, "another Debian has another Kubernetes source"),
        ("ID=ubuntu\nVERSION_CODENAME=noble\n", False, "Ubuntu has none"),
        ("", False, "an unknown system is refused"),
    ],
)
def test_distribution(os_release: str, fits: bool, reason: str) -> None:  # noqa: FBT001 - a table
    assert (machine.check_distribution(os_release).problem == "") is fits, reason


@pytest.mark.parametrize(
    ("routes", "fits", "reason"),
    [
        ([{"dst": "default", "dev": "eth0"}], True, "a default route overlaps nothing"),
        ([{"dst": "10.96.0.0/16", "dev": "mlp0"}], True, "our own link's routes are ours"),
        ([{"dst": "10.96.4.0/24", "dev": "tun0"}], False, "a VPN inside the Service range would lose traffic"),
        ([{"dst": "10.0.0.0/8", "dev": "tun0"}], False, "a VPN around it, too"),
        (
            [{"dst": "10.97.0.0/16", "dev": "tun0"}, {"dst": "fd00::/64", "dev": "eth0"}],
            True,
            "neighbours do not matter",
        ),
        ([{"dst": "ff00::/8", "dev": "eth0"}, {"dst": "local"}], True, "of another family, or no address at all"),
    ],
)
def test_overlap(routes: list[dict[str, Any]], fits: bool, reason: str) -> None:  # noqa: FBT001 - a table
    assert (machine.check_overlap(routes).problem == "") is fits, reason


@pytest.mark.parametrize(
    ("present", "missing", "reason"),
    [
        (machine.V1_CONTROLLERS, "", "all there"),
        (set(machine.V1_CONTROLLERS) - {"memory"}, "memory", "the kubelet refuses to start without memory"),
    ],
)
def test_controllers(present: Any, missing: str, reason: str) -> None:
    assert machine.check_controllers(present, machine.V1_CONTROLLERS, "v1").problem.endswith(missing), reason


@pytest.mark.parametrize(
    ("free", "wanted", "problem", "reason"),
    [
        (25.0, list(machine.DISK_GIB), "", "all of it fits"),
        (
            24.9,
            list(machine.DISK_GIB),
            "below 25 (3 to run, 12 to build the programs, 10 for the images)",
            "it does not",
        ),
        (4.0, ["to run"], "", "what is built needs little more"),
        (4.0, ["to run", "to build the programs"], "below 15", "a version that moved is built anew"),
    ],
)
def test_disk(free: float, wanted: list[str], problem: str, reason: str) -> None:
    found = machine.check_disk(free, wanted, Path("/var/cache"))
    assert problem in found.problem, reason
    assert bool(found.problem) is bool(problem), reason


@pytest.mark.parametrize(
    ("files", "fits", "reason"),
    [
        ({}, True, "no cluster"),
        ({"kubeconfig": "", "variant": ""}, True, "one of ours"),
        ({"kubeconfig": "", "variant": "ipv6"}, False, "its addresses and names are in every certificate"),
        ({"kubeconfig": ""}, False, "an earlier version of this project left no variant"),
    ],
)
def test_a_cluster_of_another_kind(tmp_path: Path, files: dict[str, str], fits: bool, reason: str) -> None:  # noqa: FBT001 - a table
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    found = machine.check_state(tmp_path)
    assert (found.problem == "") is fits, reason
    assert fits or "make down" in found.problem, "the next action"


def test_refusal_is_one_line_with_the_alternative() -> None:
    line = machine.refusal([Check("a", "x"), Check("b", "x", "it is not root"), Check("c", "x", "it has no overlay")])
    assert "\n" not in line
    assert "it is not root; it has no overlay" in line
    assert "CLUSTER=kind" in line
    assert "CLUSTER=current" in line
    assert machine.refusal([Check("a", "x")]) == "", "a machine that will do is not refused"


def test_programs_that_are_made_already_need_no_root(tmp_path: Path) -> None:
    assert [check.name for check in machine.examine_for_binaries(tmp_path)] == ["distribution", "processor", "user"]
    (tmp_path / "kube-apiserver").touch()
    assert "user" not in {check.name for check in machine.examine_for_binaries(tmp_path)}
    line = machine.refusal([Check("user", "uid 1", "it needs root")], "build the programs", machine.ASSETS)
    assert line.startswith("this machine cannot build the programs: it needs root; set KUBEBUILDER_ASSETS")


def test_mirrors_are_this_debians() -> None:
    listing = """http://mirror.example/debian/ bookworm main
http://mirror.example/debian/ bookworm non-free
http://mirror.example/debian-security/ bookworm-security main
https://packages.example/ nodistro main
http://mirror.example/debian/ bookworm main
http://mirror.example/debian/ trixie main
"""
    assert packages.of_this_release(listing) == [
        "deb http://mirror.example/debian-security/ bookworm-security main",
        "deb http://mirror.example/debian/ bookworm main",
    ], "once each, and nothing of another archive, release or component"


def test_parse_installed() -> None:
    assert packages.parse_installed("jq installed\nrsync config-files\nmake installed\n") == {"jq", "make"}


@pytest.mark.parametrize(
    ("stat", "start", "reason"),
    [
        ("7 (sleep) S 1 7 7 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 4711 1 2 3", 4711, "a plain command"),
        ("7 (a) b (c)) S 1 7 7 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 42 1 2 3", 42, "brackets and blanks in the name"),
    ],
)
def test_parse_start(stat: str, start: int, reason: str) -> None:
    assert processes.parse_start(stat) == start, reason


@pytest.fixture
def sleeper() -> Any:
    with subprocess.Popen([sys.executable, "-c", "print(flush=True); input()"], stdin=-1, stdout=-1) as process:
        assert process.stdout is not None
        process.stdout.readline()  # only now has it become the program
        yield process
        process.kill()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"start": 1}, "the pid was given to a later process"),
        ({"exe": "/usr/bin/other"}, "the pid runs another program"),
        ({"boot": "00000000-0000-0000-0000-000000000000"}, "the record is from before a reboot"),
    ],
)
def test_a_stranger_is_never_killed(sleeper: subprocess.Popen[bytes], change: dict[str, Any], reason: str) -> None:
    record = processes.identify(sleeper.pid)
    assert record is not None
    assert processes.kill(replace(record, **change)) is False, reason
    assert sleeper.poll() is None, reason


def test_kill_ends_the_recorded_process(sleeper: subprocess.Popen[bytes], tmp_path: Path) -> None:
    record = processes.identify(sleeper.pid)
    assert record is not None
    processes.write_records(tmp_path / "pids.json", {"init": record})
    assert processes.kill(processes.read_records(tmp_path / "pids.json")["init"]) is True
    assert sleeper.wait() == -9
    assert processes.kill(record) is False, "a second time there is nobody"


@pytest.mark.parametrize(
    ("content", "reason"),
    [("", "torn by a crash"), ("[]", "not ours"), ('{"init": {"pid": 1}}', "an older format"), (None, "missing")],
)
def test_read_records_survives(tmp_path: Path, content: str | None, reason: str) -> None:
    path = tmp_path / "pids.json"
    if content is not None:
        path.write_text(content)
    assert processes.read_records(path) == {}, reason


def test_members_contains_this_process() -> None:
    assert os.getpid() in processes.members(os.getpid())


@pytest.mark.parametrize(
    ("links", "ours", "reason"),
    [
        ([{"ifname": "mlp0", "ifalias": "mlplatform-local"}], True, "name and mark"),
        ([{"ifname": "mlp0"}], False, "somebody else's link of that name stays"),
        ([{"ifname": "eth0", "ifalias": "mlplatform-local"}], False, "another link stays"),
        ([], False, "nothing there"),
    ],
)
def test_our_link(links: list[dict[str, Any]], ours: bool, reason: str) -> None:  # noqa: FBT001 - a table
    assert machine.our_link(links) is ours, reason
    foreign = any(link["ifname"] == "mlp0" for link in links) and not ours
    assert bool(machine.check_link(links).problem) is foreign, (
        "somebody else's link of our name stops `up` before it starts"
    )


def test_mounts_below_gives_the_deepest_first() -> None:
    mountinfo = "\n".join(
        f"36 35 98:0 / {point} rw - ext4 /dev/root rw"
        for point in ("/", "/var/lib/x", "/var/lib/x/a/b", "/var/lib/xy", "/var/lib/x/a\\040c")
    )
    assert teardown.mounts_below(mountinfo, Path("/var/lib/x")) == ["/var/lib/x/a/b", "/var/lib/x/a c", "/var/lib/x"]


def test_a_machine_without_ip_has_no_link_of_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert teardown.remove_link() is False, "`make down` on a fresh Debian"


@pytest.mark.parametrize("name", layout.VARIANTS)
def test_variants(name: str) -> None:
    network = layout.VARIANTS[name]
    ranges = network.link, network.pods, network.services
    link, _, services = (ipaddress.ip_network(cidr) for cidr in ranges)
    assert len(list(ipaddress.collapse_addresses([ipaddress.ip_network(cidr) for cidr in ranges]))) == len(ranges)
    assert services.max_prefixlen - services.prefixlen <= 20, "kube-apiserver refuses more Service addresses"
    assert link.num_addresses == 4, "the network, the host, the node"


def test_a_variant_that_is_none() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "local", "up"],
        env={"VARIANT": "ipv5"},
        cwd=layout.REPO,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr.strip()) == (1, "error: VARIANT=ipv5; choose one of ipv6, or none")
