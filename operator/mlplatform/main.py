"""The operator's program: `python -m mlplatform.main`. Wiring only.

kopf watches, and tells `mlplatform.fleet` of each object that a watch shows.
There are no create/update handlers and no daemons: a change only wakes whom it
concerns, who looks at everything anew. kopf begins when this process holds the
Lease; when another one holds it, the process ends, and its container begins
again as one that waits.
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
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import kopf
import prometheus_client

from mlplatform import __version__, contract, metrics
from mlplatform.cluster import Backoffs, Cluster, ConnectError, connect
from mlplatform.fleet import Fleet, labelled
from mlplatform.lease import Lease
from mlplatform.resources import KINDS, scheduling
from mlplatform.settings import Settings, SettingsError
from mlplatform.snapshot import Object

log = logging.getLogger("mlplatform")

Where = tuple[str, str, str]
"""Group, version and plural of a kind."""

See = Callable[[str, str | None, Object], None]
"""Takes a kind, what has happened to an object of it (None: it was listed), and the object."""

FINALIZER: Final = f"{contract.GROUP}/operator"
"""Of earlier releases: kopf takes it off, because nothing here needs one. What an object owns, owner references clean up."""


CHUNK: Final = 100
"""Objects in one page of a list: as kopf holds them, a ModelVersion takes 30 KB until it was seen."""

GARBAGE: Final = 20_000, 50, 100
"""Allocations between two looks for cycles, and looks between two at older objects. A start makes many objects that stay,
and by Python's defaults spends a fifth of its time looking through them."""


class NoDiffs(kopf.DiffBaseStorage):
    """Nothing here handles a difference, for which kopf copies each object at each of its events."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        """Of an object, nothing is compared."""
        return kopf.BodyEssence()

    def fetch(self, **_: Any) -> None:
        """Nothing was kept to compare with."""

    def store(self, **_: Any) -> None:
        """Nothing is kept."""


def watched(settings: Settings) -> dict[str, str]:
    """What is watched: kind → apiVersion."""
    versions = {kind: entry.api_version for kind, entry in KINDS.items() if entry.read_by}
    return {**versions, "VirtualService": settings.istio_api_version}


def where(kind: str, version: str) -> Where:
    """A kind in kopf's words."""
    group, _, version = version.rpartition("/")
    return group, version, KINDS[kind].plural


def wire(
    registry: kopf.OperatorRegistry,
    kinds: Mapping[str, str],
    see: See,
    end: Callable[[], None],
    streams: Callable[[], Awaitable[bool]],
) -> None:
    """Registers every handler.

    Args:
        registry: For them.
        kinds: What to watch.
        see: Is told of each object.
        end: Is told that kopf ends, before it cancels whatever runs beside it.
        streams: Says whether the API server gives lists as streams.
    """
    for kind, version in kinds.items():
        _watch(registry, kind, where(kind, version), see)

    @kopf.on.login(registry=registry)
    def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
        # Not through the client library: kopf re-reads a ServiceAccount's token when it has expired.
        return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)

    @kopf.on.startup(registry=registry)
    async def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
        tune(settings, kinds, streams=await streams())

    @kopf.on.cleanup(registry=registry)
    async def ending(**_: Any) -> None:
        end()


def tune(settings: kopf.OperatorSettings, kinds: Mapping[str, str], *, streams: bool) -> None:
    """Sets kopf up."""
    settings.posting.enabled = False  # Events come from plans, once a change.
    settings.persistence.finalizer = FINALIZER
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=contract.GROUP)
    settings.persistence.diffbase_storage = NoDiffs()
    settings.networking.connect_timeout = 10
    settings.networking.request_timeout = 60
    settings.networking.error_backoffs = Backoffs()  # After eight of its own kopf lists everything anew, or ends.
    settings.queueing.idle_timeout = 0.1  # Until then a task holds the object as it came, and most come alone.
    settings.watching.initial_streaming = streams
    settings.watching.chunk_size = CHUNK
    settings.watching.server_timeout = 300  # The server ends a watch by then; kopf notices a dead peer in 70 s.
    for kind, version in kinds.items():
        if labelled(kind):
            settings.watching.label_selectors[where(kind, version)] = contract.LABEL_MODEL


def _watch(registry: kopf.OperatorRegistry, kind: str, where: Where, see: See) -> None:
    @kopf.on.event(*where, id=f"see-{kind}", registry=registry)
    async def seen(event: kopf.RawEvent, **_: Any) -> None:
        see(kind, event["type"], dict(event["object"]))


async def serve(settings: Settings, lease: Lease | None, cluster: Cluster) -> None:
    """Waits for the Lease, where there is one to share, and works while this process holds it; until a signal."""
    stop, ended, loop = threading.Event(), asyncio.Event(), asyncio.get_running_loop()
    kinds = watched(settings)
    fleet, registry = Fleet(cluster, settings, kinds), kopf.OperatorRegistry()
    wire(registry, kinds, fleet.see, ended.set, fleet.streams)

    def end() -> None:
        stop.set()
        ended.set()

    for number in (signal.SIGTERM, signal.SIGINT):  # Until kopf, which has handlers of its own, has begun.
        loop.add_signal_handler(number, end)
    async with await asyncio.start_server(_health(lambda: fleet.ready), port=settings.health_port):
        if lease is not None and not await asyncio.to_thread(lease.acquire, stop):
            return
        # A thread of its own: neither a busy loop nor slow writes may keep it from renewing.
        keeper = threading.Thread(target=_keep_lease, args=(lease, stop), daemon=True)
        keeper.start()
        working = asyncio.create_task(fleet.run(ended))
        working.add_done_callback(lambda _: ended.set())  # Without it there is nothing to watch for.
        try:
            await kopf.operator(
                registry=registry,
                standalone=True,
                clusterwide=not settings.namespaces,
                namespaces=settings.namespaces,
                stop_flag=ended,
            )
        finally:
            ended.set()
            await working
            stop.set()
            await asyncio.to_thread(keeper.join)
            if lease is not None:
                await asyncio.to_thread(lease.release)


def _keep_lease(lease: Lease | None, stop: threading.Event) -> None:
    if lease is not None and not lease.keep(stop):
        log.warning("another operator holds the lease; this one ends")
        os._exit(1)  # Whatever is under way ends with it.


def _health(ready: Callable[[], bool]) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    """Answers probes: any path for liveness, as the loop answers; ``/readyz`` is refused until all that there is was looked at."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            asked = await reader.readuntil(b"\r\n\r\n")
            well = ready() or not asked.startswith(b"GET /readyz ")
            status = b"200 OK" if well else b"503 Service Unavailable"
            writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            await writer.drain()
        writer.close()

    return answer


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
        scheduling.check(settings)
        lease = candidate(settings)
        may = lease.held if lease else lambda: True
        cluster = Cluster(connect(may), may)
    except (SettingsError, ConnectError) as error:
        sys.exit(str(error))
    kopf.configure(log_format=kopf.LogFormat.JSON)
    for chatty in ("kopf.objects", "aiohttp.access"):  # Every wake-up's success, every health check.
        logging.getLogger(chatty).setLevel(logging.WARNING)
    prometheus_client.start_http_server(settings.metrics_port, _any_address())
    log.info("mlplatform operator %s watches %s", __version__, ", ".join(settings.namespaces) or "all namespaces")
    metrics.LEADER.set_function(lambda: float(may()))
    gc.freeze()  # What is there by now stays.
    gc.set_threshold(*GARBAGE)
    asyncio.run(serve(settings, lease, cluster))


if __name__ == "__main__":
    main()
