"""Asks the API server for all that the checks look at; nothing is written.

Called by `mlplatform.cli.doctor` and `mlplatform.doctor.__main__`.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from typing import Any, Final

import yaml

from mlplatform import __version__, contract
from mlplatform.doctor import facts
from mlplatform.doctor.ask import Asker
from mlplatform.doctor.facts import Facts, Listed, Seen, Stay, Unseen
from mlplatform.resources import KINDS
from mlplatform.settings import Settings, SettingsError
from mlplatform.snapshot import Object, name_of, namespace_of

OURS: Final = "app.kubernetes.io/name=mlplatform,app.kubernetes.io/component"
KSERVE: Final = "control-plane=kserve-controller-manager"
TRAINER: Final = "control-plane=kubeflow-training-operator"
ISTIO: Final = "app=istiod"

_DEPLOYMENTS: Final = "/apis/apps/v1/deployments"
_CRDS: Final = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
_AT_A_TIME: Final = 8


def gather(ask: Asker, now: datetime, namespaces: tuple[str, ...], here: str = "") -> Facts:
    """Looks at the cluster.

    Args:
        ask: Where.
        now: The clock.
        namespaces: Of models; none for all that are set up for models, or have some.
        here: The one that whoever asks works in, for who may not see all. Empty for the test of a release, which nobody
            works with.
    """
    version = ask.get("/version")
    wanted = own_crds()
    operators = ask.list(_DEPLOYMENTS, f"{OURS}=operator")
    operator = None if isinstance(operators, Unseen) or not operators else operators[0]
    settings, mistake = _settings(operator)
    known = settings or Settings()
    models = _models(ask, namespaces)
    if isinstance(models, Unseen) and here and not namespaces:
        namespaces = (here,)
        models = _models(ask, namespaces)
    account = ":".join(("system:serviceaccount", *facts.account_of(operator))) if operator and settings else ""
    look = _Look(ask=ask, settings=known, account=account, models=models, person=bool(here))
    gateway, gateway_pods, certificates = _gateway(ask, known)
    lease_namespace, _, lease = known.lease.partition("/")
    served = {*facts.API_VERSIONS, known.istio_api_version, facts.METRICS, facts.KUEUE}
    return Facts(
        now=now,
        release=__version__,
        kubernetes="" if isinstance(version, Unseen) else str((version or {}).get("gitVersion", "")),
        wanted=wanted,
        crds={name: ask.get(f"{_CRDS}/{name}") for name in wanted},
        served={api: _kinds(ask, api) for api in sorted(served)},
        operators=operators,
        settings=settings,
        mistake=mistake,
        lease=ask.get(f"/apis/coordination.k8s.io/v1/namespaces/{lease_namespace}/leases/{lease}") if lease else None,
        kserve=ask.list(_DEPLOYMENTS, KSERVE),
        trainer=ask.list(_DEPLOYMENTS, TRAINER),
        istio=ask.list(_DEPLOYMENTS, ISTIO),
        gateway=gateway,
        gateway_pods=gateway_pods,
        certificates=certificates,
        nodes=ask.list("/api/v1/nodes"),
        models=models,
        stays=look.stays(namespaces or _homes(ask, known, models)),
        cluster_rights=_everywhere(ask, known, account),
    )


def _settings(operator: Object | None) -> tuple[Settings | None, str]:
    """What the operator runs with, or why that cannot be read."""
    if operator is None:
        return None, ""
    try:
        return facts.settings_of(operator), ""
    except SettingsError as error:
        return None, str(error)


def own_crds() -> dict[str, Object]:
    """The CRDs of this release, by name."""
    folder = resources.files("mlplatform") / "crd"
    files = (file for file in folder.iterdir() if file.name.startswith(contract.GROUP))
    found: list[Object] = [yaml.safe_load(file.read_text(encoding="utf-8")) for file in files]
    return {name_of(crd): crd for crd in sorted(found, key=name_of)}


def _kinds(ask: Asker, api: str) -> frozenset[str] | Unseen:
    found = ask.get(f"/apis/{api}")
    return (
        found
        if isinstance(found, Unseen)
        else frozenset(entry["kind"] for entry in (found or {}).get("resources") or ())
    )


def _models(ask: Asker, namespaces: tuple[str, ...]) -> Listed:
    root = f"/apis/{contract.API_VERSION}"
    plural = KINDS["MLModel"].plural
    if not namespaces:
        return ask.list(f"{root}/{plural}")
    found: list[Object] = []
    for namespace in namespaces:
        listed = ask.list(f"{root}/namespaces/{namespace}/{plural}")
        if isinstance(listed, Unseen):
            return listed
        found += listed
    return tuple(found)


def _homes(ask: Asker, settings: Settings, models: Listed) -> tuple[str, ...]:
    """Namespaces that the chart has set up, that the operator watches by name, or in which there are models."""
    accounts = ask.list("/api/v1/serviceaccounts", f"{OURS}=jobs")
    lists = [found for found in (accounts, models) if not isinstance(found, Unseen)]
    return tuple(sorted({*settings.namespaces, *(namespace_of(obj) for found in lists for obj in found)}))


def _gateway(ask: Asker, settings: Settings) -> tuple[Seen, Listed, dict[str, Seen]]:
    namespace, _, name = settings.gateway.partition("/")
    gateway = ask.get(f"/apis/{settings.istio_api_version}/namespaces/{namespace}/gateways/{name}")
    if gateway is None or isinstance(gateway, Unseen):
        return gateway, (), {}
    pods = ask.list("/api/v1/pods", _selector(gateway["spec"].get("selector") or {}))
    secrets = {tls["credentialName"] for tls in _tls(gateway) if tls.get("credentialName")}
    where = [] if isinstance(pods, Unseen) else sorted({namespace_of(pod) for pod in pods})
    found = {
        f"{place}/{secret}": ask.get(f"/api/v1/namespaces/{place}/secrets/{secret}")
        for secret in sorted(secrets)
        for place in where
    }
    return gateway, pods, found


def _tls(gateway: Object) -> list[Object]:
    return [server.get("tls") or {} for server in gateway["spec"].get("servers") or ()]


def _selector(labels: dict[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items()))


def _everywhere(ask: Asker, settings: Settings, account: str) -> tuple[str, ...] | Unseen:
    """What the operator lacks beyond single namespaces."""
    if not account:
        return ()
    namespace, _, lease = settings.lease.partition("/")
    asked = [ask.refused(facts.EVERYWHERE, "", account)]
    if lease:
        asked.append(
            ask.refused((("coordination.k8s.io", "leases", ("create", "get", "update")),), namespace, account, lease)
        )
    return _joined(asked)


def _joined(answers: Iterable[tuple[str, ...] | Unseen]) -> tuple[str, ...] | Unseen:
    found: list[str] = []
    for answer in answers:
        if isinstance(answer, Unseen):
            return answer
        found += answer
    return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """What the namespaces are looked at with.

    Attributes:
        ask: Where.
        settings: The operator's.
        account: As whom it asks the API server; empty where that is not known.
        models: Those that are looked at.
        person: Whether the rights of whoever asks matter.
    """

    ask: Asker
    settings: Settings
    account: str
    models: Listed
    person: bool

    def stays(self, namespaces: tuple[str, ...]) -> dict[str, Stay]:
        """All of them, several at a time."""
        with ThreadPoolExecutor(_AT_A_TIME) as threads:
            return dict(zip(namespaces, threads.map(self.stay, namespaces), strict=True))

    def stay(self, namespace: str) -> Stay:
        """One of them."""
        ask, settings, root = self.ask, self.settings, f"/api/v1/namespaces/{namespace}"
        names = (settings.jobs_service_account, settings.serving_service_account)
        accounts = {name: ask.get(f"{root}/serviceaccounts/{name}") for name in names}
        pull = {
            str(entry["name"])
            for found in accounts.values()
            if isinstance(found, dict)
            for entry in found.get("imagePullSecrets") or ()
        }
        models = [] if isinstance(self.models, Unseen) else [m for m in self.models if namespace_of(m) == namespace]
        queues = sorted({str(queue) for model in models if (queue := _queue(model))})
        kueue = f"/apis/{facts.KUEUE}/namespaces/{namespace}/localqueues"
        watched = not settings.namespaces or namespace in settings.namespaces
        trust = settings.trust_config_map
        return Stay(
            namespace=ask.get(root),
            accounts=accounts,
            secret=_keys(ask.get(f"{root}/secrets/{settings.store_secret}")),
            trust=ask.get(f"{root}/configmaps/{trust}") if trust else None,
            pull={name: _keys(ask.get(f"{root}/secrets/{name}")) for name in sorted(pull)},
            queues={queue: ask.get(f"{kueue}/{queue}") for queue in queues},
            own=ask.refused(facts.OWN, namespace) if self.person else None,
            operators=ask.refused(facts.RULES, namespace, self.account) if self.account and watched else (),
        )


def _queue(model: Object) -> Any:
    return (model["spec"].get("scheduling") or {}).get("queue")


def _keys(secret: Seen) -> Seen:
    """A Secret without its values, for which the checks have no use."""
    if not isinstance(secret, dict):
        return secret
    return {**secret, "data": {key: bool(value) for key, value in (secret.get("data") or {}).items()}}
