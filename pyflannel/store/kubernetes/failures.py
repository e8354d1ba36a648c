"""What an error answer means, and what to do about it. Pure."""

from __future__ import annotations

import json
from typing import Final

from pyflannel.core.errors import (
    LeaseError,
    StoreConflict,
    StoreDenied,
    StoreError,
    StoreUnavailable,
)
from pyflannel.foreign import shown

UNAUTHORIZED: Final = 401
FORBIDDEN: Final = 403
NOT_FOUND: Final = 404
CONFLICT: Final = 409
GONE: Final = 410
UNPROCESSABLE: Final = 422
TOO_MANY: Final = 429
SERVER_ERROR: Final = 500
TIMEOUT: Final = 504

_TOO_LARGE: Final = "too large resource version"

_ROLE: Final = (
    "give its cluster role get, list and watch on nodes, patch on nodes/status, and get on pods,"
    " as kubernetes/pyflannel.yaml does"
)


class Expired(StoreError):
    """410: the server no longer keeps this version. List again."""


class NodeMissing(StoreError):
    """404: there is no such node, or pod."""


class NotRegistered(LeaseError):
    """No kubelet has registered our node, or it was deleted."""


class UnusablePodCidr(LeaseError):
    """Our node has no podCIDR yet, or none that the network config allows."""


class NodeReplaced(StoreError):
    """422 on `metadata.uid`: the node of this name is a new object, not the one we know."""


class Stale(StoreError):
    """A watch that has been silent for so long that it is taken for dead."""


class NotOffered(StoreError):
    """The server does not support a list in a watch."""


class Busy(StoreUnavailable):
    """429 or 503, with the time to wait before the next request.

    Args:
        retry_after_s: what the server asks for; 0 if it does not say.
    """

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message, kind="busy")


class NotReached(Busy):
    """504: the server has not reached the version that was asked for."""


def message_of(body: bytes | str) -> str:
    """The `message` of a `Status`, else the beginning of the text."""
    try:
        status = json.loads(body)
    except (ValueError, RecursionError):
        status = None
    if isinstance(status, dict) and isinstance(status.get("message"), str):
        return str(shown(status["message"], 400))
    text = body.decode(errors="replace") if isinstance(body, bytes) else body
    return str(shown(text.strip(), 200))


def failure(code: int, message: str, operation: str, retry_after_s: float = 0.0) -> StoreError:
    """The exception for a status code.

    Args:
        code: of HTTP, or of a `Status` within a watch.
        message: the server's.
        operation: the request, such as `list nodes`.
        retry_after_s: the header `Retry-After`.
    """
    text = f"{operation}: {code}: {message}" if message else f"{operation}: {code}"
    kind = f"{operation} {code}"
    if code == UNAUTHORIZED:
        return StoreDenied(
            f"{text}; the API server does not accept our token or certificate, which are read again"
            " for each attempt",
            kind=kind,
        )
    if code == FORBIDDEN:
        return StoreDenied(f"{text}; {_ROLE}", kind=kind)
    if code == NOT_FOUND:
        return NodeMissing(text, kind=kind)
    if code == CONFLICT:
        return StoreConflict(text, kind=kind)
    if code == GONE:
        return Expired(text, kind=kind)
    if code == UNPROCESSABLE and "uid" in message:
        return NodeReplaced(text, kind=kind)
    if code == TIMEOUT and _TOO_LARGE in message.lower():
        return NotReached(text, retry_after_s=retry_after_s)
    if code == TOO_MANY or retry_after_s:
        return Busy(text, retry_after_s=retry_after_s)
    if code >= SERVER_ERROR:
        return StoreUnavailable(text, kind=kind)
    return StoreError(text, kind=kind)
