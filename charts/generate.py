"""Writes what is derived: the chart's copies of API, runtime, alerts and dashboards, and the kustomize files rendered from it.

Run by people after a change to manifests/crd, images/serving/servingruntime.yaml, alerts, dashboards or the
chart: ``make manifests``. tests/unit/test_chart.py fails while its output is not committed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).parents[1]
CHART = REPOSITORY / "charts/mlplatform"
NAMESPACE = "mlplatform-system"

COPIES = {
    "manifests/crd/mlplatform.dev_mlmodels.yaml": "charts/mlplatform/files/crd/mlplatform.dev_mlmodels.yaml",
    "manifests/crd/mlplatform.dev_modelversions.yaml": "charts/mlplatform/files/crd/mlplatform.dev_modelversions.yaml",
    "images/serving/servingruntime.yaml": "charts/mlplatform/files/servingruntime.yaml",
    "alerts/mlplatform.rules.yaml": "charts/mlplatform/files/mlplatform.rules.yaml",
    "dashboards/models.json": "charts/mlplatform/files/dashboards/models.json",
}
RENDERED = {
    "manifests/base/operator.yaml": ["templates/operator.yaml"],
    "manifests/base/rbac.yaml": ["templates/rbac.yaml"],
    "manifests/base/gateway.yaml": ["templates/gateway.yaml"],
    "manifests/base/model-namespace.yaml": ["templates/model-namespaces.yaml"],
    "manifests/overlays/kind/store.yaml": ["templates/store.yaml"],
}
HEADER = "# Rendered from the chart by charts/generate.py; change the chart and run it again.\n"


def template(helm: str, *arguments: str) -> list[dict[str, Any]]:
    """The objects of ``helm template`` for the release and namespace that the kustomize files are written for."""
    command = [helm, "template", "mlplatform", CHART, "--namespace", NAMESPACE, "--kube-version", "1.28"]
    # The credentials of the store are the user's.
    command += ["--set", "store.existingSecret=mlplatform-store", *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def without_helm(obj: dict[str, Any]) -> dict[str, Any]:
    """The object less what only Helm reads: its labels and annotations, on the object and on its pods."""
    for meta in (obj["metadata"], obj.get("spec", {}).get("template", {}).get("metadata", {})):
        for key in ("labels", "annotations"):
            kept = {k: v for k, v in meta.get(key, {}).items() if not k.startswith("helm.sh/")}
            kept.pop("app.kubernetes.io/managed-by", None)
            meta[key] = kept
            if not kept:
                del meta[key]
    return obj


def derived(helm: str) -> dict[Path, str]:
    """Every derived file with the text it must have."""
    texts = {REPOSITORY / target: (REPOSITORY / source).read_text() for source, target in COPIES.items()}
    for target, templates in RENDERED.items():
        shown = [flag for name in templates for flag in ("--show-only", name)]
        objects = [without_helm(o) for o in template(helm, *shown)]
        texts[REPOSITORY / target] = HEADER + yaml.safe_dump_all(objects, sort_keys=False, width=120)
    return texts


def main() -> int:
    """Writes the copies first, because the chart renders them."""
    helm = sys.argv[1] if len(sys.argv) > 1 else shutil.which("helm")
    if not helm:
        print("no helm on PATH: give its path, e.g. $(python3 -m local binaries)/helm", file=sys.stderr)
        return 2
    for source, target in COPIES.items():
        (REPOSITORY / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REPOSITORY / source, REPOSITORY / target)
    for path, text in derived(helm).items():
        if not path.exists() or path.read_text() != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            print("wrote", path.relative_to(REPOSITORY))
    return 0


if __name__ == "__main__":
    sys.exit(main())
