"""A proxy on loopback before a real API server: it counts requests, and answers or delays them as a test asks."""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.client import HTTPSConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

import yaml
from apiserver_fixture import ApiServer

KEPT = ("Authorization", "Accept", "Content-Type")
"""Headers of a request that the API server looks at."""


@dataclass(frozen=True)
class Request:
    """What was asked for.

    Attributes:
        method: GET, POST, …
        path: Without what follows the question mark.
        query: That.
    """

    method: str
    path: str
    query: dict[str, str]

    @property
    def watches(self) -> bool:
        """Whether it is a watch."""
        return self.query.get("watch") == "true"

    @property
    def begins(self) -> bool:
        """Whether it is a watch that begins with a list of what there is."""
        return self.watches and "sendInitialEvents" in self.query and "fieldSelector" not in self.query

    @property
    def lists(self) -> bool:
        """Whether it lists objects of a kind in pages, in all namespaces or in one."""
        parts = self.path.strip("/").split("/")[2 if self.path.startswith("/api/") else 3 :]
        return self.method == "GET" and not self.watches and (len(parts) == 1 or (len(parts) == 3 and parts[0] == "namespaces"))  # fmt: skip

    @property
    def kind(self) -> str:
        """The plural of a list's or a watch's kind."""
        return self.path.rpartition("/")[2]


@dataclass(frozen=True)
class Answer:
    """What the proxy says in the API server's place."""

    status: int
    body: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)


GONE = Answer(200, {"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired"}})
"""As the API server tells a watch that what it wants to go on from is not known any more."""


UNKNOWN: Final = Answer(
    422, {"kind": "Status", "code": 422, "message": "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for watch "
          "unless the WatchList feature gate is enabled"},
)  # fmt: skip
"""What Kubernetes before 1.34 says of a list that is to come as a stream."""


def busy(seconds: int) -> Answer:
    """Too many requests; the client is to come back later."""
    status = {"kind": "Status", "apiVersion": "v1", "code": 429, "message": "too many requests"}
    return Answer(429, status, {"Retry-After": str(seconds)})


class Proxy:
    """The way from one operator to the API server.

    Attributes:
        kubeconfig: For whoever is to take it.
        requests: All so far.
        rule: What comes of a request: an answer, or None for the API server's own; it may take its time.
        most: Lines of a watch that pass before it is broken off; it may say None.
    """

    def __init__(self, server: ApiServer, folder: Path) -> None:
        self.requests: list[Request] = []
        self.rule: Callable[[Request], Answer | None] = lambda _: None
        self.most: Callable[[Request], int | None] = lambda _: None
        self._watches: set[socket.socket] = set()
        self._target = urlsplit(server.url).netloc
        self._trust = ssl.create_default_context(cafile=str(server.folder / "certificates/apiserver.crt"))
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            """One connection of a client."""

            protocol_version = "HTTP/1.1"

            def do(self) -> None:
                proxy.serve(self)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do  # noqa: N815  the base class' names

            def log_message(self, *_: object) -> None:
                """Nobody reads it."""

        self._door = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._door.daemon_threads = True
        config = yaml.safe_load(server.kubeconfig.read_text())
        config["clusters"][0]["cluster"] = {"server": f"http://127.0.0.1:{self._door.server_port}"}
        self.kubeconfig = folder / "kubeconfig-by-proxy"
        self.kubeconfig.write_text(yaml.safe_dump(config))
        threading.Thread(target=self._door.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Takes no more connections."""
        self._door.shutdown()
        self._door.server_close()

    def cut(self) -> None:
        """Breaks off every watch."""
        for each in tuple(self._watches):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def seen(self, wanted: Callable[[Request], bool], since: int = 0) -> list[Request]:
        """The requests of a sort, but for the first so many of all."""
        return [request for request in self.requests[since:] if wanted(request)]

    def serve(self, client: BaseHTTPRequestHandler) -> None:
        """One request."""
        split = urlsplit(client.path)
        request = Request(client.command, split.path, dict(parse_qsl(split.query)))
        body = client.rfile.read(int(client.headers.get("Content-Length", 0)))
        self.requests.append(request)
        with contextlib.suppress(OSError):
            answer = self.rule(request)
            if answer is None:
                self._forward(client, request, body)
            else:
                _send(client, answer.status, json.dumps(answer.body).encode() + b"\n", answer.headers)

    def _forward(self, client: BaseHTTPRequestHandler, request: Request, body: bytes) -> None:
        server = HTTPSConnection(self._target, context=self._trust)
        headers = {name: client.headers[name] for name in KEPT if name in client.headers}
        with contextlib.closing(server):
            server.request(client.command, client.path, body or None, headers)
            found = server.getresponse()
            if not request.watches or found.status != 200:
                told = {k: v for k, v in found.getheaders() if k in {"Content-Type", "Retry-After"}}
                _send(client, found.status, found.read(), told)
                return
            client.close_connection = True
            client.send_response(200)
            client.send_header("Content-Type", "application/json")
            client.send_header("Connection", "close")
            client.send_header("Transfer-Encoding", "chunked")
            client.end_headers()
            self._watches.add(client.connection)
            try:
                for line in itertools.islice(iter(found.readline, b""), self.most(request)):
                    client.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
                client.wfile.write(b"0\r\n\r\n")
            finally:
                self._watches.discard(client.connection)


def _send(client: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str]) -> None:
    client.send_response(status)
    for name, value in {"Content-Type": "application/json", **headers, "Content-Length": str(len(body))}.items():
        client.send_header(name, value)
    client.end_headers()
    client.wfile.write(body)
