"""A Job that does something for a version in the artifact store and is none of its stages.

Called by `adoption` and `forgetting`. The operator has no credentials of the store; such a Job has them, as those of the
stages have.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from mlplatform import api, contract
from mlplatform.contract import Stage
from mlplatform.resources import job
from mlplatform.settings import Settings
from mlplatform.snapshot import Object, name_of

DEADLINE_SECONDS: Final = 3600
"""Such work takes seconds; what hangs is tried again with new pods."""


def render(  # noqa: PLR0913, PLR0917  what one pod depends on
    version: Object,
    spec: api.ModelVersionSpec,
    settings: Settings,
    scheduling: api.Scheduling,
    name: str,
    commands: dict[str, list[str]],
) -> Object:
    """Job ``<version>-<name>``.

    Args:
        version: The ModelVersion.
        spec: Its spec, decoded.
        settings: The operator's.
        scheduling: Where the model's pods run; it waits in no queue.
        name: Stands where a stage's name stands: in the Job's name and in its pods' label.
        commands: By container. They run one after the other, so that the pod needs no more room than one of them, and
            each has a termination message of its own.
    """
    manifest = job.render(version, spec, Stage.PACKAGE, settings, replace(scheduling, queue=""))
    labels = {**manifest["metadata"]["labels"], "app.kubernetes.io/component": name, contract.LABEL_STAGE: name}
    template = manifest["spec"]["template"]
    (container,) = template["spec"]["containers"]
    *before, last = ({**container, "name": part, "command": command} for part, command in commands.items())
    pod = {
        "metadata": {**template["metadata"], "labels": {**template["metadata"]["labels"], **labels}},
        "spec": {**template["spec"], **({"initContainers": before} if before else {}), "containers": [last]},
    }
    return {
        **manifest,
        "metadata": {**manifest["metadata"], "name": f"{name_of(version)}-{name}", "labels": labels},
        "spec": {**manifest["spec"], "activeDeadlineSeconds": DEADLINE_SECONDS, "template": pod},
    }
