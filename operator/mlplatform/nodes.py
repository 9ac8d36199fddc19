"""Why no node takes a pod, from the scheduler's words and from what the pod asks for.

Called by `mlplatform.failures`. The operator sees no nodes, and need not: whether what is missing is only busy, or is
nowhere, the scheduler says by what it thinks of making room.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from mlplatform.snapshot import Object

_SHORT: Final = re.compile(r"Insufficient ([A-Za-z0-9_.\-/]+?)(?=[,.]?(?:\s|$))")
_TAINT: Final = re.compile(r"(?:untolerated taint(?:\(s\))?|taints? that the pod didn't tolerate)(?: (\{[^}]*\}))?")
_ILL: Final = re.compile(
    r"node\.kubernetes\.io/(not-ready|unreachable|unschedulable|[a-z]+-pressure|network-unavailable)"
)
_HOPELESS: Final = "Preemption is not helpful"
"""Of a node on which the pod had no place even if it were alone there."""
_BUSY: Final = "No preemption victims"

_PLATFORM: Final = "for all models: scheduling.{role} of the chart"


def explain(words: str, pod: Object, *, serving: bool) -> tuple[str, str] | None:
    """What no node has, and what to do; None where the words say nothing that is known.

    Args:
        words: Of the condition PodScheduled: ``0/3 nodes are available: 3 Insufficient nvidia.com/gpu. preemption: …``.
        pod: The pod.
        serving: Whether it serves.
    """
    told, _, preemption = words.partition("preemption:")
    nowhere = _HOPELESS in preemption and _BUSY not in preemption
    found = [
        *_resources(told, pod, serving=serving, nowhere=nowhere),
        *_labels(told, pod, serving=serving),
        *_taints(told, serving=serving),
    ]
    if not found:
        return None
    causes, actions = zip(*found, strict=True)
    said = told.partition(". no new claims")[0].strip().rstrip(".")
    action = "; or ".join(dict.fromkeys(actions))
    return f"no node takes it: {'; '.join(causes)} ({said})", f"{action[0].upper()}{action[1:]}."


def _resources(told: str, pod: Object, *, serving: bool, nowhere: bool) -> Iterator[tuple[str, str]]:
    """What nodes have too little of."""
    section, role = ("spec.serving", "serving") if serving else ("spec.training", "jobs")
    for name in dict.fromkeys(_SHORT.findall(told)):
        asked = _asked(pod, name)
        cause = f"none has {f'{asked} ' if asked else ''}{name}{'' if nowhere else ' free'}"
        if "/" in name and serving:
            action = f"take {name} out of servingRuntime.spec of the chart, or add a node that has it"
        elif "/" in name and nowhere:
            action = (
                "set spec.scheduling.gpuResource (for all models: scheduling.jobs.gpuResource of the chart) to what nodes offer, "
                "which kubectl mlmodel doctor lists, or ask for fewer, or add such a node"
            )
        elif "/" in name:
            action = "wait until others have ended, or add such nodes: it goes on by itself"
        elif name == "ephemeral-storage":
            where = "spec.serving.scheduling" if serving else "spec.scheduling"
            action = f"lower {where}.ephemeralStorage ({_PLATFORM.format(role=role)}), or free or add nodes"
        else:
            action = f"lower {section}.resources.{name}, or {'add such a node' if nowhere else 'free or add nodes'}"
        yield cause, action


def _labels(told: str, pod: Object, *, serving: bool) -> Iterator[tuple[str, str]]:
    """Which labels none has."""
    if "didn't match Pod's node affinity/selector" not in told:
        return
    wanted = ", ".join(f"{key}={value}" for key, value in (pod.get("spec") or {}).get("nodeSelector", {}).items())
    where, role = ("spec.serving.scheduling", "serving") if serving else ("spec.scheduling", "jobs")
    cause = f"none has the labels {wanted}" if wanted else "none meets its node affinity"
    platform = _PLATFORM.format(role=role)
    field = "nodeSelector" if wanted else "affinity"
    yield cause, f"correct {where}.{field} ({platform}), or label a node that it may run on"


def _taints(told: str, *, serving: bool) -> Iterator[tuple[str, str]]:
    """What keeps it off."""
    found = [match[1] or "" for match in _TAINT.finditer(told)]
    if not found:
        return
    named = ", ".join(dict.fromkeys(filter(None, found)))
    cause = f"it does not tolerate the taint {named}" if named else "it does not tolerate a taint of theirs"
    where, role = ("spec.serving.scheduling", "serving") if serving else ("spec.scheduling", "jobs")
    if named and all(_ILL.search(taint) for taint in found):
        yield cause, "see what is wrong with these nodes: kubectl get nodes"
    else:
        look = "" if named else "see which (kubectl describe nodes), and "
        yield cause, f"{look}add it to {where}.tolerations ({_PLATFORM.format(role=role)}), if the pod may run there"


def _asked(pod: Object, name: str) -> str:
    """How much of a resource the pod asks for, where one container alone does."""
    containers = (pod.get("spec") or {}).get("containers") or ()
    found = [
        c["resources"]["requests"][name] for c in containers if name in (c.get("resources") or {}).get("requests", {})
    ]
    return str(found[0]) if len(found) == 1 else ""
