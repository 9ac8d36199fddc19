"""The cluster's add-ons: the manifests of their own modules, adapted by values and patches, applied and waited for.

Called by `cluster.py`, a step for each. ``upstream/<name>`` holds what is ours of an add-on: a kustomization with its
patches, and values for its charts. The rest is read from the module at the version that its go.mod pins; see
`upstream.py`.
"""

from __future__ import annotations

import base64
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from local import cache, images, upstream
from local import layout as net
from local.api import Api, wait_until
from local.layout import REPO, Layout
from local.steps import Shell, StepError

READY_SECONDS: Final = 180
APPLY_SECONDS: Final = 90.0
"""How long objects may be refused because what must answer for them (a CRD, a webhook) is not there yet."""


@dataclass(frozen=True, slots=True)
class AddOn:
    """One add-on.

    Attributes:
        name: Also its step's.
        namespace: Where its workloads run.
        deployments: What must be available before it counts as ready.
        module: Name in `upstream.UPSTREAMS` of the module with its manifests; empty when all of them are ours.
        charts: Release → chart in the module; each becomes ``<release>.yaml``, with ``values-<release>.yaml`` or ``values.yaml``.
        copied: Path in the repository or, with a dot, in the module → name beside the kustomization.
        replaced: Text of the copied files → what stands there instead.
        images: The images that it runs.
        after: Add-ons that must be ready first.
        above: Where its folder lies.
    """

    name: str
    namespace: str
    deployments: tuple[str, ...]
    module: str
    charts: Mapping[str, str] = field(default_factory=dict)
    copied: Mapping[str, str] = field(default_factory=dict)
    replaced: Mapping[str, str] = field(default_factory=dict)
    images: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    above: Path = upstream.FOLDER

    @property
    def ours(self) -> Path:
        """What is ours of it."""
        return self.above / self.name


ADDONS: Final = (
    AddOn(
        "coredns",
        "kube-system",
        ("coredns",),
        "kubernetes",
        copied={"./cluster/addons/dns/coredns/coredns.yaml.sed": "upstream.yaml"},
        replaced={"$DNS_DOMAIN": net.CLUSTER_DOMAIN, "$DNS_SERVER_IP": net.DNS_IP, "$DNS_MEMORY_LIMIT": "170Mi"},
        images=("coredns",),
    ),
    AddOn(
        "metrics-server",
        "kube-system",
        ("metrics-server",),
        "metrics-server",
        charts={"metrics-server": "charts/metrics-server"},
        images=("metrics-server",),
    ),
    AddOn(
        "istio",
        "istio-system",
        ("istiod",),
        "istio",
        charts={"istio-base": "manifests/charts/base", "istiod": "manifests/charts/istio-control/istio-discovery"},
        images=("istiod",),
        after=("coredns",),
    ),
    AddOn(
        "gateway",
        "istio-system",
        ("istio-ingressgateway",),
        "istio",
        charts={"istio-ingressgateway": "manifests/charts/gateway"},
        images=("proxyv2",),
        after=("istio",),
    ),
    AddOn(
        "training-operator",
        "kubeflow",
        ("training-operator",),
        "training-operator",
        copied={"./manifests": "upstream", "manifests/training-operator": "restricted"},
        images=("training-operator",),
    ),
    AddOn(
        "kserve",
        "kserve",
        ("kserve-controller-manager",),
        "kserve",
        charts={"kserve-crd": "charts/kserve-crd", "kserve": "charts/kserve-resources"},
        images=("kserve",),
    ),
    AddOn(
        "monitoring",
        "monitoring",
        ("prometheus",),
        "",
        copied={"alerts/mlplatform.rules.yaml": "rules.yaml"},
        images=("prometheus", "alertmanager"),
        after=("coredns",),
    ),
)


def values(layout: Layout, refs: Mapping[str, str]) -> dict[str, str]:
    """What ``${…}`` stands for in our files.

    Returns:
        ``<image>``, ``<image>_name`` and ``<image>_tag`` of every image; ``<certificate>_crt`` and ``…_key`` of those
        that add-ons are given, in base64; the cluster's domain.
    """
    found = {"domain": net.CLUSTER_DOMAIN}
    for name, reference in refs.items():
        key = name.replace("-", "_")
        found[key] = reference
        found[f"{key}_name"], _, found[f"{key}_tag"] = reference.rpartition(":")
    for path in layout.pki.glob("addons-*.*"):
        if path.suffix in {".crt", ".key"}:
            key = path.name.removeprefix("addons-").replace("-", "_").replace(".", "_")
            found[key] = base64.b64encode(path.read_bytes()).decode()
    return found


def substitute(text: str, known: Mapping[str, str]) -> str:
    """Puts values in place of ``${name}``.

    Raises:
        StepError: A name is not known.
    """

    def value(found: re.Match[str]) -> str:
        if found[1] not in known:
            raise StepError(f"a manifest asks for {found[0]}, which nothing here makes")
        return known[found[1]]

    return re.sub(r"\$\{(\w+)\}", value, text)


@dataclass(frozen=True, slots=True)
class Installer:
    """Applies add-ons to the running cluster.

    Attributes:
        layout: The cluster's folders.
        programs: The folder with helm and kubectl.
        refs: Name → reference of every image.
        since: When the node started (Unix seconds); what was available before does not count.
    """

    layout: Layout
    programs: Path
    refs: Mapping[str, str]
    since: float

    def install(self, shell: Shell, addon: AddOn) -> str:
        """Renders, applies and waits; returns a note.

        Raises:
            StepError: It was refused, or did not become available.
        """
        stamp = self.layout.state / "addons" / addon.name
        wanted = self._key(addon)
        if stamp.exists() and stamp.read_text() == wanted:
            self._wait(shell, addon)
            return "running"
        manifests = self.render(shell, addon)
        apply = [*self._kubectl, "apply", "--server-side", "--force-conflicts", "-f", "-"]
        if not wait_until(lambda: self._applied(shell, apply, manifests), APPLY_SECONDS):
            raise StepError(f"the API server refuses {addon.name}'s manifests", f"The log has its words: {shell.log}.")
        self._wait(shell, addon)
        cache.write(stamp, wanted)
        return "installed"

    def render(self, shell: Shell, addon: AddOn) -> bytes:
        """The add-on's manifests, one YAML stream."""
        module = upstream.entry(self.layout.cache, upstream.named(addon.module)) / "source" if addon.module else REPO
        work = self.layout.cache / "tmp" / f"addon-{addon.name}"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True, mode=0o700)
        known = values(self.layout, self.refs)
        for path in addon.ours.glob("*.yaml"):
            (work / path.name).write_text(substitute(path.read_text(), known))
        for source, name in addon.copied.items():
            upstream.copy((module if source.startswith("./") else REPO) / source, work / name)
            for text, instead in addon.replaced.items():
                (work / name).write_text((work / name).read_text().replace(text, instead))
        for release, chart in addon.charts.items():
            own = work / f"values-{release}.yaml"
            chosen = own if own.exists() else work / "values.yaml"
            argv = [str(self.programs / "helm"), "template", release, str(module / chart)]
            argv += ["--namespace", addon.namespace, *(("--values", str(chosen)) if chosen.exists() else ())]
            (work / f"{release}.yaml").write_text(shell.run(argv, capture=True))
        manifests = shell.run([self.programs / "kubectl", "kustomize", work], capture=True).encode()
        shutil.rmtree(work)  # keys of certificates are in it
        return manifests

    def _key(self, addon: AddOn) -> str:
        """What its manifests are made from."""
        known = values(self.layout, self.refs)
        ours = {path.name: substitute(path.read_text(), known) for path in addon.ours.glob("*.yaml")}
        copied = [name for name in addon.copied if not name.startswith("./")]
        digests = images.source_digests(REPO, copied)
        module = upstream.named(addon.module).key if addon.module else ""
        return cache.key(ours, digests, module, repr(addon))

    @property
    def _kubectl(self) -> list[str]:
        return [str(self.programs / "kubectl"), "--kubeconfig", str(self.layout.kubeconfig)]

    def _applied(self, shell: Shell, argv: list[str], manifests: bytes) -> bool:
        try:
            shell.run(argv, stdin=manifests)
        except StepError:
            return False
        return True

    def _wait(self, shell: Shell, addon: AddOn) -> None:
        kubectl = [*self._kubectl, "--namespace", addon.namespace]
        try:
            for name in addon.deployments:
                shell.run([*kubectl, "rollout", "status", f"deployment/{name}", f"--timeout={READY_SECONDS}s"])
        except StepError:
            shell.run([*kubectl, "get", "pods", "--output=wide"], check=False)
            shell.run([*kubectl, "get", "events", "--field-selector=type=Warning"], check=False)
            raise StepError(
                f"{addon.name} did not become available within {READY_SECONDS} s",
                f"`{' '.join(kubectl)} describe pods` tells more.",
            ) from None
        access = Api(self.layout.kubeconfig)
        if not wait_until(lambda: access.pods_started(addon.namespace, addon.deployments, self.since), 60):
            raise StepError(
                f"pods in namespace {addon.namespace} did not start again",
                f"`{' '.join(kubectl)} describe pods` tells more.",
            )
