"""The pod template that every stage's container runs in.

Called by `pytorchjob` and `job`. It meets the *restricted* Pod Security
Standard: no root, no capabilities, a read-only root file system.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from mlplatform import api, contract
from mlplatform.contract import Stage
from mlplatform.resources import scheduling
from mlplatform.resources.metadata import labels
from mlplatform.settings import Settings
from mlplatform.snapshot import Object, name_of, namespace_of

TRUST: Final = "/etc/mlplatform/trust"
MOUNTS: Final = {"tmp": "/tmp", "shm": "/dev/shm", "trust": TRUST}  # noqa: S108  mounts of the pod's own


def template(  # noqa: PLR0913  what one pod depends on
    version: Object,
    spec: api.ModelVersionSpec,
    stage: Stage,
    settings: Settings,
    placement: api.Scheduling,
    *,
    container: str,
    command: list[str],
    restart_policy: str,
) -> Object:
    """A pod template: ``{metadata, spec}``.

    Args:
        version: The ModelVersion.
        spec: Its spec, decoded.
        stage: Which stage runs.
        settings: Image, ServiceAccount, store.
        placement: Where it runs, the platform's defaults included.
        container: The container's name (the Training Operator insists on ``pytorch``).
        command: What it runs.
        restart_policy: Of the pod; empty leaves it to the workload's own field.
    """
    trains, user = stage is Stage.TRAIN, settings.run_as_user
    gpus = {placement.gpu_resource or scheduling.GPU: spec.training.resources.gpu if trains else 0}
    image = spec.training.image or settings.jobs_image  # of every stage: each needs the code of the task
    volumes: list[Object] = [{"name": "tmp", "emptyDir": {}}]
    if trains and (any(gpus.values()) or placement.shared_memory):  # NCCL's; a container's own /dev/shm is 64 MiB
        limit = {"sizeLimit": placement.shared_memory} if placement.shared_memory else {}
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory", **limit}})
    if settings.trust_config_map:
        # Optional: a pod says what it lacks; without one, nobody does.
        volumes.append({"name": "trust", "configMap": {"name": settings.trust_config_map, "optional": True}})
    names = labels(spec.model, stage, version=name_of(version), stage=stage)
    return {
        # Jobs need no mesh, and Istio's sidecar outlives them where it is not an init container that ends with its pod:
        # before Istio 1.27, and on nodes whose Kubernetes is too old for that.
        "metadata": {
            **scheduling.fields(placement, scheduling.META_FIELDS),
            "labels": {**placement.labels, **names, "sidecar.istio.io/inject": "false"},
        },
        "spec": {
            **scheduling.fields(placement),
            **({"restartPolicy": restart_policy} if restart_policy else {}),
            "serviceAccountName": settings.jobs_service_account,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": {
                "runAsNonRoot": True,
                **(dict.fromkeys(("runAsUser", "runAsGroup", "fsGroup"), int(user)) if user else {}),
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": container,
                    "image": image,
                    "imagePullPolicy": settings.image_pull_policy,
                    "command": command,
                    "env": environment(version, spec, stage, settings),
                    "envFrom": [{"secretRef": {"name": settings.store_secret}}],
                    "resources": resources(spec.training.resources, settings, placement, gpus),
                    "terminationMessagePolicy": "FallbackToLogsOnError",
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                    "volumeMounts": [{"name": v["name"], "mountPath": MOUNTS[v["name"]]} for v in volumes],
                }
            ],
            "volumes": volumes,
        },
    }


def resources(
    wanted: api.TrainingResources | api.ServingResources,
    settings: Settings,
    placement: api.PodScheduling,
    gpus: Mapping[str, int] = MappingProxyType({}),
) -> Object:
    """``resources`` of a container; requests equal limits, less what `max_cpu_request` allows."""
    limits = {"cpu": wanted.cpu, "memory": wanted.memory}
    if placement.ephemeral_storage:
        limits["ephemeral-storage"] = placement.ephemeral_storage
    limits |= {name: str(count) for name, count in gpus.items() if count}
    cap = settings.max_cpu_request
    request = min(wanted.cpu, cap, key=quantity) if cap else wanted.cpu
    return {"requests": {**limits, "cpu": request}, "limits": limits}


def quantity(text: str) -> float:
    """A Kubernetes quantity as a number: ``500m`` is 0.5, and ``1Gi`` is ``1024Mi``.

    Raises:
        ValueError: It is none.
    """
    number = text.rstrip("numkKMGTPEi")
    return float(number) * _SUFFIXES[text[len(number) :]]


_SUFFIXES: Final = {
    "": 1.0, "n": 1e-9, "u": 1e-6, "m": 1e-3,
    **{letter: 1000.0**power for power, letter in enumerate("kMGTPE", 1)},
    **{f"{letter}i": 1024.0**power for power, letter in enumerate("KMGTPE", 1)},
}  # fmt: skip


def environment(version: Object, spec: api.ModelVersionSpec, stage: Stage, settings: Settings) -> list[Object]:
    """``env`` of a stage's container; the store's credentials come by envFrom, never through here."""
    namespace, name, model = namespace_of(version), name_of(version), str(version["spec"]["model"])
    values = {
        # Less the defaults, which the API server has filled in: an older image that rejects what it does not know
        # then rejects what somebody has asked for, and nothing else. The id says nothing but where the artifacts lie.
        contract.ENV_SPEC: json.dumps(
            api.canonical(replace(spec, artifact_id="")), sort_keys=True, separators=(",", ":")
        ),
        contract.ENV_ARTIFACTS: contract.artifact_root(
            settings.artifact_root, namespace, model, name, spec.artifact_id
        ),
        contract.ENV_NAMESPACE: namespace,
        contract.ENV_MODEL: model,
        contract.ENV_VERSION: name,
        contract.ENV_STAGE: stage.value,
        "HOME": "/tmp",  # noqa: S108  the only writable folder
    }
    values |= _proxies(f"{name}-{stage}-master-0", settings)
    if settings.trust_config_map:  # botocore's, OpenSSL's and requests'
        trusted = f"{TRUST}/{settings.trust_key}"
        values |= dict.fromkeys(("AWS_CA_BUNDLE", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"), trusted)
    return [{"name": key, "value": value} for key, value in values.items()]


INSIDE: Final = "localhost,127.0.0.1,::1,$(KUBERNETES_SERVICE_HOST),.svc,.cluster.local"
"""What no proxy is asked for. Kubernetes fills in the API server's address."""


def _proxies(master: str, settings: Settings) -> dict[str, str]:
    """Variables about proxies, in both cases: some programs read only the one, some only the other."""
    found = {"HTTP_PROXY": settings.http_proxy, "HTTPS_PROXY": settings.https_proxy}
    found = {name: value for name, value in found.items() if value}
    if found:
        found["NO_PROXY"] = ",".join(filter(None, (INSIDE, master, settings.no_proxy)))
    return found | {name.lower(): value for name, value in found.items()}
