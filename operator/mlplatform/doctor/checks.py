"""What the facts about a cluster mean for models in it: one small function a subject, in the order in which they are read.

Called by `mlplatform.cli.doctor` and `mlplatform.doctor.__main__`. Pure: a check sees nothing but the facts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import chain
from typing import Any, Final

from mlplatform import api
from mlplatform.doctor import Finding
from mlplatform.doctor.addons import istio, kserve, training
from mlplatform.doctor.facts import METRICS, Facts, Unseen, version_label
from mlplatform.doctor.homes import namespaces, queues, store
from mlplatform.doctor.ingress import gateway
from mlplatform.doctor.words import (
    UPGRADE,
    Version,
    available,
    failure,
    ok,
    seconds,
    skipped,
    some,
    text,
    version,
    warning,
)
from mlplatform.resources import pod, scheduling
from mlplatform.settings import Settings
from mlplatform.snapshot import Object, condition, moment, name_of, namespace_of, status_of

Check = Callable[[Facts], Iterator[Finding]]


OLDEST: Final[Version] = (1, 28)


NEWEST: Final[Version] = (1, 36)


LEASE_PATIENCE: Final = timedelta(seconds=60)
"""A Lease that was not renewed for longer is held by nobody who works; clocks differ."""


def findings(facts: Facts) -> tuple[Finding, ...]:
    """Everything that there is to say, in the order of `CHECKS`."""
    return tuple(chain.from_iterable(check(facts) for check in CHECKS))


def kubernetes(facts: Facts) -> Iterator[Finding]:
    """The API server's version."""
    name = "Kubernetes"
    found = version(facts.kubernetes)
    supported = f"{text(OLDEST)} to {text(NEWEST)}"
    if found is None:
        yield skipped(name, "the API server's version", facts.kubernetes or "it says none")
    elif found < OLDEST:
        yield failure(
            name,
            f"{facts.kubernetes} is older than what is supported, {supported}",
            f"Upgrade the cluster to {text(OLDEST)} or newer",
        )
    elif found > NEWEST:
        yield warning(
            name,
            f"{facts.kubernetes} is newer than what is tested, {supported}",
            "Nothing, if all else is well; look for a newer release of this platform",
        )
    else:
        yield ok(name, f"{facts.kubernetes}, of {supported}")


def definitions(facts: Facts) -> Iterator[Finding]:
    """The CRDs, which stay when a release goes, and are not always upgraded with one."""
    for name, wanted in facts.wanted.items():
        live = facts.crds.get(name)
        if isinstance(live, Unseen):
            yield skipped("API", f"CRD {name}", live.why)
        elif live is None:
            yield failure("API", f"there is no CRD {name}", f"{UPGRADE} --set crds.install=true")
        elif condition(live, "Established").get("status") == "False":
            yield failure(
                "API",
                f"CRD {name} is not served: {condition(live, 'Established').get('message', '')}",
                "Mend what the message names",
            )
        elif lacks := difference(schema(wanted), schema(live)):
            yield failure(
                "API",
                f"CRD {name} is another release's: it does not have {some(lacks)} as {facts.release} has it",
                f"{UPGRADE} --set crds.install=true, or, without Helm, kubectl apply --server-side -f manifests/crd",
            )
        elif more := difference(schema(live), schema(wanted)):
            yield warning(
                "API",
                f"CRD {name} is newer than {facts.release}: it has {some(more)} beyond that",
                "Upgrade this plugin to the operator's release: pip install -U 'mlplatform[cli]'",
            )
        else:
            yield ok("API", f"CRD {name} is that of {facts.release}")


def schema(crd: Object) -> Object:
    """What a CRD says of its objects, less what the API server fills in."""
    found: Object = {
        version["name"]: {
            "schema": version["schema"]["openAPIV3Schema"],
            "columns": {column["name"]: column["jsonPath"] for column in version.get("additionalPrinterColumns") or ()},
        }
        for version in crd["spec"]["versions"]
    }
    return found


def difference(wanted: Any, found: Any, path: str = "") -> list[str]:
    """Where `found` lacks what is wanted, as dotted paths without the words of JSON schema; what it has beyond is not looked at."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        return [
            place
            for key, value in wanted.items()
            for place in difference(value, found.get(key), path if key in _JSON_SCHEMA else f"{path}.{key}")
        ]
    if isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        return [place for pair in zip(wanted, found, strict=True) for place in difference(*pair, path)]
    return [] if wanted == found or key_order(wanted) == key_order(found) else [path.lstrip(".")]


_JSON_SCHEMA: Final = {"schema", "properties", "items", "description", "type"}


def key_order(value: Any) -> Any:
    """A list of words whose order means nothing."""
    return sorted(value) if isinstance(value, list) and all(isinstance(word, str) for word in value) else value


def operator(facts: Facts) -> Iterator[Finding]:
    """One release of it runs, is the plugin's, and writes."""
    name = "operator"
    if isinstance(facts.operators, Unseen):
        yield skipped(name, "its Deployment", facts.operators.why)
        return
    if not facts.operators:
        yield failure(name, "there is no Deployment of it in any namespace", UPGRADE)
        return
    places = [f"{namespace_of(d)}/{name_of(d)}" for d in facts.operators]
    if len(places) > 1:
        yield failure(
            name,
            f"{len(places)} releases are installed, which write the same objects: {', '.join(places)}",
            f"Keep one: helm uninstall <release> -n <namespace>; {places[0]} is looked at here",
        )
    deployment, release = facts.operators[0], version_label(facts.operators[0])
    yield available(
        name, deployment, f"kubectl -n {namespace_of(deployment)} describe pods -l app.kubernetes.io/component=operator"
    )
    if release and release != facts.release:
        yield warning(
            name,
            f"{places[0]} is release {release}, whoever asks is {facts.release}",
            "Have both of one release: pip install -U 'mlplatform[cli]', or helm upgrade",
        )
    if facts.mistake:
        yield failure(name, f"{places[0]}: {facts.mistake}", "Correct the chart's value behind it, then helm upgrade")
    yield from _lease(facts)


def _lease(facts: Facts) -> Iterator[Finding]:
    if facts.settings is None or not facts.settings.lease:
        return
    lease = facts.lease
    if isinstance(lease, Unseen):
        yield skipped("operator", f"its Lease {facts.settings.lease}", lease.why)
        return
    spec = (lease or {}).get("spec") or {}
    holder, renewed = spec.get("holderIdentity"), moment(spec.get("renewTime"))
    log = (
        f"kubectl -n {facts.settings.lease.partition('/')[0]} logs deployment/{facts.settings.lease.partition('/')[2]}"
    )
    if not holder:
        yield failure("operator", f"nobody holds the Lease {facts.settings.lease}: nothing is reconciled", log)
    elif renewed and facts.now - renewed > LEASE_PATIENCE:
        yield failure(
            "operator",
            f"{holder} has not renewed the Lease {facts.settings.lease} for {seconds(facts.now - renewed)}: nothing is reconciled",
            log,
        )
    else:
        yield ok("operator", f"{holder} holds the Lease {facts.settings.lease}")


def rights(facts: Facts) -> Iterator[Finding]:
    """What the operator may do."""
    name = "rights"
    lacking = {"the cluster": facts.cluster_rights, **{place: stay.operators for place, stay in facts.stays.items()}}
    unseen = next((found for found in lacking.values() if isinstance(found, Unseen)), None)
    if unseen is not None:
        yield skipped(name, "what the operator may do", unseen.why)
    elif not facts.operators or facts.settings is None:
        return
    elif all(not found for found in lacking.values()):
        yield ok(name, "the operator may do what it needs" + (f" in {some(list(facts.stays))}" if facts.stays else ""))
    for place, found in lacking.items():
        if found and not isinstance(found, Unseen):
            yield failure(
                name, f"the operator may not {some(list(found))} in {place}", f"{UPGRADE}: the chart gives it these"
            )


def capacity(facts: Facts) -> Iterator[Finding]:
    """What nodes offer of what models ask for by name."""
    if isinstance(facts.nodes, Unseen) or isinstance(facts.models, Unseen):
        return
    offered = offers(facts.nodes)
    asked: dict[str, list[str]] = {}
    for model in facts.models:
        resource, count = _gpus(model, facts.settings or Settings())
        if count and offered.get(resource, 0) < count:
            asked.setdefault(resource, []).append(f"{namespace_of(model)}/{name_of(model)} ({count})")
    extended = {name: most for name, most in offered.items() if "/" in name}
    for resource, models in asked.items():
        there = (
            ", ".join(f"{name} ({most:g} on a node)" for name, most in extended.items())
            or "no extended resource at all"
        )
        yield failure(
            "GPUs",
            f"no node has as much {resource} as {some(models)} ask for; nodes offer {there}",
            "Set spec.scheduling.gpuResource (for all models: scheduling.jobs.gpuResource of the chart) to what nodes offer, or install its device plugin",
        )
    if not asked and extended:
        yield ok("GPUs", f"nodes offer {', '.join(extended)}")


def offers(nodes: tuple[Object, ...]) -> dict[str, float]:
    """The most of each resource that any node that takes pods has."""
    found: dict[str, float] = {}
    for node in nodes:
        if not (node.get("spec") or {}).get("unschedulable"):
            for name, text in (status_of(node).get("allocatable") or {}).items():
                found[name] = max(found.get(name, 0.0), pod.quantity(str(text)))
    return {name: most for name, most in found.items() if most}


def _gpus(model: Object, settings: Settings) -> tuple[str, int]:
    said = (model["spec"].get("scheduling") or {}).get("gpuResource")
    platform = scheduling.of_stages(api.Scheduling(), settings).gpu_resource
    count = ((model["spec"].get("training") or {}).get("resources") or {}).get("gpu") or 0
    return str(said or platform or scheduling.GPU), int(count)


def autoscaling(facts: Facts) -> Iterator[Finding]:
    """What the autoscaler goes by."""
    served = facts.served.get(METRICS)
    if not served or isinstance(served, Unseen):
        why = f" ({served.why})" if isinstance(served, Unseen) else ""
        yield warning(
            "metrics API",
            f"{METRICS} is not served{why}: models with more replicas at most than at least are not scaled",
            "Install metrics-server, or another source of the Kubernetes metrics API",
        )
    else:
        yield ok("metrics API", f"{METRICS} is served")


CHECKS: Final[tuple[Check, ...]] = (
    kubernetes, definitions, operator, rights, training, kserve, istio, gateway, capacity, autoscaling, queues, namespaces, store,
)  # fmt: skip
