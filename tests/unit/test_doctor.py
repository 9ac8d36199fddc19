"""The doctor: what it makes of what a cluster shows, and what it says to do."""

from __future__ import annotations

import base64
import copy
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from mlplatform import __version__
from mlplatform.doctor import Finding, Level, addons, checks, failed, gather, ingress, sentence, words
from mlplatform.doctor.facts import API_VERSIONS, METRICS, Facts, Probed, Stay, Unseen
from mlplatform.settings import Settings
from mlplatform.snapshot import Object

own_crds = cache(gather.own_crds)
NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
SETTINGS = Settings(trust_config_map="company")
FORBIDDEN = Unseen('deployments.apps is forbidden: User "ann" cannot list resource "deployments"')


def deployment(name: str, namespace: str, image: str, **status: Any) -> Object:
    """A Deployment with one pod, which is available."""
    return {
        "metadata": {"name": name, "namespace": namespace, "labels": {"app.kubernetes.io/version": ""}},
        "spec": {"replicas": 1, "template": {"spec": {"containers": [{"name": "c", "image": image}]}}},
        "status": {"availableReplicas": 1, **status},
    }


def labelled(obj: Object, **labels: str) -> Object:
    return {
        **obj,
        "metadata": {
            **obj["metadata"],
            "labels": {k.replace("__", "/").replace("_", "."): v for k, v in labels.items()},
        },
    }


@cache
def pem(days: int = 3650, subject: str = "/CN=Company") -> str:
    """A certificate that signs itself; one of an authority that has ended, with a negative number of days."""
    with TemporaryDirectory() as folder:
        begin, end = ((NOW + timedelta(days=d)).strftime("%Y%m%d%H%M%SZ") for d in (min(-1, days - 1), days))
        config = Path(folder, "c")
        config.write_text(
            "[ca]\ndefault_ca=d\n[d]\ndatabase=i\nserial=s\nnew_certs_dir=.\ndefault_md=sha256\npolicy=p\nx509_extensions=v\n"
            "[p]\ncommonName=supplied\n[v]\nbasicConstraints=critical,CA:true\nsubjectAltName=DNS:*.models.local\n"
            "[req]\ndistinguished_name=n\n[n]\n"
        )
        Path(folder, "i").touch()
        Path(folder, "s").write_text("01")
        for command in (
            ["openssl", "req", "-config", "c", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "k", "-out", "r", "-subj", subject],
            ["openssl", "ca", "-batch", "-config", "c", "-selfsign", "-keyfile", "k", "-in", "r", "-out", "o", "-notext",
             "-startdate", begin, "-enddate", end],
        ):  # fmt: skip
            subprocess.run(command, cwd=folder, check=True, capture_output=True)
        return Path(folder, "o").read_text()


def secret(certificate: str) -> Object:
    return {"data": {"tls.crt": base64.b64encode(certificate.encode()).decode()}}


GATEWAY: Object = {
    "metadata": {"name": "mlplatform", "namespace": "mlplatform-system"},
    "spec": {
        "selector": {"istio": "ingressgateway"},
        "servers": [{"hosts": ["*.models.local"], "port": {"number": 80}}],
    },
}
POD: Object = {
    "metadata": {"name": "g", "namespace": "istio-system"},
    "status": {"conditions": [{"type": "Ready", "status": "True"}]},
}
NODE: Object = {"status": {"allocatable": {"cpu": "8", "memory": "16Gi", "amd.com/gpu": "2"}}}
OPERATOR = labelled(
    deployment("mlplatform-operator", "mlplatform-system", "x/operator:1"), app_kubernetes_io__version=__version__
)
LEASE: Object = {"spec": {"holderIdentity": "pod-1", "renewTime": "2026-03-01T11:59:59.000000Z"}}
STORE: Object = {
    "metadata": {
        "annotations": {
            "serving.kserve.io/s3-cabundle-configmap": "company",
            "serving.kserve.io/s3-cabundle": "/etc/mlplatform/trust/ca.crt",
        }
    },
    "data": {"AWS_ACCESS_KEY_ID": True, "AWS_SECRET_ACCESS_KEY": True},
}
STAY = Stay(
    namespace={"metadata": {"name": "team-a", "labels": {}}},
    accounts={"mlplatform-jobs": {"metadata": {}}, "mlplatform-serving": {"metadata": {}}},
    secret=STORE,
    trust={"data": {"ca.crt": pem()}},
    own=(),
    probe=Probed(),
)
KINDS = frozenset({"InferenceService", "ServingRuntime", "PyTorchJob", "VirtualService", "Gateway", "NodeMetrics"})
HEALTHY = Facts(
    now=NOW,
    release=__version__,
    kubernetes="v1.36.0",
    wanted=own_crds(),
    crds=own_crds(),
    served=dict.fromkeys((*API_VERSIONS, METRICS), KINDS),
    operators=(OPERATOR,),
    settings=SETTINGS,
    lease=LEASE,
    kserve=(deployment("kserve-controller-manager", "kserve", "kserve/kserve-controller:v0.20.0"),),
    trainer=(deployment("training-operator", "kubeflow", "x/training-operator:v1-d6eb98e"),),
    istio=(deployment("istiod", "istio-system", "istio/pilot:1.31.0"),),
    gateway=GATEWAY,
    gateway_pods=(POD,),
    nodes=(NODE,),
    stays={"team-a": STAY},
)


def stay(**changes: Any) -> dict[str, Stay]:
    return {"team-a": replace(STAY, **changes)}


def crds(change: Callable[[Object], object]) -> dict[str, Object]:
    """The CRDs of this release, MLModel's changed."""
    found = copy.deepcopy(own_crds())
    (version,) = found["mlmodels.mlplatform.dev"]["spec"]["versions"]
    change(version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["scheduling"]["properties"])
    return found


def model(**spec: Any) -> Object:
    return {"metadata": {"name": "m", "namespace": "team-a"}, "spec": spec}


def served(**changes: Any) -> dict[str, Any]:
    """What is served, with ``group_version`` as ``group/version``."""
    return {**HEALTHY.served, **{k.replace("__", "/").replace("_", "."): v for k, v in changes.items()}}


def tls(name: str, found: Any) -> dict[str, Any]:
    server = {"hosts": ["*.models.local"], "tls": {"credentialName": name}}
    return {
        "gateway": {**GATEWAY, "spec": {**GATEWAY["spec"], "servers": [server]}},
        "certificates": {f"istio-system/{name}": found},
    }


@dataclass(frozen=True)
class Case:
    """What differs from a cluster where all is well, and what is said of that."""

    reason: str
    facts: dict[str, Any]
    level: Level
    check: str
    contains: str
    next_action: str = ""


OLD = deployment("kserve-controller-manager", "kserve", "kserve/kserve-controller:v0.15.2")
CASES = [
    Case("too old a Kubernetes", {"kubernetes": "v1.27.3-gke.100"}, Level.FAILURE, "Kubernetes", "older than what is supported, 1.28 to 1.36", "Upgrade the cluster"),
    Case("one that is newer than what was tested may do", {"kubernetes": "v1.37.0"}, Level.WARNING, "Kubernetes", "newer"),
    Case("cloud vendors add to the version", {"kubernetes": "v1.31.2-eks-7f9249a"}, Level.OK, "Kubernetes", "v1.31.2-eks"),
    Case("no CRD", {"crds": dict.fromkeys(own_crds())}, Level.FAILURE, "API", "there is no CRD mlmodels", "crds.install=true"),
    Case(
        "a kept CRD of an older release prunes what this one knows",
        {"crds": crds(lambda spec: spec.pop("gpuResource"))},
        Level.FAILURE, "API", "it does not have v1alpha1.spec.scheduling.gpuResource as", "kubectl apply --server-side",
    ),
    Case(
        "bounds count, too",
        {"crds": crds(lambda spec: spec["queue"].update(maxLength=1))},
        Level.FAILURE, "API", "v1alpha1.spec.scheduling.queue.maxLength",
    ),
    Case(
        "one that has more is a newer one's: the plugin is old",
        {"crds": crds(lambda spec: spec.update(other={"type": "string"}))},
        Level.WARNING, "API", "newer", "pip install -U",
    ),
    Case("no operator", {"operators": (), "settings": None}, Level.FAILURE, "operator", "no Deployment", "helm upgrade --install"),
    Case(
        "two releases undo each other's writes",
        {"operators": (OPERATOR, deployment("prod-mlplatform-operator", "prod", "x"))},
        Level.FAILURE, "operator", "2 releases are installed, which write the same objects: mlplatform-system/mlplatform-operator, prod/prod", "helm uninstall",
    ),
    Case(
        "an operator without a pod, in the words of its Deployment",
        {"operators": (deployment("o", "s", "x", availableReplicas=0, conditions=[{"type": "Available", "status": "False", "message": "does not have minimum availability"}]),)},
        Level.FAILURE, "operator", "no pod of Deployment s/o is available: does not have minimum availability", "kubectl -n s describe pods",
    ),
    Case(
        "an operator of another release than the plugin",
        {"operators": (labelled(OPERATOR, app_kubernetes_io__version="0.0.9"),)},
        Level.WARNING, "operator", "is release 0.0.9, whoever asks is",
    ),
    Case(
        "a setting that its operator refuses",
        {"settings": None, "mistake": "MLPLATFORM_METRICS_PORT='tcp://10.0.0.1:80' is not a port number"},
        Level.FAILURE, "operator", "is not a port number", "helm upgrade",
    ),
    Case("a Lease that nobody holds", {"lease": None}, Level.FAILURE, "operator", "nobody holds the Lease", "logs deployment/mlplatform-operator"),
    Case(
        "a holder that hangs",
        {"lease": {"spec": {**LEASE["spec"], "renewTime": "2026-03-01T11:55:00.000000Z"}}},
        Level.FAILURE, "operator", "pod-1 has not renewed the Lease mlplatform-system/mlplatform-operator for 300 s",
    ),
    Case("what one may not see is no failure", {"operators": FORBIDDEN, "settings": None}, Level.SKIPPED, "operator", 'User "ann" cannot list', "ask for the right"),
    Case("no KServe", {"served": served(serving_kserve_io__v1beta1=frozenset())}, Level.FAILURE, "KServe", "does not serve InferenceService (serving.kserve.io/v1beta1)", "Install KServe 0.15"),
    Case("CRDs alone do nothing", {"kserve": ()}, Level.FAILURE, "KServe", "nobody acts on them"),
    Case("a controller that is down", {"kserve": (deployment("k", "kserve", "x", availableReplicas=0),)}, Level.FAILURE, "KServe", "no pod of Deployment kserve/k is available"),
    Case("an older KServe calls the mode otherwise", {"kserve": (OLD,)}, Level.FAILURE, "KServe", "0.15 does not know the deployment mode Standard", "--set kserve.deploymentMode=RawDeployment"),
    Case("and is well with its own word", {"kserve": (OLD,), "settings": replace(SETTINGS, kserve_mode="RawDeployment")}, Level.OK, "KServe", "0.15; models ask for the deployment mode RawDeployment"),
    Case(
        "an image by digest says no version",
        {"kserve": (deployment("k", "kserve", "mirror/kserve@sha256:" + "0" * 64),)},
        Level.OK, "KServe", "does not say its version",
    ),
    Case("no Training Operator", {"served": served(kubeflow_org__v1=frozenset())}, Level.FAILURE, "Training Operator", "PyTorchJob (kubeflow.org/v1)"),
    Case(
        "its init container is refused where Pod Security is restricted",
        {"stays": stay(namespace={"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}})},
        Level.FAILURE, "Training Operator", "is refused where Pod Security is restricted (team-a)", "manifests/training-operator",
    ),
    Case("no Istio", {"served": served(networking_istio_io__v1=frozenset())}, Level.FAILURE, "Istio", "VirtualService (networking.istio.io/v1), Gateway", "gateway.apiVersion"),
    Case("a control plane elsewhere", {"istio": ()}, Level.WARNING, "Istio", "no istiod in this cluster"),
    Case("no Gateway", {"gateway": None}, Level.FAILURE, "gateway", "there is no Gateway mlplatform-system/mlplatform", "gateway.create=true"),
    Case("nobody serves the Gateway", {"gateway_pods": ()}, Level.FAILURE, "gateway", "no pod has the labels istio=ingressgateway", "gateway.selector"),
    Case("its pods are not ready", {"gateway_pods": ({**POD, "status": {}},)}, Level.FAILURE, "gateway", "none of 1 pods"),
    Case(
        "a Gateway for other hosts",
        {"settings": replace(SETTINGS, domain="ml.example.com")},
        Level.FAILURE, "gateway", "takes requests for *.models.local, and models answer at *.ml.example.com", "gateway.domain",
    ),
    Case(
        "a Gateway without a host that models may ask for",
        {"settings": replace(SETTINGS, gateway_hosts="team-a/credit.example.com,a.models.local")},
        Level.FAILURE, "gateway", "does not take requests for team-a/credit.example.com, which", "gateway.hosts of the chart",
    ),
    Case("no certificate", tls("cert", None), Level.FAILURE, "certificate", "there is no Secret istio-system/cert"),
    Case("one that is none", tls("cert", secret("x")), Level.FAILURE, "certificate", "holds no certificate"),
    Case("one that has ended", tls("cert", secret(pem(-2))), Level.FAILURE, "certificate", "(*.models.local) ended at 2026-02-27"),
    Case("one that ends soon", tls("cert", secret(pem(5))), Level.WARNING, "certificate", "ends at 2026-03-06"),
    Case("one that is well", tls("cert", secret(pem())), Level.OK, "certificate", "ends at 2036"),
    Case("one that may not be read", tls("cert", Unseen("secrets is forbidden")), Level.SKIPPED, "certificate", "secrets is forbidden"),
    Case(
        "a GPU that no node has, and what there is instead",
        {"models": (model(training={"resources": {"gpu": 1}}),)},
        Level.FAILURE, "GPUs", "no node has as much nvidia.com/gpu as team-a/m (1) ask for; nodes offer amd.com/gpu (2 on a node)", "scheduling.jobs.gpuResource",
    ),
    Case(
        "more of them than a node has",
        {"models": (model(training={"resources": {"gpu": 4}}, scheduling={"gpuResource": "amd.com/gpu"}),)},
        Level.FAILURE, "GPUs", "as much amd.com/gpu as team-a/m (4)",
    ),
    Case(
        "the platform's default is the model's",
        {"models": (model(training={"resources": {"gpu": 2}}),), "settings": replace(SETTINGS, jobs_scheduling='{"gpuResource": "amd.com/gpu"}')},
        Level.OK, "GPUs", "nodes offer amd.com/gpu",
    ),
    Case("no metrics API", {"served": served(metrics_k8s_io__v1beta1=frozenset())}, Level.WARNING, "metrics API", "are not scaled", "metrics-server"),
    Case(
        "one that is registered and does not answer",
        {"served": {**HEALTHY.served, METRICS: Unseen("503 the server is currently unable to handle the request")}},
        Level.WARNING, "metrics API", "is not served (503 the server is currently unable",
    ),
    Case("a queue without Kueue", {"stays": stay(queues={"gpus": None})}, Level.FAILURE, "Kueue", "Kueue is not installed"),
    Case(
        "a queue that is not there",
        {"stays": stay(queues={"gpus": None}), "served": served(kueue_x_k8s_io__v1beta1=frozenset())} | {"served": {**HEALTHY.served, "kueue.x-k8s.io/v1beta1": frozenset({"LocalQueue"})}},
        Level.FAILURE, "Kueue", "there is no LocalQueue gpus in team-a",
    ),
    Case("what the operator lacks in a namespace", {"stays": stay(operators=("create jobs", "patch jobs"))}, Level.FAILURE, "rights", "the operator may not create jobs, patch jobs in team-a", "helm upgrade"),
    Case("what it lacks in the cluster", {"cluster_rights": ("update leases",)}, Level.FAILURE, "rights", "may not update leases in the cluster"),
    Case("who may not ask", {"cluster_rights": FORBIDDEN}, Level.SKIPPED, "rights", "what the operator may do cannot be looked at"),
    Case("no namespace", {"stays": {}}, Level.WARNING, "namespaces", "none is set up", "modelNamespaces"),
    Case("one that is not there", {"stays": stay(namespace=None)}, Level.FAILURE, "namespace team-a", "does not exist", "kubectl create namespace team-a"),
    Case(
        "one that is not watched",
        {"settings": replace(SETTINGS, watch_namespaces="team-b")},
        Level.FAILURE, "namespace team-a", "does not watch it, but team-b", "operator.watchNamespaces",
    ),
    Case("a ServiceAccount that is missing", {"stays": stay(accounts={"mlplatform-jobs": None})}, Level.FAILURE, "namespace team-a", "no ServiceAccount mlplatform-jobs", "modelNamespaces"),
    Case("a pull secret that is missing", {"stays": stay(pull={"registry": None})}, Level.FAILURE, "namespace team-a", "no Secret registry", "create secret docker-registry registry -n team-a"),
    Case("no Secret of the store", {"stays": stay(secret=None)}, Level.FAILURE, "namespace team-a", "no Secret mlplatform-store", "modelNamespaces"),
    Case("half a key", {"stays": stay(secret={**STORE, "data": {"AWS_ACCESS_KEY_ID": True}})}, Level.FAILURE, "namespace team-a", "one of AWS_ACCESS_KEY_ID and"),
    Case(
        "KServe is not told of the authority",
        {"stays": stay(secret={"metadata": {}, "data": {}})},
        Level.WARNING, "namespace team-a", "not told to trust ConfigMap company", "kubectl annotate --overwrite secret mlplatform-store -n team-a serving",
    ),
    Case(
        "with a role in place of keys the ServiceAccount tells it",
        {"stays": stay(secret={"metadata": {}, "data": {}}, accounts={"mlplatform-serving": STAY.secret})},
        Level.OK, "namespace team-a", "has all",
    ),
    Case("a Secret that a pod was given need not be read", {"stays": stay(secret=FORBIDDEN)}, Level.OK, "namespace team-a", "has all"),
    Case("no ConfigMap of the authorities", {"stays": stay(trust=None)}, Level.FAILURE, "namespace team-a", "no ConfigMap company", "trust-manager"),
    Case("another key", {"stays": stay(trust={"data": {"all.pem": pem()}})}, Level.FAILURE, "namespace team-a", "has no key ca.crt, but all.pem", "trust.key"),
    Case("an empty key", {"stays": stay(trust={"data": {"ca.crt": ""}})}, Level.FAILURE, "namespace team-a", "holds no certificate of an authority in PEM", "BEGIN CERTIFICATE"),
    Case("DER in it, or anything else", {"stays": stay(trust={"data": {"ca.crt": "0\x82"}})}, Level.FAILURE, "namespace team-a", "holds no certificate"),
    Case("an authority that has ended", {"stays": stay(trust={"data": {"ca.crt": pem() + pem(-2, "/CN=Old")}})}, Level.WARNING, "namespace team-a", "commonName=Old have ended"),
    Case("who may look and not write", {"stays": stay(own=("create mlmodels", "patch mlmodels"))}, Level.OK, "namespace team-a", "view models there, but not create mlmodels"),
    Case("who may not look", {"stays": stay(own=("list mlmodels",))}, Level.WARNING, "namespace team-a", "may not list mlmodels", "create rolebinding"),
    Case("a store that is out of reach, in the job's words", {"stays": stay(probe=Probed("could not write s3://mlplatform/x: certificate verify failed", "Let the chart's trust.configMap …"))}, Level.FAILURE, "store", "certificate verify failed", "trust.configMap"),
    Case("a store that nobody tried", {"stays": stay(probe=Probed(skipped="--no-probe was said", next_action="Leave it out"))}, Level.SKIPPED, "store", "--no-probe"),
    Case("a gateway that does not answer", {"url": ("http://g does not answer: refused", "Look")}, Level.FAILURE, "gateway", "refused"),
    Case("one that does", {"url": ("http://g answers 404", "")}, Level.OK, "gateway", "answers 404"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.reason)
def test_finding(case: Case) -> None:
    found = checks.findings(replace(HEALTHY, **case.facts))
    said = [f for f in found if f.check == case.check and case.contains in f.message]
    assert [f.level for f in said] == [case.level], (case.reason, [f for f in found if f.level is not Level.OK])
    assert case.next_action in said[0].next_action, case.reason
    worse = {Level.WARNING, Level.FAILURE}
    assert case.level in worse or not [f for f in found if f.level in worse], case.reason
    assert all(f.next_action for f in found if f.level is not Level.OK), "whatever is wrong has a next action"


def test_nothing_is_wrong_with_a_cluster_where_all_is_well() -> None:
    found = checks.findings(HEALTHY)
    assert [f for f in found if f.level is not Level.OK] == []
    assert not failed(found)
    subjects = {"Kubernetes", "API", "operator", "rights", "Training Operator", "KServe", "Istio", "gateway", "store"}
    assert subjects <= {f.check for f in found}, "each says that it was looked at"


def test_who_may_see_nothing_is_told_of_no_failure() -> None:
    blind = replace(
        HEALTHY,
        kubernetes="",
        crds=dict.fromkeys(own_crds(), FORBIDDEN),
        served=dict.fromkeys((*API_VERSIONS, METRICS), FORBIDDEN),
        operators=FORBIDDEN,
        settings=None,
        lease=FORBIDDEN,
        kserve=FORBIDDEN,
        trainer=FORBIDDEN,
        istio=FORBIDDEN,
        gateway=FORBIDDEN,
        nodes=FORBIDDEN,
        models=FORBIDDEN,
        cluster_rights=FORBIDDEN,
        stays=stay(operators=FORBIDDEN, own=FORBIDDEN, accounts=dict.fromkeys(STAY.accounts, FORBIDDEN)),
    )
    assert not [f for f in checks.findings(blind) if f.level is Level.FAILURE]
    mine = checks.findings(replace(blind, stays=stay(own=("create mlmodels",))))
    assert [f.message for f in mine if "you may view models there" in f.message], "one's own rights can always be seen"


def test_the_versions_are_those_of_the_documents() -> None:
    """Which are those that tests run."""
    supported = f"Kubernetes {words.text(checks.OLDEST)} to {words.text(checks.NEWEST)}"
    assert supported in (Path(__file__).parents[2] / "docs/deployment.md").read_text()


@pytest.mark.parametrize(
    ("host", "domain", "expected"),
    [
        ("*.models.local", "models.local", True),
        ("istio-system/*.models.local", "models.local", True),
        ("*", "models.local", True),
        ("*.example.com", "ml.example.com", True),
        ("ml.example.com", "ml.example.com", False),
        ("*.ml.example.com", "example.com", False),
        ("*.odels.local", "models.local", False),
    ],
)
def test_a_gateways_host_covers_a_domain(host: str, domain: str, *, expected: bool) -> None:
    assert ingress.covers(host, domain) is expected


@pytest.mark.parametrize(
    ("host", "entry", "expected"),
    [
        ("credit.example.com", "credit.example.com", True),
        ("credit.example.com", "team-a/credit.example.com", True),
        ("team-a/credit.example.com", "team-a/credit.example.com", True),
        ("team-b/credit.example.com", "team-a/credit.example.com", False),
        ("team-a/credit.example.com", "credit.example.com", False),
        ("*.example.com", "team-a/credit.example.com", True),
        ("*.example.com", "*.ml.example.com", True),
        ("*.ml.example.com", "*.example.com", False),
        ("*.example.com", "example.com", False),
        ("*/*.example.com", "a.b.example.com", True),
        ("*", "team-a/credit.example.com", True),
        ("other.example.com", "credit.example.com", False),
    ],
)
def test_a_gateways_host_takes_what_gateway_hosts_promises(host: str, entry: str, *, expected: bool) -> None:
    assert ingress.takes(host, entry) is expected


@pytest.mark.parametrize(
    ("image", "labels", "expected"),
    [
        ("kserve/kserve-controller:v0.20.0", {}, (0, 20)),
        ("registry:5000/istio/pilot:1.31.0-distroless", {}, (1, 31)),
        ("registry:5000/istio/pilot", {"helm.sh/chart": "istiod-1.31.0"}, (1, 31)),
        ("x@sha256:00", {"app.kubernetes.io/version": "1.9.3"}, (1, 9)),
        ("localhost/x:0123456789ab", {}, None),
        ("x:v1-d6eb98e", {}, None),
    ],
)
def test_an_image_or_a_label_says_the_version(
    image: str, labels: dict[str, str], expected: tuple[int, int] | None
) -> None:
    found = deployment("d", "n", image)
    found["metadata"]["labels"] = labels
    assert addons.deployed(found) == expected


def test_levels_are_counted_from_the_worst() -> None:
    found = [Finding("a", level, "m") for level in (Level.OK, Level.FAILURE, Level.OK)]
    assert sentence(found) == "1 failure, 2 ok"
