"""The messages of etcd's v3 JSON gateway: requests built, answers read. Pure: no connection here.

The gateway is a mechanical translation of gRPC to JSON over HTTP POST: bytes are base64, 64-bit
integers are strings, and a field with its zero value is left out, so that a missing `succeeded`
means false and a missing `revision` 0. Unary calls answer with one object; a watch answers with a
line per message, `{"result": …}` or `{"error": …}`, for as long as the connection lasts.

Whatever does not look like that raises `EndpointFailure`, never `KeyError`: between us and etcd may
stand a proxy with a page of its own.

Source: etcd `api/etcdserverpb/rpc.proto`, `api/mvccpb/kv.proto`; grpc-gateway v1
`runtime/errors.go`.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final, TypeAlias, cast

from pyflannel.core.errors import StoreCompacted
from pyflannel.records import dataclass
from pyflannel.store import lines
from pyflannel.store.etcd.base import (
    MAX_VALUE_BYTES,
    DeleteEvent,
    Header,
    KeyValue,
    LeaseStatus,
    PutEvent,
    RangeResult,
    Server,
    WatchResponse,
)
from pyflannel.store.etcd.failures import EndpointFailure, Refused, code_in, judge

Message: TypeAlias = Mapping[str, object]
"""A JSON object of the gateway."""

RANGE: Final = "kv/range"
PUT: Final = "kv/put"
DELETE: Final = "kv/deleterange"
TXN: Final = "kv/txn"
GRANT: Final = "lease/grant"
KEEPALIVE: Final = "lease/keepalive"
REVOKE: Final = "kv/lease/revoke"
TIME_TO_LIVE: Final = "kv/lease/timetolive"
AUTHENTICATE: Final = "auth/authenticate"
STATUS: Final = "maintenance/status"
_ALARM: Final = re.compile(r"alarm:([A-Z]{1,32})", re.ASCII)
WATCH: Final = "watch"

API_PATHS: Final = ("/v3/", "/v3beta/")
"""Where the gateway is: since etcd 3.4, and in etcd 3.3."""

REQUIRE_LEADER: Final = {"Grpc-Metadata-hasleader": "true"}
"""Header that has a member without a leader end its watches instead of leaving them silent. (The
gateway passes `Grpc-Metadata-` headers on as gRPC metadata; `hasleader` is etcd's
`MetadataRequireLeaderKey`.)"""

MAX_LINE_BYTES: Final = 64 * 1024 * 1024
"""Longest message of a watch that we hold in memory: for an etcd whose values may be larger than by
default, and for 3.3, which does not send large answers in parts. flannel's values have a few
hundred bytes."""


def prefix_end(prefix: bytes) -> bytes:
    """The first key behind all that start with `prefix`; if none can be, a zero byte (no end)."""
    end = prefix.rstrip(b"\xff")
    return end[:-1] + bytes([end[-1] + 1]) if end else b"\0"


def range_request(key: bytes, *, prefix: bool = False) -> Message:
    """All keys below a prefix, or one key; linearizable, sorted by key (the store's own order)."""
    if prefix:
        # etcd refuses an empty key; the lowest one stands for it.
        return {"key": _b64(key or b"\0"), "range_end": _b64(prefix_end(key))}
    return {"key": _b64(key)}


def page_request(
    first: bytes, end: bytes, *, limit: int, revision: int = 0, keys_only: bool = False
) -> Message:
    """A part of a listing: at most `limit` keys from `first` up to `end`, at one revision."""
    request: dict[str, object] = {
        "key": _b64(first or b"\0"),
        "range_end": _b64(end),
        "limit": str(limit),
    }
    if revision:
        request["revision"] = str(revision)
    if keys_only:
        request["keys_only"] = True
    return request


def put_request(key: bytes, value: bytes, lease: int) -> Message:
    """Writes one key."""
    return {"key": _b64(key), "value": _b64(value), "lease": str(lease)}


def delete_request(key: bytes) -> Message:
    """Deletes one key."""
    return {"key": _b64(key)}


def if_unchanged(key: bytes, mod_revision: int, then: str, request: Message) -> Message:
    """A transaction: `request` if the key has that mod_revision (0: is missing), else a look.

    Args:
        then: the operation's name in a transaction: `request_put` or `request_delete_range`.
    """
    compare = {
        "key": _b64(key),
        "target": "MOD",
        "result": "EQUAL",
        "mod_revision": str(mod_revision),
    }
    return {
        "compare": [compare],
        "success": [{then: request}],
        "failure": [{"request_range": range_request(key)}],
    }


def watch_request(prefix: bytes, start_revision: int, *, fragment: bool = True) -> Message:
    """Opens a watch on all keys below a prefix.

    Args:
        fragment: have a large answer (128 writes of 1.5 MiB in one transaction) come in parts of
            about that size; etcd 3.3 does not know the field.
    """
    request = {**range_request(prefix, prefix=True), "start_revision": str(start_revision)}
    return {"create_request": {**request, "fragment": True} if fragment else request}


def parse_body(text: bytes | str) -> Message:
    """A JSON object.

    Raises:
        EndpointFailure: it is none.
    """
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        raise EndpointFailure("it answers with something that is not JSON") from None
    if not isinstance(message, dict):
        raise EndpointFailure("it answers with JSON that is not etcd's")
    return cast("Message", message)


def parse_error(text: str) -> EndpointFailure | Refused | None:
    """What an error body says, or `None` if it is not one of the gateway's.

    Unary calls give `{"error": text, "code": n}`, streams `{"error": {"grpc_code": n, "message":
    …}}`.
    """
    try:
        body = parse_body(text)
    except EndpointFailure:
        return None
    error = body.get("error")
    if isinstance(error, dict):
        code, message = error.get("grpc_code", error.get("code")), error.get("message")
    else:
        code, message = body.get("code"), body.get("message", error)
    if not isinstance(code, int) or not isinstance(message, str):
        return None
    return judge(code, message)


def parse_header(message: Message) -> Header:
    """The `header` of an answer."""
    header = _object(message, "header")
    return Header(
        revision=integer(header, "revision"),
        cluster_id=integer(header, "cluster_id"),
        member_id=integer(header, "member_id"),
    )


def parse_server(message: Message) -> Server:
    """What `STATUS` says beside its header. Alarms stand among its errors, in words."""
    version, errors = message.get("version"), message.get("errors")
    texts = errors if isinstance(errors, list) else []
    alarms = {found for text in texts if isinstance(text, str) for found in _ALARM.findall(text)}
    return Server(version=version if isinstance(version, str) else "", alarms=tuple(sorted(alarms)))


def parse_range(message: Message) -> RangeResult:
    """The answer to a range."""
    kvs = tuple(_key_value(kv) for kv in _objects(message, "kvs"))
    return RangeResult(header=parse_header(message), kvs=kvs)


def parse_page(message: Message) -> tuple[RangeResult, bool]:
    """A part of a listing, large values left out, and whether more follows."""
    kvs = tuple(_small(_key_value(kv)) for kv in _objects(message, "kvs"))
    return RangeResult(header=parse_header(message), kvs=kvs), message.get("more") is True


@dataclass(frozen=True, slots=True)
class TxnResult:
    """What became of `if_unchanged`."""

    header: Header
    succeeded: bool
    found: KeyValue | None
    """The key as it is, if the condition failed and the key exists."""


def parse_txn(message: Message) -> TxnResult:
    """The answer to `if_unchanged`."""
    won = message.get("succeeded") is True
    found = None
    if not won:
        for response in _objects(message, "responses"):
            for kv in _objects(_object(response, "response_range"), "kvs"):
                found = _key_value(kv)
    return TxnResult(parse_header(message), won, found)


def parse_deleted(message: Message) -> int:
    """How many keys were deleted."""
    parse_header(message)
    return integer(message, "deleted")


def parse_grant(message: Message) -> int:
    """The TTL that was granted."""
    parse_header(message)
    return integer(message, "TTL")


def parse_lease(message: Message) -> LeaseStatus:
    """The answer to a time-to-live request."""
    keys = message.get("keys")
    return LeaseStatus(
        id=integer(message, "ID"),
        ttl=integer(message, "TTL"),
        granted_ttl=integer(message, "grantedTTL"),
        keys=tuple(_bytes(key) for key in keys) if isinstance(keys, list) else (),
    )


def parse_keepalive(message: Message) -> int:
    """The TTL after a renewal; 0 when the lease is gone."""
    return integer(_object(message, "result"), "TTL")


def parse_token(message: Message) -> str:
    """The token of an authentication."""
    token = message.get("token")
    if not isinstance(token, str) or not token:
        raise EndpointFailure("it answers an authentication without a token")
    return token


def integer(message: Message, name: str) -> int:
    """A 64-bit integer, which JSON carries as a string; 0 if it is missing."""
    value = message.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise EndpointFailure(f"it answers with {name!r} that is no integer")
    try:
        return int(value)
    except ValueError:
        raise EndpointFailure(f"it answers with {name!r} that is no integer") from None


def parse_watch_line(line: bytes) -> WatchResponse:
    """One message of a watch.

    Raises:
        StoreCompacted: the start revision is gone.
        Refused: not allowed.
        EndpointFailure: the server ended the watch, or this is not etcd.
    """
    message = parse_body(line)
    if "result" not in message:
        error = parse_error(line.decode(errors="replace"))
        raise error or EndpointFailure("it answers a watch with something unknown")
    result = _object(message, "result")
    # A refused watch says `created` and `canceled` in one message: the bad news first.
    if result.get("canceled") is True:
        compact_revision = integer(result, "compact_revision")
        if compact_revision:
            raise StoreCompacted(
                f"watch: revisions before {compact_revision} have been compacted", compact_revision
            )
        reason = result.get("cancel_reason")
        text = reason if isinstance(reason, str) and reason else "it ended the watch"
        code = code_in(text)
        raise judge(code, text.partition(" desc = ")[2] or text)
    events = tuple(_event(event) for event in _objects(result, "events"))
    more = result.get("fragment") is True
    return WatchResponse(header=parse_header(result), events=events, more=more)


class LineSplitter(lines.LineSplitter):
    """Cuts a watch into lines; one that is too long is an `EndpointFailure`."""

    def __init__(self, limit: int = MAX_LINE_BYTES) -> None:
        super().__init__(limit, EndpointFailure)


def _key_value(message: Message) -> KeyValue:
    return KeyValue(
        key=_bytes(message.get("key", "")),
        value=_bytes(message.get("value", "")),
        mod_revision=integer(message, "mod_revision"),
        version=integer(message, "version"),
        lease=integer(message, "lease"),
    )


def _small(kv: KeyValue) -> KeyValue:
    if len(kv.value) <= MAX_VALUE_BYTES:
        return kv
    return replace(kv, value=b"", left_out=len(kv.value))


def _event(message: Message) -> PutEvent | DeleteEvent:
    kv = _key_value(_object(message, "kv"))
    if message.get("type") == "DELETE":
        return DeleteEvent(key=kv.key, mod_revision=kv.mod_revision)
    return PutEvent(kv=_small(kv))


def _object(message: Message, name: str) -> Message:
    value = message.get(name)
    if not isinstance(value, dict):
        raise EndpointFailure(f"it answers without {name!r}, so it is not etcd")
    return cast("Message", value)


def _objects(message: Message, name: str) -> Sequence[Message]:
    value = message.get(name, [])
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise EndpointFailure(f"it answers with {name!r} that is no list of objects")
    return cast("Sequence[Message]", value)


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _bytes(text: object) -> bytes:
    try:
        return base64.b64decode(cast("str", text), validate=True)
    except (binascii.Error, TypeError, ValueError):
        raise EndpointFailure("it answers with bytes that are not base64") from None
