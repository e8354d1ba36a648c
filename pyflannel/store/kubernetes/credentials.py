"""Our credentials for the API server: tokens and certificates, read again when their files change.

A token that is bound to a pod lives an hour; the kubelet writes a new file at four fifths of that,
by swapping a symbolic link. Certificates are renewed as well. So nothing is cached: a token is read
for each request, and a new TLS context is made when one of its files has changed.
"""

from __future__ import annotations

import base64
import os
import ssl
from collections.abc import Mapping
from pathlib import Path

from pyflannel.core.errors import StoreConfigError
from pyflannel.kernel.files import FileText, FileUnreadable, read_text_if_exists
from pyflannel.store.kubernetes.access import Access, Material

_Stamp = tuple[int, int, int, int] | None


class Credentials:
    """Headers and TLS context for one server."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._context: ssl.SSLContext | None = None
        self._stamps: tuple[_Stamp, ...] | None = None

    def headers(self) -> Mapping[str, str]:
        """The headers with our credentials. Empty without TLS: credentials are never sent in clear.

        Raises:
            StoreConfigError: the token cannot be read.
        """
        access = self._access
        if not access.is_encrypted:
            return {}
        headers = dict(access.headers)
        token = access.token
        if access.token_file is not None:
            token = _read_token(access.token_file)
        if token:
            headers["Authorization"] = f"Bearer {token}"
        elif access.username:
            pair = f"{access.username}:{access.password}".encode()
            headers["Authorization"] = f"Basic {base64.b64encode(pair).decode()}"
        return headers

    def context(self) -> ssl.SSLContext | None:
        """The TLS context: the same one until a file changes; `None` without TLS.

        Raises:
            StoreConfigError: a certificate or key cannot be used.
        """
        access = self._access
        if not access.is_encrypted:
            return None
        materials = (access.ca, access.certificate, access.key)
        stamps = tuple(_stamp(material) for material in materials)
        if self._context is None or stamps != self._stamps:
            self._context = _context(access)
            self._stamps = stamps
        return self._context


def _read_token(path: Path) -> str:
    found = read_text_if_exists(path)
    if not isinstance(found, FileText):
        reason = found.reason if isinstance(found, FileUnreadable) else "there is no such file"
        raise StoreConfigError(f"token {path}: {reason}")
    token = found.text.strip()
    if not token or not token.isascii() or not token.isprintable():
        raise StoreConfigError(f"token {path}: the file does not hold a token")
    return token


def _stamp(material: Material | None) -> _Stamp:
    if material is None or material.path is None:
        return None
    try:
        found = material.path.stat()
    except OSError:
        return None
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def _context(access: Access) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cadata=_authorities(access))
    except (ssl.SSLError, ValueError) as error:
        raise StoreConfigError(f"the authority of {access.server}: {_brief(error)}") from None
    if access.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if access.certificate is not None and access.key is not None:
        try:
            with _file_of(access.certificate) as certificate, _file_of(access.key) as key:
                context.load_cert_chain(certificate, key, password=_no_password)
        except (ssl.SSLError, OSError, ValueError) as error:
            names = [m.path for m in (access.certificate, access.key) if m.path is not None]
            where = ", ".join(map(str, names)) or "the kubeconfig"
            raise StoreConfigError(f"client certificate of {where}: {_brief(error)}") from None
    return context


def _no_password() -> str:
    raise ValueError("the key is encrypted, which pyflannel does not do")


def _authorities(access: Access) -> str | None:
    if access.ca is None:
        return None
    if access.ca.path is None:
        return access.ca.data.decode("ascii", "replace")
    found = read_text_if_exists(access.ca.path)
    if not isinstance(found, FileText):
        reason = found.reason if isinstance(found, FileUnreadable) else "there is no such file"
        raise StoreConfigError(f"authority {access.ca.path}: {reason}")
    return found.text


def _brief(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return error.reason or str(error)
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


class _file_of:  # noqa: N801 - used as a function
    """The path of a certificate or key; for its content, the path of an unnamed file in memory.

    (OpenSSL reads client certificates only from files.)
    """

    def __init__(self, material: Material) -> None:
        self._material = material
        self._descriptor = -1

    def __enter__(self) -> str:
        if self._material.path is not None:
            return str(self._material.path)
        self._descriptor = os.memfd_create("pyflannel-credential", os.MFD_CLOEXEC)
        os.write(self._descriptor, self._material.data)
        return f"/proc/self/fd/{self._descriptor}"

    def __exit__(self, *exc: object) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
