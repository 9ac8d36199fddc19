"""A certificate authority in a folder, for servers of tests that speak TLS. Used by tests/unit and tests/e2e."""

from __future__ import annotations

import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path

KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


@dataclass(frozen=True)
class Authority:
    """Nobody trusts it who was not told to.

    Attributes:
        folder: Where everything lies.
    """

    folder: Path

    @classmethod
    def founded(cls, folder: Path) -> Authority:
        """A new one."""
        authority = cls(folder)
        authority.openssl(
            "req", "-x509", *KEY, "-keyout", "ca.key", "-out", "ca.crt", "-days", "1", "-subj", "/CN=Private"
        )
        return authority

    @property
    def certificate(self) -> Path:
        """By which it is trusted."""
        return self.folder / "ca.crt"

    def server(self, *names: str, days: int = 1) -> ssl.SSLContext:
        """Of a server with a certificate made out to these names, for that many days from now; less than none: expired."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self.issued("server", *(f"DNS:{name}" for name in names), days=days))
        return context

    def issued(self, stem: str, *names: str, days: int = 1) -> tuple[Path, Path]:
        """The files of a certificate made out to these names, ``DNS:…`` or ``IP:…``, and of its key."""
        self.openssl("req", *KEY, "-keyout", f"{stem}.key", "-out", f"{stem}.csr", "-subj", f"/CN={stem}")
        (self.folder / "names").write_text(f"subjectAltName={','.join(names)}")
        signed = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names", "-days", str(days))
        self.openssl("x509", "-req", "-in", f"{stem}.csr", "-out", f"{stem}.crt", *signed)
        return self.folder / f"{stem}.crt", self.folder / f"{stem}.key"

    def openssl(self, *arguments: str) -> None:
        """Runs the program in the folder."""
        subprocess.run(["openssl", *arguments], cwd=self.folder, check=True, capture_output=True)
