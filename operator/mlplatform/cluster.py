"""The only module that writes to the API server.

Called by `mlplatform.reconciler`, in threads. Plain requests over the official
client's connection (TLS, tokens and their renewal): the objects are dicts
already, and requests like these are the same on every Kubernetes.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Self

import urllib3
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

from mlplatform import contract
from mlplatform.actions import Apply, Create, Delete, Event, Patch, Ref, Write
from mlplatform.refusals import lacks_right
from mlplatform.resources import KINDS
from mlplatform.resources.metadata import stray
from mlplatform.snapshot import Object, labels_of, stamp, uid_of

log = logging.getLogger(__name__)

TIMEOUT: Final = (5, 30)
"""Seconds to connect and to answer."""

WORKERS: Final = 256
"""Passes, and so requests, at a time: of 200 models that change at once none waits behind what another one asks for."""

CONNECTIONS: Final = WORKERS + 2
"""Kept to the API server: one for each thread that writes or asks (`mlplatform.fleet`)."""

PAGE: Final = 500
"""Objects in one answer of a list."""

_METADATA: Final = "application/json;as=PartialObjectMetadata{};g=meta.k8s.io;v=v1"
_STREAM: Final = {
    "watch": "true", "sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan", "allowWatchBookmarks": "true",
}  # fmt: skip
_END: Final = "k8s.io/initial-events-end"
"""Annotation of the bookmark that follows the last object of a list that comes as a stream."""

_MERGE: Final = "application/merge-patch+json"
_JSON_PATCH: Final = "application/json-patch+json"
_APPLY: Final = "application/apply-patch+yaml"

KIND_SEEN_AGAIN: Final = 60.0
KIND_MISSED_AGAIN: Final = 5.0
"""Seconds for which a look at what the API server serves counts."""


class ClusterError(Exception):
    """The API server did not do what was asked; worth another try after a pause.

    Attributes:
        reason: A condition's, one CamelCase word.
        patience: Failures in a row that are not told, because it may pass by itself; with 0 a person must mend it.
    """

    reason = "WriteFailing"
    patience = 1


class Forbidden(ClusterError):  # noqa: N818  a kind of ClusterError, named for what it says
    """RBAC does not let the operator do this; the message names verb, kind and namespace."""

    reason = "Forbidden"
    patience = 0


class NameTaken(ClusterError):  # noqa: N818  likewise
    """An object of that name belongs to somebody else, and is left alone."""

    reason = "NameTaken"
    patience = 0


class Conflict(ClusterError):  # noqa: N818  likewise
    """Somebody else wrote first; looking again shows what."""

    reason = "Conflict"
    patience = 3


class Rejected(ClusterError):  # noqa: N818  likewise
    """The API server, a webhook, a quota or a policy will not have the object; the message is its own."""

    reason = "Rejected"
    patience = 0


class NotFound(ClusterError):  # noqa: N818  likewise
    """What something is to be made in, or a kind itself, is not there."""


class Expired(ClusterError):  # noqa: N818  likewise
    """A list's next page can no longer be given as of its first."""


class Truncated(ClusterError):  # noqa: N818  likewise
    """A list that comes as a stream broke off before its end."""


class NotLeading(ClusterError):  # noqa: N818  likewise
    """This operator may not write now: another one does, or the right to has run out unrenewed."""

    reason = "NotLeading"


class ConnectError(Exception):
    """There is no API server to talk to; the message says where one was looked for."""


class Backoffs:
    """Seconds to wait before each further try of what must come to be, give or take a third; they never end."""

    def __iter__(self) -> Iterator[float]:
        """For one request."""
        for seconds in itertools.chain((0.5, 1, 2, 4, 8, 15), itertools.repeat(30)):
            yield seconds * random.uniform(0.67, 1.33)  # noqa: S311  spreads load; no secret


class _Tries(urllib3.Retry):
    """Tries again only as long as it may."""

    def __init__(self, *args: Any, may: Callable[[], bool], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._may = may

    def new(self, **kwargs: Any) -> Self:
        return super().new(may=self._may, **kwargs)

    def increment(self, *args: Any, **kwargs: Any) -> Self:
        if not self._may():
            raise NotLeading("the right to write ran out before the API server answered")
        return super().increment(*args, **kwargs)


def connect(may: Callable[[], bool] | None = None) -> client.ApiClient:
    """The in-cluster ServiceAccount when there is one, else the current kubeconfig context.

    Args:
        may: Whether what failed may be sent again; None: never.

    Raises:
        ConnectError: There is neither.
    """
    settings = client.Configuration()
    try:
        config.load_incluster_config(settings)
        settings.proxy = (
            None  # The client takes any from the environment; in the cluster there is none before the API server.
        )
    except config.ConfigException:
        try:
            config.load_kube_config(client_configuration=settings)
        except config.ConfigException as error:
            raise ConnectError(f"neither a ServiceAccount (inside a cluster) nor a kubeconfig: {error}") from error
    settings.connection_pool_maxsize = CONNECTIONS
    # Every request here can be sent twice without harm: names are given, patches are absolute.
    settings.retries = (
        urllib3.Retry(0)
        if may is None
        else _Tries(
            total=3,
            backoff_factor=0.2,
            backoff_jitter=0.2,
            status_forcelist=(429, 502, 503, 504),
            allowed_methods=None,
            raise_on_status=False,
            may=may,
        )
    )
    return client.ApiClient(settings)


class Cluster:
    """Writes objects while it may, and knows which kinds the API server serves."""

    def __init__(self, api: client.ApiClient, may: Callable[[], bool] = lambda: True) -> None:
        self._api, self.may_write = api, may
        self._served: dict[str, tuple[float, frozenset[str]]] = {}
        self._streams: bool | None = None

    def do(self, write: Write) -> Object | None:
        """Carries out one write.

        Returns:
            The object as it is now, or None when it was deleted or could not be seen.

        Raises:
            ClusterError: See its kinds.
        """
        if isinstance(write, Create):
            return self.create(write.manifest)
        if isinstance(write, Apply):
            return self.apply(write.manifest)
        if isinstance(write, Patch):
            return self.patch(write.ref, write.body)
        self.delete(write)
        return None

    def create(self, manifest: Object) -> Object | None:
        """Creates the object; when it exists already, returns it as it is.

        Raises:
            NameTaken: One of that name exists and has another owner.
            Conflict: One of that name is on its way out.
            ClusterError: See its kinds.
        """
        try:
            return self._request(
                "POST", path(Ref.to(manifest), collection=True), manifest, fieldManager=contract.MANAGER
            )
        except Conflict:
            return self._own(manifest)

    def apply(self, manifest: Object) -> Object | None:
        """Server-side apply: creates the object, or takes over the fields that the manifest names.

        Raises:
            NameTaken: One of that name exists and has another owner.
            ClusterError: See its kinds.
        """
        self._own(manifest)
        return self._request(
            "PATCH", path(Ref.to(manifest)), manifest, _APPLY, fieldManager=contract.MANAGER, force="true"
        )

    def patch(self, ref: Ref, body: Object) -> Object | None:
        """Merge-patches the object; None when it is gone."""
        return self._request("PATCH", path(ref), body, _MERGE, absent_ok=True, fieldManager=contract.MANAGER)

    def delete(self, deletion: Delete) -> None:
        """Deletes the object and, in the background, what it owns."""
        options = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"}
        self._request("DELETE", path(deletion.ref), options, absent_ok=True)

    def write_status(self, obj: Object, status: Object) -> Object | None:
        """Replaces the object's status; None when it is gone.

        Raises:
            Conflict: An object of that name has taken its place.
            ClusterError: See its kinds.
        """
        body = [
            {"op": "test", "path": "/metadata/uid", "value": uid_of(obj)},
            {"op": "add", "path": "/status", "value": status},
        ]
        address = f"{path(Ref.to(obj))}/status"
        try:
            return self._request("PATCH", address, body, _JSON_PATCH, absent_ok=True, fieldManager=contract.MANAGER)
        except Rejected as error:
            live = self.get(Ref.to(obj))
            if live is not None and uid_of(live) != uid_of(obj):
                raise Conflict(f"{address}: another object of that name has taken its place") from error
            raise

    def post(self, obj: Object, event: Event, when: Any) -> None:
        """Posts an Event about the object. Events inform; one that cannot be posted is logged, and that is all."""
        ref = Ref.to(obj)
        moment = stamp(when)
        manifest = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {
                "name": f"{ref.name}.{contract.digest([uid_of(obj), event.reason, event.message, moment])}",
                "namespace": ref.namespace,
            },
            "involvedObject": {
                "apiVersion": ref.api_version,
                "kind": ref.kind,
                "namespace": ref.namespace,
                "name": ref.name,
                "uid": uid_of(obj),
                "resourceVersion": obj["metadata"].get("resourceVersion", ""),
            },
            "type": event.type,
            "reason": event.reason,
            "message": event.message[:1024],
            "source": {"component": contract.MANAGER},
            "reportingComponent": contract.MANAGER,
            "reportingInstance": contract.MANAGER,
            "firstTimestamp": moment,
            "lastTimestamp": moment,
            "count": 1,
        }
        try:
            self.create(manifest)
        except ClusterError as error:
            log.warning("event %s of %s/%s was not posted: %s", event.reason, ref.namespace, ref.name, error)

    def missing(self, kinds: dict[str, str]) -> frozenset[str]:
        """Which of ``{kind: apiVersion}`` the API server does not serve.

        Raises:
            ClusterError: It could not be asked.
        """
        for kind, version in kinds.items():
            if self._seen(version, kind) is None:
                self._look(version)
        return frozenset(kind for kind, version in kinds.items() if kind not in self._served[version][1])

    def seen_missing(self, kinds: dict[str, str]) -> frozenset[str] | None:
        """Likewise, by what was seen lately: nobody is asked. None where that is not enough."""
        seen = {kind: self._seen(version, kind) for kind, version in kinds.items()}
        if None in seen.values():
            return None
        return frozenset(kind for kind, found in seen.items() if kind not in (found or ()))

    def streams(self, namespaces: Sequence[str]) -> bool:
        """Whether the API server gives lists as streams: from its memory and an object at a time, and not from etcd in pages.

        Kubernetes 1.34 and newer do (KEP-3157), and those before it where they are told to.

        Args:
            namespaces: That are watched; ``[""]`` for all.

        Raises:
            ClusterError: It could not be asked.
        """
        if self._streams is None:
            self._streams = self._has_streams(namespaces)
        return self._streams

    def _has_streams(self, namespaces: Sequence[str]) -> bool:
        for namespace in namespaces:
            ref, nothing = Ref(contract.API_VERSION, "MLModel", namespace, ""), {"fieldSelector": "metadata.name=-"}
            try:
                list(self.stream(ref, "", timeoutSeconds="1", **nothing))
            except (Rejected, Truncated, NotFound):
                return False
            except Forbidden:  # That namespace is not there yet, or no longer.
                continue
            return True
        return False

    def stream(self, ref: Ref, selector: str, **query: str) -> Iterator[Object]:
        """What there is of a kind, as of now: objects with nothing but their metadata.

        Args:
            ref: The kind, and the namespace; none for all. Its name is not looked at.
            selector: Labels that they have.
            query: What else to ask.

        Raises:
            Truncated: It broke off.
            Rejected: This API server does not do that.
            NotFound: The kind has gone.
            ClusterError: See its kinds.
        """
        where = path(ref, collection=True)
        with _said(f"GET {where}"):
            asked = {**_STREAM, "labelSelector": selector, **query}
            response = self._send("GET", where, None, _METADATA.format(""), asked)
            try:
                for line in response:
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        break
                    if _END in (event["object"]["metadata"].get("annotations") or {}):
                        return
                    yield event["object"]
            finally:
                response.close()
        raise Truncated(f"GET {where}: the list broke off")

    def page(self, ref: Ref, selector: str, rest: str) -> tuple[list[Object], str]:
        """A page of what there is of a kind: objects with nothing but their metadata.

        Args:
            ref: The kind, and the namespace; none for all. Its name is not looked at.
            selector: Labels that they have.
            rest: What the page before has said; empty for the first.

        Returns:
            The objects, and what to ask the next page with; empty after the last.

        Raises:
            Expired: It is to be listed from the first page on.
            NotFound: The kind has gone.
            ClusterError: See its kinds.
        """
        query: dict[str, Any] = {"limit": str(PAGE), "labelSelector": selector, "continue": rest}
        found = self._request("GET", path(ref, collection=True), None, _METADATA.format("List"), **query) or {}
        return list(found.get("items") or ()), str(found.get("metadata", {}).get("continue") or "")

    def get(self, ref: Ref) -> Object | None:
        """The object as it is; None when there is none."""
        return self._request("GET", path(ref), absent_ok=True)

    def warnings(self, obj: Object) -> list[Object]:
        """Events of type Warning about the object."""
        ref = Ref(KINDS["Event"].api_version, "Event", obj["metadata"]["namespace"], "")
        selector = f"involvedObject.uid={uid_of(obj)},type=Warning"
        return list((self._request("GET", path(ref, collection=True), fieldSelector=selector) or {}).get("items") or ())

    def _own(self, manifest: Object) -> Object | None:
        """The live object of that name, which must not belong to anybody else; what has our labels and no owner is ours."""
        ref = Ref.to(manifest)
        live = self.get(ref)
        mine, theirs = _owners(manifest), _owners(live or {})
        if live is None or not mine or mine.keys() & theirs.keys() or stray(live, labels_of(manifest)):
            return live
        if "deletionTimestamp" in live["metadata"] or set(mine.values()) & set(theirs.values()):
            # Its owner was deleted, and perhaps made anew under the same name: the garbage collector takes it away.
            raise Conflict(f"{ref.kind} {ref.namespace}/{ref.name} is left from an object that was deleted")
        raise NameTaken(
            f"{ref.kind} {ref.namespace}/{ref.name} exists and belongs to something else; "
            "it is left alone. Rename the MLModel, or delete that object"
        )

    def _seen(self, version: str, kind: str) -> frozenset[str] | None:
        """The kinds of that version; None where the look at them no longer counts for this kind."""
        when, kinds = self._served.get(version, (float("-inf"), frozenset()))
        lasts = KIND_SEEN_AGAIN if kind in kinds else KIND_MISSED_AGAIN
        return kinds if time.monotonic() - when < lasts else None

    def _look(self, version: str) -> None:
        now = time.monotonic()
        root = f"/apis/{version}" if "/" in version else f"/api/{version}"
        listed = self._request("GET", root, absent_ok=True) or {}
        kinds = frozenset(resource["kind"] for resource in listed.get("resources") or ())
        self._served[version] = (now, kinds)

    def _request(
        self,
        method: str,
        path: str,
        body: Any = None,
        media: str = "application/json",
        *,
        absent_ok: bool = False,
        **query: str,
    ) -> Object | None:
        if method != "GET" and not self.may_write():
            raise NotLeading(f"{method} {path}: another operator holds the lease, or this one could not renew it")
        try:
            with _said(f"{method} {path}"):
                found: Object = json.loads(self._send(method, path, body, media, query).data)
        except NotFound:
            if absent_ok:
                return None
            raise
        return found

    def _send(self, method: str, path: str, body: Any, media: str, query: dict[str, str]) -> urllib3.HTTPResponse:
        response: urllib3.HTTPResponse = self._api.call_api(
            path,
            method,
            query_params=list(query.items()),
            header_params={"Accept": "application/json" if body else media, "Content-Type": media},
            body=body,
            auth_settings=["BearerToken"],
            _preload_content=False,
            _return_http_data_only=True,
            _request_timeout=TIMEOUT,
        )
        return response


@contextlib.contextmanager
def _said(request: str) -> Iterator[None]:
    """What goes wrong with a request, as a ClusterError."""
    try:
        yield
    except ApiException as error:
        raise _explain(error, request) from error
    except urllib3.exceptions.HTTPError as error:
        raise ClusterError(f"{request}: the API server did not answer: {error}") from error
    except ValueError as error:
        raise ClusterError(f"{request}: the answer is no JSON; is a proxy in between? {error}") from error


def _owners(obj: Object) -> dict[str, tuple[str, str]]:
    """Kind and name of an object's owners, by uid."""
    return {r["uid"]: (r["kind"], r["name"]) for r in obj.get("metadata", {}).get("ownerReferences") or ()}


def path(ref: Ref, *, collection: bool = False) -> str:
    """Where the API server has that object, or all of its kind in its namespace, or in all of them."""
    root = f"/apis/{ref.api_version}" if "/" in ref.api_version else f"/api/{ref.api_version}"
    base = f"{root}/namespaces/{ref.namespace}" if ref.namespace else root
    base = f"{base}/{KINDS[ref.kind].plural}"
    return base if collection else f"{base}/{ref.name}"


def _explain(error: ApiException, request: str) -> ClusterError:
    """The API server's own words, under the kind of error that says what to do about it."""
    try:
        message = json.loads(error.body or "")["message"]
    except (ValueError, KeyError, TypeError):
        message = error.reason
    text = f"{request}: {error.status} {message}"
    refused = Forbidden if lacks_right(str(message)) else Rejected
    kinds = {
        401: Forbidden, 403: refused, 404: NotFound, 409: Conflict, 410: Expired, 400: Rejected, 422: Rejected,
    }  # fmt: skip
    return kinds.get(error.status, ClusterError)(text)
