"""Applies the stand-in add-ons (`local/addons/manifests`) to the cluster and waits for them.

Called by `cluster.py`. The manifests name images without a tag; the tag, a hash of the
image's inputs, is put in here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from local.api import Api, wait_until
from local.images import PREFIX
from local.layout import REPO, Layout
from local.steps import Shell, StepError

MANIFESTS: Final = REPO / "local" / "addons" / "manifests"
WAITED_FOR: Final = ("Deployment", "DaemonSet", "StatefulSet")


def substitute(text: str, refs: Mapping[str, str]) -> str:
    """Puts the whole reference in place of ``localhost/mlplatform/<name>``, with any tag or none.

    Raises:
        StepError: The manifest names an image that is not built.
    """

    def whole(found: re.Match[str]) -> str:
        if found[1] not in refs:
            raise StepError(f"a manifest names the image {found[0]}, which no Dockerfile here builds")
        return refs[found[1]]

    return re.sub(rf"{re.escape(PREFIX)}/([a-z][a-z-]*)(?::[\w.-]+)?", whole, text)


def documents(texts: Sequence[str]) -> list[str]:
    """The YAML documents of several files, comments-only ones left out."""
    found = [document for text in texts for document in re.split(r"^---\s*$", text, flags=re.MULTILINE)]
    return [document.strip("\n") + "\n" for document in found if kind(document)]


def kind(document: str) -> str:
    """The document's top-level kind; empty when it has none."""
    match = re.search(r"^kind:\s*([A-Za-z]+)", document, flags=re.MULTILINE)
    return match[1] if match else ""


def phases(found: Sequence[str]) -> list[list[str]]:
    """What must exist before the rest: definitions first, then namespaces, then everything else."""
    first = [document for document in found if kind(document) == "CustomResourceDefinition"]
    second = [document for document in found if kind(document) == "Namespace"]
    rest = [document for document in found if kind(document) not in {"CustomResourceDefinition", "Namespace"}]
    return [phase for phase in (first, second, rest) if phase]


def namespace(document: str) -> str:
    """The namespace in a document's metadata; ``default`` when it names none."""
    match = re.search(
        r"^  namespace:\s*([a-z0-9-]+)|^metadata: *\{.*\bnamespace: *([a-z0-9-]+)", document, re.MULTILINE
    )
    return (match[1] or match[2]) if match else "default"


def apply(shell: Shell, layout: Layout, binaries: Path, refs: Mapping[str, str], since: float) -> str:
    """Applies all manifests and waits until their workloads are available; returns a note.

    Args:
        shell: The step's.
        layout: The folders.
        binaries: The folder with kubectl.
        refs: Name → reference of every image.
        since: When the node started (Unix seconds); what was available before does not count.

    Raises:
        StepError: One was refused, or a workload did not become available.
    """
    texts = [substitute(path.read_text(), refs) for path in sorted(MANIFESTS.glob("*.yaml"))]
    found = documents(texts)
    if not found:
        return "none"
    kubectl = [str(binaries / "kubectl"), "--kubeconfig", str(layout.kubeconfig)]
    for phase in phases(found):
        shell.run([*kubectl, "apply", "-f", "-"], stdin="---\n".join(phase).encode())
        if kind(phase[0]) == "CustomResourceDefinition":
            names = ["--filename", "-", "--for", "condition=Established", "--timeout=30s"]
            shell.run([*kubectl, "wait", *names], stdin="---\n".join(phase).encode())
    workloads = [document for document in found if kind(document) in WAITED_FOR]
    if workloads:
        _wait(shell, kubectl, workloads)
        access = Api(layout.kubeconfig)
        for name in sorted({namespace(workload) for workload in workloads}):
            if not wait_until(partial(access.pods_started, name, since), 60):
                raise StepError(
                    f"pods in namespace {name} did not start again",
                    f"`{' '.join(kubectl)} -n {name} describe pods` tells more.",
                )
    return f"{len(found)} objects, {len(workloads)} workloads available"


def _wait(shell: Shell, kubectl: list[str], workloads: Sequence[str]) -> None:
    try:
        for workload in workloads:
            shell.run([*kubectl, "rollout", "status", "--filename", "-", "--timeout=120s"], stdin=workload.encode())
    except StepError:
        shell.run([*kubectl, "get", "pods", "--all-namespaces", "--output=wide"], check=False)
        shell.run([*kubectl, "get", "events", "--all-namespaces", "--field-selector=type=Warning"], check=False)
        raise StepError(
            "an add-on did not become available within 2 minutes",
            f"`{' '.join(kubectl)} -n <namespace> describe pod` tells more.",
        ) from None
