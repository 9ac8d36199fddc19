"""From the scheduler's words about a pod to what no node has and what to do, for stages and for serving."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from mlplatform import failures
from mlplatform.contract import Stage
from mlplatform.failures import SERVING, Gravity
from mlplatform.snapshot import Object
from mlplatform.store import slim


@dataclass(frozen=True)
class Case:
    """What the scheduler says of a pod, and what becomes of it."""

    reason: str
    words: str
    says: str
    action: str
    stage: str = Stage.TRAIN
    requests: dict[str, str] = field(default_factory=dict)
    selector: dict[str, str] = field(default_factory=dict)


NOT_HELPFUL = "preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling."
NO_VICTIMS = "preemption: 0/3 nodes are available: 3 No preemption victims found for incoming pod."
CASES = [
    Case(
        "a GPU resource that no node has: its name, how many, and that nodes may call it otherwise",
        f"0/3 nodes are available: 3 Insufficient nvidia.com/gpu. {NOT_HELPFUL}",
        "no node takes it: none has 1 nvidia.com/gpu (0/3 nodes are available: 3 Insufficient nvidia.com/gpu)",
        "Set spec.scheduling.gpuResource (for all models: scheduling.jobs.gpuResource of the chart) to what nodes offer",
        requests={"nvidia.com/gpu": "1"},
    ),
    Case(
        "one that is busy is waited for",
        f"0/3 nodes are available: 3 Insufficient nvidia.com/gpu. {NO_VICTIMS}",
        "none has 1 nvidia.com/gpu free",
        "Wait until others have ended",
        requests={"nvidia.com/gpu": "1"},
    ),
    Case(
        "as newer schedulers put it",
        f"0/3 nodes are available: 3 Insufficient amd.com/gpu. no new claims to deallocate, {NOT_HELPFUL}",
        "none has 2 amd.com/gpu (0/3 nodes are available: 3 Insufficient amd.com/gpu)",
        "which kubectl mlmodel doctor lists",
        requests={"amd.com/gpu": "2"},
    ),
    Case(
        "a GPU on tainted nodes alone: both, and what mends either",
        "0/3 nodes are available: 1 node(s) had untolerated taint {gpu: true}, 2 Insufficient nvidia.com/gpu. "
        "preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling.",
        "none has 1 nvidia.com/gpu; it does not tolerate the taint {gpu: true} (0/3",
        "; or add it to spec.scheduling.tolerations (for all models: scheduling.jobs of the chart)",
        requests={"nvidia.com/gpu": "1"},
    ),
    Case(
        "a taint whose name the scheduler keeps to itself",
        f"0/3 nodes are available: 3 node(s) had untolerated taint(s). {NOT_HELPFUL}",
        "it does not tolerate a taint of theirs",
        "See which (kubectl describe nodes), and add it to spec.scheduling.tolerations",
    ),
    Case(
        "as Kubernetes 1.36 has it, of GPUs that are busy beside a node that takes no such pods",
        "0/3 nodes are available: 1 node(s) had untolerated taint(s), 2 Insufficient amd.com/gpu. no new claims to deallocate, "
        "preemption: 0/3 nodes are available: 1 Preemption is not helpful for scheduling, 2 No preemption victims found for "
        "incoming pod.",
        "none has 1 amd.com/gpu free; it does not tolerate a taint of theirs (0/3",
        "Wait until others have ended, or add such nodes: it goes on by itself; or see which",
        requests={"amd.com/gpu": "1"},
    ),
    Case(
        "nodes that are ill are no matter of tolerations",
        "0/1 nodes are available: 1 node(s) had untolerated taint {node.kubernetes.io/disk-pressure: }. preemption: x",
        "the taint {node.kubernetes.io/disk-pressure: }",
        "kubectl get nodes",
    ),
    Case(
        "a label that no node has, by the pod's own selector",
        f"0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector. {NOT_HELPFUL}",
        "none has the labels pool=gpu",
        "Correct spec.scheduling.nodeSelector (for all models: scheduling.jobs of the chart)",
        selector={"pool": "gpu"},
    ),
    Case(
        "an affinity that none meets",
        f"0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector. {NOT_HELPFUL}",
        "none meets its node affinity",
        "Correct spec.scheduling.affinity",
    ),
    Case(
        "more memory than any node has",
        f"0/3 nodes are available: 1 Insufficient cpu, 3 Insufficient memory. {NOT_HELPFUL}",
        "none has 4 cpu; none has 64Gi memory (",
        "Lower spec.training.resources.cpu, or add such a node; or lower spec.training.resources.memory",
        requests={"cpu": "4", "memory": "64Gi"},
    ),
    Case(
        "of the other stages' pods the same fields say it",
        f"0/3 nodes are available: 3 Insufficient memory. {NO_VICTIMS}",
        "none has 8Gi memory free",
        "Lower spec.training.resources.memory, or free or add nodes",
        stage=Stage.AUDIT,
        requests={"memory": "8Gi"},
    ),
    Case(
        "a disk",
        f"0/3 nodes are available: 3 Insufficient ephemeral-storage. {NOT_HELPFUL}",
        "none has 1Ti ephemeral-storage",
        "Lower spec.scheduling.ephemeralStorage",
        requests={"ephemeral-storage": "1Ti"},
    ),
    Case(
        "serving pods have fields of their own",
        f"0/3 nodes are available: 3 Insufficient cpu. {NO_VICTIMS}",
        "none has 2 cpu free",
        "Lower spec.serving.resources.cpu, or free or add nodes",
        stage=SERVING,
        requests={"cpu": "2"},
    ),
    Case(
        "and a selector of their own",
        f"0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector. {NOT_HELPFUL}",
        "none has the labels pool=serving",
        "Correct spec.serving.scheduling.nodeSelector (for all models: scheduling.serving of the chart)",
        stage=SERVING,
        selector={"pool": "serving"},
    ),
    Case(
        "a GPU of theirs comes from the runtime",
        f"0/3 nodes are available: 3 Insufficient nvidia.com/gpu. {NOT_HELPFUL}",
        "none has 1 nvidia.com/gpu",
        "Take nvidia.com/gpu out of servingRuntime.spec of the chart",
        stage=SERVING,
        requests={"nvidia.com/gpu": "1"},
    ),
    Case(
        "words that are not known are told as they are",
        "0/3 nodes are available: 3 node(s) had volume node affinity conflict.",
        "no node has room: 0/3 nodes are available: 3 node(s) had volume node affinity conflict.",
        "Free or add capacity",
    ),
]


def pending(case: Case) -> Object:
    container: dict[str, Any] = {"name": "c", "resources": {"requests": case.requests}}
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": case.words}
    return {
        "metadata": {"name": "p", "namespace": "n"},
        "spec": {"containers": [container], **({"nodeSelector": case.selector} if case.selector else {})},
        "status": {"phase": "Pending", "conditions": [condition]},
    }


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.reason)
def test_what_no_node_has(case: Case) -> None:
    found = failures.worst([slim("Pod", pending(case))], case.stage)
    assert found is not None, case.reason
    assert (found.gravity, found.failure.class_) == (Gravity.PENDING, "Unschedulable"), case.reason
    assert case.says in found.failure.message, (case.reason, found.failure.message)
    assert case.action in found.failure.next_action, (case.reason, found.failure.next_action)
    assert failures.sentence(found.failure).endswith("."), case.reason
