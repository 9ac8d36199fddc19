"""Fixtures that several folders of tests share; pytest loads it before all of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from standalone_kit import PACKAGES

pytest_plugins = ["apiserver_fixture"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Golden files hold whole results; a person reads the difference before committing it."""
    parser.addoption("--update-golden", action="store_true", help="write tests/golden/ anew from what comes out now")


@pytest.fixture(autouse=True)
def _no_terminal_of_somebody(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is drawn must not depend on where the tests run: under CI there is NO_COLOR, elsewhere a wide window."""
    for name in ("NO_COLOR", "FORCE_COLOR", "CLICOLOR", "TTY_COMPATIBLE", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


@pytest.fixture(scope="module")
def importable() -> Iterator[None]:
    """In the processes that a test starts, the project can be imported, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", PACKAGES)
        yield
