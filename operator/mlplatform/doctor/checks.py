"""What the facts about a cluster mean for models in it: one small function a subject, in the order in which they are read.

Called by `mlplatform.cli.doctor` and `mlplatform.doctor.__main__`. Pure: a check sees nothing but the facts.
"""

from __future__ import annotations

import base64
import re
import ssl
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Any, Final

from mlplatform import api
from mlplatform.doctor import Finding, Level
from mlplatform.doctor.facts import (
    KUEUE,
    METRICS,
    READING,
    Facts,
    Listed,
    Seen,
    Stay,
    Unseen,
    version_label,
)
from mlplatform.failures import ready
from mlplatform.resources import KINDS, pod, scheduling
from mlplatform.settings import Settings
from mlplatform.snapshot import Object, annotations_of, condition, labels_of, moment, name_of, namespace_of, status_of

Check = Callable[[Facts], Iterator[Finding]]
Version = tuple[int, int]

OLDEST: Final[Version] = (1, 28)
NEWEST: Final[Version] = (1, 36)
KSERVE: Final[Version] = (0, 15)
STANDARD: Final[Version] = (0, 16)
"""KServe calls the mode Standard from here on; before, RawDeployment."""
TRAINER: Final[Version] = (1, 9)
ISTIO_V1: Final[Version] = (1, 22)

SOON: Final = timedelta(days=21)
"""A certificate that ends within that time is worth a word."""

LEASE_PATIENCE: Final = timedelta(seconds=60)
"""A Lease that was not renewed for longer is held by nobody who works; clocks differ."""

_UPGRADE: Final = "helm upgrade --install mlplatform charts/mlplatform -n mlplatform-system --reset-then-reuse-values"
_REQUIREMENTS: Final = 'docs/deployment.md, "Requirements"'
_ASK: Final = "Let somebody run the doctor who may, or ask for the right"


def findings(facts: Facts) -> tuple[Finding, ...]:
    """Everything that there is to say, in the order of `CHECKS`."""
    return tuple(chain.from_iterable(check(facts) for check in CHECKS))


def kubernetes(facts: Facts) -> Iterator[Finding]:
    """The API server's version."""
    name = "Kubernetes"
    found = version(facts.kubernetes)
    supported = f"{_text(OLDEST)} to {_text(NEWEST)}"
    if found is None:
        yield _skipped(name, "the API server's version", facts.kubernetes or "it says none")
    elif found < OLDEST:
        yield _failure(
            name,
            f"{facts.kubernetes} is older than what is supported, {supported}",
            f"Upgrade the cluster to {_text(OLDEST)} or newer",
        )
    elif found > NEWEST:
        yield _warning(
            name,
            f"{facts.kubernetes} is newer than what is tested, {supported}",
            "Nothing, if all else is well; look for a newer release of this platform",
        )
    else:
        yield _ok(name, f"{facts.kubernetes}, of {supported}")


def definitions(facts: Facts) -> Iterator[Finding]:
    """The CRDs, which stay when a release goes, and are not always upgraded with one."""
    for name, wanted in facts.wanted.items():
        live = facts.crds.get(name)
        if isinstance(live, Unseen):
            yield _skipped("API", f"CRD {name}", live.why)
        elif live is None:
            yield _failure("API", f"there is no CRD {name}", f"{_UPGRADE} --set crds.install=true")
        elif condition(live, "Established").get("status") == "False":
            yield _failure(
                "API",
                f"CRD {name} is not served: {condition(live, 'Established').get('message', '')}",
                "Mend what the message names",
            )
        elif lacks := difference(schema(wanted), schema(live)):
            yield _failure(
                "API",
                f"CRD {name} is another release's: it does not have {_some(lacks)} as {facts.release} has it",
                f"{_UPGRADE} --set crds.install=true, or, without Helm, kubectl apply --server-side -f manifests/crd",
            )
        elif more := difference(schema(live), schema(wanted)):
            yield _warning(
                "API",
                f"CRD {name} is newer than {facts.release}: it has {_some(more)} beyond that",
                "Upgrade this plugin to the operator's release: pip install -U 'mlplatform[cli]'",
            )
        else:
            yield _ok("API", f"CRD {name} is that of {facts.release}")


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
        yield _skipped(name, "its Deployment", facts.operators.why)
        return
    if not facts.operators:
        yield _failure(name, "there is no Deployment of it in any namespace", _UPGRADE)
        return
    places = [f"{namespace_of(d)}/{name_of(d)}" for d in facts.operators]
    if len(places) > 1:
        yield _failure(
            name,
            f"{len(places)} releases are installed, which write the same objects: {', '.join(places)}",
            f"Keep one: helm uninstall <release> -n <namespace>; {places[0]} is looked at here",
        )
    deployment, release = facts.operators[0], version_label(facts.operators[0])
    yield _available(
        name, deployment, f"kubectl -n {namespace_of(deployment)} describe pods -l app.kubernetes.io/component=operator"
    )
    if release and release != facts.release:
        yield _warning(
            name,
            f"{places[0]} is release {release}, whoever asks is {facts.release}",
            "Have both of one release: pip install -U 'mlplatform[cli]', or helm upgrade",
        )
    if facts.mistake:
        yield _failure(name, f"{places[0]}: {facts.mistake}", "Correct the chart's value behind it, then helm upgrade")
    yield from _lease(facts)


def _lease(facts: Facts) -> Iterator[Finding]:
    if facts.settings is None or not facts.settings.lease:
        return
    lease = facts.lease
    if isinstance(lease, Unseen):
        yield _skipped("operator", f"its Lease {facts.settings.lease}", lease.why)
        return
    spec = (lease or {}).get("spec") or {}
    holder, renewed = spec.get("holderIdentity"), moment(spec.get("renewTime"))
    log = (
        f"kubectl -n {facts.settings.lease.partition('/')[0]} logs deployment/{facts.settings.lease.partition('/')[2]}"
    )
    if not holder:
        yield _failure("operator", f"nobody holds the Lease {facts.settings.lease}: nothing is reconciled", log)
    elif renewed and facts.now - renewed > LEASE_PATIENCE:
        yield _failure(
            "operator",
            f"{holder} has not renewed the Lease {facts.settings.lease} for {_seconds(facts.now - renewed)}: nothing is reconciled",
            log,
        )
    else:
        yield _ok("operator", f"{holder} holds the Lease {facts.settings.lease}")


def kserve(facts: Facts) -> Iterator[Finding]:
    """What serves."""
    name = "KServe"
    kinds = ("InferenceService", "ServingRuntime")
    lacks = list(_unserved(facts, {kind: KINDS[kind].api_version for kind in kinds}))
    yield from _add_on(name, lacks, f"Install KServe {_text(KSERVE)} or newer ({_REQUIREMENTS})")
    if lacks:
        return
    yield from _controller(name, facts.kserve, "control-plane=kserve-controller-manager")
    found = _first(facts.kserve)
    release = None if found is None else deployed(found)
    if release is not None and release < KSERVE:
        yield _failure(name, f"{_text(release)} is older than {_text(KSERVE)}", f"Upgrade it ({_REQUIREMENTS})")
    elif release is not None and facts.settings and release < STANDARD and facts.settings.kserve_mode == "Standard":
        yield _failure(
            name,
            f"{_text(release)} does not know the deployment mode Standard that the chart has",
            f"{_UPGRADE} --set kserve.deploymentMode=RawDeployment",
        )
    elif facts.settings:
        yield _ok(name, f"{_release(found, release)}; models ask for the deployment mode {facts.settings.kserve_mode}")


def training(facts: Facts) -> Iterator[Finding]:
    """What trains."""
    name = "Training Operator"
    lacks = list(_unserved(facts, {"PyTorchJob": KINDS["PyTorchJob"].api_version}))
    yield from _add_on(name, lacks, f"Install the Kubeflow Training Operator {_text(TRAINER)} ({_REQUIREMENTS})")
    if lacks:
        return
    yield from _controller(name, facts.trainer, "control-plane=kubeflow-training-operator")
    found = _first(facts.trainer)
    if found is None:
        return
    release = deployed(found)
    if release is not None and release < TRAINER:
        yield _warning(
            name, f"{_text(release)} is older than what is tested, {_text(TRAINER)}", f"Upgrade it ({_REQUIREMENTS})"
        )
    mounts = (m for c in found["spec"]["template"]["spec"]["containers"] for m in c.get("volumeMounts") or ())
    restricted = [name for name, stay in facts.stays.items() if _enforces(stay) == "restricted"]
    if restricted and not any(mount["mountPath"] == "/etc/config" for mount in mounts):
        yield _failure(
            name,
            f"its init container is refused where Pod Security is restricted ({_some(restricted)}): no training of two pods begins there",
            'Install manifests/training-operator (docs/deployment.md, "Namespaces that enforce restricted Pod Security")',
        )
    else:
        yield _ok(name, _release(found, release))


def istio(facts: Facts) -> Iterator[Finding]:
    """What routes."""
    name = "Istio"
    api_version = (facts.settings or Settings()).istio_api_version
    lacks = list(_unserved(facts, {"VirtualService": api_version, "Gateway": api_version}))
    yield from _add_on(
        name,
        lacks,
        f"Install Istio {_text(ISTIO_V1)} or newer ({_REQUIREMENTS}), or let gateway.apiVersion of the chart name what it serves",
    )
    if lacks:
        return
    if not isinstance(facts.istio, Unseen) and not facts.istio:
        yield _warning(
            name,
            "there is no istiod in this cluster",
            "Nothing, if its control plane is elsewhere; otherwise install it",
        )
    else:
        yield from _controller(name, facts.istio, "app=istiod")
        found = _first(facts.istio)
        if found is not None:
            yield _ok(name, f"{_release(found, deployed(found))} serves {api_version}")


def gateway(facts: Facts) -> Iterator[Finding]:
    """Where requests come in."""
    name = "gateway"
    if facts.settings is None or list(_unserved(facts, {"Gateway": facts.settings.istio_api_version})):
        return
    where, found = facts.settings.gateway, facts.gateway
    if isinstance(found, Unseen):
        yield _skipped(name, f"Gateway {where}", found.why)
        return
    if found is None:
        yield _failure(
            name,
            f"there is no Gateway {where}: no model is reached from outside",
            "Set gateway.create=true, or let gateway.name name one that there is",
        )
        return
    yield from _gateway_pods(facts, where, found)
    servers = found["spec"].get("servers") or ()
    hosts = [host for server in servers for host in server.get("hosts") or ()]
    if any(covers(host, facts.settings.domain) for host in hosts):
        yield _ok(name, f"Gateway {where} takes requests for *.{facts.settings.domain}")
    else:
        yield _failure(
            name,
            f"Gateway {where} takes requests for {_some(hosts) or 'no host'}, and models answer at *.{facts.settings.domain}",
            f"Give it the host *.{facts.settings.domain}, or let gateway.domain of the chart be what it has",
        )
    asked = [entry for entry in facts.settings.gateway_hosts.split(",") if entry]
    if strange := [entry for entry in asked if not any(takes(host, entry) for host in hosts)]:
        yield _failure(
            name,
            f"Gateway {where} does not take requests for {_some(strange)}, which models may ask for (gateway.hosts)",
            "Give it those hosts, or take them out of gateway.hosts of the chart",
        )
    yield from chain.from_iterable(_certificate(key, secret, facts.now) for key, secret in facts.certificates.items())
    if facts.url:
        trouble, action = facts.url
        yield _failure(name, trouble, action) if action else _ok(name, trouble)


def _gateway_pods(facts: Facts, where: str, found: Object) -> Iterator[Finding]:
    pods, selector = facts.gateway_pods, found["spec"].get("selector") or {}
    labels = ",".join(f"{key}={value}" for key, value in selector.items())
    if isinstance(pods, Unseen):
        yield _skipped("gateway", f"the pods of Gateway {where}", pods.why)
    elif not pods:
        yield _failure(
            "gateway",
            f"no pod has the labels {labels} that Gateway {where} selects",
            "Install Istio's ingress gateway, or let gateway.selector of the chart be the labels of yours (kubectl get pods -A --show-labels)",
        )
    elif not (there := sum(map(ready, pods))):
        yield _failure(
            "gateway", f"none of {len(pods)} pods with {labels} is ready", f"kubectl get pods -A -l {labels}"
        )
    else:
        yield _ok("gateway", f"{there} of {len(pods)} pods with {labels} are ready")


def covers(host: str, domain: str) -> bool:
    """Whether a Gateway's host takes requests for every host below `domain`."""
    name = host.rpartition("/")[2]
    return name == "*" or (name.startswith("*.") and f".{domain}".endswith(name[1:]))


def takes(host: str, entry: str) -> bool:
    """Whether a Gateway's host takes the requests that an entry of gateway.hosts promises, in its namespaces."""
    (where, _, name), (namespace, _, asked) = host.rpartition("/"), entry.rpartition("/")
    ending = name.startswith("*") and asked.removeprefix("*").endswith(name[1:])
    return where in {"", "*", namespace} and (name == asked or ending)


def _certificate(key: str, secret: Seen, now: datetime) -> Iterator[Finding]:
    name = "certificate"
    if isinstance(secret, Unseen):
        yield _skipped(name, f"Secret {key}", secret.why)
    elif secret is None:
        yield _failure(
            name,
            f"there is no Secret {key}, which the Gateway names: HTTPS is not answered",
            "Create it with the keys tls.crt and tls.key, in the namespace of the gateway's pods",
        )
    else:
        data = secret.get("data") or {}
        text = data.get("tls.crt") or data.get("cert") or ""
        try:
            ends, names = _read_certificate(base64.b64decode(text))
        except ValueError as error:
            yield _failure(
                name, f"Secret {key} holds no certificate: {error}", "Put a PEM certificate into its key tls.crt"
            )
            return
        if ends <= now:
            yield _failure(name, f"that of Secret {key} ({names}) ended at {ends:%Y-%m-%d %H:%M}", "Renew it")
        elif ends - now < SOON:
            yield _warning(
                name,
                f"that of Secret {key} ({names}) ends at {ends:%Y-%m-%d %H:%M}",
                "Renew it, or see why it is not renewed by itself",
            )
        else:
            yield _ok(name, f"that of Secret {key} ({names}) ends at {ends:%Y-%m-%d}")


def _read_certificate(pem: bytes) -> tuple[datetime, str]:
    """When a certificate ends, and for whom it is.

    Raises:
        ValueError: It is none.
    """
    from cryptography import x509  # noqa: PLC0415  of the plugin alone: the test of a release reads no Secret

    found = x509.load_pem_x509_certificate(pem)
    try:
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return found.not_valid_after_utc, ", ".join(names.get_values_for_type(x509.DNSName))
    except x509.ExtensionNotFound:
        return found.not_valid_after_utc, found.subject.rfc4514_string()


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
        yield _failure(
            "GPUs",
            f"no node has as much {resource} as {_some(models)} ask for; nodes offer {there}",
            "Set spec.scheduling.gpuResource (for all models: scheduling.jobs.gpuResource of the chart) to what nodes offer, or install its device plugin",
        )
    if not asked and extended:
        yield _ok("GPUs", f"nodes offer {', '.join(extended)}")


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
    if not facts.served.get(METRICS):
        yield _warning(
            "metrics API",
            f"{METRICS} is not served: models with more replicas at most than at least are not scaled",
            "Install metrics-server, or another source of the Kubernetes metrics API",
        )
    else:
        yield _ok("metrics API", f"{METRICS} is served")


def queues(facts: Facts) -> Iterator[Finding]:
    """Kueue, where a model names a queue of it."""
    for place, stay in facts.stays.items():
        for queue, found in stay.queues.items():
            if isinstance(found, Unseen):
                yield _skipped("Kueue", f"LocalQueue {place}/{queue}", found.why)
            elif not facts.served.get(KUEUE):
                yield _failure(
                    "Kueue",
                    f"a model in {place} waits for the queue {queue}, and Kueue is not installed",
                    "Install Kueue, or take spec.scheduling.queue off the model",
                )
            elif found is None:
                yield _failure(
                    "Kueue",
                    f"there is no LocalQueue {queue} in {place}, for which a model waits",
                    f"Create it, or correct spec.scheduling.queue of the models in {place}",
                )
            else:
                yield _ok("Kueue", f"LocalQueue {place}/{queue} is there")


def rights(facts: Facts) -> Iterator[Finding]:
    """What the operator may do."""
    name = "rights"
    lacking = {"the cluster": facts.cluster_rights, **{place: stay.operators for place, stay in facts.stays.items()}}
    unseen = next((found for found in lacking.values() if isinstance(found, Unseen)), None)
    if unseen is not None:
        yield _skipped(name, "what the operator may do", unseen.why)
    elif not facts.operators or facts.settings is None:
        return
    elif all(not found for found in lacking.values()):
        yield _ok(
            name, "the operator may do what it needs" + (f" in {_some(list(facts.stays))}" if facts.stays else "")
        )
    for place, found in lacking.items():
        if found and not isinstance(found, Unseen):
            yield _failure(
                name, f"the operator may not {_some(list(found))} in {place}", f"{_UPGRADE}: the chart gives it these"
            )


def namespaces(facts: Facts) -> Iterator[Finding]:
    """Each namespace of models."""
    if not facts.stays:
        yield _warning(
            "namespaces",
            "none is set up for models, and there is no model",
            "List one in modelNamespaces of the chart, or name one with -n",
        )
    if facts.settings is None:
        return
    for place, stay in facts.stays.items():
        found = list(_namespace(place, stay, facts.settings, facts.now))
        yield from found
        if all(f.level is Level.OK for f in found):
            yield _ok(f"namespace {place}", "has all that the pods of models need")


def _namespace(place: str, stay: Stay, settings: Settings, now: datetime) -> Iterator[Finding]:
    name = f"namespace {place}"
    setup = f"List {place} in modelNamespaces of the chart, then helm upgrade"
    if stay.namespace is None:
        yield _failure(
            name, "it does not exist", f"kubectl create namespace {place}, or take it out of the chart's values"
        )
        return
    if settings.namespaces and place not in settings.namespaces:
        yield _failure(
            name,
            f"the operator does not watch it, but {_some(list(settings.namespaces))}: models there are left as they are",
            f"Add {place} to operator.watchNamespaces of the chart",
        )
    for account, found in stay.accounts.items():
        if isinstance(found, Unseen):
            yield _skipped(name, f"ServiceAccount {account}", found.why)
        elif found is None:
            yield _failure(name, f"it has no ServiceAccount {account}, as which pods run", setup)
    for secret, found in stay.pull.items():
        if isinstance(found, Unseen):
            yield _skipped(name, f"pull secret {secret}", found.why)
        elif found is None:
            yield _failure(
                name,
                f"it has no Secret {secret}, with which its ServiceAccounts pull images",
                f"kubectl create secret docker-registry {secret} -n {place} …",
            )
    yield from _store_secret(name, place, stay, settings, setup)
    if settings.trust_config_map:
        yield from _trust(name, place, stay.trust, settings, now)
    yield from _own_rights(name, place, stay.own)


def _store_secret(name: str, place: str, stay: Stay, settings: Settings, setup: str) -> Iterator[Finding]:
    found = stay.secret
    if isinstance(found, Unseen):
        if stay.probe is None or stay.probe.skipped:  # A pod has been given it.
            yield _skipped(name, f"Secret {settings.store_secret}", found.why)
        return
    if found is None:
        yield _failure(name, f"it has no Secret {settings.store_secret} with the store's credentials", setup)
        return
    keys = found.get("data") or {}
    one, other = "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"
    if bool(keys.get(one)) != bool(keys.get(other)):
        yield _failure(
            name,
            f"Secret {settings.store_secret} has one of {one} and {other}, and not the other",
            "Give it both, or, with a role, none",
        )
    if settings.trust_config_map:
        wanted = {
            "serving.kserve.io/s3-cabundle-configmap": settings.trust_config_map,
            "serving.kserve.io/s3-cabundle": f"{pod.TRUST}/{settings.trust_key}",
        }
        said = annotations_of(found)
        if any(said.get(key) != value for key, value in wanted.items()):
            yield _warning(
                name,
                f"KServe's storage initializer is not told to trust ConfigMap {settings.trust_config_map}",
                f"kubectl annotate --overwrite secret {settings.store_secret} -n {place} "
                + " ".join(f"{key}={value}" for key, value in wanted.items()),
            )


def _trust(name: str, place: str, found: Seen, settings: Settings, now: datetime) -> Iterator[Finding]:
    config, key = settings.trust_config_map, settings.trust_key
    if isinstance(found, Unseen):
        yield _skipped(name, f"ConfigMap {config}", found.why)
        return
    if found is None:
        yield _failure(
            name,
            f"it has no ConfigMap {config}, which trust.configMap of the chart names",
            f"kubectl create configmap {config} -n {place} --from-file={key}=…, or let trust-manager make it",
        )
        return
    binary = {
        name: base64.b64decode(value).decode(errors="replace")
        for name, value in (found.get("binaryData") or {}).items()
    }
    data = {**(found.get("data") or {}), **binary}
    if key not in data:
        yield _failure(
            name,
            f"ConfigMap {config} has no key {key}, but {_some(list(data)) or 'none at all'}",
            "Let trust.key of the chart name the one with the authorities",
        )
        return
    try:
        authorities = _authorities(str(data[key]))
    except ValueError as error:
        yield _failure(
            name,
            f"key {key} of ConfigMap {config} holds no certificate of an authority in PEM: {error}",
            "Put the PEM of every authority there that pods are to trust, -----BEGIN CERTIFICATE----- and all",
        )
        return
    ended = [who for who, ends in authorities.items() if ends <= now]
    if ended:
        yield _warning(
            name,
            f"of the authorities in ConfigMap {config}, {_some(ended)} have ended",
            "Replace them, if the store's certificate is signed by one of them",
        )


def _authorities(pem: str) -> dict[str, datetime]:
    """The authorities in a bundle, and when they end.

    Raises:
        ValueError: There is none.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    parts = re.findall(r"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----[^-]*-----END [A-Z0-9 ]*-----", pem)
    try:
        context.load_verify_locations(cadata="\n".join(parts))
    except (ssl.SSLError, ValueError, TypeError) as error:  # Of no part at all, and of one that is not ASCII.
        raise ValueError(str(error) if parts else "there is no BEGIN CERTIFICATE") from error
    found: dict[str, datetime] = {}
    authority: Any
    for authority in context.get_ca_certs():
        subject = ", ".join(f"{key}={value}" for part in authority["subject"] for key, value in part)
        found[subject] = datetime.fromtimestamp(ssl.cert_time_to_seconds(authority["notAfter"]), tz=UTC)
    return found


def _own_rights(name: str, place: str, own: tuple[str, ...] | Unseen | None) -> Iterator[Finding]:
    if own is None:
        return
    if isinstance(own, Unseen):
        yield _skipped(name, "what you may do there", own.why)
    elif any(what.partition(" ")[0] in READING for what in own):
        yield _warning(
            name,
            f"you may not {_some(list(own))} there",
            f"Ask for the role: kubectl create rolebinding mlmodels --clusterrole=view --user=<you> -n {place}",
        )
    elif own:
        yield _ok(name, f"you may view models there, but not {_some(list(own))} (--clusterrole=edit gives that)")


def store(facts: Facts) -> Iterator[Finding]:
    """The artifact store, as the pods of stages use it."""
    for place, stay in facts.stays.items():
        probe = stay.probe
        if probe is None or facts.settings is None:
            continue
        root = facts.settings.artifact_root
        if probe.skipped:
            yield Finding(
                "store", Level.SKIPPED, f"{root} was not used from {place}: {probe.skipped}", probe.next_action
            )
        elif probe.trouble:
            yield _failure("store", f"from {place}: {probe.trouble}", probe.next_action)
        else:
            yield _ok("store", f"a pod in {place} wrote, read and deleted a file in {root}")


CHECKS: Final[tuple[Check, ...]] = (
    kubernetes, definitions, operator, rights, training, kserve, istio, gateway, capacity, autoscaling, queues, namespaces, store,
)  # fmt: skip


# The parts that checks share.


def version(text: str) -> Version | None:
    """The first two numbers of a version; None of what is none, such as a digest."""
    match = re.fullmatch(r"v?(\d+)\.(\d+)(\.\d+)?\+?([-.+].*)?", text)
    return (int(match[1]), int(match[2])) if match else None


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


def _unserved(facts: Facts, kinds: Mapping[str, str]) -> Iterator[str]:
    """Which of ``{kind: apiVersion}`` the API server is known not to serve."""
    for kind, api_version in kinds.items():
        served = facts.served.get(api_version, frozenset())
        if not isinstance(served, Unseen) and kind not in served:
            yield f"{kind} ({api_version})"


def _add_on(name: str, lacks: list[str], action: str) -> Iterator[Finding]:
    if lacks:
        yield _failure(name, f"it is not installed: the API server does not serve {_some(lacks)}", action)


def _controller(name: str, found: Listed, selector: str) -> Iterator[Finding]:
    if isinstance(found, Unseen):
        yield _skipped(name, "its controller", found.why)
    elif not found:
        yield _failure(
            name,
            f"its kinds are there, and no Deployment with the label {selector}: nobody acts on them",
            f"Install it whole ({_REQUIREMENTS})",
        )
    else:
        down = [d for d in found if not status_of(d).get("availableReplicas")]
        if len(down) == len(found):
            yield _available(name, down[0], f"kubectl -n {namespace_of(down[0])} describe pods -l {selector}")


def _available(name: str, deployment: Object, action: str) -> Finding:
    where = f"{namespace_of(deployment)}/{name_of(deployment)}"
    there, wanted = status_of(deployment).get("availableReplicas") or 0, deployment["spec"].get("replicas", 1)
    if there:
        return _ok(name, f"{there} of {wanted} pods of Deployment {where} are available")
    said = (
        condition(deployment, "Available").get("message") or condition(deployment, "Progressing").get("message") or ""
    )
    return _failure(name, f"no pod of Deployment {where} is available{f': {said}' if said else ''}", action)


def _first(found: Listed) -> Object | None:
    return None if isinstance(found, Unseen) or not found else found[0]


def _release(deployment: Object | None, found: Version | None) -> str:
    if deployment is None:
        return "its version cannot be looked at"
    image = deployment["spec"]["template"]["spec"]["containers"][0]["image"]
    return _text(found) if found else f"image {image} does not say its version"


def _enforces(stay: Stay) -> str:
    found = stay.namespace
    return labels_of(found).get("pod-security.kubernetes.io/enforce", "") if isinstance(found, dict) else ""


def _text(found: Version) -> str:
    return ".".join(map(str, found))


def _seconds(span: timedelta) -> str:
    return f"{span.total_seconds():.0f} s"


def _some(words: list[str], most: int = 4) -> str:
    """The first of them, and how many more there are."""
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + more


def _ok(name: str, message: str) -> Finding:
    return Finding(name, Level.OK, message)


def _warning(name: str, message: str, action: str) -> Finding:
    return Finding(name, Level.WARNING, message, action)


def _failure(name: str, message: str, action: str) -> Finding:
    return Finding(name, Level.FAILURE, message, action)


def _skipped(name: str, what: str, why: str) -> Finding:
    return Finding(name, Level.SKIPPED, f"{what} cannot be looked at: {why}", _ASK)
