"""The chart: it renders for every supported Kubernetes, its pods are restricted, its rights least, its values checked."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import crds
import pytest
import yaml
from apiserver_fixture import binary
from unit.operator_world import PLATFORM, mlmodel
from written import SCENARIOS, scenario

from local import upstream
from mlplatform import api
from mlplatform.actions import Apply, Create
from mlplatform.doctor import facts
from mlplatform.resources import KINDS, scheduling, servingruntime, virtualservice
from mlplatform.settings import Settings

REPOSITORY = Path(__file__).parents[2]
CHART = REPOSITORY / "charts/mlplatform"
VERSIONS = [module.version[1:].rpartition(".")[0] for module in (upstream.OLDEST, upstream.named("kubernetes"))]
"""The oldest supported Kubernetes and the newest: those whose API servers the tests run."""
EVERYTHING = (
    "podDisruptionBudget.enabled=true", "networkPolicy.enabled=true", "serviceMonitor.enabled=true",
    "prometheusRule.enabled=true", "dashboards.enabled=true",
    "gateway.tlsSecret=certificate", "images.pullSecrets={registry}", "modelNamespaces={team-a,team-b}",
)  # fmt: skip
"""--set arguments that switch on what is off by default."""
CREDENTIALS = ("store.accessKeyId=the-id", "store.secretAccessKey=the-secret")
"""--set arguments without which the embedded store is rendered on a cluster only."""


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([binary("helm"), *arguments], capture_output=True, text=True, check=False)


@cache
def rendered(*values: str, version: str = VERSIONS[0], apis: tuple[str, ...] = ()) -> tuple[dict[str, Any], ...]:
    """The objects of a release `mlplatform` in `mlplatform-system` with these ``--set`` values."""
    flags = [flag for value in (*CREDENTIALS, *values) for flag in ("--set", value)] + [
        f"--api-versions={api}" for api in apis
    ]
    done = helm("template", "mlplatform", str(CHART), "-n", "mlplatform-system", "--kube-version", version, *flags)
    assert done.returncode == 0, done.stderr
    return tuple(document for document in yaml.safe_load_all(done.stdout) if document)


def without_tests(found: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
    """Less what `helm test` makes and takes away again."""
    return tuple(o for o in found if "helm.sh/hook" not in (o["metadata"].get("annotations") or {}))


def objects(kind: str, found: tuple[dict[str, Any], ...]) -> dict[str, dict[str, Any]]:
    """Of one kind, by ``<namespace>/<name>``."""
    return {f"{o['metadata'].get('namespace', '')}/{o['metadata']['name']}": o for o in found if o["kind"] == kind}


def pods(found: tuple[dict[str, Any], ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pod's spec with the name of what makes it."""
    for obj in found:
        if obj["kind"] == "Pod":
            yield obj["metadata"]["name"], obj["spec"]
        elif obj["kind"] == "Deployment":
            yield obj["metadata"]["name"], obj["spec"]["template"]["spec"]


def serving(found: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    """What every serving pod of a new version gets."""
    spec: dict[str, Any] = servingruntime.render(mlmodel(), Settings.from_env(environment(found)))["spec"]
    return spec


@cache
def script(name: str) -> ModuleType:
    """A program of charts/, which lies in no package."""
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / f"charts/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_derived_files_are_up_to_date() -> None:
    stale = [
        str(path.relative_to(REPOSITORY))
        for path, text in script("generate").derived(str(binary("helm"))).items()
        if not path.exists() or path.read_text() != text
    ]
    assert stale == [], "run `make manifests` and commit"


@pytest.mark.parametrize("version", VERSIONS)
def test_lint(version: str) -> None:
    done = helm("lint", "--strict", "--kube-version", version, str(CHART))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("values", [(), EVERYTHING], ids=["defaults", "everything"])
def test_renders_for(version: str, values: tuple[str, ...]) -> None:
    found = rendered(*values, version=version)
    assert len({(o["kind"], o["metadata"].get("namespace"), o["metadata"]["name"]) for o in found}) == len(found)
    assert all(o["metadata"]["labels"]["app.kubernetes.io/name"] == "mlplatform" for o in found)


def test_a_drain_may_evict_the_operator() -> None:
    (budget,) = objects("PodDisruptionBudget", rendered(*EVERYTHING)).values()
    assert budget["spec"]["maxUnavailable"] == 1


def test_two_operators_are_apart_and_share_a_lease() -> None:
    """One of them writes: which one, a Lease decides that the operator may read and change, and no other."""
    found = rendered("operator.replicas=2")
    spec = objects("Deployment", found)["mlplatform-system/mlplatform-operator"]["spec"]
    assert (spec["replicas"], spec["strategy"]["rollingUpdate"]) == (2, {"maxSurge": 0, "maxUnavailable": 1})
    (spread,) = spec["template"]["spec"]["topologySpreadConstraints"]
    assert spread["labelSelector"]["matchLabels"] == spec["selector"]["matchLabels"]
    (budget,) = objects("PodDisruptionBudget", found).values()
    assert budget["spec"]["maxUnavailable"] == 1
    assert environment(found)["MLPLATFORM_LEASE"] == "mlplatform-system/mlplatform-operator"
    role = objects("Role", found)["mlplatform-system/mlplatform-operator-lease"]
    create, use = role["rules"]
    assert create["verbs"] == ["create"]
    assert (use["verbs"], use["resourceNames"]) == (["get", "update"], ["mlplatform-operator"])
    alone = objects("Deployment", rendered())["mlplatform-system/mlplatform-operator"]["spec"]
    assert (alone["replicas"], alone["strategy"]) == (1, {"type": "Recreate"})
    assert objects("PodDisruptionBudget", rendered()) == {}


def test_an_older_kubernetes_is_refused_by_name() -> None:
    """By Helm, before anything is changed."""
    done = helm("template", "mlplatform", str(CHART), "--kube-version", "1.27")
    assert f"chart requires kubeVersion: >={VERSIONS[0]}.0-0 which is incompatible with Kubernetes v1.27" in done.stderr


@pytest.mark.parametrize("path", ["README.md", "docs/deployment.md", "charts/mlplatform/README.md"])
def test_documents_name_the_versions_that_tests_run(path: str) -> None:
    assert "Kubernetes {} to {}".format(*VERSIONS) in (REPOSITORY / path).read_text()


@pytest.mark.parametrize(
    ("apis", "expected"),
    [
        ((), "networking.istio.io/v1"),
        (("networking.istio.io/v1beta1",), "networking.istio.io/v1beta1"),
        (("networking.istio.io/v1beta1", "networking.istio.io/v1"), "networking.istio.io/v1"),
    ],
)
def test_istio_api_follows_the_server(apis: tuple[str, ...], expected: str) -> None:
    found = rendered(apis=apis)
    (gateway,) = objects("Gateway", found).values()
    assert gateway["apiVersion"] == expected
    assert environment(found)["MLPLATFORM_ISTIO_API_VERSION"] == expected


OWN = ("gateway.create=false", "gateway.name=mesh/shared")
TLS = "gateway.tlsSecret=certificate"


@pytest.mark.parametrize(
    ("reason", "values", "url", "plain"),
    [
        ("no certificate", (), "http://adult.default.models.local", ["serves"]),
        ("a certificate: who comes by HTTP is sent to HTTPS", (TLS,), "https://adult.default.models.local", ["redirects"]),
        ("both, for clients that cannot yet", (TLS, "gateway.scheme=http"), "http://adult.default.models.local", ["serves"]),
        ("a port of its own", (TLS, "gateway.port=8443"), "https://adult.default.models.local:8443", ["redirects"]),
        ("a port that goes without saying", (TLS, "gateway.port=443"), "https://adult.default.models.local", ["redirects"]),
        ("a load balancer has the certificate, and comes by HTTP", ("gateway.scheme=https",), "https://adult.default.models.local", ["serves"]),
        ("a Gateway of their own", OWN, "http://adult.default.models.local", []),
        ("which has a certificate", (*OWN, "gateway.scheme=https"), "https://adult.default.models.local", []),
        ("whose certificate is no matter of the chart's", (*OWN, TLS), "http://adult.default.models.local", []),
    ],
)  # fmt: skip
def test_a_models_url_is_what_clients_use(reason: str, values: tuple[str, ...], url: str, plain: list[str]) -> None:
    found = rendered(*values)
    assert virtualservice.url(mlmodel(), Settings.from_env(environment(found))) == url, reason
    servers = [server for made in objects("Gateway", found).values() for server in made["spec"]["servers"]]
    redirects = [s.get("tls", {}).get("httpsRedirect", False) for s in servers if s["port"]["protocol"] == "HTTP"]
    assert ["redirects" if redirect else "serves" for redirect in redirects] == plain, reason


def test_hosts_of_the_companys_own() -> None:
    """The Gateway accepts what models may ask for, in the namespaces in which they may."""
    found = rendered("gateway.hosts={team-a/credit.example.com,*.ml.example.com}", TLS)
    hosts = ["team-a/credit.example.com", "*.ml.example.com"]
    (gateway,) = objects("Gateway", found).values()
    assert [server["hosts"] for server in gateway["spec"]["servers"]] == [["*.models.local", *hosts]] * 2
    assert Settings.from_env(environment(found)).gateway_hosts == ",".join(hosts)


def test_the_notes_have_the_url_of_status() -> None:
    flags = [flag for value in (*CREDENTIALS, TLS, "gateway.port=8443") for flag in ("--set", value)]
    done = helm("install", "mlplatform", str(CHART), "--dry-run=client", *flags)
    assert "It answers at https://adult-income.default.models.local:8443/predict" in done.stdout, done.stderr


@pytest.mark.parametrize("plural", ["mlmodels", "modelversions"])
def test_crds_are_the_manifests(plural: str) -> None:
    """Whole, and never deleted with the release."""
    crd = objects("CustomResourceDefinition", rendered())[f"/{plural}.mlplatform.dev"]
    assert crd["spec"] == crds.crd(plural)["spec"]
    assert crd["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"


def environment(found: tuple[dict[str, Any], ...]) -> dict[str, str]:
    """The operator's environment."""
    deployment = objects("Deployment", found)["mlplatform-system/mlplatform-operator"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return {entry["name"]: entry.get("value", "") for entry in container["env"]}


def test_every_setting_of_the_operator_is_set() -> None:
    known = {f"MLPLATFORM_{field.name.upper()}" for field in dataclasses.fields(Settings)}
    assert set(environment(rendered())) == known


def test_the_release_of_the_documentation_has_the_settings_defaults() -> None:
    settings = Settings.from_env(environment(rendered()))
    given = {key: getattr(settings, key) for key in ("jobs_image", "serving_image", "serving_runtime")}
    assert settings == dataclasses.replace(Settings(), **given)


def test_images_default_to_the_app_version_and_can_each_be_replaced() -> None:
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    text = json.dumps(rendered())
    for name in ("operator", "jobs", "serving", "seaweedfs"):
        assert f'"docker.io/mlplatform/{name}:{version}"' in text
        reference = f"localhost/mlplatform/{name}:0123456789ab"
        replaced = json.dumps(rendered(f"images.{name}={reference}"))
        assert f'"{reference}"' in replaced
        assert f"docker.io/mlplatform/{name}:" not in replaced


def test_whoever_runs_a_pod_may_pull_its_image() -> None:
    found = rendered(*EVERYTHING)
    accounts = objects("ServiceAccount", found)
    assert {namespace for namespace, _, _ in (name.partition("/") for name in accounts)} == {
        "mlplatform-system",
        "team-a",
        "team-b",
    }
    without_account = [pod for _, pod in pods(found) if "serviceAccountName" not in pod]
    for holder in (*accounts.values(), *without_account):
        assert holder["imagePullSecrets"] == [{"name": "registry"}], holder


def named(value: Any) -> Iterator[str]:
    """Every image that a manifest has."""
    if isinstance(value, dict) and isinstance(value.get("image"), str):
        yield value["image"]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    for item in items:
        yield from named(item)


def test_the_list_for_a_mirror_is_whole() -> None:
    """What the chart's pods name, and what the operator with that chart's settings puts into those of models."""
    init = "servingRuntime.spec.initContainers[0].image=registry.example.com/warm:1"
    found = rendered(*EVERYTHING, "images.jobs=registry.example.com/jobs@sha256:" + "01" * 32, init)
    pulled = {
        *named([spec for _, spec in pods(found)]),
        *named(serving(found)),
        "registry.example.com/jobs@sha256:" + "01" * 32,
    }
    assert Settings.from_env(environment(found)).jobs_image in pulled
    listed = script("images")
    assert set(listed.images(found)) == pulled | set(listed.ADDONS)


def test_no_pod_of_a_model_has_another_image() -> None:
    """All that the operator writes: an image that it knew by itself would be missing on the mirror."""
    sent = [w.manifest for name in SCENARIOS for w in scenario(name) if isinstance(w, (Create, Apply))]
    workloads = [m for m in sent if m["kind"] != "ModelVersion"]
    own = yaml.safe_load((REPOSITORY / "manifests/samples/complete.yaml").read_text())["spec"]["training"]["image"]
    assert set(named(workloads)) == {PLATFORM.jobs_image, PLATFORM.serving_image, own}


def test_pods_are_restricted() -> None:
    """As the pod security standard `restricted` has it, and with a read-only root and memory limits beyond it."""
    seen = list(pods(rendered(*EVERYTHING)))
    assert {name for name, _ in seen} == {"mlplatform-operator", "mlplatform-store", "mlplatform-test"}
    for name, pod in seen:
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not any(pod.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")), name
        assert all("hostPath" not in volume for volume in pod.get("volumes", [])), name
        for container in pod["containers"]:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False, name
            assert security["readOnlyRootFilesystem"] is True, name
            assert security["capabilities"] == {"drop": ["ALL"]}, name
            assert "memory" in container["resources"]["limits"], name


def test_serving_containers_are_restricted() -> None:
    for container in serving(rendered())["containers"]:
        security = container["securityContext"]
        assert security["runAsNonRoot"] is True
        assert security["runAsUser"] == 65532
        assert security["allowPrivilegeEscalation"] is False
        assert security["readOnlyRootFilesystem"] is True
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert {port["containerPort"] for port in container["ports"]}.isdisjoint({8081, 7071}), (
            "management stays inside"
        )


def test_without_a_look_at_the_cluster_no_shared_runtime_is_rendered() -> None:
    """One that is rendered blindly would differ from the live one, and KServe would replace all pods that name it."""
    found = rendered(apis=("serving.kserve.io/v1alpha1/ClusterServingRuntime",))
    assert objects("ClusterServingRuntime", found) == {}


def test_a_cluster_that_assigns_user_ids_is_left_to_do_so() -> None:
    """OpenShift's SCC refuses every pod that names one; the rest of the restricted standard stays."""
    found = rendered("podSecurity.runAsUser=null", *EVERYTHING)
    text = json.dumps([*found, serving(found)])
    assert [word for word in ("runAsUser", "runAsGroup", "fsGroup") if word in text] == []
    assert environment(found)["MLPLATFORM_RUN_AS_USER"] == ""
    for name, pod in pods(found):
        assert pod["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}, name


def test_another_user_id_is_everybodys() -> None:
    found = rendered("podSecurity.runAsUser=1001")
    assert [pod["securityContext"]["fsGroup"] for _, pod in pods(found)] == [1001] * 3
    (container,) = serving(found)["containers"]
    assert (container["securityContext"]["runAsUser"], container["securityContext"]["runAsGroup"]) == (1001, 1001)
    assert environment(found)["MLPLATFORM_RUN_AS_USER"] == "1001"
    assert helm("template", "m", str(CHART), "--set", "podSecurity.runAsUser=0").returncode != 0, "root is none"


def test_serving_pods_can_be_given_more() -> None:
    spec = serving(rendered("servingRuntime.spec.nodeSelector.pool=serving", "images.serving=registry.example.com/s:1"))
    assert spec["nodeSelector"] == {"pool": "serving"}
    assert [container["image"] for container in spec["containers"]] == ["registry.example.com/s:1"]


def test_proxies_are_the_jobs() -> None:
    found = environment(rendered("proxy.http=http://p:1", "proxy.https=http://p:2", r"proxy.noProxy=a\,b"))
    assert [found[f"MLPLATFORM_{name}"] for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")] == [
        "http://p:1",
        "http://p:2",
        "a,b",
    ]
    assert not {"HTTP_PROXY", "HTTPS_PROXY"} & found.keys(), "the operator talks to the API server alone"
    done = helm("template", "mlplatform", str(CHART), "--set", "proxy.https=proxy:3128")
    assert "proxy/https" in done.stderr or "proxy.https" in done.stderr, done.stderr


def test_one_config_map_is_trusted_by_jobs_and_by_kserve() -> None:
    found = rendered(
        "trust.configMap=company", "trust.key=all.pem", r"serviceAccounts.annotations.eks\.amazonaws\.com/x=y"
    )
    env = environment(found)
    assert (env["MLPLATFORM_TRUST_CONFIG_MAP"], env["MLPLATFORM_TRUST_KEY"]) == ("company", "all.pem")
    kserve = {
        "serving.kserve.io/s3-cabundle-configmap": "company",
        "serving.kserve.io/s3-cabundle": "/etc/mlplatform/trust/all.pem",
    }
    secret = objects("Secret", found)["default/mlplatform-store"]["metadata"]["annotations"]
    account = objects("ServiceAccount", found)["default/mlplatform-serving"]["metadata"]["annotations"]
    assert kserve.items() <= secret.items()
    assert account.items() >= {**kserve, "eks.amazonaws.com/x": "y"}.items()
    jobs = objects("ServiceAccount", found)["default/mlplatform-jobs"]["metadata"]["annotations"]
    assert not kserve.keys() & jobs.keys(), "they have it in their environment"
    assert "cabundle" not in json.dumps(rendered()), "without one, nothing is said of it"


def test_models_pods_can_be_placed_for_all() -> None:
    found = environment(rendered("scheduling.jobs.nodeSelector.pool=gpu", "scheduling.serving.priorityClassName=high"))
    settings = Settings(
        jobs_scheduling=found["MLPLATFORM_JOBS_SCHEDULING"], serving_scheduling=found["MLPLATFORM_SERVING_SCHEDULING"]
    )
    assert scheduling.of_stages(api.Scheduling(), settings).node_selector == {"pool": "gpu"}
    assert scheduling.of_serving(api.PodScheduling(), settings).priority_class_name == "high"
    schema = json.loads((CHART / "values.schema.json").read_text())["properties"]["scheduling"]["properties"]
    for role, cls in (("jobs", api.Scheduling), ("serving", api.PodScheduling)):
        known = {api.json_name(field.name) for field in dataclasses.fields(cls)}
        assert schema[role]["properties"].keys() == known, "a model's fields, and no others"


def test_only_the_operator_gets_a_token() -> None:
    """And the test of a release, for as long as it runs."""
    for name, pod in pods(rendered()):
        assert pod.get("automountServiceAccountToken", True) is (name != "mlplatform-store"), name
    for name, account in objects("ServiceAccount", rendered()).items():
        assert account.get("automountServiceAccountToken", True) is name.endswith(("-operator", "-test")), name


def rules(found: tuple[dict[str, Any], ...]) -> list[dict[str, Any]]:
    """What the operator may do anywhere."""
    roles = {**objects("ClusterRole", found), **objects("Role", found)}
    return [rule for name, role in roles.items() if "-operator" in name for rule in role["rules"]]


@pytest.mark.parametrize("values", [(), ("operator.watchNamespaces={team-a}",)], ids=["all namespaces", "one"])
def test_the_operator_may_do_what_it_needs_and_no_more(values: tuple[str, ...]) -> None:
    found = rules(rendered(*values))
    for rule in found:
        assert "*" not in rule["apiGroups"] + rule["resources"] + rule["verbs"], rule
        assert "secrets" not in rule["resources"], rule
    allowed = {resource for rule in found for resource in rule["resources"]}
    assert {kind.plural for kind in KINDS.values()} <= allowed, "it reads or renders kinds that it may not write"


def test_the_doctor_knows_what_the_operator_needs() -> None:
    """What it asks the API server about is what the chart gives: no more, so that it finds nothing that is well."""
    everywhere = objects("ClusterRole", rendered())["/mlplatform-operator"]["rules"]
    given = {(g, r): set(rule["verbs"]) for rule in everywhere for g in rule["apiGroups"] for r in rule["resources"]}
    asked = {(group, resource): set(verbs) for group, resource, verbs in (*facts.RULES, *facts.EVERYWHERE)}
    assert asked == given


def test_the_test_of_a_release_is_the_doctor() -> None:
    """Its rights come and go with it; it writes nothing but a pod in each namespace of models, and reads no Secret."""
    found = rendered("modelNamespaces={team-a,team-b}", "trust.configMap=company")
    hooks = [o for o in found if "helm.sh/hook" in o["metadata"].get("annotations", {})]
    assert {o["metadata"]["name"] for o in hooks} == {"mlplatform-test"}
    assert {o["kind"] for o in found if o["metadata"]["name"] == "mlplatform-test"} == {o["kind"] for o in hooks}
    policies = {o["metadata"]["annotations"]["helm.sh/hook-delete-policy"] for o in hooks}
    assert policies == {"before-hook-creation,hook-succeeded"}
    (pod,) = (o for o in hooks if o["kind"] == "Pod")
    assert [w for o in hooks if o is not pod for w in [o["metadata"]["annotations"]["helm.sh/hook-weight"]]] == [
        "-1"
    ] * 7
    assert pod["metadata"]["annotations"]["helm.sh/hook-weight"] == "0", "they are there before it"
    command = pod["spec"]["containers"][0]["command"]
    assert command[:3] == ["python", "-m", "mlplatform.doctor"]
    assert command[-2:] == ["--namespace=team-a", "--namespace=team-b"]
    (cluster,) = (o for o in hooks if o["kind"] == "ClusterRole")
    assert {verb for rule in cluster["rules"] for verb in rule["verbs"]} - {"get", "list"} == {"create"}
    writes = [rule["resources"] for rule in cluster["rules"] if "create" in rule["verbs"]]
    assert writes == [["subjectaccessreviews"]]
    roles = {o["metadata"]["namespace"]: o["rules"] for o in hooks if o["kind"] == "Role"}
    made = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["create", "get", "delete"]}]
    assert roles == {"team-a": made, "team-b": made}
    assert "secrets" not in json.dumps([cluster["rules"], *roles.values()])


def test_with_namespaces_the_rights_are_roles() -> None:
    found = without_tests(rendered("operator.watchNamespaces={team-a,team-b}"))
    (cluster_role,) = (r for name, r in objects("ClusterRole", found).items() if name.endswith("-operator"))
    assert {verb for rule in cluster_role["rules"] for verb in rule["verbs"]} == {"get", "list", "watch"}
    own = {"mlplatform-system/mlplatform-operator-lease"}
    assert set(objects("Role", found)) == {"team-a/mlplatform-operator", "team-b/mlplatform-operator"} | own
    assert set(objects("RoleBinding", found)) == set(objects("Role", found))
    assert environment(found)["MLPLATFORM_WATCH_NAMESPACES"] == "team-a,team-b"


def test_credentials_are_in_secrets_alone() -> None:
    found = rendered("modelNamespaces={team-a,team-b}")
    holders = [f"{o['kind']} {o['metadata']['namespace']}" for o in found if "the-secret" in json.dumps(o)]
    assert holders == ["Secret team-a", "Secret team-b", "Secret mlplatform-system"]


def test_what_renders_without_a_cluster_makes_no_credentials() -> None:
    """They would be other ones each time, and the store's pod would know the first alone."""
    done = helm("template", "mlplatform", str(CHART))
    assert (
        "Give store.accessKeyId and store.secretAccessKey, or name a Secret of yours in store.existingSecret"
        in done.stderr
    )
    assert helm("template", "mlplatform", str(CHART), "--set", "store.existingSecret=ours").returncode == 0


def test_a_bucket_elsewhere_needs_no_store_here() -> None:
    keyless = ("store.accessKeyId=", "store.secretAccessKey=")
    found = rendered("store.embedded.enabled=false", "store.endpoint=https://minio.example.com", *keyless)
    assert set(objects("Deployment", found)) == {"mlplatform-system/mlplatform-operator"}
    (secret,) = objects("Secret", found).values()
    assert secret["stringData"] == {"AWS_REGION": "us-east-1", "AWS_ENDPOINT_URL": "https://minio.example.com"}
    assert secret["metadata"]["annotations"]["serving.kserve.io/s3-endpoint"] == "minio.example.com"
    assert secret["metadata"]["annotations"]["serving.kserve.io/s3-usehttps"] == "1"


def test_the_values_for_eks_need_no_credentials() -> None:
    done = helm("template", "mlplatform", str(CHART), "-f", str(CHART.parent / "values-eks.yaml"))
    assert done.returncode == 0, done.stderr
    found = tuple(document for document in yaml.safe_load_all(done.stdout) if document)
    (secret,) = objects("Secret", found).values()
    assert secret["stringData"] == {"AWS_REGION": "eu-central-1"}
    accounts = objects("ServiceAccount", without_tests(found))
    roles = [a["metadata"]["annotations"] for n, a in accounts.items() if "operator" not in n]
    role = {"eks.amazonaws.com/role-arn": "arn:aws:iam::123456789012:role/mlplatform-artifacts"}
    assert [role.items() <= found.items() for found in roles] == [True] * 2


def test_any_cluster_domain_will_do() -> None:
    """What is made of another one's name would answer nobody."""
    assert "cluster.local" not in json.dumps(rendered(*EVERYTHING))


def test_an_existing_secret_is_used_and_none_made() -> None:
    found = without_tests(rendered("store.existingSecret=ours"))
    assert objects("Secret", found) == {}
    assert Settings.from_env(environment(found)).store_secret == "ours"  # noqa: S105  a Secret's name
    accounts = [a for name, a in objects("ServiceAccount", found).items() if not name.endswith("-operator")]
    assert [a["secrets"] for a in accounts] == [[{"name": "ours"}]] * 2


def test_network_policies_let_models_reach_the_store() -> None:
    policy = objects("NetworkPolicy", rendered(*EVERYTHING))["mlplatform-system/mlplatform-store"]
    (rule,) = policy["spec"]["ingress"]
    (source,) = rule["from"]
    (expression,) = source["namespaceSelector"]["matchExpressions"]
    assert expression["values"] == ["team-a", "team-b", "mlplatform-system"]
    assert rule["ports"] == [{"port": "s3", "protocol": "TCP"}]


def test_the_alerts_are_the_file() -> None:
    (rule,) = objects("PrometheusRule", rendered(*EVERYTHING, "prometheusRule.labels.release=prometheus")).values()
    assert (rule["apiVersion"], rule["metadata"]["labels"]["release"]) == ("monitoring.coreos.com/v1", "prometheus")
    assert rule["spec"] == yaml.safe_load((REPOSITORY / "alerts/mlplatform.rules.yaml").read_text())


def test_the_alerts_link_to_their_runbooks_once_it_is_said_where_those_are() -> None:
    base = "https://git.example.com/docs/runbooks"
    (rule,) = objects(
        "PrometheusRule", rendered("prometheusRule.enabled=true", f"prometheusRule.runbookBase={base}/")
    ).values()
    for alert in (alert for group in rule["spec"]["groups"] for alert in group["rules"]):
        assert alert["annotations"].pop("runbook_url") == f"{base}/{alert['alert']}.md"
    assert rule["spec"] == yaml.safe_load((REPOSITORY / "alerts/mlplatform.rules.yaml").read_text())


def test_the_dashboards_are_the_files() -> None:
    (config,) = objects("ConfigMap", rendered("dashboards.enabled=true")).values()
    assert config["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert config["data"] == {"models.json": (REPOSITORY / "dashboards/models.json").read_text()}


def test_the_models_namespace_is_kept_when_metrics_are_scraped() -> None:
    (monitor,) = objects("ServiceMonitor", rendered(*EVERYTHING)).values()
    assert [endpoint["honorLabels"] for endpoint in monitor["spec"]["endpoints"]] == [True]


def test_alerts_know_the_operators_job() -> None:
    """The Prometheus Operator names a job after the Service; the rule about an operator that is down goes by that."""
    text = (REPOSITORY / "alerts/mlplatform.rules.yaml").read_text()
    (pattern,) = set(re.findall(r'up\{job=~"([^"]+)"\}', text))
    for release in ("mlplatform", "prod"):
        flags = ("--set", "store.existingSecret=ours", "--show-only", "templates/operator.yaml")
        services = objects("Service", tuple(yaml.safe_load_all(helm("template", release, str(CHART), *flags).stdout)))
        assert [re.fullmatch(pattern, s["metadata"]["name"]) is not None for s in services.values()] == [True]


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    """A chart that has ours as a dependency, on a condition and under an alias."""
    ours = {"name": "mlplatform", "version": "0.1.0", "alias": "ml", "condition": "ml.enabled"}
    chart = {"apiVersion": "v2", "name": "parent", "version": "1.0.0", "dependencies": [ours]}
    (tmp_path / "Chart.yaml").write_text(yaml.safe_dump(chart))
    shutil.copytree(CHART, tmp_path / "charts/mlplatform")
    values = {
        "global": {"imageRegistry": "mirror.example.com:5000", "imagePullSecrets": [{"name": "mirror"}], "team": "a"},
        "ml": {"enabled": True, "store": {"existingSecret": "ours"}},
    }
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(values))
    return tmp_path


def test_it_is_a_dependency_of_another_chart(parent: Path) -> None:
    """With the parent's condition and globals, and with names that alerts know under any alias."""
    done = helm("template", "prod", str(parent), "-n", "system", "-f", str(parent / "values.yaml"))
    assert done.returncode == 0, done.stderr
    found = tuple(document for document in yaml.safe_load_all(done.stdout) if document)
    assert set(objects("Deployment", found)) == {"system/prod-mlplatform-operator", "system/prod-mlplatform-store"}
    own = {image for image in script("images").images(found) if "/mlplatform/" in image}
    assert {image.rpartition("/")[0] for image in own} == {"mirror.example.com:5000/mlplatform"}
    assert len(own) == 4
    accounts = objects("ServiceAccount", found).values()
    assert [account["imagePullSecrets"] for account in accounts] == [[{"name": "mirror"}]] * 4


def test_as_a_dependency_it_can_be_left_out(parent: Path) -> None:
    done = helm("template", "prod", str(parent), "--set", "ml.enabled=false")
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


@pytest.mark.parametrize(
    ("registry", "mirrored"),
    [
        ("docker.io/mlplatform", "m.example/mlplatform/jobs"),
        ("localhost:5000", "m.example/jobs"),
        ("team/mlplatform", "m.example/team/mlplatform/jobs"),
    ],
)
def test_a_registry_for_all_charts_takes_the_place_of_the_host(registry: str, mirrored: str) -> None:
    found = rendered(f"images.registry={registry}", "global.imageRegistry=m.example", "images.tag=v1")
    assert Settings.from_env(environment(found)).jobs_image == f"{mirrored}:v1"


REJECTED = [
    ("global.imageRegistry=m example", "/global/imageRegistry"),
    ("enabled=perhaps", "/enabled"),
    ("foo=1", "additional properties 'foo' not allowed"),
    ("images.operater=x", "additional properties 'operater' not allowed"),
    ("images.pullPolicy=Sometimes", "/images/pullPolicy"),
    ("modelNamespaces={}", "/modelNamespaces"),
    ("modelNamespaces={Team_A}", "/modelNamespaces"),
    ("gateway.create=false", "/gateway/name"),
    ("gateway.apiVersion=networking.istio.io/v2", "/gateway/apiVersion"),
    ("gateway.scheme=HTTPS", "/gateway/scheme"),
    ("gateway.port=65536", "/gateway/port"),
    ("gateway.hosts={*}", "/gateway/hosts/0"),
    ("gateway.hosts={team-a/credit}", "/gateway/hosts/0"),
    ("gateway.hosts={https://credit.example.com}", "/gateway/hosts/0"),
    ("gateway.hosts={10.0.0.1}", "/gateway/hosts/0"),
    ("store.artifactRoot=/var/lib", "/store/artifactRoot"),
    ("store.endpoint=minio:9000", "/store/endpoint"),
    ("store.accessKeyId=half", "/store/secretAccessKey"),
    ("store.embedded.buckets={}", "/store/embedded/buckets"),
    ("operator.resources.limits.memory=lots", "/operator/resources/limits/memory"),
    ("serviceMonitor.enabled=perhaps", "/serviceMonitor/enabled"),
    ("prometheusRule.runbookBase=docs/runbooks", "/prometheusRule/runbookBase"),
    ("dashboards.labels=grafana", "/dashboards/labels"),
]


MALFORMED = [
    ("gateway.domain=models..local", "/gateway/domain", "an empty label"),
    ("gateway.domain=models_local", "/gateway/domain", "no character of a host name"),
    ("gateway.domain=-models.local", "/gateway/domain", "a label that begins with a hyphen"),
    ("gateway.domain=203.0.113.7", "/gateway/domain", "an address is no domain: no name is below it"),
    ("gateway.name=mlplatform", "/gateway/name", "without its namespace"),
    ("gateway.tlsSecret=Models_TLS", "/gateway/tlsSecret", "no name of a Secret"),
    ("gateway.selector.istio=a b", "/gateway/selector/istio", "no value of a label"),
    ("proxy.http=proxy.example.com:3128", "/proxy/http", "no scheme"),
    ("proxy.https=http://proxy.example.com:312800", "/proxy/https", "no port"),
    ("proxy.https=http://proxy example.com", "/proxy/https", "no host"),
    (r"proxy.noProxy=10.0.0.0/8\,10.96.0.0/33", "/proxy/noProxy", "no prefix of IPv4"),
    ("proxy.noProxy=10.0.0.300", "/proxy/noProxy", "no address"),
    ("proxy.noProxy=fd00::/129", "/proxy/noProxy", "no prefix of IPv6"),
    (
        r"proxy.noProxy=a.example.com\, b.example.com",
        "/proxy/noProxy",
        "a blank, which some programs take for a part of the name",
    ),
    ("proxy.noProxy=http://a.example.com", "/proxy/noProxy", "a URL"),
    ("trust.configMap=Company CA", "/trust/configMap", "no name of a ConfigMap"),
    ("trust.key=certs/ca.crt", "/trust/key", "a path"),
    ("trust.key=", "/trust/key", "no key"),
    ("store.endpoint=https://minio.example.com:90000", "/store/endpoint", "no port"),
    ("store.artifactRoot=s3://My_Bucket/x", "/store/artifactRoot", "no name of a bucket"),
    ("store.existingSecret=my secret", "/store/existingSecret", "no name of a Secret"),
    ("images.registry=https://registry.example.com", "/images/registry", "a URL"),
    ("images.tag=v1 beta", "/images/tag", "no tag"),
    ("images.jobs=Registry/Jobs:1", "/images/jobs", "a path has no capitals"),
    ("images.jobs=registry.example.com/jobs@sha256:0123", "/images/jobs", "a digest that was cut off"),
    ("images.pullSecrets={my secret}", "/images/pullSecrets/0", "no name of a Secret"),
    ("scheduling.jobs.nodeSelector.pool=a b", "/scheduling/jobs/nodeSelector/pool", "no value of a label"),
    ("scheduling.serving.nodeSelector.a b=c", "invalid propertyName 'a b'", "no key of a label"),
    ("scheduling.jobs.tolerations[0].effect=Never", "/scheduling/jobs/tolerations/0/effect", "no effect of a taint"),
    ("scheduling.serving.tolerations[0].oprator=Exists", "additional properties 'oprator' not allowed", "a slip"),
    ("operator.tolerations[0].operator=Equals", "/operator/tolerations/0/operator", "no operator of a toleration"),
    ("scheduling.jobs.gpuResource=gpu", "/scheduling/jobs/gpuResource", "an extended resource has a domain"),
    ("scheduling.jobs.priorityClassName=High!", "/scheduling/jobs/priorityClassName", "no name of a PriorityClass"),
]


@pytest.mark.parametrize(("value", "message", "reason"), MALFORMED)
def test_what_is_no_such_thing_is_refused(value: str, message: str, reason: str) -> None:
    """A domain, a CIDR, a proxy, an image or a label that is none would fail each model, and each in another way."""
    done = helm("template", "x", str(CHART), "--set", value)
    assert done.returncode != 0, reason
    assert message in done.stderr, reason


def test_what_is_well_formed_is_taken() -> None:
    """As people write it."""
    digest = "sha256:" + "0a" * 32
    found = rendered(
        "gateway.domain=ml.example.com", "gateway.name=istio-system/shared.gateway", "gateway.tlsSecret=models.tls",
        "proxy.http=http://user:secret@proxy.example.com:3128/", "proxy.https=http://[fd00::7]:3128",
        r"proxy.noProxy=minio\,.corp.example.com\,*.x.org:443\,10.0.0.0/8\,10.1.2.3:80\,fd00::/8\,::1\,[::1]:80",
        "trust.configMap=company.ca", "trust.key=ca-bundle.crt", "store.embedded.enabled=false",
        "store.endpoint=http://minio.store.svc:9000", "store.artifactRoot=s3://my-bucket.eu/models/prod",
        "images.registry=registry.example.com:5000/team/ml_platform", "images.tag=v0.1.0-rc.1",
        f"images.jobs=registry.example.com/jobs:v1@{digest}", f"images.serving=[fd00::1]:5000/serving@{digest}",
        "images.pullSecrets={registry.example}", "scheduling.jobs.nodeSelector.pool=gpu", "scheduling.jobs.tolerations[0].operator=Exists",
        r"scheduling.serving.nodeSelector.node\.kubernetes\.io/instance-type=m5.large", r"scheduling.serving.tolerations[0].key=nvidia\.com/gpu",
        "scheduling.jobs.gpuResource=nvidia.com/mig-1g.5gb", "scheduling.jobs.priorityClassName=system-node-critical",
    )  # fmt: skip
    assert environment(found)["MLPLATFORM_NO_PROXY"].count(",") == 7


@pytest.mark.parametrize(("value", "message"), REJECTED)
def test_bad_values_are_refused_with_their_path(value: str, message: str) -> None:
    done = helm("template", "x", str(CHART), "--set", value)
    assert done.returncode != 0
    assert message in done.stderr


def leaves(value: Any, path: str = "") -> Iterator[str]:
    """Dotted paths of the values; an empty map or a list is a leaf."""
    if isinstance(value, dict) and value and not path.endswith((".resources", ".selector", ".labels")):
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}" if path else key)
    else:
        yield path


def test_every_value_is_in_the_readme() -> None:
    documented = set(re.findall(r"`([A-Za-z.]+)`", (CHART / "README.md").read_text()))
    assert set(leaves(yaml.safe_load((CHART / "values.yaml").read_text()))) - documented == set()


def test_every_value_is_in_the_schema() -> None:
    """Strict at every level that the chart itself reads, so a typo in a value is never ignored."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert set(schema["required"]) == set(values)
    for path in leaves(values):
        node = schema
        for part in path.split("."):
            assert node is schema["properties"]["global"] or node["additionalProperties"] is False, path
            node = node["properties"][part]
            if "$ref" in node:
                node = schema["definitions"][node["$ref"].removeprefix("#/definitions/")]


KUSTOMIZE_ALONE = {("Namespace", "", "mlplatform-system")}


@pytest.mark.parametrize(
    ("overlay", "values"),
    [
        ("kind", ("kserve.deploymentMode=RawDeployment",)),
        ("eks", ("store.embedded.enabled=false", "store.region=eu-central-1", "store.artifactRoot=s3://example-mlplatform-artifacts",
                 "store.accessKeyId=", "store.secretAccessKey=", "images.registry=123456789012.dkr.ecr.eu-central-1.amazonaws.com/mlplatform",
                 r"serviceAccounts.annotations.eks\.amazonaws\.com/role-arn=arn:aws:iam::123456789012:role/mlplatform-artifacts")),
    ],
    ids=["kind", "eks"],
)  # fmt: skip
def test_kustomize_offers_the_same(overlay: str, values: tuple[str, ...], tmp_path: Path) -> None:
    """Less the test and what only Helm reads, with the namespace, and with credentials that the user gave."""
    shutil.copytree(REPOSITORY / "manifests", tmp_path / "manifests")
    (tmp_path / "manifests/overlays/kind/store.env").write_text("AWS_ACCESS_KEY_ID=a\nAWS_SECRET_ACCESS_KEY=b\n")
    command = [binary("kubectl"), "kustomize", tmp_path / "manifests/overlays" / overlay]
    built = subprocess.run(command, capture_output=True, text=True, check=True)
    by_kustomize = {identity(o): o for o in yaml.safe_load_all(built.stdout)}
    by_helm = {identity(o): o for o in without_tests(rendered(*values))}
    if overlay == "kind":  # Where no credentials are given, no checksum of them is on the store's pod.
        existing = rendered(*values, "store.existingSecret=mlplatform-store")
        by_helm |= {identity(o): o for o in without_tests(existing)}
    assert by_kustomize.keys() - KUSTOMIZE_ALONE == by_helm.keys()
    for key in by_kustomize.keys() & by_helm.keys():
        assert content(by_kustomize[key]) == content(by_helm[key]), key


def identity(obj: dict[str, Any]) -> tuple[str, str, str]:
    return obj["kind"], obj["metadata"].get("namespace", ""), obj["metadata"]["name"]


def content(obj: dict[str, Any]) -> dict[str, Any]:
    """The object less Helm's own labels, the identity, and the values of a Secret."""
    kept: dict[str, Any] = script("generate").without_helm(json.loads(json.dumps(obj)))
    data = {**kept.pop("data", {}), **kept.pop("stringData", {})}
    labels = {k: v for k, v in kept["metadata"].get("labels", {}).items() if not k.startswith("app.kubernetes.io/")}
    if kept["kind"] == "Deployment":
        for container in kept["spec"]["template"]["spec"]["containers"]:
            container["env"] = sorted(container["env"], key=lambda entry: str(entry["name"]))
    return {
        **{k: v for k, v in kept.items() if k != "metadata"},
        "keys": sorted(data),
        "annotations": kept["metadata"].get("annotations", {}),
        "labels": labels,
    }
