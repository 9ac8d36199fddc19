"""Which cluster the demo and the scenarios work on: never another one than CLUSTER names."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from local import access
from local.access import AccessError, Cluster
from local.layout import default_layout

FOREIGN = "/home/sre/.kube/production"


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs, first on PATH, for a caller whose KUBECONFIG names a cluster of theirs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("kubectl", "helm"):
        program(folder, name, 'echo "$KUBECONFIG $*"')
    program(folder, "kind", '[ "$*" = "get kubeconfig --name mlplatform" ] && echo "kind: Config"')
    # Only the fakes: neither the virtual environment's kubectl nor the local cluster's.
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.defpath}")
    monkeypatch.setenv("KUBECONFIG", FOREIGN)
    monkeypatch.delenv("GATEWAY_URL", raising=False)
    return folder


def program(folder: Path, name: str, body: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{body}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def kind(programs: Path) -> Iterator[Cluster]:
    assert programs.is_dir()
    cluster = Cluster.connect("kind")
    yield cluster
    cluster.close()


def test_the_local_cluster_is_its_own_whatever_kubeconfig_says(programs: Path) -> None:
    assert programs.is_dir()
    cluster = Cluster.connect("local")
    assert cluster.env["KUBECONFIG"] == str(default_layout().kubeconfig)


def test_only_current_follows_the_callers_kubeconfig(programs: Path) -> None:
    assert programs.is_dir()
    assert Cluster.connect("current").env["KUBECONFIG"] == FOREIGN


def test_kind_is_reached_by_kinds_own_kubeconfig(programs: Path) -> None:
    assert programs.is_dir()
    cluster = Cluster.connect("kind")
    path = Path(cluster.env["KUBECONFIG"])
    assert path.read_text() == "kind: Config\n"
    assert path.stat().st_mode & 0o777 == 0o600, "it holds a key"
    cluster.close()
    assert not path.exists()


def test_no_kind_cluster_is_an_error(programs: Path) -> None:
    program(programs, "kind", 'echo "ERROR: could not locate any control plane nodes" >&2; exit 1')
    with pytest.raises(AccessError, match="could not locate"):
        Cluster.connect("kind")


def test_kind_gets_its_images(kind: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "KIND_IMAGES", tmp_path / "kind-images.json")
    with pytest.raises(AccessError, match="kind-images") as failed:
        kind.install()
    assert "make up CLUSTER=kind" in failed.value.hint
    names = ("operator", "jobs", "serving", "seaweedfs")
    access.KIND_IMAGES.write_text(json.dumps({name: f"docker.io/mlplatform/{name}:0123" for name in names}))
    told: list[tuple[str, ...]] = []
    monkeypatch.setattr(Cluster, "helm", lambda _self, *words, seconds=0: told.append(words) or str(seconds))
    kind.install("--set", "mine=1")
    assert "images.operator=docker.io/mlplatform/operator:0123" in told[0]
    assert told[0][-1] == "mine=1", "what the caller says comes last, and so wins"


def test_a_port_forward_that_talks_goes_on(kind: Cluster, programs: Path, tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        lines = "i=0; while [ $i -lt 5000 ]; do echo 'Handling connection for 8080, and so on'; i=$((i+1)); done"
        program(programs, "kubectl", f"echo 'Forwarding from 127.0.0.1:{port} -> 80'; {lines}; : >{tmp_path}/said")
        assert kind.gateway() == f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 20
    while not (tmp_path / "said").exists():
        assert time.monotonic() < deadline, "it hangs at a full pipe"
        time.sleep(0.02)
