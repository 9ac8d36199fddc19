"""Who of several operators may write: the holder of a coordination.k8s.io/v1 Lease.

Called by `mlplatform.main`; `mlplatform.cluster` asks `Lease.held` before each
write. No two machines' clocks are compared: the holder counts its right from
before its last renewal on its own clock, the others count on theirs for how
long the Lease has not changed, and wait longer than the holder's right lasts.
(The client library's election keeps a ConfigMap by the wall clock, and gives
nothing back.)
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Literal

import urllib3
from kubernetes import client
from kubernetes.client.exceptions import ApiException

from mlplatform.snapshot import Object

log = logging.getLogger(__name__)

API_VERSION: Final = "coordination.k8s.io/v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """Seconds. What was sent within the right has ended (`timeout`) before anybody else may take it over.

    Attributes:
        duration: How long the Lease must not have changed for another one to take it.
        right: How long a renewal lasts for the holder.
        renew: The pause between two renewals.
        watch: The pause between two looks of those who wait.
        timeout: Of one request for the Lease.
    """

    duration: int = 7
    right: float = 5.0
    renew: float = 1.25
    watch: float = 0.75
    timeout: float = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """The Lease as it was last seen.

    Attributes:
        spec: Its spec; None when there was none.
        revision: Its resourceVersion.
        since: When that was seen first, on this process' own clock.
        known: Whether this process has ever seen one.
    """

    spec: Object | None
    revision: str
    since: float
    known: bool


Step = Literal["take", "renew", "wait"]


def see(before: Sighting | None, live: Object | None, now: float) -> Sighting:
    """Keeps the moment of the first sight as long as nothing has changed."""
    spec = None if live is None else live.get("spec") or {}
    known = live is not None or (before is not None and before.known)
    unchanged = before is not None and before.spec == spec
    since = before.since if before is not None and unchanged else now
    return Sighting(
        spec=spec, revision=(live or {}).get("metadata", {}).get("resourceVersion", ""), since=since, known=known
    )


def decide(seen: Sighting, me: str, now: float, terms: Terms) -> Step:
    """What this process does about the Lease that it sees."""
    if seen.spec is None:
        # Somebody may have deleted it under a holder who has yet to notice.
        return "wait" if seen.known and now < seen.since + terms.duration else "take"
    holder = seen.spec.get("holderIdentity") or ""
    if holder == me:
        return "renew"
    lasts = max(terms.duration, int(seen.spec.get("leaseDurationSeconds") or 0))
    return "take" if not holder or now >= seen.since + lasts else "wait"


def claim(seen: Sighting, me: str, wall: datetime, terms: Terms, step: Step) -> Object:
    """The spec that says that this process holds the Lease; its times are for people."""
    moment = wall.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    before = seen.spec or {}
    taken = step == "take"
    return {
        "holderIdentity": me,
        "leaseDurationSeconds": terms.duration,
        "acquireTime": moment if taken else before.get("acquireTime", moment),
        "renewTime": moment,
        "leaseTransitions": int(before.get("leaseTransitions") or 0) + (taken and seen.spec is not None),
    }


@dataclass
class Lease:
    """One Lease, and this process as a candidate for it.

    Attributes:
        api: Its own client: a try that fails is followed by the next, not repeated.
        namespace: Of the Lease.
        name: Of the Lease.
        me: This process' identity, which no other that runs may have.
        terms: The times.
        clock: Monotonic, in seconds; it goes on while the process is stopped.
    """

    api: client.ApiClient
    namespace: str
    name: str
    me: str
    terms: Terms = Terms()
    clock: Callable[[], float] = time.monotonic
    _until: float = field(default=float("-inf"), init=False)
    _seen: Sighting | None = field(default=None, init=False)

    def held(self) -> bool:
        """Whether this process may write now."""
        return self.clock() < self._until

    def acquire(self, stop: threading.Event) -> bool:
        """Waits until this process holds the Lease; False when it was told to stop before."""
        told = ""
        while not stop.is_set():
            self.attempt()
            if self.held():
                return True
            holder = str(((self._seen and self._seen.spec) or {}).get("holderIdentity", ""))
            if holder != told:
                log.info("%s holds the lease %s/%s; waiting", holder or "nobody", self.namespace, self.name)
                told = holder
            stop.wait(self.terms.watch)
        return False

    def keep(self, stop: threading.Event) -> bool:
        """Renews until somebody else holds the Lease (False) or it is told to stop (True).

        While the API server does not answer, the right runs out and nothing is written; nobody else can have it then.
        """
        while not stop.wait(self.terms.renew):
            self.attempt()
            holder = ((self._seen and self._seen.spec) or {}).get("holderIdentity")
            if holder not in {None, "", self.me}:
                self._until = float("-inf")
                return False
        return True

    def release(self) -> None:
        """Gives the Lease back, so that nobody has to wait for its end; from here on this process writes nothing."""
        self._until = float("-inf")
        try:
            seen = self._look()
            if seen.spec and seen.spec.get("holderIdentity") == self.me:
                self._write({**seen.spec, "holderIdentity": ""}, seen)
        except (ApiException, urllib3.exceptions.HTTPError, ValueError) as error:
            log.info("the lease was not given back, it runs out: %s", _brief(error))

    def attempt(self) -> None:
        """Looks at the Lease, and takes or renews it where it may."""
        try:
            seen, now = self._look(), self.clock()
            # Nobody else can have it while this process does, not even where somebody has deleted it.
            step = "take" if seen.spec is None and self.held() else decide(seen, self.me, now, self.terms)
            if step == "wait":
                return
            self._write(claim(seen, self.me, datetime.now(UTC), self.terms, step), seen)
            self._until = now + self.terms.right  # From before the request: nobody has seen the renewal earlier.
        except ApiException as error:
            level = logging.DEBUG if error.status == 409 else logging.WARNING  # noqa: PLR2004  somebody was faster
            log.log(level, "the lease %s/%s: %s", self.namespace, self.name, _brief(error))
        except (urllib3.exceptions.HTTPError, ValueError) as error:
            log.warning("the lease %s/%s: no answer: %s", self.namespace, self.name, _brief(error))

    def _look(self) -> Sighting:
        try:
            live = self._request("GET", self._path(self.name))
        except ApiException as error:
            if error.status != 404:  # noqa: PLR2004  HTTP
                raise
            live = None
        self._seen = see(self._seen, live, self.clock())
        return self._seen

    def _write(self, spec: Object, seen: Sighting) -> None:
        """Creates the Lease, or changes it if it is still as it was seen."""
        body = {
            "apiVersion": API_VERSION,
            "kind": "Lease",
            "metadata": {"name": self.name, "namespace": self.namespace},
            "spec": spec,
        }
        if seen.spec is None:
            self._request("POST", self._path(), body)
        else:
            body["metadata"] = {"name": self.name, "namespace": self.namespace, "resourceVersion": seen.revision}
            self._request("PUT", self._path(self.name), body)

    def _path(self, name: str = "") -> str:
        base = f"/apis/{API_VERSION}/namespaces/{self.namespace}/leases"
        return f"{base}/{name}" if name else base

    def _request(self, method: str, path: str, body: Any = None) -> Object:
        answer = self.api.call_api(
            path,
            method,
            header_params={"Accept": "application/json", "Content-Type": "application/json"},
            body=body,
            auth_settings=["BearerToken"],
            _preload_content=False,
            _return_http_data_only=True,
            _request_timeout=(self.terms.timeout, self.terms.timeout),
        )
        found: Object = json.loads(answer.data)
        return found


def _brief(error: Exception) -> str:
    return f"{error.status} {error.reason}" if isinstance(error, ApiException) else str(error)
