"""Fixtures that several folders of tests share; pytest loads it before all of them."""

from __future__ import annotations

import pytest

pytest_plugins = ["apiserver_fixture"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Golden files hold whole results; a person reads the difference before committing it."""
    parser.addoption("--update-golden", action="store_true", help="write tests/golden/ anew from what comes out now")
