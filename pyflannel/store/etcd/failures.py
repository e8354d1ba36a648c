"""What can go wrong with one request to one endpoint, in two kinds.

`Refused` is an answer: etcd understood, and said no with a gRPC code. `EndpointFailure` is none: no
connection, no reply in time, or a reply that is not etcd's. Only the second makes another endpoint
worth trying, and only it leaves open whether a write was carried out (`unsure`).

`explain` finds the cause under the wrappings of `requests`, `urllib3` and `aiohttp` (each hides the
`OSError` in another place) and says it in one line, with the way out where the cause is a
well-known mistake: plain HTTP spoken to a TLS port, an unknown CA, a certificate for another name.
"""

from __future__ import annotations

import enum
import errno
import http
import os
import re
import socket
import ssl
from collections.abc import Iterator
from typing import Final

from pyflannel.core.errors import (
    StoreConfigError,
    StoreDenied,
    StoreError,
    StoreLeaseNotFound,
    StoreUnavailable,
)


class Code(enum.IntEnum):
    """The gRPC status codes that etcd uses (google.golang.org/grpc/codes)."""

    CANCELED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    OUT_OF_RANGE = 11
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


_UNSURE: Final = frozenset(
    {Code.CANCELED, Code.UNKNOWN, Code.DEADLINE_EXCEEDED, Code.INTERNAL, Code.UNAVAILABLE}
)
"""Answers that mean "ask another member", after which a write may or may not have happened:
"request timed out", "leader changed", "context deadline exceeded" and the like."""

_BUSY: Final = Code.RESOURCE_EXHAUSTED
""""too many requests" or "database space exceeded": surely not carried out."""

_NO_TOKEN: Final = "user name is empty"  # noqa: S105 - etcd's words, no secret
"""How etcd says that it wants a token; its code, INVALID_ARGUMENT, is that of many other
mistakes."""

_STALE_TOKEN: Final = ("revision of auth store is old", "revision in header is old")
"""How etcd says that users or roles have changed since our token was made: 3.6 as INVALID_ARGUMENT,
3.4 and 3.5 as UNKNOWN. It is found out before anything is carried out."""

_LEARNER: Final = "not supported for learner"
"""What a member says that does not vote yet: 3.6 as FAILED_PRECONDITION, older ones as UNAVAILABLE.
The other members can answer."""

_AUTH_OFF: Final = "authentication is not enabled"
"""Of the many FAILED_PRECONDITION, the one that means: go on without a token."""

_CN: Final = "CommonName of client sending a request against gateway"
"""etcd with users and a client certificate that has a CommonName: the JSON gateway refuses that in
plain text, with status 400, before it looks at the request (etcd `server/embed/serve.go`)."""

NO_SUCH_PATH: Final = "404 page not found"
"""Go's own words: a Go server that has nothing at that path. Etcd's gateway is switched off, then,
or an older one at another path, or this is a grpc-proxy, which has none."""

_GO_TLS_ONLY: Final = "HTTP request to an HTTPS server"
"""What Go's server answers in plain text, with status 400, to plain HTTP on a TLS port."""

_CODE_IN_TEXT: Final = re.compile(r"code = (\w+)")


class EndpointFailure(Exception):
    """An endpoint gave no (usable) answer.

    Args:
        text: why, in a line without secrets.
        unsure: the request may have been carried out all the same.
        dropped: the connection broke after it had been made, as an old one does after a restart of
            the server.
        silent: nothing came in time.
        misfit: it answers, and will never do so otherwise: the way to it is configured wrongly.
    """

    def __init__(
        self,
        text: str,
        *,
        unsure: bool = False,
        dropped: bool = False,
        silent: bool = False,
        misfit: bool = False,
    ) -> None:
        self.unsure = unsure
        self.misfit = misfit
        self.dropped = dropped
        self.silent = silent
        super().__init__(text)


class AnswerTooLong(EndpointFailure):
    """The answer has more bytes than we hold in memory; a smaller page may fit."""


class NoGateway(EndpointFailure):
    """A Go server that has nothing at the gateway's path."""


class Refused(Exception):
    """etcd said no; `str()` is its text.

    `unsure` is set when another endpoint was asked before and may have carried the request out.
    """

    def __init__(self, code: int, text: str) -> None:
        self.code = code
        self.unsure = False
        super().__init__(text)

    @property
    def wants_token(self) -> bool:
        """Whether another (or any) token might help."""
        return (
            self.code == Code.UNAUTHENTICATED
            or (self.code == Code.INVALID_ARGUMENT and _NO_TOKEN in str(self))
            or any(text in str(self) for text in _STALE_TOKEN)
        )

    @property
    def is_compacted(self) -> bool:
        """Whether the revision asked for has been compacted."""
        return self.code == Code.OUT_OF_RANGE and "compacted" in str(self)

    @property
    def auth_is_off(self) -> bool:
        """Whether it answers an authentication with: there are no users here."""
        return self.code == Code.FAILED_PRECONDITION and _AUTH_OFF in str(self)

    def as_store_error(self, what: str, where: str) -> StoreError:
        """The error for callers.

        Args:
            what: the operation and its object: `put /coreos.com/network/config`.
            where: the endpoint.
        """
        text, kind = f"{what}: etcd at {where} answers: {self}", f"{where}: {self}"
        if self.code == Code.NOT_FOUND:
            return StoreLeaseNotFound(text, kind=kind)
        if self.code == Code.PERMISSION_DENIED:
            return StoreDenied(
                f"{text} (the etcd user needs read on <prefix>/config, "
                "read and write on <prefix>/subnets/)",
                kind=kind,
            )
        if self.wants_token:
            return StoreDenied(f"{text} (give --etcd-username and --etcd-password-file)", kind=kind)
        return StoreError(text, kind=kind)


def judge(code: int, text: str) -> EndpointFailure | Refused:
    """Tells an answer from the excuse of a member that cannot give one."""
    if any(stale in text for stale in _STALE_TOKEN):
        return Refused(code, text)
    if _LEARNER in text:
        return EndpointFailure(f"it is a learner, which does not serve clients yet ({text})")
    if code in _UNSURE:
        return EndpointFailure(text, unsure=True)
    if code == _BUSY:
        return EndpointFailure(text)
    return Refused(code, text)


def code_in(text: str) -> int:
    """The code that a watch's `cancel_reason` names (`rpc error: code = PermissionDenied …`)."""
    match = _CODE_IN_TEXT.search(text)
    if match:
        wanted = match[1].lower()
        for code in Code:
            if code.name.replace("_", "").lower() == wanted:
                return code
    return Code.UNKNOWN


def not_etcd(status: int, body: str) -> EndpointFailure:
    """For an answer that is none of etcd's JSON gateway."""
    if _GO_TLS_ONLY in body:
        return EndpointFailure("it expects TLS; write https:// for this endpoint")
    if _CN in body:
        return EndpointFailure(
            "its JSON gateway takes no client certificate with a CommonName while users are "
            "enabled; give one without (--etcd-certfile) and a user (--etcd-username)",
            misfit=True,
        )
    if status == http.HTTPStatus.NOT_FOUND and body.strip() == NO_SUCH_PATH:
        return NoGateway(
            "it has no JSON gateway, which pyflannel speaks to: etcd runs with "
            "--enable-grpc-gateway=false, or a grpc-proxy stands in front; "
            "name members that have one (--etcd-endpoints)",
            misfit=True,
        )
    first = body.strip().splitlines()[0][:80] if body.strip() else ""
    said = f": {first!r}" if first else ""
    return EndpointFailure(
        f"it answers HTTP {status}{said}, which is not etcd's v3 JSON gateway (etcd 3.4 or later)"
    )


def unavailable(
    what: str, failures: dict[str, EndpointFailure]
) -> StoreUnavailable | StoreConfigError:
    """The error that names every endpoint and what was wrong with it."""
    reasons = "; ".join(f"{where}: {failure}" for where, failure in failures.items())
    if failures and all(failure.misfit for failure in failures.values()):
        return StoreConfigError(f"{what}: no etcd endpoint can be used ({reasons})", kind=reasons)
    return StoreUnavailable(f"{what}: no etcd endpoint answers ({reasons})", kind=reasons)


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error and everything it was made from, outermost first."""
    seen: set[int] = set()
    work: list[object] = [error]
    while work:
        item = work.pop(0)
        if not isinstance(item, BaseException) or id(item) in seen:
            continue
        seen.add(id(item))
        yield item
        work += [item.__cause__, item.__context__, getattr(item, "reason", None)]
        # requests and urllib3 keep the cause in `args`, aiohttp in attributes of its own.
        work += [getattr(item, "os_error", None), getattr(item, "certificate_error", None)]
        work += list(item.args)


def explain(error: BaseException, *, tls: bool | None) -> str:
    """The cause of a failed connection or request in a few words, with a hint if one is known.

    Args:
        tls: whether we spoke TLS, for the hint when a server just hangs up; `None` if the
            connection had worked before, so that no hint is wanted.
    """
    found = list(causes(error))
    if any(_hung_up(cause) for cause in found):
        return f"it closed the connection{_HANG_UP_HINTS[tls]}"
    tls_errors = [cause for cause in found if isinstance(cause, ssl.SSLError)]
    if tls_errors:
        # aiohttp's own exceptions are of these types as well, but carry none of their attributes.
        informed = (cause for cause in tls_errors if tls_reason(cause))
        return _explain_tls(next(informed, tls_errors[-1]))
    for cause in found:
        if isinstance(cause, socket.gaierror):
            return f"cannot resolve the host name ({cause.strerror})"
    for cause in found:
        if isinstance(cause, OSError) and cause.errno:
            name = errno.errorcode.get(cause.errno, str(cause.errno))
            return f"{os.strerror(cause.errno).lower()} ({name})"
    if any(isinstance(cause, TimeoutError) for cause in found):
        return "no answer in time"
    innermost = found[-1]
    return str(innermost) or type(innermost).__name__


_HANG_UP_HINTS: Final = {
    None: "",
    False: "; if it always does, it may expect TLS: write https://",
    True: (
        "; if it always does, it may speak plain HTTP (write http://) or want a client "
        "certificate (--etcd-certfile, --etcd-keyfile)"
    ),
}
"""By whether we spoke TLS. etcd hangs up without a word on plain HTTP at its TLS port, on TLS at
its plain port, and sometimes on a client without the certificate that it wants."""


def _hung_up(error: BaseException) -> bool:
    # aiohttp's are known by name, so that aiohttp need not be imported here. The second is that of
    # a watch whose member died: it ends between two chunks, without the last one.
    kinds = (ConnectionResetError, BrokenPipeError, ssl.SSLEOFError, ssl.SSLZeroReturnError)
    aiohttps = ("ServerDisconnectedError", "ClientPayloadError")
    return isinstance(error, kinds) or type(error).__name__ in aiohttps


def tls_reason(error: BaseException) -> str:
    """OpenSSL's name for what went wrong (`TLSV1_ALERT_UNKNOWN_CA`), empty if it is not from there.

    A subclass may lack the attribute, and exceptions of other libraries use the name for others.
    """
    reason = getattr(error, "reason", None) if isinstance(error, ssl.SSLError) else None
    return reason if isinstance(reason, str) else ""


_CERTIFICATE_HINTS: Final = {
    10: "the server's certificate has expired",
    18: "the server's certificate is self-signed; give it (or its CA) with --etcd-cafile",
    19: "the server's CA is not trusted; give it with --etcd-cafile",
    20: "the server's CA is not trusted; give it with --etcd-cafile",
    21: "the server's certificate cannot be verified; give its CA with --etcd-cafile",
    62: "the server's certificate is for another host name",
    64: "the server's certificate is for another address",
}
"""By X509_V_ERR_* of OpenSSL (x509_vfy.h)."""


def _explain_tls(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        hint = _CERTIFICATE_HINTS.get(error.verify_code)
        return f"TLS: {hint}" if hint else f"TLS: {error.verify_message}"
    reason = tls_reason(error)
    if reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"):
        return "it does not speak TLS; write http:// for this endpoint"
    if "CERTIFICATE_REQUIRED" in reason or "HANDSHAKE_FAILURE" in reason:
        return "TLS: it wants a client certificate (--etcd-certfile, --etcd-keyfile)"
    if "BAD_CERTIFICATE" in reason or "UNKNOWN_CA" in reason:
        # Go says "bad certificate" when there is none, too.
        return (
            "TLS: it wants a client certificate, and does not accept ours if there is one "
            "(--etcd-certfile, --etcd-keyfile)"
        )
    return f"TLS: {reason.replace('_', ' ').lower() or error}"
