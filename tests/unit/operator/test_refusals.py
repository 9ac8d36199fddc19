"""What an answer of the API server means: a right that is missing, or an object that it will not have; 403 is both."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Never, cast

import pytest
from kubernetes.client.exceptions import ApiException
from unit.operator_world import NAMESPACE, START, Fake, Operator, mlmodel, run

from mlplatform import cluster
from mlplatform.actions import Create, Ref, Write
from mlplatform.cli import cluster as plugin
from mlplatform.cluster import Cluster, ClusterError, Conflict, Forbidden, Rejected
from mlplatform.reconciler import Reconciler, World
from mlplatform.settings import Settings
from mlplatform.snapshot import Object, condition

LACKS = 'User "system:serviceaccount:mlplatform-system:mlplatform-operator" cannot'
KSERVE = 'admission webhook "inferenceservice.kserve-webhook-server.validator" denied the request'
TRAINING = 'admission webhook "validator.pytorchjob.training-operator.kubeflow.org" denied the request'

Answer = tuple[str, int, str, type[ClusterError]]

RIGHTS: list[Answer] = [
    (
        "a right that the operator lacks",
        403,
        f'services is forbidden: {LACKS} create resource "services" in API group "" in the namespace "a"',
        Forbidden,
    ),
    (
        "the same about one object",
        403,
        f'jobs.batch "adult-1-audit" is forbidden: {LACKS} patch resource "jobs" in API group "batch" in the namespace "a"',
        Forbidden,
    ),
    (
        "the same about a path that is no object's",
        403,
        f'forbidden: {LACKS} get path "/apis/serving.kserve.io/v1beta1"',
        Forbidden,
    ),
    (
        "another authorizer adds its reason",
        403,
        f'pods is forbidden: {LACKS} list resource "pods" in API group "" in the namespace "a": requires pods.list',
        Forbidden,
    ),
]
REFUSALS: list[Answer] = [
    ("a webhook names its rule", 403, f"{KSERVE}: 'MinReplicas' cannot be greater than MaxReplicas", Rejected),
    (
        "a right that the webhook itself lacks is not the operator's to get",
        403,
        f'{KSERVE}: secrets is forbidden: User "kserve" cannot get resource "secrets" in API group ""',
        Rejected,
    ),
    ("a webhook without a word", 403, f"{TRAINING} without explanation", Rejected),
    (
        "a full quota",
        403,
        'jobs.batch "x" is forbidden: exceeded quota: small, requested: count/jobs.batch=1, used: count/jobs.batch=2',
        Rejected,
    ),
    (
        "Pod Security",
        403,
        'pods "x" is forbidden: violates PodSecurity "restricted:latest": runAsNonRoot != true',
        Rejected,
    ),
    (
        "a policy in CEL",
        403,
        "services \"x\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: a team is missing",
        Rejected,
    ),
    (
        "a namespace on its way out",
        403,
        'services "x" is forbidden: unable to create new content in namespace a because it is being terminated',
        Rejected,
    ),
]
OTHERS: list[Answer] = [
    ("a field out of bounds", 422, 'Service "x" is invalid: spec.ports[0].port: Invalid value: 0', Rejected),
    ("no object at all", 400, "the body of the request was in an unknown format", Rejected),
    ("credentials that have run out", 401, "Unauthorized", Forbidden),
    ("somebody wrote first", 409, "the object has been modified", Conflict),
    ("a webhook that does not answer may do so later", 500, "failed calling webhook: no endpoints", ClusterError),
]


def answer(status: int, message: str) -> ApiException:
    error = ApiException(status=status, reason="of its status line")
    error.body = json.dumps({"kind": "Status", "message": message})
    return error


class Refusing:
    """An API client that is told no."""

    def __init__(self, error: ApiException) -> None:
        self.error = error

    def call_api(self, *_: object, **__: object) -> Never:
        raise self.error


@pytest.mark.parametrize(
    ("reason", "status", "message", "kind"),
    [*RIGHTS, *REFUSALS, *OTHERS],
    ids=[row[0] for row in (*RIGHTS, *REFUSALS, *OTHERS)],
)
def test_the_operator_tells_a_missing_right_from_a_refusal(
    reason: str, status: int, message: str, kind: type[ClusterError]
) -> None:
    with pytest.raises(ClusterError) as told:
        Cluster(cast("Any", Refusing(answer(status, message)))).get(Ref("v1", "Service", "a", "x"))
    assert type(told.value) is kind, reason
    assert str(told.value) == f"GET /api/v1/namespaces/a/services/x: {status} {message}", "in the API server's words"


@pytest.mark.parametrize(
    ("reason", "status", "message", "kind"), [*RIGHTS, *REFUSALS], ids=[row[0] for row in (*RIGHTS, *REFUSALS)]
)
def test_the_plugin_advises_a_role_where_a_right_is_missing(
    reason: str, status: int, message: str, kind: type[ClusterError]
) -> None:
    told = plugin.explain(answer(status, message), "retrain adult")
    assert message in told.cause, "in the API server's words"
    assert ("rolebinding" in told.next_action) is (kind is Forbidden), reason
    assert told.next_action, reason


def test_a_webhooks_words_about_a_training_reach_the_model() -> None:
    words = f"{TRAINING}: must have at least one container with name pytorch"

    class Strict(Fake):
        """Its Training Operator takes no PyTorchJob."""

        def do(self, write: Write) -> Object | None:
            if isinstance(write, Create) and write.manifest["kind"] == "PyTorchJob":
                raise cluster._explain(answer(403, words), "POST …/pytorchjobs")  # noqa: SLF001  as the writer does
            return super().do(write)

    fake = Strict()
    fake.apply(mlmodel())
    with pytest.raises(Rejected):
        run(fake, Operator(fake), START)
    world = World(cast("Cluster", fake), fake, Settings(), lambda: fake.now)
    asyncio.run(Reconciler(world, "MLModel", NAMESPACE, "adult", "adult").once())
    for kind in ("VersionReady", "Ready"):
        told = condition(fake.one("MLModel", "adult"), kind)
        assert (told["status"], told["reason"]) == ("False", "Rejected"), kind
        assert words in told["message"], kind
