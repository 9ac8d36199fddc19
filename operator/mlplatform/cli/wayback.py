"""Which version `kubectl mlmodel rollback` goes back to, what will happen, and when it has; no I/O and no clock.

Called by `mlplatform.cli.commands`. What the operator would refuse (`mlplatform.plan.wayback`) is refused here, too,
while the user is still there to read it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mlplatform import api, contract
from mlplatform.cli.view import Object, find_condition
from mlplatform.errors import CliError


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """A way back that can be gone.

    Attributes:
        asked: What the operator is asked for.
        message: What will happen, for people.
    """

    asked: api.WayBack
    message: str


def find(model: Object, versions: Iterable[Object], wish: str) -> Way:
    """The way back from the version that is wanted now.

    Args:
        model: The MLModel.
        versions: Its ModelVersions.
        wish: Where to, a version's name or ``v<sequence>``; empty for the version that served before.

    Raises:
        CliError: There is none; the versions that can be gone back to are named.
    """
    name, status = model["metadata"]["name"], _status(model)
    everyone = {v["metadata"]["name"]: v for v in versions}
    built = sorted((v for v in everyone.values() if _built(v)), key=_sequence, reverse=True)
    labels = {known: f"v{_sequence(v)} ({known})" for known, v in everyone.items()}
    others = [v["metadata"]["name"] for v in built if v["metadata"]["name"] != status.latest_version]
    _check(model, status)
    stable = status.stable.version if status.stable else ""
    if not others:
        raise CliError(
            f"{labels.get(stable, stable)} is the only version of {name} that can serve: there is none to go back to",
            "apply another spec; what it makes is served once it has passed",
        )
    known = f"{name} can go back to: {', '.join(labels[other] for other in others)}"
    end = next((other for other in others if _is(wish, everyone[other])), "") if wish else _before(status, others)
    if not end:
        raise CliError(_why_not(wish, status, everyone), known)
    start, target = labels.get(status.latest_version, status.latest_version), labels[end]
    if status.rollout is not None and end != stable:
        raise CliError(
            f"{start} is being rolled out, and the way back from that leads to {labels.get(stable, stable)} alone",
            f"kubectl mlmodel rollback {name}, and once that is done: kubectl mlmodel rollback {name} --to {end}",
        )
    if status.rollout is not None:
        happens = f"the rollout of {start} ends at {status.rollout.weight} %; all the traffic goes to {target} at once"
    elif end == stable:
        happens = f"{start} is not rolled out; {target} goes on serving"
    else:
        happens = (
            f"all the traffic goes to {target} once its pods are ready; until then {labels.get(stable, stable)} serves"
        )
    return Way(asked=api.WayBack(status.latest_version, end), message=f"mlmodel/{name}: {happens}")


def over(model: Object, asked: api.WayBack) -> bool:
    """Whether the way back has been gone.

    Raises:
        CliError: The operator has refused it.
    """
    status, annotations = _status(model), model["metadata"].get("annotations") or {}
    last = next(iter(status.history), None)
    if last and (last.reason, last.version, last.previous) == (api.ROLLED_BACK_BY_USER, asked.from_, asked.to):
        return True
    if annotations.get(contract.ANNOTATION_ROLLBACK) == str(asked):
        return False
    name = model["metadata"]["name"]
    raise CliError(
        f"the request to go back from {asked.from_} to {asked.to} was taken off again before it was carried out",
        f"the operator says why in an event: kubectl describe mlmodel {name}; then ask again",
    )


def _check(model: Object, status: api.MLModelStatus) -> None:
    """Whether the operator would go any way back now."""
    name = model["metadata"]["name"]
    accepted = find_condition(status.conditions, "Accepted")
    if status.observed_generation < model["metadata"].get("generation", 0):
        raise CliError(f"the operator has not seen the latest change of {name} yet", "try again in a moment")
    if accepted and accepted.status == "False":
        raise CliError(
            f"the spec of {name} cannot be used, so what serves stays as it is: {accepted.message}",
            "correct the spec, or apply the one before; then go back if there still is a reason",
        )
    if model.get("spec", {}).get("suspend"):
        raise CliError(
            f"{name} is suspended: its traffic stays as it is",
            f'kubectl patch mlmodel {name} --type merge -p \'{{"spec": {{"suspend": false}}}}\', and ask again',
        )
    if status.stable is None:
        raise CliError(f"no version of {name} serves yet: there is none to go back to", f"kubectl mlmodel watch {name}")


def _before(status: api.MLModelStatus, others: list[str]) -> str:
    """The version that served before: the stable one, if another is wanted; else the one that it replaced."""
    stable = status.stable.version if status.stable else ""
    if stable in others:
        return stable
    replaced = (d.previous for d in status.history if (d.version, d.decision) == (stable, "Promoted"))
    return next((version for version in replaced if version in others), others[0])


def _why_not(wish: str, status: api.MLModelStatus, everyone: dict[str, Object]) -> str:
    meant = next((version for version, obj in everyone.items() if _is(wish, obj)), wish)
    if meant == status.latest_version:
        return f"{wish} is the version that is wanted now"
    if meant not in everyone:
        return f"there is no version {wish}"
    if _forgotten(everyone[meant]):
        return f"{wish} cannot serve any more: its artifacts are being deleted (spec.artifactRetention)"
    return f"{wish} has not passed its pipeline, so it cannot serve"


def _is(wish: str, version: Object) -> bool:
    return wish in {version["metadata"]["name"], f"v{_sequence(version)}"}


def _status(model: Object) -> api.MLModelStatus:
    return api.decode(api.MLModelStatus, model.get("status") or {}, "status", unknown="skip")


def _built(version: Object) -> bool:
    conditions = (version.get("status") or {}).get("conditions") or ()
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions) and not _forgotten(version)


def _forgotten(version: Object) -> bool:
    return contract.ANNOTATION_FORGET in (version["metadata"].get("annotations") or {})


def _sequence(version: Object) -> int:
    return int(version["spec"].get("sequence", 0))
