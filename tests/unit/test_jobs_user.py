"""The stages run as a user that the cluster assigns: one without a name or a home, of group 0."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from jobs_kit import REPO, job_environment, people_spec, read_summary, subprocess_environment, write_people
from ports import free_port

from mlplatform.contract import Stage

AS_SOMEBODY = ["unshare", "--user", "--map-user=1000660000", "--map-group=0"]
"""In a user namespace, for which nobody has to be root."""


def image(folder: Path) -> dict[str, str]:
    """The variables of the jobs' image, with another folder in place of the pod's only writable one."""
    text = (REPO / "images/jobs/Dockerfile").read_text()
    found = dict(re.findall(r"^\s*(?:ENV )?([A-Z_]+)=(\S+)", text[text.index("ENV PATH") :], re.MULTILINE))
    return {name: value.replace("/tmp", str(folder)) for name, value in found.items() if "PATH" not in name}  # noqa: S108


@pytest.mark.skipif(
    subprocess.run([*AS_SOMEBODY, "true"], capture_output=True, check=False).returncode != 0,
    reason="user namespaces are not for everybody here",
)
def test_every_stage_runs_as_a_user_without_a_name(tmp_path: Path) -> None:
    home, artifacts, message = tmp_path / "home", tmp_path / "artifacts", tmp_path / "message"
    home.mkdir()
    nobody = "import os, pwd; assert os.getuid() == 1000660000 and not [p for p in pwd.getpwall() if p.pw_uid == os.getuid()]"
    subprocess.run([*AS_SOMEBODY, sys.executable, "-c", nobody], check=True)
    spec = people_spec(write_people(tmp_path / "data"), epochs=1)
    torchrun = ["-m", "torch.distributed.run", "--master-port", str(free_port()), "--nproc-per-node", "1"]
    for stage in Stage:
        environment = subprocess_environment(job_environment(spec, artifacts, stage, message) | image(home))
        launcher = torchrun if stage is Stage.TRAIN else []
        done = subprocess.run(
            [*AS_SOMEBODY, sys.executable, *launcher, "-m", f"mljobs.{stage}"],
            env=environment, cwd=home, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert read_summary(message).failure is None
