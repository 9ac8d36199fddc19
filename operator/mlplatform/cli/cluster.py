"""The plugin's only door to the API server: reads, watches, one patch.

Called by `mlplatform.cli.main`. Every failure leaves as a `CliError` that names
its cause and the next action, so no command has to know HTTP.
"""

from __future__ import annotations

import difflib
import json
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import urllib3
from kubernetes import client, watch

from mlplatform import contract
from mlplatform.cli import credentials
from mlplatform.cli.view import Object
from mlplatform.errors import CliError
from mlplatform.refusals import lacks_right

VERSION: Final = contract.API_VERSION.rpartition("/")[2]
MODELS: Final = "mlmodels"
VERSIONS: Final = "modelversions"
INSTALL: Final = "helm upgrade --install mlplatform charts/mlplatform -n mlplatform-system --create-namespace"

_WATCH_SECONDS: Final = 300
"""The server ends a watch after this long; the stream resumes where it stopped."""
_CONNECT_SECONDS: Final = 10
_ANSWER_SECONDS: Final = 30
REQUEST_TIMEOUT: Final = (_CONNECT_SECONDS, _ANSWER_SECONDS)
"""Seconds to connect and to answer, of every request that is not a watch."""
_RETRY_SECONDS: Final = (0.5, 1.0, 2.0, 4.0)
"""Pauses between attempts to reconnect; then the error is the user's to read."""
_STEADY_SECONDS: Final = 20
"""A watch that held this long did work: longer than an attempt to connect takes to fail."""


@dataclass(frozen=True, slots=True)
class Change:
    """One watch event: an object of `plural` is now `obj`, or is gone."""

    plural: str
    obj: Object
    gone: bool = False


@dataclass(frozen=True, slots=True)
class Synced:
    """Every object of `plural` that there is has been told; what follows is news."""

    plural: str


Event = Change | Synced | CliError


class Cluster:
    """MLModels and ModelVersions of one cluster.

    Attributes:
        namespace: The namespace of every call: `--namespace`, else the context's or the pod's, else `default`.
        inside: Whether this is a pod of the cluster.
    """

    def __init__(self, kubeconfig: str | None, context: str | None, namespace: str | None) -> None:
        """Reads the kubeconfig, or what a pod has in its place; opens no connection yet.

        Raises:
            CliError: There is neither, or no such context.
        """
        found = credentials.find(kubeconfig, context)
        self._api = client.ApiClient(found.settings)
        self.host: str = found.settings.host
        self.namespace = namespace or found.namespace
        self.inside = found.inside
        self.objects = client.CustomObjectsApi(self._api)
        self.core = client.CoreV1Api(self._api)

    def close(self) -> None:
        """Closes idle connections."""
        self._api.close()

    def models(self, *, everywhere: bool = False) -> list[Object]:
        """Every MLModel of the namespace, or of the cluster."""
        return self._items(MODELS, everywhere=everywhere)

    def versions(self, model: str = "", *, everywhere: bool = False) -> list[Object]:
        """The ModelVersions of a model, or all."""
        selection = {"label_selector": f"{contract.LABEL_MODEL}={model}"} if model else {}
        return self._items(VERSIONS, everywhere=everywhere, selection=selection)

    def model(self, name: str) -> Object:
        """The MLModel `name`.

        Raises:
            CliError: There is none; the nearest names are offered.
        """
        models = {m["metadata"]["name"]: m for m in self.models()}
        if name in models:
            return models[name]
        raise CliError(f"no MLModel {name!r} in namespace {self.namespace!r}", self._suggest(name, list(models)))

    def version(self, model: str, wanted: str) -> Object:
        """A ModelVersion of a model.

        Args:
            model: The MLModel's name.
            wanted: Its name, or v3 for the third; empty for the latest.

        Raises:
            CliError: There is none.
        """
        name = wanted or self.model(model).get("status", {}).get("latestVersion", "")
        versions = {v["metadata"]["name"]: v for v in self.versions(model)}
        by_number = {f"v{v['spec']['sequence']}": v for v in versions.values()}
        if found := versions.get(name) or by_number.get(name):
            return found
        raise CliError(
            f"{model} has no version {name!r}" if name else f"{model} has no version yet",
            f"there are: {', '.join(versions)}" if versions else f"wait for one: kubectl mlmodel watch {model}",
        )

    def logs(self, version: str, stage: str) -> Iterator[str]:
        """What the pods of a version's stage have written, by the pods' names; nothing of one that is gone or has not begun."""
        selector = f"{contract.LABEL_VERSION}={version},{contract.LABEL_STAGE}={stage}"
        where = {"namespace": self.namespace, "_request_timeout": REQUEST_TIMEOUT}
        with self.explained(f"list the pods of {version}"):
            pods = self.core.list_namespaced_pod(label_selector=selector, **where).items
        for name in sorted(pod.metadata.name for pod in pods):
            with self.explained(f"read the log of {name}"):
                try:
                    log: str = self.core.read_namespaced_pod_log(name=name, **where)
                except client.ApiException as error:
                    if error.status in {HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND}:
                        continue
                    raise
            yield log

    def annotate(self, name: str, key: str, value: str, plural: str = MODELS) -> Object:
        """Sets one annotation of an MLModel, or of a ModelVersion."""
        with self.explained(f"annotate {plural.removesuffix('s')} {name}"):
            patched: Object = self.objects.patch_namespaced_custom_object(
                contract.GROUP,
                VERSION,
                self.namespace,
                plural,
                name,
                {"metadata": {"annotations": {key: value}}},
                field_manager=contract.MANAGER_CLI,
                _request_timeout=REQUEST_TIMEOUT,
            )
        return patched

    def follow(self, name: str, events: queue.Queue[Event]) -> Callable[[], None]:
        """Watches a model and its versions and puts every change into `events`.

        The state at the start comes first, then a `Synced` a kind. Two threads,
        one a kind; both survive a lost connection and an expired resource version.
        A `CliError` says that a watch has given up.

        Returns:
            A function that ends both watches.
        """
        selections = {
            MODELS: {"field_selector": f"metadata.name={name}"},
            VERSIONS: {"label_selector": f"{contract.LABEL_MODEL}={name}"},
        }
        stop = threading.Event()
        for plural, selection in selections.items():
            threading.Thread(target=self._pump, args=(plural, selection, events, stop), daemon=True).start()
        return stop.set

    def _pump(self, plural: str, selection: dict[str, str], events: queue.Queue[Event], stop: threading.Event) -> None:
        known: dict[str, Object] = {}
        attempt = 0
        while not stop.is_set():
            connected: float | None = None
            try:
                listed = self._list(plural, selection)
                now = {item["metadata"]["name"]: item for item in listed["items"]}
                for item in now.values():
                    events.put(Change(plural, item))
                for name in known.keys() - now.keys():
                    events.put(Change(plural, known[name], gone=True))
                events.put(Synced(plural))
                known = now
                connected = time.monotonic()
                for change in self._stream(plural, selection, listed["metadata"]["resourceVersion"], stop):
                    attempt = 0
                    if change is None:
                        continue
                    name = change.obj["metadata"]["name"]
                    known = {**known, name: change.obj}
                    if change.gone:
                        del known[name]
                    events.put(change)
            except CliError as error:
                # That the list worked proves nothing: a user may have the right to list and not to watch.
                if connected is not None and time.monotonic() - connected > _STEADY_SECONDS:
                    attempt = 0
                if attempt == len(_RETRY_SECONDS):
                    events.put(error)
                    return
                stop.wait(_RETRY_SECONDS[attempt])
                attempt += 1

    def _stream(
        self, plural: str, selection: dict[str, str], version: str, stop: threading.Event
    ) -> Iterator[Change | None]:
        """Changes after `version`, and None for other signs that the watch works: a bookmark, an orderly end.

        Returns when the version has expired: list again then.
        """
        while not stop.is_set():
            events = watch.Watch().stream(
                self.objects.list_namespaced_custom_object,
                contract.GROUP,
                VERSION,
                self.namespace,
                plural,
                resource_version=version,
                timeout_seconds=_WATCH_SECONDS,
                _request_timeout=(_CONNECT_SECONDS, _WATCH_SECONDS + _ANSWER_SECONDS),
                allow_watch_bookmarks=True,
                **selection,
            )
            with self.explained(f"watch {plural}"):
                try:
                    for event in events:
                        version = event["object"]["metadata"]["resourceVersion"]
                        is_gone = event["type"] == "DELETED"
                        yield None if event["type"] == "BOOKMARK" else Change(plural, event["object"], gone=is_gone)
                    yield None
                except client.ApiException as error:
                    if error.status == HTTPStatus.GONE:
                        return
                    raise

    def _items(self, plural: str, *, everywhere: bool, selection: dict[str, str] | None = None) -> list[Object]:
        found: list[Object] = self._list(plural, selection or {}, everywhere=everywhere)["items"]
        return found

    def _list(self, plural: str, selection: dict[str, str], *, everywhere: bool = False) -> Object:
        limits = {"_request_timeout": REQUEST_TIMEOUT}
        where = "every namespace" if everywhere else f"namespace {self.namespace!r}"
        with self.explained(f"list {plural} in {where}"):
            if everywhere:
                found: Object = self.objects.list_cluster_custom_object(
                    contract.GROUP, VERSION, plural, **selection, **limits
                )
            else:
                found = self.objects.list_namespaced_custom_object(
                    contract.GROUP, VERSION, self.namespace, plural, **selection, **limits
                )
        return found

    def _suggest(self, name: str, here: list[str]) -> str:
        close = difflib.get_close_matches(name, here, n=1, cutoff=0.5)
        if close:
            return f"did you mean {close[0]!r}?"
        if here:
            return f"there are: {', '.join(sorted(here))}"
        elsewhere = [m["metadata"] for m in self.models(everywhere=True) if m["metadata"]["name"] == name]
        if elsewhere:
            return f"it is in namespace {elsewhere[0]['namespace']!r}: pass -n {elsewhere[0]['namespace']}"
        return "the namespace has none; create one: kubectl apply -f examples/adult-income/mlmodel.yaml"

    @contextmanager
    def explained(self, doing: str) -> Iterator[None]:
        """Turns client errors within into `CliError`; `doing` names what was asked for, after "cannot"."""
        try:
            yield
        except client.ApiException as error:
            # The client reports a failed TLS handshake as an answer without a status.
            raise explain(error, doing) if error.status else self._unreachable(error.reason) from None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise self._unreachable(error) from None

    def _unreachable(self, cause: object) -> CliError:
        return CliError(
            f"cannot reach the cluster at {self.host}: {' '.join(str(cause).split())}",
            "is it running, and is this the right context? `kubectl cluster-info` tells; `make up` starts the local one",
        )


def explain(error: client.ApiException, doing: str) -> CliError:
    """What an HTTP status of the API server means to a user of the plugin."""
    try:
        body = json.loads(error.body or "{}")
    except ValueError:
        body = {}
    said = str(body.get("message") or error.reason or error.body or "no reason given").strip()
    if error.status == HTTPStatus.NOT_FOUND and not (body.get("details") or {}).get("name"):
        return CliError(f"the cluster does not know MLModels: the CRDs of {contract.GROUP} are missing", INSTALL)
    if error.status == HTTPStatus.NOT_FOUND:
        return CliError(said, "`kubectl mlmodel status` lists the models")
    if error.status == HTTPStatus.UNAUTHORIZED:
        return CliError(f"not logged in: may not {doing}: {said}", "renew the credentials of the kubeconfig's user")
    if error.status == HTTPStatus.FORBIDDEN and not lacks_right(said):
        return CliError(f"refused to {doing}: {said}", "correct what the message names: the model, a quota or a policy")
    if error.status == HTTPStatus.FORBIDDEN:
        return CliError(
            f"not allowed to {doing}: {said}",
            "ask for the role: kubectl create rolebinding mlmodels --clusterrole=edit --user=<you> -n <namespace>",
        )
    return CliError(
        f"cannot {doing}: {error.status} {said}", "`kubectl get --raw /readyz` shows the API server's health"
    )
