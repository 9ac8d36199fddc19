"""What the tests of alerts/ and dashboards/ share: promtool, and what the operator exports.

Called by tests/unit/test_alerts.py and tests/unit/test_dashboards.py.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from apiserver_fixture import binary
from prometheus_client.metrics import MetricWrapperBase

from mlplatform import metrics

_SAMPLES: Final = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
TARGET_LABELS: Final = {"job", "instance", "namespace", "pod"}
"""What Prometheus adds to every sample of a target."""

_WORDS: Final = {"and", "or", "unless", "bool", "offset", "inf", "nan"}
_NO_METRICS: Final = re.compile(
    r"""
    "[^"]*" | '[^']*'                                                     # strings
    | \[[^\]]*\]                                                          # ranges
    | \b(?:by|without|on|ignoring|group_left|group_right) \s* \([^)]*\)   # lists of labels
    """,
    re.VERBOSE,
)
_FUNCTION: Final = re.compile(r"\b\w+\s*\(")
_SELECTOR: Final = re.compile(r"([a-zA-Z_:][\w:]*)?\s*(?:\{([^}]*)\})?")


def exported() -> dict[str, set[str]]:
    """The labels of every sample that the operator exports, by the sample's name."""
    found: dict[str, set[str]] = {}
    for metric in vars(metrics).values():
        if isinstance(metric, MetricWrapperBase):
            (family,) = metric.describe()
            labels = set(metric._labelnames)  # noqa: SLF001  a metric without samples tells them nowhere else
            for suffix in _SAMPLES[family.type]:
                found[family.name + suffix] = labels | ({"le"} if suffix == "_bucket" else set())
    for family in metrics.MODELS.describe():
        found[family.name] = set(family._labelnames)  # noqa: SLF001  likewise
    return found


def selectors(expression: str) -> Iterator[tuple[str, set[str]]]:
    """Name and label names of each selector in a PromQL expression."""
    for name, matchers in _SELECTOR.findall(_FUNCTION.sub("(", _NO_METRICS.sub(" ", expression))):
        if matchers or (name and name not in _WORDS):
            yield name, set(re.findall(r"(\w+)\s*[=!]", matchers))


def unknown(expression: str) -> list[str]:
    """What an expression selects that does not exist: metrics, and labels of metrics."""
    known = {**exported(), "up": TARGET_LABELS}
    return [
        f"{name}{sorted(labels)}"
        for name, labels in selectors(expression)
        if name not in known or not labels <= known[name] | TARGET_LABELS
    ]


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs promtool; where there is none, the test is skipped and says why."""
    try:
        program = binary("promtool")
    except RuntimeError as error:
        pytest.skip(str(error))
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
