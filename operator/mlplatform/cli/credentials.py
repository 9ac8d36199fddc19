"""Whose API server the plugin talks to, as whom, and through which proxy: what kubectl would take, the plugin takes.

Called by `mlplatform.cli.cluster`.
"""

from __future__ import annotations

import os
import re
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import urllib3
import yaml
from kubernetes import client, config
from kubernetes.config import incluster_config
from kubernetes.config.kube_config import ENV_KUBECONFIG_PATH_SEPARATOR, KubeConfigMerger

from mlplatform.errors import EXIT_USAGE, CliError

DEFAULT: Final = "~/.kube/config"
_LOOPBACK: Final = ("localhost", "127.0.0.0/8", "::1")


@dataclass(frozen=True, slots=True)
class Credentials:
    """A way to one API server.

    Attributes:
        settings: Of the client.
        namespace: Of calls that name none.
        inside: Whether they are a pod's own, so that the cluster's Services can be reached.
    """

    settings: client.Configuration
    namespace: str
    inside: bool


def find(kubeconfig: str | None, context: str | None) -> Credentials:
    """What the kubeconfig says; where there is none, and none was asked for, what a pod has.

    Raises:
        CliError: There is neither, or it is of no use.
    """
    # Read here: the library reads it once, when it is imported.
    where = kubeconfig or os.environ.get("KUBECONFIG") or DEFAULT
    settings = client.Configuration()
    settings.retries = False
    try:
        if not kubeconfig and not context and not _exists(where):
            return _in_cluster(settings, where)
        _, active = config.list_kube_config_contexts(where)
        config.load_kube_config(where, context, client_configuration=settings)
        chosen = _chosen(where, context, active)
        _set_proxy(settings, _cluster(where, chosen))
    except config.ConfigException as error:
        hint = (
            f"choose one of `kubectl config get-contexts`, not {context!r}"
            if context
            else "set KUBECONFIG or pass --kubeconfig"
        )
        raise CliError(f"no usable kubeconfig: {error}", hint, code=EXIT_USAGE) from None
    except (yaml.YAMLError, OSError, ValueError, TypeError) as error:
        # The library takes a readable file of the right shape for granted.
        raise CliError(
            f"no usable kubeconfig: cannot read {where}: {' '.join(str(error).split())}",
            "correct that file, or name another one with KUBECONFIG or --kubeconfig",
            code=EXIT_USAGE,
        ) from None
    return Credentials(settings, str(chosen.get("namespace") or "default"), inside=False)


def _exists(where: str) -> bool:
    """Whether one of the files is there; kubectl passes over those that are not."""
    return any(Path(p).expanduser().exists() for p in where.split(ENV_KUBECONFIG_PATH_SEPARATOR) if p)


def _in_cluster(settings: client.Configuration, where: str) -> Credentials:
    try:
        incluster_config.load_incluster_config(client_configuration=settings)
    except config.ConfigException:
        raise CliError(
            f"no usable kubeconfig: there is none at {where}, and this is no pod with the token of a ServiceAccount",
            "set KUBECONFIG or pass --kubeconfig; in a pod, let its ServiceAccount's token be mounted",
            code=EXIT_USAGE,
        ) from None
    _set_proxy(settings, {})
    told = Path(incluster_config.SERVICE_TOKEN_FILENAME).with_name("namespace")
    namespace = os.environ.get("POD_NAMESPACE") or (told.read_text().strip() if told.exists() else "")
    return Credentials(settings, namespace or "default", inside=True)


def _chosen(where: str, context: str | None, active: Any) -> dict[str, Any]:
    if context:
        contexts, _ = config.list_kube_config_contexts(where)
        active = next(c for c in contexts if c["name"] == context)
    return (active or {}).get("context") or {}


def _cluster(where: str, context: dict[str, Any]) -> dict[str, Any]:
    """The entry of the context's cluster, which the library reads all but the proxy of."""
    clusters = KubeConfigMerger(where).config.value["clusters"]
    return next((c.value["cluster"] for c in clusters if c.value["name"] == context.get("cluster")), {})


def _set_proxy(settings: client.Configuration, cluster: dict[str, Any]) -> None:
    """The cluster's `proxy-url`; else the environment's for the API server's scheme, with its exceptions.

    The library's own reading of the environment forgets NO_PROXY, and takes HTTP_PROXY for what is asked by HTTPS.
    """
    given = cluster.get("proxy-url") or ""
    environment = urllib.request.getproxies_environment()
    proxy = str(given or environment.get(urlsplit(settings.host).scheme, ""))
    settings.proxy = settings.proxy_headers = None
    settings.no_proxy = None if given else ",".join(filter(None, (environment.get("no"), *_LOOPBACK)))
    if not proxy:
        return
    parts = urlsplit(proxy if re.match(r"\w+://", proxy) else f"http://{proxy}")
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        said = "proxy-url of the kubeconfig" if given else "the environment (HTTPS_PROXY)"
        raise CliError(
            f"no way through the proxy {parts._replace(netloc=parts.netloc.rpartition('@')[2]).geturl()!r} of {said}",
            "name one that speaks HTTP, like http://proxy.example.com:3128",
            code=EXIT_USAGE,
        )
    settings.proxy = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    if parts.username:
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        settings.proxy_headers = urllib3.make_headers(proxy_basic_auth=login)
