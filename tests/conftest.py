"""Fixtures that several folders of tests share; pytest loads it before all of them."""

from __future__ import annotations

pytest_plugins = ["apiserver_fixture"]
