"""What other projects publish, as the modules that ``local/upstream`` pins have it: source folders, CRDs, webhooks.

Called by the tests of this folder. Nothing of it is copied into the repository: Go fetches each module once and checks
it against our go.sum.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml
from apiserver_fixture import binary

from local import cache as kept
from local import upstream
from local.layout import cache_root
from local.steps import Shell, StepError

CRDS: Final = {
    "training-operator": ("manifests/base/crds/kubeflow.org_pytorchjobs.yaml",),
    "kserve": (
        "config/crd/full/serving.kserve.io_inferenceservices.yaml",
        "config/crd/full/serving.kserve.io_servingruntimes.yaml",
    ),
    "istio": ("manifests/charts/base/files/crd-all.gen.yaml",),
    "prometheus-operator": (
        "example/prometheus-operator-crd/monitoring.coreos.com_servicemonitors.yaml",
        "example/prometheus-operator-crd/monitoring.coreos.com_prometheusrules.yaml",
    ),
}
"""Module → files with the CRDs of the kinds that the operator writes and the chart installs."""

CHARTS: Final = {
    "kserve": {"kserve": "charts/kserve-resources"},
    "istio": {"istio-base": "manifests/charts/base", "istiod": "manifests/charts/istio-control/istio-discovery"},
}
"""Module → release → its chart."""
KUSTOMIZATIONS: Final = {"training-operator": "manifests/overlays/standalone"}


@cache
def source(name: str) -> Path:
    """The folder of a module's source.

    Args:
        name: The module's folder in ``local/upstream``.

    Raises:
        RuntimeError: It cannot be had; the message says why and what to do.
    """
    root, module = cache_root(), upstream.named(name)
    with tempfile.TemporaryDirectory() as folder:
        shell = Shell(Path(folder) / "log")
        try:
            with kept.lock(root / "go", lambda: None):  # tests run in several processes, and pip may have to fetch Go
                go = upstream.go(shell, root, sys.executable)
            return upstream.sources(shell, root, go, module)
        except StepError as error:
            raise RuntimeError(f"{error.cause}. {error.hint}".strip()) from error


def crds() -> list[Path]:
    """Every file of `CRDS`."""
    return [source(name) / path for name, paths in CRDS.items() for path in paths]


def webhooks(name: str) -> tuple[dict[str, Any], ...]:
    """The webhook configurations among what is applied."""
    return applied(name, r"\w+WebhookConfiguration")


@cache
def applied(name: str, kinds: str) -> tuple[dict[str, Any], ...]:
    """What an installation of a module applies, with the values that it ships, of the kinds that the pattern matches."""
    folder = source(name)
    commands: list[list[str | Path]] = [
        [binary("helm"), "template", release, folder / chart, "--namespace", "any"]
        for release, chart in CHARTS.get(name, {}).items()
    ]
    if name in KUSTOMIZATIONS:
        commands.append([binary("kubectl"), "kustomize", folder / KUSTOMIZATIONS[name]])
    texts = [subprocess.run(command, check=True, capture_output=True, text=True).stdout for command in commands]
    documents = (document for text in texts for document in re.split(r"^---$", text, flags=re.MULTILINE))
    # Of a megabyte of CRDs beside them, parsing takes ten seconds.
    return tuple(yaml.safe_load(d) for d in documents if re.search(rf"^kind: {kinds}$", d, re.MULTILINE))


@cache
def program(name: str) -> Path:
    """A program of our own in Go, whose source lies in a folder here, built once.

    Raises:
        RuntimeError: It cannot be built; the message says why and what to do.
    """
    ours = upstream.Upstream(name, "", {name: "."}, above=Path(__file__).parent)
    with tempfile.TemporaryDirectory() as folder:
        try:
            built, _ = upstream.build(Shell(Path(folder) / "log"), cache_root(), sys.executable, ours)
        except StepError as error:
            raise RuntimeError(f"{error.cause}. {error.hint}".strip()) from error
    return built / name
