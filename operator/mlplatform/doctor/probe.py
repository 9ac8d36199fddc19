"""Short pods that use the artifact store as a stage does, from where stages run.

Called by `mlplatform.cli.doctor` and `mlplatform.doctor.__main__`, with the rights of whoever runs them: the operator has
no credentials of the store, and this gives nobody any. Image, ServiceAccount, Secret, authorities, proxies and placement
are those of a stage, because its renderer renders them (`resources.pod`); `mljobs.probe` runs inside.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import urllib3
from kubernetes import client

from mlplatform import api, contract, failures
from mlplatform.contract import FailureClass, Stage
from mlplatform.doctor.ask import Asker
from mlplatform.doctor.facts import Probed, Unseen
from mlplatform.failures import Gravity
from mlplatform.refusals import lacks_right
from mlplatform.resources import pod, scheduling
from mlplatform.settings import Settings
from mlplatform.snapshot import Object, name_of, namespace_of, status_of

MODEL: Final = "_doctor"
"""In place of a model's name in the store: no model has such a one."""
COMPONENT: Final = "doctor"
RESOURCES: Final = api.TrainingResources(cpu="500m", memory="512Mi")
DEADLINE: Final = 180.0
"""Seconds in which a pod has to be placed, to pull its image, and to end."""
BLOCKED: Final = 10.0
"""Seconds that something must be in its way before that counts: a pull is tried again, a volume comes late."""
PAUSE: Final = 1.0
AT_A_TIME: Final = 5

_IMAGE: Final = "Have the image of the jobs (the chart's images.jobs) of the operator's release"
"""Of a probe that ends without words of its own."""

Tell = Callable[[str], None]
"""Says how it goes, one line a change."""


def render(namespace: str, settings: Settings, deadline: float = DEADLINE) -> Object:
    """The Pod; it ends by itself should nobody be left to delete it."""
    name = f"mlplatform-doctor-{secrets.token_hex(4)}"
    version: Object = {"metadata": {"name": name, "namespace": namespace}, "spec": {"model": MODEL}}
    spec = api.ModelVersionSpec(
        model=MODEL,
        sequence=1,
        data=api.Data(uri=settings.artifact_root, label=COMPONENT),
        training=api.Training(resources=RESOURCES),
    )
    template = pod.template(
        version,
        spec,
        Stage.PACKAGE,
        settings,
        scheduling.of_stages(api.Scheduling(), settings),
        container=COMPONENT,
        command=["python", "-m", "mljobs.probe"],
        restart_policy="Never",
    )
    # No model's and no version's: nobody is to take it for a stage.
    labels = {key: value for key, value in template["metadata"]["labels"].items() if not key.startswith(contract.GROUP)}
    labels |= {"app.kubernetes.io/instance": COMPONENT, "app.kubernetes.io/component": COMPONENT}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {**template["metadata"], "name": name, "namespace": namespace, "labels": labels},
        "spec": {**template["spec"], "activeDeadlineSeconds": int(deadline) + 30},
    }


@dataclass
class _Probe:
    """One pod that was made.

    Attributes:
        pod: As it was sent.
        since: When something began to be in its way; 0 while nothing is.
        said: What was told of it last.
    """

    pod: Object
    since: float = 0.0
    said: str = field(default="")

    @property
    def path(self) -> str:
        """Where the API server has it."""
        return f"/api/v1/namespaces/{namespace_of(self.pod)}/pods/{name_of(self.pod)}"


def run(
    ask: Asker, settings: Settings, namespaces: Iterable[str], tell: Tell, deadline: float = DEADLINE
) -> dict[str, Probed]:
    """Makes a pod in each namespace, waits for its end, and deletes it whatever happens, Ctrl-C too.

    Args:
        ask: The API server.
        settings: The operator's.
        namespaces: Where.
        tell: Is told how it goes.
        deadline: Seconds for each.
    """
    wanted = list(namespaces)
    found: dict[str, Probed] = {}
    for start in range(0, len(wanted), AT_A_TIME):
        found |= _some(ask, settings, wanted[start : start + AT_A_TIME], tell, deadline)
    return found


def _some(ask: Asker, settings: Settings, namespaces: list[str], tell: Tell, deadline: float) -> dict[str, Probed]:
    """Several at a time."""
    found: dict[str, Probed] = {}
    waiting: dict[str, _Probe] = {}
    try:
        for namespace in namespaces:
            probe = waiting[namespace] = _Probe(render(namespace, settings, deadline))
            answer = ask.create(f"/api/v1/namespaces/{namespace}/pods", probe.pod)
            if isinstance(answer, Unseen):
                del waiting[namespace]
                found[namespace] = refused(answer.why, probe.pod)
            else:
                tell(f"store: pod {name_of(probe.pod)} in {namespace} is to write, read and delete a file")
        end = time.monotonic() + deadline
        while waiting.keys() - found.keys():
            for namespace, probe in waiting.items():
                if namespace not in found and (outcome := _look(ask, probe, time.monotonic(), end, tell)):
                    found[namespace] = outcome
            time.sleep(PAUSE)
    finally:
        for probe in waiting.values():
            with suppress(client.ApiException, urllib3.exceptions.HTTPError):  # Then it ends by itself.
                ask.delete(probe.path)
    return found


def _look(ask: Asker, probe: _Probe, now: float, end: float, tell: Tell) -> Probed | None:
    live = ask.get(probe.path)
    if live is None:
        return Probed(f"somebody has deleted pod {name_of(probe.pod)}", "Run the doctor again")
    if isinstance(live, Unseen):
        return Probed(skipped=f"the pod cannot be looked at: {live.why}", next_action="Ask for the right to get pods")
    sighting = failures.worst([live], Stage.PACKAGE)
    probe.since = (probe.since or now) if sighting else 0.0
    outcome = ended(live, waited=now - (probe.since or now), over=now >= end)
    said = sighting.failure.message if sighting else str(status_of(live).get("phase", ""))
    if outcome is None and said != probe.said:
        tell(f"store: pod {name_of(live)} in {namespace_of(live)}: {said}")
        probe.said = said
    return outcome


def refused(words: str, manifest: Object) -> Probed:
    """What it means that a pod may not be made.

    Args:
        words: The API server's.
        manifest: The Pod.
    """
    if lacks_right(words):
        right = f"kubectl create rolebinding doctor --clusterrole=edit --user=<you> -n {namespace_of(manifest)}"
        return Probed(skipped=f"you may not make a pod there: {words}", next_action=f"Ask for the right: {right}")
    sighting = failures.absent(words, manifest, Stage.PACKAGE)
    return Probed(sighting.failure.message, sighting.failure.next_action) if sighting else Probed(words)


def ended(live: Object, *, waited: float, over: bool) -> Probed | None:
    """How the pod has ended; None while it may yet come right.

    Args:
        live: The Pod.
        waited: For how long something has been in its way.
        over: Whether nobody waits any longer.
    """
    if failures.succeeded([live]):
        return Probed()
    sighting = failures.worst([live], Stage.PACKAGE)
    if sighting is not None:
        told = sighting.failure
        over = over or sighting.gravity in {Gravity.CRASHED, Gravity.FINAL, Gravity.DISRUPTED}
        if over or (sighting.gravity is Gravity.BLOCKED and waited >= BLOCKED):
            return Probed(told.message, _IMAGE if told.class_ == FailureClass.CRASHED else told.next_action)
    phase = status_of(live).get("phase", "")
    if over or phase in {"Failed", "Succeeded"}:
        message = (
            f"pod {name_of(live)} has not done its work ({phase or 'Pending'}: {status_of(live).get('message', '')})"
        )
        return Probed(
            message.replace(": )", ")"),
            "Run the doctor again with a longer --timeout; kubectl describe says more meanwhile",
        )
    return None
