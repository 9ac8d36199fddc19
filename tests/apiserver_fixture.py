"""A real etcd and kube-apiserver for tests: schemas, pruning, server-side apply, watches, RBAC. No root, no kubelet.

Loaded by tests/conftest.py, so every test may ask for `api_server`. The binaries come from ``$KUBEBUILDER_ASSETS``
where that is set (envtest; what it lacks, such as helm, from PATH), otherwise from the folder that
``python3 -m local binaries`` builds once and prints. One of them from elsewhere, as with envtest:
``$TEST_ASSET_KUBE_APISERVER`` names the program of another Kubernetes, such as the oldest that is supported.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import shutil
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from ports import free_port

REPOSITORY = Path(__file__).parents[1]
CRD_FOLDER = REPOSITORY / "manifests/crd"
START_TIMEOUT = 60.0
"""Seconds; a cold start takes 2 s, under load more."""
BUILD_TIMEOUT = 1800.0
"""Seconds; a build from source takes nine minutes on two idle cores."""
COMMAND_TIMEOUT = 120.0
"""Seconds for one kubectl or helm command, all of which take one or two."""
ATTEMPTS = 3
"""A free port can be taken between asking for it and using it."""


@cache
def binary(name: str) -> Path:
    """Path of ``kube-apiserver``, ``etcd``, ``kubectl`` or ``helm``.

    Raises:
        RuntimeError: It is nowhere; the message has what the build printed.
    """
    if alone := os.environ.get(f"TEST_ASSET_{name.upper().replace('-', '_')}"):
        return Path(alone)
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if assets and (Path(assets) / name).exists():
        return Path(assets) / name
    found = shutil.which(name)
    if assets and found:
        return Path(found)
    built = subprocess.run(
        ["python3", "-m", "local", "binaries"],
        cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=BUILD_TIMEOUT,
    )  # fmt: skip
    folder = Path(built.stdout.strip().rpartition("\n")[2])
    if built.returncode == 0 and (folder / name).exists():
        return folder / name
    if found:
        return Path(found)
    raise RuntimeError(
        f"no {name}: set KUBEBUILDER_ASSETS to a folder that has it or put it on PATH, or see why "
        f"`python3 -m local binaries` ended with {built.returncode}:\n{built.stdout[-2000:]}{built.stderr[-2000:]}"
    )


@dataclass(frozen=True)
class ApiServer:
    """A running API server, reached as a member of system:masters.

    Attributes:
        url: ``https://127.0.0.1:<port>``.
        folder: Its certificates, logs and data.
        kubeconfig: File with its address, CA and token.
    """

    url: str
    folder: Path
    kubeconfig: Path

    def run(self, *arguments: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
        """Runs ``kubectl <arguments>`` with `given` on its standard input and returns whatever came of it."""
        return subprocess.run(
            [binary("kubectl"), "--kubeconfig", self.kubeconfig, "--cache-dir", self.folder / "discovery", *arguments],
            input=given,
            capture_output=True,
            text=True,
            check=False,
            timeout=COMMAND_TIMEOUT,
        )

    def kubectl(self, *arguments: str, given: str | None = None) -> str:
        """Like `run`, for commands that must succeed; returns standard output.

        Raises:
            AssertionError: It failed; the message has its standard error.
        """
        done = self.run(*arguments, given=given)
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}:\n{done.stderr}{done.stdout}"
        return done.stdout

    def install_crds(self, *paths: Path) -> None:
        """Applies CRDs, strictly validated, and waits until the server serves and publishes them.

        kubectl reads in the published OpenAPI document whether the server will validate a kind; that document follows
        an installation by a second or two.
        """
        names: list[str] = []
        for path in paths:
            apply = ("apply", "--server-side", "--force-conflicts", "--validate=strict", "-f", str(path), "-o", "name")
            names += self.kubectl(*apply).split()
        self.kubectl("wait", "--for=condition=Established", "--timeout=30s", *names)
        wanted = [name.partition("/")[2].split(".", 1) for name in names]
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            document = self.kubectl("get", "--raw", "/openapi/v2")
            missing = [plural for plural, group in wanted if not re.search(f'"/apis/{group}/[^"]+/{plural}"', document)]
            if not missing:
                return
            assert time.monotonic() < deadline, f"not in the OpenAPI document after {START_TIMEOUT} s: {missing}"
            time.sleep(0.2)  # the document offers no way to wait for it


@contextlib.contextmanager
def child(command: Sequence[str | Path], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends with the block, and with this process even if that is killed."""
    guard = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
    with log.open("wb") as out:
        process = subprocess.Popen([*guard, *command], stdout=out, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def answers(url: str, authority: Path | None = None, token: str = "") -> bool:
    """Whether `url` says 200."""
    context = ssl.create_default_context(cafile=str(authority)) if authority else None
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})  # noqa: S310  a loopback address
    try:
        with urllib.request.urlopen(request, timeout=2, context=context) as response:  # noqa: S310  our own server on loopback
            return int(response.status) == 200
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


@contextlib.contextmanager
def started(folder: Path) -> Iterator[ApiServer]:
    """An etcd and a kube-apiserver, each attempt in a folder of its own in `folder`.

    Raises:
        RuntimeError: They did not come up; the message has the end of their logs.
    """
    with contextlib.ExitStack() as stack:
        for attempt in range(1, ATTEMPTS + 1):
            own = folder / str(attempt)
            own.mkdir()
            try:
                server = stack.enter_context(_started(own))
                break
            except RuntimeError as error:
                if attempt == ATTEMPTS or "address already in use" not in str(error):
                    raise
        yield server


@contextlib.contextmanager
def _started(folder: Path) -> Iterator[ApiServer]:
    etcd_url, port, token = f"http://127.0.0.1:{free_port()}", free_port(), base64.b16encode(os.urandom(16)).decode()
    certificates = folder / "certificates"
    key = folder / "service-account.key"
    subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
    (folder / "tokens.csv").write_text(f"{token},tests,tests,system:masters\n")
    etcd: list[str | Path] = [
        binary("etcd"), "--data-dir", folder / "etcd", "--unsafe-no-fsync",
        "--listen-client-urls", etcd_url, "--advertise-client-urls", etcd_url,
        "--listen-peer-urls", f"http://127.0.0.1:{free_port()}",
    ]  # fmt: skip
    server: list[str | Path] = [
        binary("kube-apiserver"), f"--etcd-servers={etcd_url}", f"--secure-port={port}",
        "--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", f"--cert-dir={certificates}",
        "--service-cluster-ip-range=10.96.0.0/16,fd00:10:96::/112", "--allow-privileged=true", "--authorization-mode=RBAC",
        f"--token-auth-file={folder / 'tokens.csv'}", f"--service-account-key-file={key}",
        f"--service-account-signing-key-file={key}", "--service-account-issuer=https://kubernetes.default.svc",
        # No controller manager runs here, so no namespace would ever get the ServiceAccount that pods ask for.
        "--disable-admission-plugins=ServiceAccount",
    ]  # fmt: skip
    url = f"https://127.0.0.1:{port}"
    with child(etcd, folder / "etcd.log") as store, child(server, folder / "kube-apiserver.log") as api:
        authority = certificates / "apiserver.crt"
        deadline = time.monotonic() + START_TIMEOUT
        while not (authority.exists() and answers(f"{url}/readyz", authority, token)):
            if store.poll() is not None or api.poll() is not None or time.monotonic() > deadline:
                logs = "\n".join((folder / name).read_text()[-1500:] for name in ("etcd.log", "kube-apiserver.log"))
                raise RuntimeError(f"the API server in {folder} did not become ready:\n{logs}")
            time.sleep(0.1)  # readyz offers no way to wait for it
        config = kubeconfig(url, authority, {"token": token})
        path = folder / "kubeconfig"
        path.write_text(yaml.safe_dump(config))
        path.chmod(0o600)
        yield ApiServer(url, folder, path)


def kubeconfig(url: str, authority: Path, user: dict[str, Any]) -> dict[str, Any]:
    """A kubeconfig's content for one user of one server."""
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "tests",
        "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": "tests"}}],
        "clusters": [{"name": "tests", "cluster": {"server": url, "certificate-authority": str(authority)}}],
        "users": [{"name": "tests", "user": user}],
    }


@pytest.fixture(scope="session")
def bare_api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """An API server with nothing installed; one a session (and a worker, under xdist)."""
    if sys.platform != "linux":
        pytest.skip("kube-apiserver and etcd run on Linux")
    with started(tmp_path_factory.mktemp("apiserver")) as server:
        yield server


@pytest.fixture(scope="session")
def api_server(bare_api_server: ApiServer) -> ApiServer:
    """The API server with this project's CRDs."""
    bare_api_server.install_crds(*sorted(CRD_FOLDER.glob("mlplatform.dev_*.yaml")))
    return bare_api_server


@pytest.fixture
def namespace(api_server: ApiServer) -> str:
    """A fresh namespace of the test's own; it goes with the server."""
    name = f"t{uuid.uuid4().hex[:12]}"
    api_server.kubectl("create", "namespace", name)
    return name
