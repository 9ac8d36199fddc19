"""Builds Kubernetes from Debian's own source package.

Called by `binaries.py`. Debian 12 ships the complete, vendored source of Kubernetes 1.20.2
but no server binaries; its own Go builds them in a few minutes, once.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

from local import cache, packages
from local.machine import CODENAME
from local.steps import Shell, StepError

VERSION: Final = "1.20.2"
PROGRAMS: Final = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl")
RECIPE: Final = 1
"""Part of the cache key: raise it when the build below changes its result."""
REFLECT2: Final = Path("/usr/share/gocode/src/github.com/modern-go/reflect2")
"""Debian's reflect2 1.0.2; the vendored one crashes when built by Go 1.18 or later (kubernetes issue 109212)."""

PAUSE: Final = """package main

import (
\t"os"
\t"os/signal"
\t"syscall"
)

// Process 1 of a pod's sandbox: collects orphans, ends when told to.
func main() {
\tended := make(chan os.Signal, 8)
\tsignal.Notify(ended, syscall.SIGCHLD, syscall.SIGINT, syscall.SIGTERM)
\tfor received := range ended {
\t\tif received != syscall.SIGCHLD {
\t\t\treturn
\t\t}
\t\tfor {
\t\t\tif pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 || err != nil {
\t\t\t\tbreak
\t\t\t}
\t\t}
\t}
}
"""


def name() -> str:
    """The cache key."""
    return cache.key(VERSION, CODENAME, PROGRAMS, PAUSE, RECIPE)


def is_cached(root: Path) -> bool:
    """Whether nothing needs to be built."""
    return (root / "kubernetes" / name()).is_dir()


def build(shell: Shell, root: Path) -> tuple[Path, bool]:
    """Finds or builds the programs.

    Returns:
        The folder with ``PROGRAMS`` and ``pause``, and whether it had to be built.
    """
    return cache.entry(root, "kubernetes", name(), lambda folder: _build(shell, folder))


def _build(shell: Shell, folder: Path) -> None:
    work = folder / "work"
    work.mkdir()
    packages.download_source(shell, "kubernetes", work)
    description = next(work.glob("*.dsc"))
    if VERSION not in description.name:
        raise StepError(
            f"Debian's source is {description.name}, not {VERSION}",
            "Set VERSION in local/kubernetes_build.py to that version.",
        )
    # apt has verified the files; dpkg-source would ask for the maintainer's key, too.
    shell.run(["dpkg-source", "--no-check", "--extract", description, work / "src"])
    source = work / "src"
    _replace_reflect2(source / "vendor/github.com/modern-go/reflect2")
    tree = source / ".go/src/k8s.io/kubernetes"
    tree.parent.mkdir(parents=True)
    tree.symlink_to(source)
    env = _environment(source)
    wanted = " ".join(f"cmd/{program}" for program in PROGRAMS)
    # PWD: make must see the path below GOPATH, not what the link points to.
    shell.run(["nice", "-n", "5", "make", f"WHAT={wanted}"], cwd=tree, env={**env, "PWD": str(tree)}, contained=True)
    for program in PROGRAMS:
        shutil.copy2(source / "_output/local/go/bin" / program, folder / program)
    (work / "pause.go").write_text(PAUSE)
    shell.run(
        ["go", "build", "-ldflags=-s -w", "-o", folder / "pause", "pause.go"],
        cwd=work,
        env={**env, "GOFLAGS": "", "GO111MODULE": "off"},
    )
    (folder / "source.txt").write_text(f"{description.name}\n")
    shell.run(["chmod", "-R", "u+w", work])
    shutil.rmtree(work)


def _replace_reflect2(vendored: Path) -> None:
    for old in [*vendored.glob("*.go"), *vendored.glob("*.s")]:
        old.unlink()
    for new in [*REFLECT2.glob("*.go"), *REFLECT2.glob("*.s")]:
        if not new.name.endswith("_test.go"):
            shutil.copy2(new, vendored / new.name)


def _environment(source: Path) -> dict[str, str]:
    major, minor, _ = VERSION.split(".")
    return {
        "CGO_ENABLED": "0",
        "GO111MODULE": "auto",
        "GOCACHE": str(source / ".gocache"),
        "GOFLAGS": "-mod=vendor",
        "GOPATH": str(source / ".go"),
        "KUBE_GIT_COMMIT": "debian",
        "KUBE_GIT_MAJOR": major,
        "KUBE_GIT_MINOR": minor,
        "KUBE_GIT_TREE_STATE": "clean",
        "KUBE_GIT_VERSION": f"v{VERSION}",
        "PATH": f"/usr/lib/go/bin:{os.environ.get('PATH', '')}",
    }
