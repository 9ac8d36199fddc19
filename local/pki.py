"""Keys, certificates and kubeconfigs of the cluster.

Called by `cluster.py`. The openssl program does the cryptography, because the standard
library makes no certificates. Everything is readable by root alone and goes with `down`.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from local.layout import API_URL, CLUSTER_DOMAIN, NODE_IP, NODE_NAME, SERVICE_IP, Layout
from local.steps import Shell

DAYS: Final = "3650"
FRONT_PROXY: Final = "front-proxy-client"
AUTHORITIES: Final = ("ca", "addons-ca")


@dataclass(frozen=True, slots=True)
class Certificate:
    """One certificate to issue.

    Attributes:
        name: File name without suffix.
        subject: openssl's form, e.g. ``/O=system:masters/CN=admin``.
        names: Subject alternative names, e.g. ``IP:10.0.0.1``; empty for clients.
        authority: Who signs it: ``ca``, the cluster's, or ``addons-ca``, which only webhooks' callers trust.
    """

    name: str
    subject: str
    names: tuple[str, ...] = ()
    authority: str = "ca"


def _webhook(name: str, service: str) -> Certificate:
    return Certificate(
        f"addons-{name}", f"/CN={service}", (f"DNS:{service}", f"DNS:{service}.{CLUSTER_DOMAIN}"), "addons-ca"
    )


CERTIFICATES: Final = (
    Certificate(
        "apiserver",
        "/CN=kube-apiserver",
        (
            f"IP:{NODE_IP}",
            f"IP:{SERVICE_IP}",
            "IP:127.0.0.1",
            "DNS:kubernetes",
            "DNS:kubernetes.default",
            "DNS:kubernetes.default.svc",
            f"DNS:kubernetes.default.svc.{CLUSTER_DOMAIN}",
            "DNS:localhost",
        ),
    ),
    Certificate("apiserver-kubelet", "/O=system:masters/CN=kube-apiserver-kubelet-client"),
    Certificate("kubelet-server", f"/O=system:nodes/CN=system:node:{NODE_NAME}", (f"IP:{NODE_IP}", f"DNS:{NODE_NAME}")),
    Certificate("kubelet", f"/O=system:nodes/CN=system:node:{NODE_NAME}"),
    Certificate("controller-manager", "/CN=system:kube-controller-manager"),
    Certificate("scheduler", "/CN=system:kube-scheduler"),
    Certificate("proxy", "/CN=system:kube-proxy"),
    Certificate("admin", "/O=system:masters/CN=mlplatform-admin"),
    # The API server, as it calls aggregated API servers (metrics-server).
    Certificate("front-proxy", f"/CN={FRONT_PROXY}"),
    _webhook("kserve", "kserve-webhook-server-service.kserve.svc"),
    _webhook("training-operator", "training-operator.kubeflow.svc"),
)
WITH_KUBECONFIG: Final = ("kubelet", "controller-manager", "scheduler", "proxy")


def extensions(certificate: Certificate) -> str:
    """The extension file for openssl."""
    usage = "serverAuth" if certificate.names else "clientAuth"
    lines = ["basicConstraints=critical,CA:FALSE", "keyUsage=critical,digitalSignature", f"extendedKeyUsage={usage}"]
    if certificate.names:
        lines.append("subjectAltName=" + ",".join(certificate.names))
    return "\n".join(lines) + "\n"


def kubeconfig(certificate_authority: bytes, certificate: bytes, key: bytes) -> str:
    """A kubeconfig (JSON is YAML) with everything inside, so that it can be copied."""
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {
                    "name": "mlplatform-local",
                    "cluster": {"server": API_URL, "certificate-authority-data": _encode(certificate_authority)},
                }
            ],
            "users": [
                {
                    "name": "mlplatform-local",
                    "user": {"client-certificate-data": _encode(certificate), "client-key-data": _encode(key)},
                }
            ],
            "contexts": [
                {"name": "mlplatform-local", "context": {"cluster": "mlplatform-local", "user": "mlplatform-local"}}
            ],
            "current-context": "mlplatform-local",
        },
        indent=2,
    )


def _encode(content: bytes) -> str:
    return base64.b64encode(content).decode()


def issue(shell: Shell, layout: Layout) -> str:
    """Makes what is missing; a half-made set is made anew. Returns a note."""
    if layout.kubeconfig.exists():
        return "kept"
    folder = layout.pki
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    for name in AUTHORITIES:
        authority = folder / name
        _key(shell, authority.with_suffix(".key"))
        request = ["openssl", "req", "-x509", "-new", "-subj", f"/CN=mlplatform-local-{name}", "-days", DAYS]
        usage = ["-addext", "keyUsage=critical,keyCertSign,digitalSignature"]
        shell.run([*request, *usage, "-key", f"{authority}.key", "-out", f"{authority}.crt"])
    _key(shell, folder / "service-account.key")
    shell.run(
        ["openssl", "pkey", "-in", folder / "service-account.key", "-pubout", "-out", folder / "service-account.pub"]
    )
    for certificate in CERTIFICATES:
        _certificate(shell, folder, certificate)
    for name in WITH_KUBECONFIG:
        _write_kubeconfig(folder, name, folder / f"{name}.kubeconfig")
    _write_kubeconfig(folder, "admin", layout.kubeconfig)
    return f"{len(CERTIFICATES)} certificates"


def _key(shell: Shell, path: Path) -> None:
    shell.run(["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", path])
    path.chmod(0o600)


def _certificate(shell: Shell, folder: Path, certificate: Certificate) -> None:
    stem = folder / certificate.name
    _key(shell, Path(f"{stem}.key"))
    shell.run(["openssl", "req", "-new", "-key", f"{stem}.key", "-subj", certificate.subject, "-out", f"{stem}.csr"])
    Path(f"{stem}.ext").write_text(extensions(certificate))
    authority = folder / certificate.authority
    signing = ["openssl", "x509", "-req", "-CA", f"{authority}.crt", "-CAkey", f"{authority}.key", "-CAcreateserial"]
    shell.run([*signing, "-days", DAYS, "-extfile", f"{stem}.ext", "-in", f"{stem}.csr", "-out", f"{stem}.crt"])


def _write_kubeconfig(folder: Path, name: str, target: Path) -> None:
    text = kubeconfig(*((folder / file).read_bytes() for file in ("ca.crt", f"{name}.crt", f"{name}.key")))
    partial = target.with_name(f".{target.name}.partial")
    partial.touch(mode=0o600)
    partial.write_text(text)
    partial.replace(target)
