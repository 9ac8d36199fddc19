"""What Istio makes of Gateways, VirtualServices and DestinationRules for its ingress gateway, as pure functions.

A test double for istiod (``networking.istio.io``): it renders Envoy's own
configuration (xDS resources as JSON) and ``gateway`` hands it to a real Envoy.
There are no sidecars here, so only routes bound to a Gateway count; the ``mesh``
gateway does not exist.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from .client import JSON
from .controller import digest, key_of

TYPE: Final = "type.googleapis.com/"
LISTENER: Final = f"{TYPE}envoy.config.listener.v3.Listener"
ROUTES: Final = f"{TYPE}envoy.config.route.v3.RouteConfiguration"
CLUSTER: Final = f"{TYPE}envoy.config.cluster.v3.Cluster"
ENDPOINTS: Final = f"{TYPE}envoy.config.endpoint.v3.ClusterLoadAssignment"

ADMIN_PORT: Final = 15000
METRICS_PORT: Final = 15090
READY_PORT: Final = 15021
PORTS: Final = {80: 8080}
"""Ports of the gateway's Service and where its pod listens for them; others are not open."""
LABELS: Final = {"app": "istio-ingressgateway", "istio": "ingressgateway"}
"""Labels of the gateway's pod, which ``Gateway.spec.selector`` must match."""
STAT_PREFIX: Final = "outbound_0.0.0.0_{port}"
UNSUPPORTED: Final = ("redirect", "directResponse", "delegate", "fault", "corsPolicy")
HTTP_PORT: Final = 80
"""Port of a destination that names none, on a Service with none or several."""
MAX: Final = 4294967295
"""Istio's "no limit"."""
DEFAULT_RETRY_ON: Final = "connect-failure,refused-stream,unavailable,cancelled,reset-before-request"
DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
BALANCERS: Final = {
    "": "LEAST_REQUEST",
    "UNSPECIFIED": "LEAST_REQUEST",
    "LEAST_CONN": "LEAST_REQUEST",
    "LEAST_REQUEST": "LEAST_REQUEST",
    "ROUND_ROBIN": "ROUND_ROBIN",
    "RANDOM": "RANDOM",
}


class RejectedError(Exception):
    """A VirtualService or DestinationRule that Istio's webhook would refuse; the sentence says why."""


@dataclass(frozen=True, slots=True)
class Objects:
    """What the cluster holds; each list in order of namespace and name."""

    gateways: list[JSON] = field(default_factory=list)
    virtual_services: list[JSON] = field(default_factory=list)
    destination_rules: list[JSON] = field(default_factory=list)
    services: list[JSON] = field(default_factory=list)
    endpoints: list[JSON] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Config:
    """Envoy's dynamic configuration, each dict from resource name to resource.

    Attributes:
        listeners: One a port that a Gateway opens.
        routes: One a listener, named ``http.<port>``.
        clusters: One a Service port, named ``outbound|<port>||<host>``.
        assignments: The clusters' ready endpoints.
        rejected: Sentences about what could not be used.
    """

    listeners: dict[str, JSON]
    routes: dict[str, JSON]
    clusters: dict[str, JSON]
    assignments: dict[str, JSON]
    rejected: tuple[str, ...] = ()


def render(objects: Objects, folder: str, open_ports: Mapping[int, int] = PORTS) -> Config:
    """The whole configuration.

    Args:
        objects: What the cluster holds.
        folder: Where ``gateway`` puts the files that Envoy reads.
        open_ports: A Gateway's port to the pod's.
    """
    listeners, routes, rejected = {}, {}, []
    for port, servers in _servers(objects.gateways, open_ports).items():
        name = f"http.{port}"
        listeners[name] = _listener(port, open_ports[port], folder)
        hosts, problems = _virtual_hosts(objects, servers)
        rejected += problems
        # A client may or may not put the port into its Host header.
        ports = {"ignore_port_in_host_matching": True, "validate_clusters": False}
        routes[name] = {"@type": ROUTES, "name": name, "virtual_hosts": hosts, **ports}
    clusters, assignments = {}, {}
    endpoints = {key_of(item): item for item in objects.endpoints}
    rules = {_full_host(rule["spec"].get("host", ""), rule): rule for rule in reversed(objects.destination_rules)}
    for service in objects.services:
        rule = rules.get(host_of(service), {})
        for port in service["spec"].get("ports") or []:
            if port.get("protocol", "TCP") != "TCP":
                continue
            name = cluster_name(port["port"], host_of(service))
            assignments[name] = _assignment(name, port, endpoints.get(key_of(service)))
            path = f"{folder}/{endpoint_file(name)}"
            try:
                clusters[name] = _cluster(name, port, rule.get("spec", {}), path)
            except RejectedError as error:
                rejected.append(f"DestinationRule {'/'.join(key_of(rule))}: {error}")
                rule = {}
                clusters[name] = _cluster(name, port, rule, path)
    return Config(listeners, routes, clusters, assignments, tuple(rejected))


def bootstrap(folder: str, *, admin: int = ADMIN_PORT, metrics: int = METRICS_PORT, ready: int = READY_PORT) -> JSON:
    """Envoy's static configuration: where the dynamic part lies, the admin page, metrics and readiness.

    Prometheus metrics are at ``:<metrics>/stats/prometheus``, readiness at ``:<ready>/healthz/ready``, as Istio's.
    """
    page = {"name": "admin", "type": "STATIC", "connect_timeout": "1s", "load_assignment": _local("admin", admin)}
    scrape = {"match": {"path": "/stats/prometheus"}, "route": {"cluster": "admin", "timeout": "30s"}}
    health = {"match": {"path": "/healthz/ready"}, "route": {"cluster": "admin", "prefix_rewrite": "/ready"}}
    return {
        "node": {"id": "istio-ingressgateway", "cluster": "istio-ingressgateway"},
        "admin": {"address": _socket("127.0.0.1", admin)},
        "dynamic_resources": {"lds_config": _path(f"{folder}/lds.json"), "cds_config": _path(f"{folder}/cds.json")},
        "static_resources": {
            "clusters": [page],
            "listeners": [_static_listener("metrics", metrics, scrape), _static_listener("ready", ready, health)],
        },
        "stats_config": {"use_all_default_tags": False, "stats_tags": _STATS_TAGS},
    }


def host_of(service: JSON) -> str:
    """A Service's full name in the cluster's DNS."""
    return f"{service['metadata']['name']}.{service['metadata']['namespace']}.svc.cluster.local"


def cluster_name(port: int, host: str) -> str:
    """Istio's name of a destination; Envoy's statistics carry it as ``envoy_cluster_name``."""
    return f"outbound|{port}||{host}"


def endpoint_file(cluster: str) -> str:
    """File of one cluster's endpoints: its own, so that a change of one Service is news to one cluster only."""
    return f"eds-{digest(cluster)}.json"


def seconds(duration: str) -> str:
    """A Go duration (``1m30s``, ``250ms``) as Envoy's JSON wants it (``90s``).

    Raises:
        RejectedError: It is none.
    """
    found = DURATION.findall(duration)
    if not found or "".join(number + unit for number, unit in found) != duration:
        raise RejectedError(f"{duration!r} is no duration such as 500ms, 10s or 1m30s")
    return f"{sum(float(number) * SECONDS[unit] for number, unit in found):.9f}".rstrip("0").rstrip(".") + "s"


_STATS_TAGS: Final = [
    # Host names hold dots, at which Envoy's own tag for clusters would cut them.
    {"tag_name": "envoy.cluster_name", "regex": r"^cluster\.((.+?(\..+?\.svc\.cluster\.local)?)\.)"},
    {"tag_name": "envoy.response_code", "regex": r"_rq(_(\d{3}))$"},
    {"tag_name": "envoy.response_code_class", "regex": r"_rq_((\d))xx$"},
    {"tag_name": "envoy.http_conn_manager_prefix", "regex": r"^http\.((.+?)\.)(?=(downstream|rds|no_|rq_|tracing))"},
]


def _servers(gateways: list[JSON], open_ports: Mapping[int, int]) -> dict[int, list[tuple[JSON, JSON]]]:
    """``{port: [(gateway, server)]}`` for the HTTP servers that this gateway's pod can open."""
    result: dict[int, list[tuple[JSON, JSON]]] = {}
    for gateway in gateways:
        selector = gateway["spec"].get("selector") or {}
        if not set(selector.items()) <= set(LABELS.items()):
            continue
        for server in gateway["spec"].get("servers") or []:
            port = server["port"]
            if port["number"] in open_ports and port["protocol"].upper() in ("HTTP", "HTTP2", "GRPC"):
                result.setdefault(port["number"], []).append((gateway, server))
    return result


def _virtual_hosts(objects: Objects, servers: list[tuple[JSON, JSON]]) -> tuple[list[JSON], list[str]]:
    """Envoy's virtual hosts of one listener; of two VirtualServices with one host the older one's routes go first."""
    hosts: dict[str, list[JSON]] = {}
    problems = []
    known = {host_of(item): item for item in objects.services}
    by_age = sorted(
        objects.virtual_services, key=lambda item: (item["metadata"].get("creationTimestamp", ""), key_of(item))
    )
    for item in by_age:
        matched = [host for host in item["spec"].get("hosts") or [] if _is_bound(item, host, servers)]
        if not matched:
            continue
        try:
            routes = _routes(item, known)
        except RejectedError as error:
            problems.append(f"VirtualService {'/'.join(key_of(item))}: {error}")
            continue
        for host in matched:
            hosts.setdefault(host, []).extend(routes)
    return [{"name": host, "domains": [host], "routes": routes} for host, routes in sorted(hosts.items())], problems


def _is_bound(item: JSON, host: str, servers: list[tuple[JSON, JSON]]) -> bool:
    """Whether a VirtualService names one of these Gateways and the Gateway offers the host."""
    named = {
        gateway if "/" in gateway else f"{item['metadata']['namespace']}/{gateway}"
        for gateway in item["spec"].get("gateways") or ["mesh"]
    }
    return any(
        "/".join(key_of(gateway)) in named and any(_offers(offer, host, item, gateway) for offer in server["hosts"])
        for gateway, server in servers
    )


def _offers(offer: str, host: str, item: JSON, gateway: JSON) -> bool:
    """Whether a Gateway's ``[namespace/]host`` lets a VirtualService's host in."""
    namespace, _, pattern = offer.rpartition("/")
    own = gateway["metadata"]["namespace"] if namespace == "." else namespace
    if own not in ("", "*", item["metadata"]["namespace"]):
        return False
    return pattern in ("*", host) or (pattern.startswith("*.") and host.endswith(pattern[1:]))


def _routes(item: JSON, known: dict[str, JSON]) -> list[JSON]:
    """A VirtualService's HTTP routes in their order."""
    routes = []
    for http in item["spec"].get("http") or []:
        for match in http.get("match") or [{}]:
            # A match may be for some of the gateways only; "mesh" is none of ours.
            if "gateways" in match and set(match["gateways"]) == {"mesh"}:
                continue
            routes.append(_route(item, http, match, known))
    return routes


def _route(item: JSON, http: JSON, match: JSON, known: dict[str, JSON]) -> JSON:
    name = {"name": http["name"]} if http.get("name") else {}
    if missing := [key for key in UNSUPPORTED if key in http]:
        text = f"the stand-in for Istio does not implement http.{missing[0]}\n"
        return name | {"match": _match(match), "direct_response": {"status": 501, "body": {"inline_string": text}}}
    action: JSON = {"timeout": seconds(http["timeout"]) if "timeout" in http else "0s"}
    headers, action_part = _targets(item, http, known)
    action |= action_part | _rewrite(http.get("rewrite") or {}, match.get("uri") or {})
    if mirrors := list(_mirrors(item, http, known)):
        action["request_mirror_policies"] = mirrors
    if retry := _retries(http.get("retries")):
        action["retry_policy"] = retry
    return name | {"match": _match(match), "route": action, **headers}


def _targets(item: JSON, http: JSON, known: dict[str, JSON]) -> tuple[JSON, JSON]:
    """Header changes of the route and the part of its action that says where requests go."""
    destinations = http.get("route") or []
    if not destinations:
        raise RejectedError("an http route has no destination")
    if len(destinations) > 1:
        if any(destination.get("weight", 0) < 0 for destination in destinations):
            raise RejectedError("a weight is negative")
        destinations = [destination for destination in destinations if destination.get("weight", 0)]
        if not destinations:
            raise RejectedError("the weights of an http route add up to 0")
    common = _headers(http.get("headers") or {})
    if len(destinations) == 1:
        only = _headers(destinations[0].get("headers") or {})
        host = only.pop("host_rewrite_literal", None) or common.pop("host_rewrite_literal", None)
        merged = {
            key: [*common.get(key, []), *only.get(key, [])] for key in {*common, *only} - {"host_rewrite_literal"}
        }
        rewrite = {"host_rewrite_literal": host} if host else {}
        return merged, {"cluster": _destination(item, destinations[0]["destination"], known), **rewrite}
    weighted = [
        {
            "name": _destination(item, destination["destination"], known),
            "weight": destination["weight"],
            **_headers(destination.get("headers") or {}),
        }
        for destination in destinations
    ]
    host = common.pop("host_rewrite_literal", None)
    return common, {"weighted_clusters": {"clusters": weighted}, **({"host_rewrite_literal": host} if host else {})}


def _destination(item: JSON, destination: JSON, known: dict[str, JSON]) -> str:
    """The cluster of a destination; one that names no port takes the Service's only one."""
    if destination.get("subset"):
        raise RejectedError(f"subset {destination['subset']!r}: the stand-in implements no subsets")
    host = _full_host(destination["host"], item)
    port = destination.get("port", {}).get("number")
    if port is None:
        ports = known.get(host, {}).get("spec", {}).get("ports") or []
        port = ports[0]["port"] if len(ports) == 1 else HTTP_PORT
    return cluster_name(port, host)


def _match(match: JSON) -> JSON:
    """Envoy's match of one HTTPMatchRequest: everything in it must hold."""
    uri = match.get("uri") or {}
    headers = [_header_match(name, value) for name, value in (match.get("headers") or {}).items()]
    headers += [
        _header_match(name, value) | {"invert_match": True}
        for name, value in (match.get("withoutHeaders") or {}).items()
    ]
    pseudo = {"method": ":method", "authority": ":authority", "scheme": ":scheme"}
    headers += [_header_match(header, match[key]) for key, header in pseudo.items() if key in match]
    parameters = [
        {"name": name, **({"string_match": _string(value)} if value else {"present_match": True})}
        for name, value in (match.get("queryParams") or {}).items()
    ]
    path: JSON = {"prefix": uri.get("prefix", "/")}
    if "exact" in uri:
        path = {"path": uri["exact"]}
    elif "regex" in uri:
        path = {"safe_regex": {"regex": uri["regex"]}}
    return (
        path
        | ({"case_sensitive": False} if match.get("ignoreUriCase") and "regex" not in uri else {})
        | ({"headers": headers} if headers else {})
        | ({"query_parameters": parameters} if parameters else {})
    )


def _header_match(name: str, value: JSON) -> JSON:
    """An empty match asks only that the header is there."""
    return {"name": name, **({"string_match": _string(value)} if value else {"present_match": True})}


def _string(value: JSON) -> JSON:
    if "exact" in value:
        return {"exact": value["exact"]}
    if "prefix" in value:
        return {"prefix": value["prefix"]}
    if "regex" in value:
        return {"safe_regex": {"regex": value["regex"]}}
    raise RejectedError(f"a match by {', '.join(map(repr, value))} is none of exact, prefix and regex")


def _rewrite(rewrite: JSON, uri: JSON) -> JSON:
    """``rewrite`` of a route whose match has this ``uri``: prefix for prefix, else the whole path."""
    action: JSON = {}
    if "authority" in rewrite:
        action["host_rewrite_literal"] = rewrite["authority"]
    if "uriRegexRewrite" in rewrite:
        found = rewrite["uriRegexRewrite"]
        action["regex_rewrite"] = {"pattern": {"regex": found["match"]}, "substitution": found["rewrite"]}
    elif "uri" in rewrite and "regex" in uri:
        action["regex_rewrite"] = {"pattern": {"regex": uri["regex"]}, "substitution": rewrite["uri"]}
    elif rewrite.get("uri") == "/" and uri.get("prefix", "/").rstrip("/") and not uri["prefix"].endswith("/"):
        # Plain replacement would turn /a/b into //b.
        pattern = f"^{re.escape(uri['prefix'])}(/?)(.*)"
        action["regex_rewrite"] = {"pattern": {"regex": pattern}, "substitution": r"/\2"}
    elif "uri" in rewrite:
        action["prefix_rewrite"] = rewrite["uri"]
    return action


def _headers(headers: JSON) -> JSON:
    """Istio's ``headers`` as Envoy's; setting Host replaces the authority."""
    result: JSON = {}
    for side in ("request", "response"):
        changes = headers.get(side) or {}
        to_set = dict(changes.get("set") or {})
        if side == "request":
            hosts = [to_set.pop(name) for name in list(to_set) if name.lower() in ("host", ":authority")]
            result |= {"host_rewrite_literal": hosts[0]} if hosts else {}
        additions = [_header_value(key, value, "OVERWRITE_IF_EXISTS_OR_ADD") for key, value in to_set.items()]
        additions += [
            _header_value(key, value, "APPEND_IF_EXISTS_OR_ADD") for key, value in (changes.get("add") or {}).items()
        ]
        if additions:
            result[f"{side}_headers_to_add"] = additions
        if changes.get("remove"):
            result[f"{side}_headers_to_remove"] = list(changes["remove"])
    return result


def _header_value(key: str, value: str, action: str) -> JSON:
    # Envoy would read % as the start of one of its own variables.
    return {"header": {"key": key, "value": value.replace("%", "%%")}, "append_action": action}


def _mirrors(item: JSON, http: JSON, known: dict[str, JSON]) -> Iterator[JSON]:
    """Shadow destinations, each with its share in millionths; Envoy marks their Host with ``-shadow``."""
    mirrors = [(mirror["destination"], mirror.get("percentage")) for mirror in http.get("mirrors") or []]
    if "mirror" in http:
        mirrors.append((http["mirror"], http.get("mirrorPercentage")))
    for destination, percentage in mirrors:
        share = round(100.0 * 10_000 if percentage is None else float(percentage.get("value", 0)) * 10_000)
        if share:
            fraction = {"default_value": {"numerator": share, "denominator": "MILLION"}}
            yield {"cluster": _destination(item, destination, known), "runtime_fraction": fraction}


def _retries(retries: JSON | None) -> JSON:
    """Envoy's retry policy: Istio's own two tries where nothing is said, none for ``attempts: 0``."""
    attempts = 2 if retries is None else int(retries.get("attempts", 0))
    if attempts == 0:
        return {}
    asked = retries or {}
    others: JSON = {"name": "envoy.retry_host_predicates.previous_hosts"}
    others["typed_config"] = {"@type": f"{TYPE}envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"}
    policy: JSON = {
        "num_retries": attempts,
        "retry_on": asked.get("retryOn") or DEFAULT_RETRY_ON,
        "retry_host_predicate": [others],
        "host_selection_retry_max_attempts": 5,
    }
    codes = [int(part) for part in policy["retry_on"].split(",") if part.strip().isdigit()]
    if codes:
        words = [part for part in policy["retry_on"].split(",") if not part.strip().isdigit()]
        policy |= {"retry_on": ",".join([*words, "retriable-status-codes"]), "retriable_status_codes": codes}
    if "perTryTimeout" in asked:
        policy["per_try_timeout"] = seconds(asked["perTryTimeout"])
    return policy


def _assignment(name: str, port: JSON, endpoints: JSON | None) -> JSON:
    """Ready addresses of a Service port; the kubelet's probes are the health checks, as in Istio."""
    members = [
        {"endpoint": {"address": _socket(address["ip"], offered["port"])}}
        for subset in (endpoints or {}).get("subsets") or []
        for offered in subset.get("ports") or []
        if offered.get("name", "") == port.get("name", "")
        for address in subset.get("addresses") or []
    ]
    members.sort(key=lambda member: member["endpoint"]["address"]["socket_address"]["address"])
    return {"@type": ENDPOINTS, "cluster_name": name, "endpoints": [{"lb_endpoints": members}] if members else []}


def _cluster(name: str, port: JSON, rule: JSON, path: str) -> JSON:
    """A Service port with Istio's defaults (no limits, 10 s to connect) and its DestinationRule over them."""
    policy = rule.get("trafficPolicy") or {}
    pool = policy.get("connectionPool") or {}
    tcp, http = pool.get("tcp") or {}, pool.get("http") or {}
    limits = {
        "max_connections": tcp.get("maxConnections", MAX),
        "max_pending_requests": http.get("http1MaxPendingRequests", MAX),
        "max_requests": http.get("http2MaxRequests", MAX),
        "max_retries": http.get("maxRetries", MAX),
    }
    options: JSON = {"@type": f"{TYPE}envoy.extensions.upstreams.http.v3.HttpProtocolOptions"}
    second = str(port.get("name", "")).split("-")[0] in ("http2", "grpc")
    options["explicit_http_config"] = {"http2_protocol_options" if second else "http_protocol_options": {}}
    common = {"idle_timeout": seconds(http["idleTimeout"])} if "idleTimeout" in http else {}
    if http.get("maxRequestsPerConnection"):
        common["max_requests_per_connection"] = http["maxRequestsPerConnection"]
    options |= {"common_http_protocol_options": common} if common else {}
    cluster: JSON = {
        "@type": CLUSTER,
        "name": name,
        "type": "EDS",
        "eds_cluster_config": {"eds_config": _path(path), "service_name": name},
        "connect_timeout": seconds(tcp.get("connectTimeout", "10s")),
        "circuit_breakers": {"thresholds": [limits]},
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options},
        # Of loadBalancer only `simple` is implemented: consistentHash would need a policy on every route too.
        "lb_policy": BALANCERS.get(str((policy.get("loadBalancer") or {}).get("simple", "")), "LEAST_REQUEST"),
    }
    if outliers := policy.get("outlierDetection"):
        cluster["outlier_detection"] = _outliers(outliers)
    return cluster


def _outliers(outliers: JSON) -> JSON:
    """Envoy's passive health checks; only 5xx in a row and gateway errors in a row eject, as in Istio."""
    result: JSON = {"enforcing_success_rate": 0}
    if "consecutive5xxErrors" in outliers:
        result["consecutive_5xx"] = outliers["consecutive5xxErrors"]
    if "consecutiveGatewayErrors" in outliers:
        result |= {"consecutive_gateway_failure": outliers["consecutiveGatewayErrors"]}
        result |= {"enforcing_consecutive_gateway_failure": 100}
    for source, target in (("interval", "interval"), ("baseEjectionTime", "base_ejection_time")):
        if source in outliers:
            result[target] = seconds(outliers[source])
    if "maxEjectionPercent" in outliers:
        result["max_ejection_percent"] = outliers["maxEjectionPercent"]
    return result


def _listener(port: int, pod_port: int, folder: str) -> JSON:
    routes = f"http.{port}"
    manager = _manager(STAT_PREFIX.format(port=port))
    manager |= {
        "rds": {"route_config_name": routes, "config_source": _path(f"{folder}/rds-{port}.json")},
        "normalize_path": True,
        "use_remote_address": True,
        "server_name": "istio-envoy",
        "stream_idle_timeout": "0s",
    }
    chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
    return {
        "@type": LISTENER,
        "name": routes,
        "address": _socket("0.0.0.0", pod_port),  # noqa: S104  a gateway listens to everybody
        "filter_chains": [chain],
    }


def _static_listener(name: str, port: int, route: JSON) -> JSON:
    host = {"name": name, "domains": ["*"], "routes": [route]}
    manager = _manager(name) | {"route_config": {"name": name, "virtual_hosts": [host]}}
    chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
    return {"name": name, "address": _socket("0.0.0.0", port), "filter_chains": [chain]}  # noqa: S104  for the kubelet


def _manager(prefix: str) -> JSON:
    router = {"@type": f"{TYPE}envoy.extensions.filters.http.router.v3.Router"}
    kind = f"{TYPE}envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
    filters = [{"name": "envoy.filters.http.router", "typed_config": router}]
    return {"@type": kind, "stat_prefix": prefix, "http_filters": filters}


def _local(name: str, port: int) -> JSON:
    member = {"endpoint": {"address": _socket("127.0.0.1", port)}}
    return {"cluster_name": name, "endpoints": [{"lb_endpoints": [member]}]}


def _socket(address: str, port: int) -> JSON:
    return {"socket_address": {"address": address, "port_value": port}}


def _path(file: str) -> JSON:
    """A file as a source of configuration; Envoy reads it again whenever another file is renamed to it."""
    return {"path_config_source": {"path": file}, "resource_api_version": "V3"}


def _full_host(host: str, item: JSON) -> str:
    """A short name is meant in the namespace of the object that says it."""
    return host if "." in host else f"{host}.{item['metadata']['namespace']}.svc.cluster.local"


def configuration_files(config: Config) -> dict[str, dict[str, Any]]:
    """Resources by file name, in the order in which they must be there: what is named before what names it."""
    files: dict[str, dict[str, Any]] = {
        endpoint_file(name): {name: assignment} for name, assignment in config.assignments.items()
    }
    files["cds.json"] = config.clusters
    for name, routes in config.routes.items():
        files[f"rds-{name.removeprefix('http.')}.json"] = {name: routes}
    files["lds.json"] = config.listeners
    return files
