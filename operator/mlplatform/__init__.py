"""The operator: one Kubernetes resource from data to trusted production.

Imported by ``mlplatform.main`` (kopf) and by the ``kubectl mlmodel`` plugin; ``mlplatform.run`` is for notebooks and tests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from mlplatform.standalone.result import run as run


def __getattr__(name: str) -> Any:
    """Finds `run` when it is asked for: the jobs' image has none of what it needs."""
    if name != "run":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mlplatform.standalone.result import run  # noqa: PLC0415

    return run
