"""A small real model and its archive, for the tests of packaging, the handler and the server.

Used by test_package.py, test_handlers_tabular.py, test_handlers_server.py and test_standalone_serve.py.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from mljobs import package
from mljobs.tasks.tabular import TabularTask
from mljobs.tasks.tabular_model import Preprocessor, TabularModel

MODEL = "adult-income"
VERSION = "adult-income-1a2b3c4d"

CONFIG: dict[str, Any] = {
    "format": 1,
    "features": [
        {"name": "age", "kind": "numeric", "edges": [17.0, 28.0, 37.0, 48.0, 90.0]},
        {"name": "job", "kind": "categorical", "categories": ["clerk", "cook", "pilot"]},
        {"name": "hours", "kind": "numeric", "edges": [1.0, 40.0, 99.0]},
    ],
    "label": {"name": "income", "classes": ["<=50K", ">50K"]},
    "model": {"hidden": [8], "dropout": 0.0, "embedding": 4},
}

RECORD = {"age": 39, "job": "pilot", "hours": 40}


def model(seed: int = 7) -> TabularModel:
    """The model with random weights."""
    torch.manual_seed(seed)
    return TabularModel(CONFIG).eval()


def torchscript(source: TabularModel) -> bytes:
    """The model as a TorchScript file."""
    example = Preprocessor(CONFIG).transform([RECORD, RECORD])
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(source, example), buffer)
    return buffer.getvalue()


def archive(folder: Path, version: str = VERSION) -> Path:
    """KServe's layout of one model below `folder`; returns the archive."""
    work = folder / "work"
    work.mkdir(parents=True)
    store = folder / "model-store"
    store.mkdir()
    (folder / "config").mkdir()
    (folder / "config" / "config.properties").write_text(package.serving_config(MODEL))
    parts = package.Parts(torchscript(model()), CONFIG, RECORD, TabularTask.modules)
    return package.build(work, MODEL, version, parts).rename(store / f"{MODEL}.mar")


def probability(record: dict[str, Any] | list[Any]) -> float:
    """The model's probability of the positive class, without any of the serving code."""
    with torch.inference_mode():
        return float(torch.sigmoid(model()(*Preprocessor(CONFIG).transform([record]))).item())
