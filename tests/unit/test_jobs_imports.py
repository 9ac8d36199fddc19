"""What a stage loads before its first line: nothing slow that it may not need."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass

import pytest
from jobs_kit import subprocess_environment

from mlplatform.contract import Stage

LOADED = "import json, sys, mljobs.{stage}; print(json.dumps(sorted(sys.modules)))"

ONNX = ("onnx", "onnxruntime", "onnxscript", "torch.onnx._internal.exporter")
S3 = ("botocore", "aiobotocore", "s3fs")
TABLES = ("pandas", "scipy", "sklearn", "fairlearn", "matplotlib")
SHARDS = ("torch.distributed.checkpoint", "torch.distributed.fsdp", "torch.distributed.tensor", "sympy")
SERVER = ("ts", "model_archiver")
COMPILER = ("torch._dynamo", "torch._inductor")


@dataclass(frozen=True, kw_only=True)
class Case:
    reason: str
    stage: Stage
    absent: tuple[str, ...]


CASES = [
    Case(stage=Stage.TRAIN, absent=(*S3, *ONNX, *SERVER, *COMPILER, *TABLES, *SHARDS),
         reason="what is wrong with the data is said before the shards are loaded"),
    Case(stage=Stage.AUDIT, absent=(*S3, *ONNX, *SERVER, *COMPILER, *SHARDS, "matplotlib"),
         reason="fairlearn takes pandas, SciPy and scikit-learn along, not its plots"),
    Case(stage=Stage.OPTIMIZE, absent=(*S3, *ONNX, *SERVER, *COMPILER, *TABLES, *SHARDS),
         reason="not every specification asks for an ONNX file"),
    Case(stage=Stage.PACKAGE, absent=(*S3, *ONNX, *COMPILER, *TABLES, *SHARDS, "model_archiver"),
         reason="nothing is scored, and the archiver is a process of its own"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.stage)
def test_a_stage_starts_without_what_it_may_not_need(case: Case) -> None:
    command = [sys.executable, "-c", LOADED.format(stage=case.stage)]
    done = subprocess.run(command, env=subprocess_environment({}), check=True, capture_output=True, text=True)
    loaded = json.loads(done.stdout)
    assert f"mljobs.{case.stage}" in loaded
    found = {name for name in case.absent for module in loaded if module == name or module.startswith(f"{name}.")}
    assert not found, case.reason
