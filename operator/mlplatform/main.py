"""The operator's program: `python -m mlplatform.main`. Wiring only.

kopf watches, keeps the indexes and gives each MLModel and ModelVersion a
daemon; what the daemons do is in `mlplatform.reconciler`. There are no
create/update handlers: a change only wakes the daemon, which looks at
everything anew. kopf begins when this process holds the Lease, so that its
finalizers come from one operator, too; when another one holds it, the process
ends, and its container begins again as one that waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import kopf
import prometheus_client

from mlplatform import __version__, contract, metrics
from mlplatform.cluster import Cluster, ConnectError, connect
from mlplatform.lease import Lease
from mlplatform.reconciler import Reconciler, World
from mlplatform.resources import KINDS, inferenceservice
from mlplatform.settings import Settings, SettingsError
from mlplatform.snapshot import Object

log = logging.getLogger("mlplatform")

Key = tuple[str, str]
"""Namespace and name of the MLModel that an object belongs to."""

Where = tuple[str, str, str]
"""Group, version and plural of a kind."""

FINALIZER: Final = f"{contract.GROUP}/operator"
"""Lets a running pass end before its object goes. What the object owns, owner references clean up."""

THREADS: Final = 16
"""Writes at a time. They wait for the API server, and for whatever webhook that waits for; asyncio's default counts cores."""

GARBAGE: Final = 20_000, 50, 100
"""Allocations between two looks for cycles, and looks between two at older objects. A start makes many objects that stay,
and by Python's defaults spends a fifth of its time looking through them."""

STOP_SECONDS: Final = 5.0
"""How long that may take; after it kopf cancels the pass and releases the object, come what may."""


class Alarm:
    """Wakes the daemons of a model: its own and its versions'."""

    def __init__(self) -> None:
        self._events: dict[Key, set[asyncio.Event]] = defaultdict(set)

    def ring(self, key: Key) -> None:
        """Something about the model or its children has changed."""
        for event in self._events.get(key, ()):
            event.set()

    def subscribe(self, key: Key) -> asyncio.Event:
        """An event that is set whenever that model's alarm rings."""
        event = asyncio.Event()
        self._events[key].add(event)
        return event

    def unsubscribe(self, key: Key, event: asyncio.Event) -> None:
        """Ends a subscription."""
        self._events[key].discard(event)
        if not self._events[key]:
            del self._events[key]


class Indexes:
    """kopf's indexes as a `reconciler.Store`: one a kind, by the model that the objects belong to."""

    def __init__(self, by_kind: Mapping[str, kopf.Index[Key, Object]]) -> None:
        self._by_kind = by_kind

    def objects(self, kind: str, namespace: str, model: str) -> Iterable[Object]:
        """Objects of that kind that belong to the model."""
        index = self._by_kind[kind]
        return tuple(index[namespace, model]) if (namespace, model) in index else ()


def watched(settings: Settings) -> dict[str, Where]:
    """What is watched, by kind."""
    versions = {kind: entry.api_version for kind, entry in KINDS.items() if entry.read_by}
    versions["VirtualService"] = settings.istio_api_version
    split = {kind: version.rpartition("/") for kind, version in versions.items()}
    return {kind: (group, version, KINDS[kind].plural) for kind, (group, _, version) in split.items()}


def model_key(kind: str, obj: Mapping[str, Any]) -> Key | None:
    """Which model an object belongs to; None when to none."""
    meta = obj["metadata"]
    if kind == "MLModel":
        return meta["namespace"], meta["name"]
    if kind == "Ingress":
        model = inferenceservice.model_of_ingress(meta)
    elif kind == "ModelVersion":
        model = obj["spec"].get("model", "")
    else:
        model = (meta.get("labels") or {}).get(contract.LABEL_MODEL, "")
    return (meta["namespace"], model) if model else None


def slim(kind: str, obj: Mapping[str, Any]) -> Object:
    """The parts that decisions rest on: memory grows with pods, and most of a pod is its spec."""
    found: Object = {
        "apiVersion": obj.get("apiVersion", "v1"),
        "kind": kind,
        "metadata": {k: v for k, v in obj["metadata"].items() if k != "managedFields"},
        "status": obj.get("status") or {},
    }
    return found if kind in {"Pod", "Ingress"} else {**found, "spec": obj.get("spec") or {}}


class NoDiffs(kopf.DiffBaseStorage):
    """Nothing here handles a difference, for which kopf copies each object at each of its events."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        """Of an object, nothing is compared."""
        return kopf.BodyEssence()

    def fetch(self, **_: Any) -> None:
        """Nothing was kept to compare with."""

    def store(self, **_: Any) -> None:
        """Nothing is kept."""


def wire(registry: kopf.OperatorRegistry, settings: Settings, cluster: Cluster) -> None:
    """Registers every handler."""
    alarm, kinds = Alarm(), watched(settings)
    for kind, where in kinds.items():
        _watch(registry, kind, where, alarm)
    for kind in ("MLModel", "ModelVersion"):
        _keep(registry, kind, kinds, alarm, lambda indexes: World(cluster, indexes, settings))

    @kopf.on.login(registry=registry)
    def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
        # Not through the client library: kopf re-reads a ServiceAccount's token when it has expired.
        return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)

    @kopf.on.startup(registry=registry)
    def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
        tune(settings, kinds)


def tune(settings: kopf.OperatorSettings, kinds: Mapping[str, Where]) -> None:
    """Sets kopf up."""
    settings.posting.enabled = False  # Events come from plans, once a change.
    settings.persistence.finalizer = FINALIZER
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=contract.GROUP)
    settings.persistence.diffbase_storage = NoDiffs()
    settings.background.instant_exit_timeout = STOP_SECONDS
    settings.networking.connect_timeout = 10
    settings.networking.request_timeout = 60
    settings.watching.server_timeout = 300  # The server ends a watch by then; kopf notices a dead peer in 70 s.
    for kind, where in kinds.items():
        if kind not in {"MLModel", "ModelVersion", "Ingress"}:  # KServe gives an Ingress no labels.
            settings.watching.label_selectors[where] = contract.LABEL_MODEL


def _watch(registry: kopf.OperatorRegistry, kind: str, where: Where, alarm: Alarm) -> None:
    """Indexes a kind's objects, and wakes the daemons of the model that a changed one belongs to."""

    @kopf.index(*where, id=kind, registry=registry)
    async def index(body: kopf.Body, **_: Any) -> dict[Key, Object] | None:
        key = model_key(kind, body)
        return {key: slim(kind, body)} if key else None

    @kopf.on.event(*where, id=f"wake-{kind}", registry=registry)
    async def wake(body: kopf.Body, **_: Any) -> None:
        key = model_key(kind, body)
        if key:
            alarm.ring(key)


def _keep(
    registry: kopf.OperatorRegistry,
    kind: str,
    kinds: Mapping[str, Where],
    alarm: Alarm,
    world: Callable[[Indexes], World],
) -> None:
    """Gives each object of a kind a daemon."""

    @kopf.daemon(*kinds[kind], id=f"keep-{kind}", registry=registry, cancellation_timeout=STOP_SECONDS, backoff=10)
    async def keep(body: kopf.Body, stopped: kopf.DaemonStopped, **kwargs: Any) -> None:
        key = model_key(kind, body)
        if key is None:
            return
        ringing = alarm.subscribe(key)
        try:
            namespace, name = str(body["metadata"]["namespace"]), str(body["metadata"]["name"])
            indexes = Indexes({child: kwargs[child] for child in kinds})
            reconciler = Reconciler(world(indexes), kind, namespace, name, key[1])
            await reconciler.run(lambda seconds: _rest(ringing, stopped, seconds))
        finally:
            alarm.unsubscribe(key, ringing)


async def _rest(ringing: asyncio.Event, stopped: kopf.DaemonStopped, seconds: float) -> bool:
    """Waits for the alarm, the end or the time; False at the end."""

    async def until_stopped() -> None:
        await stopped.wait()

    waiters = {asyncio.create_task(ringing.wait()), asyncio.create_task(until_stopped())}
    try:
        await asyncio.wait(waiters, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for waiter in waiters:
            waiter.cancel()
    ringing.clear()
    return not stopped.is_set()


async def serve(settings: Settings, lease: Lease | None, registry: kopf.OperatorRegistry) -> None:
    """Waits for the Lease, where there is one to share, and works while this process holds it; until a signal."""
    stop, ended, loop = threading.Event(), asyncio.Event(), asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(THREADS))

    def end() -> None:
        stop.set()
        ended.set()

    for number in (signal.SIGTERM, signal.SIGINT):  # Until kopf, which has handlers of its own, has begun.
        loop.add_signal_handler(number, end)
    async with await asyncio.start_server(_alive, port=settings.health_port):
        if lease is not None and not await asyncio.to_thread(lease.acquire, stop):
            return
        # A thread of its own: neither a busy loop nor slow writes may keep it from renewing.
        keeper = threading.Thread(target=_keep_lease, args=(lease, stop), daemon=True)
        keeper.start()
        try:
            await kopf.operator(
                registry=registry,
                standalone=True,
                clusterwide=not settings.namespaces,
                namespaces=settings.namespaces,
                stop_flag=ended,
            )
        finally:
            stop.set()
            await asyncio.to_thread(keeper.join)
            if lease is not None:
                await asyncio.to_thread(lease.release)


def _keep_lease(lease: Lease | None, stop: threading.Event) -> None:
    if lease is not None and not lease.keep(stop):
        log.warning("another operator holds the lease; this one ends")
        os._exit(1)  # Whatever is under way ends with it.


async def _alive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Liveness: the loop answers, be it that of an operator that works or of one that waits."""
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nok\n")
        await writer.drain()
    writer.close()


def candidate(settings: Settings) -> Lease | None:
    """This process as one of those that share the Lease; None where it is the only one."""
    if not settings.lease:
        return None
    namespace, _, name = settings.lease.partition("/")
    return Lease(connect(), namespace, name, settings.identity or f"{socket.gethostname()}-{os.getpid()}")


def _any_address() -> str:
    """What to listen on, so that a pod's IPv4 and IPv6 address both reach it."""
    return "::" if socket.has_dualstack_ipv6() else "0.0.0.0"  # noqa: S104  Prometheus asks from outside the pod


def main() -> None:
    """Runs until a signal."""
    try:
        settings = Settings.from_env(os.environ)
        lease = candidate(settings)
        may = lease.held if lease else lambda: True
        cluster = Cluster(connect(may), may)
    except (SettingsError, ConnectError) as error:
        sys.exit(str(error))
    kopf.configure(log_format=kopf.LogFormat.JSON)
    for chatty in ("kopf.objects", "aiohttp.access"):  # Every wake-up's success, every health check.
        logging.getLogger(chatty).setLevel(logging.WARNING)
    registry = kopf.OperatorRegistry()
    wire(registry, settings, cluster)
    prometheus_client.start_http_server(settings.metrics_port, _any_address())
    log.info("mlplatform operator %s watches %s", __version__, ", ".join(settings.namespaces) or "all namespaces")
    metrics.LEADER.set_function(lambda: float(may()))
    gc.freeze()  # What is there by now stays.
    gc.set_threshold(*GARBAGE)
    asyncio.run(serve(settings, lease, registry))


if __name__ == "__main__":
    main()
