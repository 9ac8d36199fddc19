"""A Kubernetes API client of one small file; every stand-in controller uses it and nothing else does.

Why not the official client: it imports its models of every kind (tens of MB and
most of a second a process) to do what four HTTP verbs and one watch do here.
"""

from __future__ import annotations

import http.client
import json
import os
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

JSON = dict[str, Any]

SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
REQUEST_TIMEOUT: Final = 30.0
WATCH_SECONDS: Final = 300
"""How long the API server keeps one watch; then a new one goes on from the last version."""

MERGE_PATCH: Final = "application/merge-patch+json"
APPLY_PATCH: Final = "application/apply-patch+yaml"


class ApiError(Exception):
    """The API server refused a request.

    Attributes:
        status: HTTP status, e.g. 409.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


@dataclass(frozen=True, slots=True)
class Resource:
    """One kind as the API's paths name it.

    Attributes:
        api_version: ``v1`` or ``<group>/<version>``.
        plural: Lower-case plural, e.g. ``pods``.
    """

    api_version: str
    plural: str

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """URL path of a collection (no name), an object, or a part of one; namespace ``""`` is all of them."""
        root = f"/apis/{self.api_version}" if "/" in self.api_version else f"/api/{self.api_version}"
        parts = [root, *(["namespaces", namespace] if namespace else []), self.plural, name, subresource]
        return "/".join(part for part in parts if part)


class Client:
    """Requests to one API server; every thread keeps a connection of its own.

    Args:
        server: ``https://host:port`` or ``http://host:port``.
        token_file: Bearer token; read again for every request, because the kubelet renews it.
        ca_file: Certificate authority of an ``https`` server.
    """

    def __init__(self, server: str, *, token_file: Path | None = None, ca_file: Path | None = None) -> None:
        self._url = urlsplit(server)
        self._token_file = token_file
        self._tls = ssl.create_default_context(cafile=str(ca_file)) if ca_file else None
        self._local = threading.local()

    @classmethod
    def in_cluster(cls) -> Client:
        """The client of a pod, from what the kubelet gives every pod.

        Raises:
            KeyError: Not in a pod (``KUBERNETES_SERVICE_HOST`` is not set).
        """
        host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
        return cls(f"https://{host}:{port}", token_file=SERVICE_ACCOUNT / "token", ca_file=SERVICE_ACCOUNT / "ca.crt")

    def close(self) -> None:
        """Closes this thread's connection; the next request opens a new one."""
        connection = getattr(self._local, "connection", None)
        if connection is not None:
            connection.close()

    def get(self, resource: Resource, namespace: str, name: str) -> JSON | None:
        """The object, or None where there is none."""
        try:
            return self.request("GET", resource.path(namespace, name))
        except ApiError as error:
            if error.status == http.HTTPStatus.NOT_FOUND:
                return None
            raise

    def create(self, resource: Resource, body: JSON) -> None:
        """Creates an object; one of that name that is there already is left as it is."""
        try:
            self.request("POST", resource.path(body["metadata"]["namespace"]), body)
        except ApiError as error:
            if error.status != http.HTTPStatus.CONFLICT:
                raise

    def delete(self, resource: Resource, namespace: str, name: str, uid: str) -> None:
        """Deletes exactly the object with this uid; one that is gone, or came back as another, is left alone."""
        body = {"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": {"uid": uid}}
        body["propagationPolicy"] = "Background"
        try:
            self.request("DELETE", resource.path(namespace, name), body)
        except ApiError as error:
            if error.status not in (http.HTTPStatus.NOT_FOUND, http.HTTPStatus.CONFLICT):
                raise

    def apply(self, resource: Resource, body: JSON, manager: str) -> None:
        """Server-side apply, taking fields over from other managers."""
        meta = body["metadata"]
        query = urlencode({"fieldManager": manager, "force": "true"})
        path = f"{resource.path(meta.get('namespace', ''), meta['name'])}?{query}"
        self.request("PATCH", path, body, APPLY_PATCH)

    def replace_status(self, resource: Resource, body: JSON) -> None:
        """Writes ``status`` if nobody wrote the object since it was read.

        Raises:
            ApiError: 409 where somebody did.
        """
        meta = body["metadata"]
        self.request("PUT", resource.path(meta["namespace"], meta["name"], "status"), body)

    def request(self, method: str, path: str, body: JSON | None = None, content: str = "application/json") -> JSON:
        """One request, one JSON object back.

        Raises:
            ApiError: Any status of 400 and above.
            OSError: The server cannot be reached.
            http.client.HTTPException: It closed the connection half-way.
        """
        connection = getattr(self._local, "connection", None)
        if connection is not None:
            try:
                return self._exchange(connection, method, path, body, content)
            except (http.client.HTTPException, ConnectionError):
                # An idle connection that the server closed: the request never ran. Once more on a fresh one.
                connection.close()
        self._local.connection = self._connect(REQUEST_TIMEOUT)
        return self._exchange(self._local.connection, method, path, body, content)

    def watch(self, resource: Resource, version: str, selector: str = "") -> Iterator[JSON]:
        """Watch events ``{type, object}`` after a resource version, until the server ends the stream.

        Raises:
            ApiError: E.g. 410 when the version is too old; list again.
            OSError: The connection broke.
        """
        query = {"watch": "true", "allowWatchBookmarks": "true", "resourceVersion": version}
        query |= {"timeoutSeconds": str(WATCH_SECONDS)} | ({"labelSelector": selector} if selector else {})
        connection = self._connect(WATCH_SECONDS + REQUEST_TIMEOUT)
        try:
            connection.request("GET", f"{resource.path()}?{urlencode(query)}", headers=self._headers())
            response = connection.getresponse()
            if response.status >= http.HTTPStatus.BAD_REQUEST:
                raise ApiError(response.status, response.read().decode(errors="replace"))
            while line := response.readline():
                event: JSON = json.loads(line)
                if event["type"] == "ERROR":
                    raise ApiError(int(event["object"].get("code", 500)), str(event["object"].get("message", "")))
                yield event
        finally:
            connection.close()

    def _connect(self, timeout: float) -> http.client.HTTPConnection:
        host, port = self._url.hostname or "", self._url.port
        if self._tls is not None:
            return http.client.HTTPSConnection(host, port, timeout=timeout, context=self._tls)
        return http.client.HTTPConnection(host, port, timeout=timeout)

    def _headers(self) -> dict[str, str]:
        token = {"Authorization": f"Bearer {self._token_file.read_text().strip()}"} if self._token_file else {}
        return {"Accept": "application/json", **token}

    def _exchange(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: JSON | None, content: str
    ) -> JSON:
        payload = None if body is None else json.dumps(body)
        connection.request(method, path, payload, {**self._headers(), "Content-Type": content})
        response = connection.getresponse()
        text = response.read().decode()
        if response.status >= http.HTTPStatus.BAD_REQUEST:
            raise ApiError(response.status, _message(text))
        answer: JSON = json.loads(text)
        return answer


def _message(text: str) -> str:
    """The ``message`` of a Status object, or the text itself when a proxy answered."""
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return text
