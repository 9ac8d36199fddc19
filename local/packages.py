"""Debian's packages: what is installed, and what is only unpacked.

Called by `cluster.py`, `binaries.py` and `images.py`. Build tools are installed.
Daemons (containerd, runc, CNI plugins, Prometheus) are never installed: their packages
are unpacked into the cache, so no service of theirs starts and a Docker or containerd that is
already on the machine stays as it is. The machine's apt configuration is read, not changed.
"""

from __future__ import annotations

import os
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


def mirrors(shell: Shell) -> list[str]:
    """The machine's own sources of this Debian's main component, as lines of a sources.list.

    Raises:
        StepError: There is none.
    """
    asked = ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Identifier: Packages"]
    found = of_this_release(shell.run(asked, capture=True))
    if not found:
        raise StepError(
            f"apt has no source for Debian {CODENAME} main",
            f"Add `deb <mirror> {CODENAME} main` with a Debian mirror to /etc/apt/sources.list.",
        )
    return found


def of_this_release(listing: str) -> list[str]:
    """Those of lines ``<address> <suite> <component>`` that are this Debian's, its updates and security fixes too."""
    rows = (line.split() for line in listing.splitlines())
    return sorted(
        {f"deb {uri} {suite} main" for uri, suite, part in rows if part == "main" and suite.startswith(CODENAME)}
    )
