"""Fetches models as KServe's storage initializer does, with KServe's own library.

Called by the init container that KServe puts before a predictor: its arguments are pairs of a source's URI and
the folder that its content goes to. What it says last becomes the pod's termination message.
"""  # noqa: INP001 - a program that stands alone in its image

import sys
from collections.abc import Sequence

from kserve_storage import Storage
from kserve_storage.logging import configure_logging


def fetch(words: Sequence[str]) -> str:
    """Fetches every source; returns why it could not, or nothing."""
    if not words or len(words) % 2:
        return f"expected pairs of a source's URI and a folder, got {len(words)} arguments"
    for source, folder in zip(words[::2], words[1::2], strict=True):
        try:
            Storage.download(source, folder)
        except Exception as error:  # noqa: BLE001 - each kind of storage raises its own; a person reads one line
            return f"{source} could not be fetched into {folder}: {type(error).__name__}: {error}"
    return ""


if __name__ == "__main__":
    configure_logging()
    sys.exit(fetch(sys.argv[1:]) or None)
