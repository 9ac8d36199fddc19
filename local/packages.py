"""Debian's packages: what is installed, and what is only unpacked.

Called by `cluster.py`, `binaries.py` and `images.py`. Build tools are installed.
Daemons (containerd, runc, CNI plugins, Prometheus) are never installed: their packages
are unpacked into the cache, so no service of theirs starts and a Docker or containerd that is
already on the machine stays as it is. The machine's apt configuration is read, not changed.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Final

from local import cache
from local.machine import CODENAME
from local.steps import Shell, StepError

RUNTIME: Final = (
    "ca-certificates",
    "conntrack",
    "iproute2",
    "iptables",
    "kmod",
    "mount",
    "openssl",
    "procps",
    "util-linux",
)
"""Programs that the node runs."""
IMAGE_TOOLS: Final = ("buildah", "mmdebstrap", "skopeo")
WHEEL_TOOLS: Final = ("python3-venv",)
UNPACKED: Final = ("containerd", "containernetworking-plugins", "runc")

NONINTERACTIVE: Final = {"DEBIAN_FRONTEND": "noninteractive"}
NETWORK_HINT: Final = "Check that apt can reach its mirror (`apt-get update`), then run it again."


def parse_installed(listing: str) -> set[str]:
    """Names that are installed, from lines of ``<package> <status>`` (dpkg-query's db:Status-Status)."""
    rows = (line.split() for line in listing.splitlines())
    return {row[0] for row in rows if len(row) == 2 and row[1] == "installed"}  # noqa: PLR2004 - name and status


def missing(shell: Shell, names: tuple[str, ...]) -> list[str]:
    """Those of ``names`` that are not installed, sorted."""
    listing = shell.run(
        ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n", *names], capture=True, check=False
    )
    return sorted(set(names) - parse_installed(listing))


def install(shell: Shell, names: tuple[str, ...]) -> str:
    """Installs what is missing; returns a note.

    Raises:
        StepError: apt could not.
    """
    wanted = missing(shell, names)
    if not wanted:
        return "all there"
    if os.geteuid() != 0:
        raise StepError(f"Debian packages are missing: {', '.join(wanted)}", "Run it as root, or install them.")
    try:
        shell.run(["dpkg", "--configure", "-a"], env=NONINTERACTIVE, must_finish=True)
        shell.run(["apt-get", "update"], env=NONINTERACTIVE, must_finish=True)
        shell.run(
            ["apt-get", "install", "-y", "--no-install-recommends", *wanted], env=NONINTERACTIVE, must_finish=True
        )
    except StepError as error:
        raise StepError(f"apt could not install {', '.join(wanted)}: {error.cause}", NETWORK_HINT) from error
    return f"installed {', '.join(wanted)}"


def extract(shell: Shell, names: tuple[str, ...], folder: Path) -> list[str]:
    """Fetches packages and unpacks them into ``folder``, which stands for ``/``; returns their files' names.

    Raises:
        StepError: apt could not.
    """
    debs = folder / "debs"
    debs.mkdir()
    if shell.run(["apt-get", "--print-uris", "download", *names], capture=True, check=False) == "":
        shell.run(["apt-get", "update"], env=NONINTERACTIVE, must_finish=True)
    shell.run(["apt-get", "download", *names], cwd=debs)
    found = sorted(debs.glob("*.deb"))
    for deb in found:
        shell.run(["dpkg-deb", "--extract", deb, folder])
    shutil.rmtree(debs)
    return [deb.name for deb in found]


def unpacked_key() -> str:
    """The cache key of `unpack`."""
    return cache.key(CODENAME, UNPACKED)


def unpacked(root: Path) -> Path:
    """Where `unpack` puts them."""
    return root / "debs" / unpacked_key()


def unpack(shell: Shell, root: Path) -> tuple[Path, bool]:
    """Debian's containerd, runc and CNI plugins, unpacked in the cache.

    Returns:
        The folder that stands for ``/``, and whether it had to be made.
    """

    def build(folder: Path) -> None:
        names = extract(shell, UNPACKED, folder)
        (folder / "packages.txt").write_text("".join(f"{name}\n" for name in names))

    return cache.entry(root, "debs", unpacked_key(), build)


def binary_sources(configuration: str) -> list[tuple[str, str, str]]:
    """The Debian mirrors that apt uses.

    Args:
        configuration: All ``*.list`` and ``*.sources`` files, joined by blank lines.

    Returns:
        ``(uri, suite, options)`` of every ``deb`` source of this release with component ``main``;
        options like ``[signed-by=…]`` or empty.
    """
    found: list[tuple[str, str, str]] = []
    for line in configuration.splitlines():
        if one := re.match(r"deb\s+(\[[^\]]*\]\s+)?(\S+)\s+(\S+)\s+(.+)", line.strip()):
            options, uri, suite, components = one.groups()
            if "main" in components.split():
                found.append((uri, suite, (options or "").strip()))
    for stanza in re.split(r"\n\s*\n", configuration):
        rows = [line for line in stanza.splitlines() if not line.lstrip().startswith("#")]
        fields = {m[1].lower(): m[2].strip() for row in rows if (m := re.match(r"([\w-]+):(.*)", row))}
        if "deb" not in fields.get("types", "").split() or "main" not in fields.get("components", "").split():
            continue
        if fields.get("enabled", "yes") == "no":
            continue
        signed = fields.get("signed-by", "")
        options = f"[signed-by={signed}]" if signed.startswith("/") else ""
        found += [
            (uri, suite, options)
            for uri in fields.get("uris", "").split()
            for suite in fields.get("suites", "").split()
        ]
    return [source for source in dict.fromkeys(found) if source[1].partition("-")[0] == CODENAME]


def machine_sources(folder: Path = Path("/etc/apt")) -> list[tuple[str, str, str]]:
    """``binary_sources`` of this machine.

    Raises:
        StepError: There is none.
    """
    files = [
        folder / "sources.list",
        *sorted(folder.glob("sources.list.d/*.list")),
        *sorted(folder.glob("sources.list.d/*.sources")),
    ]
    found = binary_sources("\n\n".join(file.read_text() for file in files if file.exists()))
    if not found:
        raise StepError(
            f"apt has no source for Debian {CODENAME} main",
            f"Add `deb <mirror> {CODENAME} main` with a Debian mirror to /etc/apt/sources.list.",
        )
    return found
