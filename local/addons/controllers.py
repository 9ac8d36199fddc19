"""Gives the pure parts a cluster: which kinds each stand-in watches and how its decisions are written.

Called by ``__main__``; the rest of the package neither reads nor writes the API.
"""

from __future__ import annotations

import http
import logging
import threading
from datetime import UTC, datetime
from typing import Final

from . import istio, kserve, training
from .client import JSON, ApiError, Client, Resource
from .controller import HASH, Key, Store, WorkQueue, controlled_by, digest, key_of, run, serve_health
from .gateway import Publisher

LOG = logging.getLogger("addons")

PODS: Final = Resource("v1", "pods")
SERVICES: Final = Resource("v1", "services")
ENDPOINTS: Final = Resource("v1", "endpoints")
SECRETS: Final = Resource("v1", "secrets")
SERVICE_ACCOUNTS: Final = Resource("v1", "serviceaccounts")
DEPLOYMENTS: Final = Resource("apps/v1", "deployments")
JOBS: Final = Resource("kubeflow.org/v1", "pytorchjobs")
ISVCS: Final = Resource(f"{kserve.GROUP}/v1beta1", "inferenceservices")
RUNTIMES: Final = Resource(f"{kserve.GROUP}/v1alpha1", "servingruntimes")
CLUSTER_RUNTIMES: Final = Resource(f"{kserve.GROUP}/v1alpha1", "clusterservingruntimes")
ISTIO: Final = "networking.istio.io/v1"

EVERYTHING: Final[Key] = ("", "")
"""Key of a controller that always looks at the whole cluster at once."""
ENVOY_RETRY: Final = 1.0


def run_training(client: Client, init_image: str) -> None:
    """Runs the stand-in for the Training Operator for ever."""
    queue, label = WorkQueue(), f"{training.PREFIX}job-name"

    def job_changed(job: JSON) -> None:
        queue.add(key_of(job))

    def child_changed(child: JSON) -> None:
        meta = child["metadata"]
        queue.add((meta["namespace"], meta["labels"][label]))

    jobs = Store(client, JOBS, job_changed)
    stores = [Store(client, kind, child_changed, label) for kind in (PODS, SERVICES)]

    def reconcile(key: Key) -> float | None:
        job = jobs.get(key)
        if job is None or job["metadata"].get("deletionTimestamp"):
            return None
        children = [item for store in stores for item in store.all() if _belongs(item, key, label)]
        plan = training.plan(job, children, datetime.now(UTC), init_image)
        if plan.status != job.get("status"):
            # First the status: at the backoff limit the failure must be told before the pods go.
            client.replace_status(JOBS, job | {"status": plan.status})
        for child in plan.delete:
            client.delete(_resource(child), *key_of(child), child["metadata"]["uid"])
        for child in plan.create:
            client.create(_resource(child), child)
        if plan.delete_job:
            client.delete(JOBS, *key, job["metadata"]["uid"])
        return plan.again

    run([jobs, *stores], queue, reconcile)


class KServe:
    """The stand-in for KServe: its caches and what it does about one InferenceService.

    Args:
        client: The cluster.
        image: The storage initializer's image.
    """

    def __init__(self, client: Client, image: str) -> None:
        self._client, self._image = client, image
        self._queue, self._label = WorkQueue(), f"{kserve.GROUP}/inferenceservice"
        self._autoscalers = Resource(_hpa_version(client), "horizontalpodautoscalers")
        self._isvcs = Store(client, ISVCS, lambda isvc: self._queue.add(key_of(isvc)))
        self._runtimes = [Store(client, kind, self._runtime_changed) for kind in (RUNTIMES, CLUSTER_RUNTIMES)]
        kinds = (DEPLOYMENTS, SERVICES, self._autoscalers, PODS)
        self._children = {kind: Store(client, kind, self._child_changed, self._label) for kind in kinds}

    def run(self) -> None:
        """Reconciles for ever."""
        run([self._isvcs, *self._runtimes, *self._children.values()], self._queue, self._reconcile)

    def _child_changed(self, child: JSON) -> None:
        self._queue.add((child["metadata"]["namespace"], child["metadata"]["labels"][self._label]))

    def _runtime_changed(self, _: JSON) -> None:
        for isvc in self._isvcs.all():
            self._queue.add(key_of(isvc))

    def _reconcile(self, key: Key) -> None:
        isvc = self._isvcs.get(key)
        if isvc is None or isvc["metadata"].get("deletionTimestamp"):
            return
        error = None
        try:
            self._reconcile_children(isvc)
        except kserve.InvalidSpecError as raised:
            error = raised  # what runs goes on running
        pods = [item for item in self._children[PODS].all() if _belongs(item, key, self._label)]
        deployment = self._live(DEPLOYMENTS, isvc)
        status = kserve.status(isvc, deployment, pods, error, datetime.now(UTC))
        if status != isvc.get("status"):
            self._client.replace_status(ISVCS, isvc | {"status": status})

    def _reconcile_children(self, isvc: JSON) -> None:
        """Makes all children what they should be.

        Raises:
            InvalidSpecError: The InferenceService cannot be served as written; nothing was changed.
        """
        if kserve.stopped(isvc):
            for kind in (DEPLOYMENTS, SERVICES, self._autoscalers):
                self._remove(kind, isvc)
            return
        namespace = isvc["metadata"]["namespace"]
        own, shared = (store.all() for store in self._runtimes)
        runtimes = [item for item in own if key_of(item)[0] == namespace] + shared
        secrets = _secrets(self._client, isvc)
        found = kserve.render(isvc, runtimes, secrets, self._image, self._autoscalers.api_version)
        self._apply(DEPLOYMENTS, isvc, found.deployment, found)
        self._apply(SERVICES, isvc, found.service)
        if found.autoscaler is None:
            self._remove(self._autoscalers, isvc)
        else:
            self._apply(self._autoscalers, isvc, found.autoscaler)

    def _live(self, kind: Resource, isvc: JSON, *, ask: bool = False) -> JSON | None:
        """The child as it is in the cluster.

        Args:
            kind: The child's kind.
            isvc: Its owner.
            ask: Ask the server where the cache, which sees labelled objects only, has none.

        Raises:
            ApiError: The name is taken by somebody else's object, which is never touched.
        """
        key = isvc["metadata"]["namespace"], kserve.child_name(isvc)
        live = self._children[kind].get(key)
        if live is None and ask:
            live = self._client.get(kind, *key)
        if live is not None and not controlled_by(live, isvc["metadata"]["uid"]):
            message = f"{kind.plural} {'/'.join(key)} is there and not controlled by the InferenceService"
            raise ApiError(http.HTTPStatus.UNPROCESSABLE_ENTITY, message)
        return live

    def _apply(self, kind: Resource, isvc: JSON, child: JSON, replicas: kserve.Children | None = None) -> None:
        """Writes a child if what was rendered is not what was last written.

        ``replicas`` of a Deployment that an autoscaler owns stay out of the comparison:
        its number is kept, and is no reason to write.
        """
        live = self._live(kind, isvc, ask=True)
        if replicas is not None and replicas.fixed_replicas is not None:
            child["spec"]["replicas"] = replicas.fixed_replicas
        mark = digest(child)
        if live is not None and live["metadata"].get("annotations", {}).get(HASH) == mark:
            return
        if replicas is not None and replicas.fixed_replicas is None:
            initial = replicas.initial_replicas
            child["spec"]["replicas"] = live["spec"].get("replicas", initial) if live else initial
        child["metadata"]["annotations"] = {HASH: mark}
        self._client.apply(kind, child, "kserve-stand-in")

    def _remove(self, kind: Resource, isvc: JSON) -> None:
        live = self._live(kind, isvc)
        if live is not None and not live["metadata"].get("deletionTimestamp"):
            self._client.delete(kind, *key_of(live), live["metadata"]["uid"])


def run_istio(client: Client, publisher: Publisher, folder: str) -> None:
    """Runs the stand-in for istiod for ever: it reads the API and writes files for Envoy, nothing else."""
    queue, told = WorkQueue(), set[str]()

    def changed(_: JSON) -> None:
        queue.add(EVERYTHING)

    names = ("gateways", "virtualservices", "destinationrules")
    routing = [Store(client, Resource(ISTIO, name), changed) for name in names]
    stores = [*routing, Store(client, SERVICES, changed), Store(client, ENDPOINTS, changed)]

    def reconcile(_: Key) -> float | None:
        config = istio.render(istio.Objects(*(store.all() for store in stores)), folder)
        for sentence in sorted(set(config.rejected) - told):
            LOG.warning(sentence)
        told.clear()
        told.update(config.rejected)
        return None if publisher.publish(config) else ENVOY_RETRY

    queue.add(EVERYTHING)  # an empty cluster has a configuration too
    run(stores, queue, reconcile)


def run_dns(client: Client) -> None:
    """Runs the cluster's DNS for ever."""
    from . import dns  # noqa: PLC0415  only this container's path needs dnslib

    services, endpoints = (Store(client, kind, _ignore) for kind in (SERVICES, ENDPOINTS))
    threads = [threading.Thread(target=store.run, daemon=True) for store in (services, endpoints)]
    for thread in threads:
        thread.start()
    for store in (services, endpoints):
        store.synced.wait()
    servers = dns.serve(services.get, endpoints.get)
    serve_health()
    LOG.info("answering on port %s", dns.PORT)
    for server in servers:
        server.thread.join()


def _secrets(client: Client, isvc: JSON) -> list[JSON]:
    """The Secrets that the predictor's ServiceAccount lists; read anew each time, because they are not watched."""
    namespace = isvc["metadata"]["namespace"]
    name = isvc["spec"].get("predictor", {}).get("serviceAccountName", "default")
    account = client.get(SERVICE_ACCOUNTS, namespace, name) or {}
    listed = (client.get(SECRETS, namespace, item["name"]) for item in account.get("secrets") or [])
    return [secret for secret in listed if secret is not None]


def _hpa_version(client: Client) -> str:
    """The newest autoscaling API that scales by a Resource metric."""
    groups = client.request("GET", "/apis/autoscaling")["versions"]
    return "autoscaling/v2" if any(item["version"] == "v2" for item in groups) else "autoscaling/v2beta2"


def _belongs(item: JSON, key: Key, label: str) -> bool:
    meta = item["metadata"]
    return (meta["namespace"], meta.get("labels", {}).get(label)) == key


def _resource(child: JSON) -> Resource:
    return PODS if child["kind"] == "Pod" else SERVICES


def _ignore(_: JSON) -> None:
    """The DNS reads its caches when asked; a change alone is no news."""
