"""Hands rendered configuration to a running Envoy without failing a request. Called by ``__main__`` for ``istio``.

Envoy reads files that are renamed into place. The order matters: a route must
never name a cluster that Envoy has not taken yet, and a cluster must not go
before the last route to it. So clusters only grow first, then routes move, then
what is left over goes; each step waits for Envoy to say that it took the last one.
"""

from __future__ import annotations

import http.client
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from .client import JSON
from .controller import digest
from .istio import ADMIN_PORT, STAT_PREFIX, Config, bootstrap, configuration_files

LOG = logging.getLogger("addons")

ACCEPT_SECONDS: Final = 5.0
"""How long Envoy may take to accept one step; it needs milliseconds."""
POLL_SECONDS: Final = 0.01


def prepare(folder: Path, **ports: int) -> None:
    """Writes what Envoy needs to start: its bootstrap and an empty configuration. Run before Envoy."""
    write(folder / "bootstrap.json", bootstrap(str(folder), **ports))
    for name in ("cds.json", "lds.json"):
        replace(folder / name, {})


class Publisher:
    """Writes configuration into a folder, in steps, and only what changed.

    Args:
        folder: The folder that Envoy reads.
        version_of: Tells the version that Envoy runs of one file (``admin_versions`` asks its admin page).
    """

    def __init__(self, folder: Path, version_of: Callable[[str], str | None]) -> None:
        self._folder = folder
        self._version_of = version_of
        self._clusters: dict[str, JSON] = {}
        self._written: dict[str, str] = {}
        self._taken: dict[str, str] = {}

    def publish(self, config: Config) -> bool:
        """Moves Envoy to a configuration.

        Returns:
            Whether Envoy took every step; False also when it is not up yet. Try again then.
        """
        files = configuration_files(config)
        routes = [name for name in files if name.startswith("rds-")]
        # Between the steps the clusters of the old and of the new routes are there.
        self._clusters = self._clusters | config.clusters
        for name in files:
            if name.startswith("eds-"):
                self._put(name, files[name])
        self._put("cds.json", self._clusters)
        if not self._took("cds.json"):
            return False
        for name in routes:
            self._put(name, files[name])
        self._put("lds.json", files["lds.json"])
        # Envoy reads the routes of a new listener with the listener: so it comes first here.
        if not all(self._took(name) for name in ("lds.json", *routes)):
            return False
        self._put("cds.json", config.clusters)
        if not self._took("cds.json"):
            return False
        self._clusters = config.clusters
        self._forget(set(files))
        return True

    def _put(self, name: str, resources: dict[str, Any]) -> None:
        """Puts one file in place; one of the same content is left alone."""
        version = digest(resources)
        if self._written.get(name) != version:
            replace(self._folder / name, resources)
            self._written[name] = version

    def _took(self, name: str) -> bool:
        """Waits until Envoy runs the file as it is now."""
        version = self._written[name]
        deadline = time.monotonic() + ACCEPT_SECONDS
        while self._taken.get(name) != version:
            if self._version_of(name) == version:
                self._taken[name] = version
            elif time.monotonic() > deadline:
                LOG.error("Envoy did not take %s of version %s; its log says why", name, version)
                return False
            else:
                time.sleep(POLL_SECONDS)  # the admin page has no way to wait for a change
        return True

    def _forget(self, wanted: set[str]) -> None:
        """Removes the files of what is no more; nothing refers to them now."""
        for name in [name for name in self._written if name not in wanted]:
            (self._folder / name).unlink(missing_ok=True)
            del self._written[name]
            self._taken.pop(name, None)


def admin_versions(port: int = ADMIN_PORT) -> Callable[[str], str | None]:
    """A function that asks Envoy's admin page which version of a file it runs; None while it does not answer."""

    def version_of(name: str) -> str | None:
        statistic = _statistic(name)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ACCEPT_SECONDS)
        try:
            connection.request("GET", f"/stats?filter={statistic.replace('.', '%5C.')}&type=TextReadouts")
            text = connection.getresponse().read().decode()
        except (OSError, http.client.HTTPException):
            return None  # Envoy is starting
        finally:
            connection.close()
        found = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
        return found.get(statistic, "").strip('"') or None

    return version_of


def _statistic(name: str) -> str:
    """Envoy's text statistic that carries the version of a file."""
    if name == "cds.json":
        return "cluster_manager.cds.version_text"
    if name == "lds.json":
        return "listener_manager.lds.version_text"
    port = int(name.removeprefix("rds-").removesuffix(".json"))
    return f"http.{STAT_PREFIX.format(port=port)}.rds.http.{port}.version_text"


def replace(path: Path, resources: dict[str, Any]) -> None:
    """Puts resources into a file as Envoy's DiscoveryResponse, whose version is their digest."""
    ordered = [resources[name] for name in sorted(resources)]
    write(path, {"version_info": digest(resources), "resources": ordered})


def write(path: Path, content: JSON) -> None:
    """Writes JSON beside its place and renames it there, so that Envoy never reads half a file."""
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(content))
    temporary.replace(path)
