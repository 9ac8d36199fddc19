"""The operator's own settings, read once from the environment.

Called by `mlplatform.main` at start; handed down as an argument from there, so
that planning and rendering stay pure. The chart sets every variable.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Final, Self


class SettingsError(ValueError):
    """A variable has a value that cannot be used; the message names it and the fix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Field ``jobs_image`` is the variable ``MLPLATFORM_JOBS_IMAGE``, and so on.

    Attributes:
        artifact_root: fsspec URI below which every version keeps its artifacts.
        store_secret: Secret, in the model's namespace, with the store's credentials (``AWS_*`` keys).
        jobs_image: Image of the stages' containers.
        image_pull_policy: Of the stages' and the serving containers.
        max_cpu_request: Largest CPU request of any pod, e.g. ``100m``; limits stay as the model says. Empty: requests
            equal limits. For clusters of few cores, where a rollout's pods must share what training uses.
        failed_workloads_ttl: How long the workload and the pods of a stage that failed are kept, as 90s, 10m or 24h;
            ``0`` keeps them for ever. Those of a stage that passed go at once: its record says all.
        jobs_service_account: ServiceAccount of the stages' pods.
        trust_config_map: ConfigMap, in the model's namespace, with the certificates of the authorities that pods trust;
            empty: those that are in the images.
        trust_key: Its key with them.
        http_proxy: For the jobs' requests by HTTP to what is outside the cluster; empty: none.
        https_proxy: The same of those by HTTPS.
        no_proxy: Hosts, by comma, beside those in the cluster, that jobs reach directly.
        run_as_user: User and group of the stages' pods; empty where the cluster assigns them.
        jobs_scheduling: As JSON, what of `spec.scheduling` holds for models that say nothing.
        serving_scheduling: The same of `spec.serving.scheduling`.
        serving_service_account: ServiceAccount of the serving pods; KServe finds the store's credentials there.
        serving_image: Image of the serving pods.
        serving_runtime: Spec, as JSON, of the KServe ServingRuntime that serves the archives, less the image.
        renewal_seconds: Within that time every model has its turn to have pods of an earlier release replaced.
        kserve_mode: Value of ``serving.kserve.io/deploymentMode``; KServe before 0.16 calls it ``RawDeployment``.
        gateway: Istio Gateway, ``<namespace>/<name>``, that the models' routes attach to.
        gateway_scheme: What clients reach it by, ``http`` or ``https``, wherever the certificate is.
        gateway_port: And at which port.
        gateway_hosts: Hosts that models may ask for, by comma, ``[<namespace>/]<name>`` each, as it lists them.
        domain: Models answer at ``<model>.<namespace>.<domain>``.
        istio_api_version: ``networking.istio.io/v1``, or ``…/v1beta1`` before Istio 1.22.
        watch_namespaces: Namespaces to serve, by comma; empty for all.
        metrics_port: Prometheus metrics, at ``/metrics``.
        health_port: Liveness, at ``/healthz``.
        lease: Lease, ``<namespace>/<name>``, whose holder writes; empty: this operator is the only one.
        identity: This process among those that share the Lease; empty: its host and process. In a pod, the pod's name.
    """

    artifact_root: str = "s3://mlplatform"
    store_secret: str = "mlplatform-store"  # noqa: S105  a Secret's name, not its content
    jobs_image: str = "mlplatform/jobs:latest"
    image_pull_policy: str = "IfNotPresent"
    max_cpu_request: str = ""
    failed_workloads_ttl: str = "24h"
    jobs_service_account: str = "mlplatform-jobs"
    trust_config_map: str = ""
    trust_key: str = "ca.crt"
    http_proxy: str = ""
    https_proxy: str = ""
    no_proxy: str = ""
    run_as_user: str = "65532"
    jobs_scheduling: str = "{}"
    serving_scheduling: str = "{}"
    serving_service_account: str = "mlplatform-serving"
    serving_image: str = "mlplatform/serving:latest"
    serving_runtime: str = '{"containers": [{"name": "kserve-container"}]}'
    renewal_seconds: int = 1800
    kserve_mode: str = "Standard"
    gateway: str = "mlplatform-system/mlplatform"
    gateway_scheme: str = "http"
    gateway_port: int = 80
    gateway_hosts: str = ""
    domain: str = "models.local"
    istio_api_version: str = "networking.istio.io/v1"
    watch_namespaces: str = ""
    metrics_port: int = 9090
    health_port: int = 8080
    lease: str = "mlplatform-system/mlplatform-operator"
    identity: str = ""

    @property
    def namespaces(self) -> tuple[str, ...]:
        """``watch_namespaces`` as names; empty means all."""
        return tuple(name.strip() for name in self.watch_namespaces.split(",") if name.strip())

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Self:
        """Reads the variables that are set; the rest keep their defaults.

        Raises:
            SettingsError: A value cannot be used.
        """
        values: dict[str, str | int] = {}
        for f in fields(cls):
            variable = f"MLPLATFORM_{f.name.upper()}"
            text = env.get(variable)
            if text is None:
                continue
            if f.name.endswith("_port"):
                values[f.name] = _port(variable, text)
            elif f.name.endswith("_seconds"):
                values[f.name] = int(_matching(variable, text, r"\d{1,6}", "a whole number of seconds"))
            else:
                values[f.name] = _matching(variable, text, *_FORMS.get(f.name, (".*", "")))
        return cls(**values)  # type: ignore[arg-type]  # each value has its field's type by the loop above


_HOST: Final = r"((\*|[-a-z0-9]+)/)?(\*\.)?([a-z0-9]([-a-z0-9]*[a-z0-9])?\.)+[a-z]([-a-z0-9]*[a-z0-9])?"

_FORMS: Final = {
    "lease": (r"([a-z0-9-]+/[a-z0-9.-]+)?", "<namespace>/<name>, or leave it empty"),
    "max_cpu_request": (r"(\d+m?|\d+\.\d{1,3})?", "a number of CPU cores such as 100m or 0.5, or leave it empty"),
    "failed_workloads_ttl": (
        r"0|(?=\d)(\d{1,5}h)?(\d{1,5}m)?(\d{1,5}s)?",
        "a duration such as 90s, 10m or 24h, or to 0 to keep them for ever",
    ),
    "run_as_user": (r"([1-9]\d{0,9})?", "the number of a user who is not root, or leave it empty"),
    "gateway_hosts": (rf"({_HOST}(,{_HOST})*)?", "hosts by comma, like credit.example.com or team-a/*.ml.example.com"),
    "gateway_scheme": (r"https?", "http or https"),
    "istio_api_version": (
        r"networking\.istio\.io/v1(beta1|alpha3)?",
        "networking.istio.io/v1 or networking.istio.io/v1beta1",
    ),
}
"""Of settings that are taken apart: a pattern and what to write."""


def _matching(variable: str, text: str, pattern: str, wanted: str) -> str:
    if not re.fullmatch(pattern, text, re.DOTALL):
        raise SettingsError(f"{variable}={text!r} cannot be used: set it to {wanted}")
    return text


def _port(variable: str, text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 65536:  # noqa: PLR2004  TCP
        raise SettingsError(
            f"{variable}={text!r} is not a port number. Kubernetes sets such a variable for a Service of that name: "
            "give the pod enableServiceLinks: false, or set the variable to a number",
        )
    return int(text)
