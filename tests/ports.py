"""Ports for the servers that tests start. Called by whatever starts one."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
from collections.abc import Iterator
from typing import Final

PORTS: Final = range(10_000, 20_000)
"""None of those that the system gives to whoever connects: a connection might take one before the server has it."""

_start = os.getpid() * 7919 % len(PORTS)  # Tests run in several processes, whose numbers are near each other.
_order: Iterator[int] = itertools.cycle([*PORTS[_start:], *PORTS[:_start]])


def free_port() -> int:
    """A TCP port of the loopback that nobody has; a process is given each once.

    Raises:
        AssertionError: All are taken.
    """
    for port in itertools.islice(_order, len(PORTS)):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError(f"no free port from {PORTS.start} to {PORTS.stop}")
