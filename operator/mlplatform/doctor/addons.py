"""The checks of what a person installs beside the platform: KServe, the Training Operator, Istio.

Called by `checks`; `ingress` asks it what is served.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from mlplatform.doctor import Finding
from mlplatform.doctor.facts import Facts, Listed, Stay, Unseen
from mlplatform.doctor.words import (
    REQUIREMENTS,
    UPGRADE,
    Version,
    available,
    failure,
    ok,
    skipped,
    some,
    text,
    version,
    warning,
)
from mlplatform.resources import KINDS
from mlplatform.settings import Settings
from mlplatform.snapshot import Object, labels_of, namespace_of, status_of

KSERVE: Final[Version] = (0, 15)


STANDARD: Final[Version] = (0, 16)
"""KServe calls the mode Standard from here on; before, RawDeployment."""


TRAINER: Final[Version] = (1, 9)


ISTIO_V1: Final[Version] = (1, 22)


def kserve(facts: Facts) -> Iterator[Finding]:
    """What serves."""
    name = "KServe"
    kinds = ("InferenceService", "ServingRuntime")
    lacks = list(unserved(facts, {kind: KINDS[kind].api_version for kind in kinds}))
    yield from _add_on(name, lacks, f"Install KServe {text(KSERVE)} or newer ({REQUIREMENTS})")
    if lacks:
        return
    yield from _controller(name, facts.kserve, "control-plane=kserve-controller-manager")
    found = _first(facts.kserve)
    release = None if found is None else deployed(found)
    if release is not None and release < KSERVE:
        yield failure(name, f"{text(release)} is older than {text(KSERVE)}", f"Upgrade it ({REQUIREMENTS})")
    elif release is not None and facts.settings and release < STANDARD and facts.settings.kserve_mode == "Standard":
        yield failure(
            name,
            f"{text(release)} does not know the deployment mode Standard that the chart has",
            f"{UPGRADE} --set kserve.deploymentMode=RawDeployment",
        )
    elif facts.settings and found is not None:
        yield ok(name, f"{_release(found, release)}; models ask for the deployment mode {facts.settings.kserve_mode}")


def training(facts: Facts) -> Iterator[Finding]:
    """What trains."""
    name = "Training Operator"
    lacks = list(unserved(facts, {"PyTorchJob": KINDS["PyTorchJob"].api_version}))
    yield from _add_on(name, lacks, f"Install the Kubeflow Training Operator {text(TRAINER)} ({REQUIREMENTS})")
    if lacks:
        return
    yield from _controller(name, facts.trainer, "control-plane=kubeflow-training-operator")
    found = _first(facts.trainer)
    if found is None:
        return
    release = deployed(found)
    if release is not None and release < TRAINER:
        yield warning(
            name, f"{text(release)} is older than what is tested, {text(TRAINER)}", f"Upgrade it ({REQUIREMENTS})"
        )
    mounts = (m for c in found["spec"]["template"]["spec"]["containers"] for m in c.get("volumeMounts") or ())
    restricted = [name for name, stay in facts.stays.items() if _enforces(stay) == "restricted"]
    if restricted and not any(mount["mountPath"] == "/etc/config" for mount in mounts):
        yield failure(
            name,
            f"its init container is refused where Pod Security is restricted ({some(restricted)}): no training of two pods begins there",
            'Install manifests/training-operator (docs/deployment.md, "Namespaces that enforce restricted Pod Security")',
        )
    else:
        yield ok(name, _release(found, release))


def istio(facts: Facts) -> Iterator[Finding]:
    """What routes."""
    name = "Istio"
    api_version = (facts.settings or Settings()).istio_api_version
    lacks = list(unserved(facts, {"VirtualService": api_version, "Gateway": api_version}))
    yield from _add_on(
        name,
        lacks,
        f"Install Istio {text(ISTIO_V1)} or newer ({REQUIREMENTS}), or let gateway.apiVersion of the chart name what it serves",
    )
    if lacks:
        return
    if not isinstance(facts.istio, Unseen) and not facts.istio:
        yield warning(
            name,
            "there is no istiod in this cluster",
            "Nothing, if its control plane is elsewhere; otherwise install it",
        )
    else:
        yield from _controller(name, facts.istio, "app=istiod")
        found = _first(facts.istio)
        if found is not None:
            yield ok(name, f"{_release(found, deployed(found))} serves {api_version}")


def _add_on(name: str, lacks: list[str], action: str) -> Iterator[Finding]:
    if lacks:
        yield failure(name, f"it is not installed: the API server does not serve {some(lacks)}", action)


def _controller(name: str, found: Listed, selector: str) -> Iterator[Finding]:
    if isinstance(found, Unseen):
        yield skipped(name, "its controller", found.why)
    elif not found:
        yield failure(
            name,
            f"its kinds are there, and no Deployment with the label {selector}: nobody acts on them",
            f"Install it whole ({REQUIREMENTS})",
        )
    else:
        down = [d for d in found if not status_of(d).get("availableReplicas")]
        if len(down) == len(found):
            yield available(name, down[0], f"kubectl -n {namespace_of(down[0])} describe pods -l {selector}")


def unserved(facts: Facts, kinds: Mapping[str, str]) -> Iterator[str]:
    """Which of ``{kind: apiVersion}`` the API server is known not to serve."""
    for kind, api_version in kinds.items():
        served = facts.served.get(api_version, frozenset())
        if not isinstance(served, Unseen) and kind not in served:
            yield f"{kind} ({api_version})"


def deployed(deployment: Object) -> Version | None:
    """Which version a Deployment runs, by its image or its labels; None where neither says."""
    labels = labels_of(deployment)
    image = deployment["spec"]["template"]["spec"]["containers"][0]["image"].partition("@")[0]
    said = (
        image.rpartition("/")[2].partition(":")[2],
        labels.get("app.kubernetes.io/version", ""),
        labels.get("helm.sh/chart", "").rpartition("-")[2],
    )
    return next((found for text in said if (found := version(text))), None)


def _first(found: Listed) -> Object | None:
    return None if isinstance(found, Unseen) or not found else found[0]


def _release(deployment: Object, found: Version | None) -> str:
    image = deployment["spec"]["template"]["spec"]["containers"][0]["image"]
    return text(found) if found else f"image {image} does not say its version"


def _enforces(stay: Stay) -> str:
    found = stay.namespace
    return labels_of(found).get("pod-security.kubernetes.io/enforce", "") if isinstance(found, dict) else ""
