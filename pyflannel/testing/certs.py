"""A certificate authority for one test run: made in a directory, thrown away with it.

Keys are EC P-256, which take milliseconds to make; the `openssl` command does the work.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from pyflannel.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """A certificate and its private key, as PEM files."""

    cert: Path
    key: Path


class Authority:
    """A self-signed CA that issues certificates.

    Args:
        directory: where all files go; is created.
        name: common name, to tell two authorities apart in messages.
    """

    def __init__(self, directory: Path, name: str = "test CA") -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        ca = Certificate(cert=directory / "ca.pem", key=directory / "ca.key")
        _request(ca, f"/CN={name}", "basicConstraints=critical,CA:TRUE", "keyUsage=keyCertSign")
        self._ca = ca

    @property
    def bundle(self) -> Path:
        """The CA's own certificate, what a client is told to trust."""
        return self._ca.cert

    def issue(
        self, name: str, *, hosts: str = "IP:127.0.0.1,DNS:localhost", subject: str = ""
    ) -> Certificate:
        """A certificate for servers and clients alike.

        etcd's JSON gateway presents the server's certificate to the server itself as a client, so a
        certificate for servers alone would not do.

        Args:
            name: common name, and the files' name.
            hosts: subject alternative names in openssl's notation.
            subject: the distinguished name in openssl's notation; by default the common name alone.
        """
        made = Certificate(
            cert=self._directory / f"{name}.pem", key=self._directory / f"{name}.key"
        )
        signed_by = ("-CA", str(self._ca.cert), "-CAkey", str(self._ca.key))
        _request(
            made,
            subject or f"/CN={name}",
            f"subjectAltName={hosts}",
            "extendedKeyUsage=serverAuth,clientAuth",
            "basicConstraints=critical,CA:FALSE",
            options=signed_by,
        )
        return made


def _request(
    made: Certificate, subject: str, *extensions: str, options: tuple[str, ...] = ()
) -> None:
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += [
        "-days",
        "2",
        "-nodes",
        "-keyout",
        str(made.key),
        "-out",
        str(made.cert),
        "-subj",
        subject,
    ]
    # An empty configuration: the system's adds extensions of its own.
    command += ["-config", "/dev/null"]
    for extension in extensions:
        command += ["-addext", extension]
    subprocess.run([*command, *options], check=True, capture_output=True, timeout=30)
