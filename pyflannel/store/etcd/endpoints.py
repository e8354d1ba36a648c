"""Where etcd is and how to speak to it: endpoints and certificates, checked before any request.

The rules are upstream's where a user could tell the difference. Endpoints are separated by commas
and not trimmed; `host:port` without a scheme is taken as `http`, as Go's client does; whether TLS
is used is decided by the *first* endpoint for all of them. Unlike upstream, a CA is used even
without a client certificate, half a key pair is an error, and every mistake names its flag and
file.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from pyflannel.core.errors import StoreConfigError
from pyflannel.core.options import EtcdOptions
from pyflannel.gocompat.flags import hide_user_info
from pyflannel.logs import get_logger
from pyflannel.records import dataclass

log = get_logger(__name__)

_FLAG: Final = "--etcd-endpoints"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One member of the cluster, or a proxy in front of it."""

    scheme: str
    host: str
    """A name or address; IPv6 without brackets."""
    port: int
    certified: str = ""
    """The name that its certificate must have; empty for `host`."""

    def __str__(self) -> str:
        """As a URL; there is never a user name or password in it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


def configured_endpoints(options: EtcdOptions) -> tuple[Endpoint, ...]:
    """The endpoints that are given; none if SRV records are to name them.

    Raises:
        StoreConfigError: they are wrong, or both are given.
    """
    domain = options.discovery_srv
    if not domain:
        if options.discovery_srv_name:
            raise StoreConfigError(
                "--etcd-discovery-srv-name is given without --etcd-discovery-srv"
            )
        return parse_endpoints(options.endpoints)
    if options.endpoints != EtcdOptions().endpoints:
        raise StoreConfigError(
            f"{_FLAG} and --etcd-discovery-srv are both given; leave one of them out"
        )
    for text, flag in (
        (domain.rstrip("."), "--etcd-discovery-srv"),
        (options.discovery_srv_name, "--etcd-discovery-srv-name"),
    ):
        if text and not _DOMAIN.fullmatch(text):
            raise StoreConfigError(f"{flag} {text!r} is no name that DNS could know")
    return ()


_DOMAIN: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]{0,250}[A-Za-z0-9])?", re.ASCII)


def first_context(options: EtcdOptions, endpoints: Sequence[Endpoint]) -> ssl.SSLContext | None:
    """The TLS context of a start: made as soon as it is known whether one is needed.

    Raises:
        StoreConfigError: as `tls_context`.
    """
    if not endpoints:
        given = bool(options.cafile or options.certfile or options.keyfile)
        return tls_context(options, used=True) if given else None
    return tls_context(options, used=endpoints[0].scheme == "https")


def parse_endpoints(texts: Iterable[str]) -> tuple[Endpoint, ...]:
    """The endpoints that a user wrote, in that order, duplicates and empty elements dropped.

    Raises:
        StoreConfigError: one of them is none, or there is none at all.
    """
    given = ",".join(texts)
    if "@" in given:
        # Before it is split: the password may have a comma, and must not reach a log.
        raise StoreConfigError(
            f"{_FLAG} {hide_user_info(given)!r} carries a user and password; give them with"
            " --etcd-username and --etcd-password-file"
        )
    parts = given.split(",")
    endpoints = list(dict.fromkeys(_parse(part) for part in parts if part))
    if not endpoints:
        raise StoreConfigError(f"{_FLAG} names no endpoint; etcd's own is http://127.0.0.1:2379")
    scheme = endpoints[0].scheme
    others = [str(endpoint) for endpoint in endpoints if endpoint.scheme != scheme]
    if others:
        log.warning(
            "endpoints mix http and https; the first one decides for all",
            first=str(endpoints[0]),
            used_as=scheme,
            others=", ".join(others),
        )
    return tuple(dict.fromkeys(replace(endpoint, scheme=scheme) for endpoint in endpoints))


def _parse(text: str) -> Endpoint:
    if text != text.strip():
        raise StoreConfigError(f"{_FLAG}: {text!r} has a space; separate endpoints by commas only")
    url = text if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise StoreConfigError(f"{_FLAG}: {text!r} is not a URL: {error}") from None
    if parts.scheme not in ("http", "https"):
        raise StoreConfigError(f"{_FLAG}: {text!r} must start with http:// or https://")
    if not host or any(char.isspace() for char in host):
        raise StoreConfigError(f"{_FLAG}: {text!r} has no host")
    if not port:
        raise StoreConfigError(f"{_FLAG}: {text!r} has no port; etcd's own is 2379")
    return Endpoint(parts.scheme, host, port)


def tls_context(options: EtcdOptions, *, used: bool) -> ssl.SSLContext | None:
    """What is needed to speak TLS to etcd, or `None` if it is not `used`.

    The files are read even then: a mistake in them shows at once, not on the day of the change to
    https.

    Raises:
        StoreConfigError: a file is missing, unreadable or not what it should be, or only one half
            of a key pair was given.
    """
    for given, flag, other in (
        (options.certfile, "--etcd-certfile", "--etcd-keyfile"),
        (options.keyfile, "--etcd-keyfile", "--etcd-certfile"),
    ):
        if given and not (options.certfile and options.keyfile):
            raise StoreConfigError(f"{flag} is given without {other}; both or none are needed")
    if not used and not (options.cafile or options.certfile):
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if options.cafile:
        _readable("--etcd-cafile", options.cafile)
        try:
            context.load_verify_locations(cafile=options.cafile)
        except (ssl.SSLError, OSError) as error:
            raise StoreConfigError(
                f"--etcd-cafile {options.cafile}: no certificate in PEM format ({error})"
            ) from error
    elif used:
        context.load_default_certs()
    if options.certfile:
        _readable("--etcd-certfile", options.certfile)
        _readable("--etcd-keyfile", options.keyfile)
        _load_pair(context, options)
    if not used:
        log.warning(
            "certificates are given, but the first endpoint is http: etcd is spoken to in the clear"
        )
        return None
    return context


def files_stamp(options: EtcdOptions) -> tuple[object, ...]:
    """What differs when one of the TLS files has been replaced or rewritten; missing ones count."""
    stamp: list[object] = []
    for path in (options.cafile, options.certfile, options.keyfile):
        try:
            found = Path(path).stat() if path else None
        except OSError as error:
            stamp.append(error.errno)
        else:
            stamp.append(found and (found.st_ino, found.st_size, found.st_mtime_ns))
    return tuple(stamp)


def _load_pair(context: ssl.SSLContext, options: EtcdOptions) -> None:
    try:
        # An encrypted key would make OpenSSL ask on the terminal; the empty password fails instead.
        context.load_cert_chain(options.certfile, options.keyfile, password="")
    except (ssl.SSLError, OSError) as error:
        reason = getattr(error, "reason", None) or str(error)
        if reason == "KEY_VALUES_MISMATCH":
            problem = "the key is not the certificate's"
        else:
            problem = f"not a certificate and its unencrypted key in PEM format ({reason})"
        raise StoreConfigError(
            f"--etcd-certfile {options.certfile}, --etcd-keyfile {options.keyfile}: {problem}"
        ) from error


def _readable(flag: str, path: str) -> None:
    try:
        with Path(path).open("rb"):
            pass
    except OSError as error:
        raise StoreConfigError(f"{flag} {path}: {error.strerror}") from error
