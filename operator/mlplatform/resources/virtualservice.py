"""The VirtualService `<model>`: how the gateway and the mesh split traffic over versions.

Called by `mlplatform.plan`. The weights in it are the only record of how far a
rollout has come; the rollout's times lie beside them in an annotation, written
by the same request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from mlplatform import contract
from mlplatform.resources import inferenceservice
from mlplatform.resources.metadata import hashed, metadata
from mlplatform.settings import Settings
from mlplatform.snapshot import Object, annotations_of, name_of, namespace_of

ROLLOUT: Final = f"{contract.GROUP}/rollout"
"""Annotation: `mlplatform.rollout.Record` as JSON."""

_PORTS: Final = {"http": 80, "https": 443}
"""That go without saying."""

_SPLIT: Final = "predict"
"""Name of the route whose weights are read back."""


def render(  # noqa: PLR0913  what a route consists of
    model: Object, weights: Mapping[str, int], forced: Sequence[str], record: str, settings: Settings, *, host: str = ""
) -> Object:
    """VirtualService ``<model>``.

    Args:
        model: The MLModel.
        weights: Percentage by version; they add up to 100.
        forced: Versions that the header `x-mlplatform-version` may ask for.
        record: The rollout's record as JSON; empty for none.
        settings: Gateway, domain and API version.
        host: The model's own; empty for none.
    """
    name, namespace = name_of(model), namespace_of(model)
    meta = metadata(model, name, "route")
    # Empty rather than absent: of an object that a restore made, only what is said is ours to take back.
    meta["annotations"] = {ROLLOUT: record}
    routes = [_route(path, [_destination(version)], version) for version in forced for path in _paths(name)]
    split = [{**_destination(version), "weight": weight} for version, weight in sorted(weights.items()) if weight]
    routes += [_route(path, split) for path in _paths(name)]
    return hashed(
        {
            "apiVersion": settings.istio_api_version,
            "kind": "VirtualService",
            "metadata": meta,
            "spec": {
                # Istio completes a name without a dot by the route's namespace and by the cluster's domain, which it knows.
                "hosts": [f"{name}.{namespace}.{settings.domain}", name, *([host] if host else ())],
                "gateways": [settings.gateway, "mesh"],
                "http": routes,
            },
        }
    )


def url(model: Object, settings: Settings, host: str = "") -> str:
    """Where the model answers, through the gateway: at its own host, if it has one."""
    scheme, port = settings.gateway_scheme, settings.gateway_port
    host = host or f"{name_of(model)}.{namespace_of(model)}.{settings.domain}"
    return f"{scheme}://{host}" if port == _PORTS[scheme] else f"{scheme}://{host}:{port}"


def weights(route: Object | None) -> dict[str, int]:
    """Percentage of traffic by version, as the mesh has it; empty when there is no route."""
    for entry in (route or {}).get("spec", {}).get("http") or ():
        if entry.get("name") == _SPLIT:
            destinations: list[Object] = entry.get("route") or []
            if len(destinations) == 1:
                return {_version(destinations[0]): 100}  # Istio looks at no weight, not even at 0.
            found = {_version(d): int(d.get("weight", 0)) for d in destinations}
            total = sum(found.values()) or 1
            return {version: round(100 * weight / total) for version, weight in found.items()}
    return {}


def drifted(route: Object, wanted: Object) -> bool:
    """Whether someone has changed what the mesh does: hosts, gateways or routes."""
    return any(route["spec"].get(key) != value for key, value in wanted["spec"].items())


def record(route: Object | None) -> str:
    """The rollout's record as JSON; empty when there is none."""
    return annotations_of(route).get(ROLLOUT, "") if route else ""


def _paths(model: str) -> tuple[tuple[str, tuple[Object, ...], str], ...]:
    """``(name, matches on the URI, rewrite)`` of the requests that reach the pods; the server's other paths stay inside."""
    native = (f"/predictions/{model}", f"/v1/models/{model}:predict", f"/v2/models/{model}/infer")
    return (
        (_SPLIT, ({"exact": "/predict"},), f"/predictions/{model}"),
        ("health", ({"exact": "/health"},), "/ping"),
        ("native", tuple({"exact": path} for path in native), ""),
    )


def _route(path: tuple[str, tuple[Object, ...], str], destinations: list[Object], version: str = "") -> Object:
    name, uris, rewrite = path
    header = {"headers": {contract.HEADER_VERSION: {"exact": version}}} if version else {}
    return {
        "name": f"{name}@{version}" if version else name,
        "match": [{"uri": uri, **header} for uri in uris],
        **({"rewrite": {"uri": rewrite}} if rewrite else {}),
        "route": destinations,
        # A retry would hide a new version's errors from whoever compares the two.
        "retries": {"attempts": 0},
    }


def _destination(version: str) -> Object:
    return {"destination": {"host": inferenceservice.service(version), "port": {"number": 80}}}


def _version(destination: Object) -> str:
    return str(destination["destination"]["host"]).split(".", 1)[0].removesuffix("-predictor")
