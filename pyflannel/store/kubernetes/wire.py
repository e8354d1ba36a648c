"""The API server's JSON: node objects, events of a watch, bodies of patches. Pure.

A node object has 5 to 20 KB. A few hundred bytes are kept, the rest is dropped as soon as it is
parsed. Unexpected JSON raises `StoreUnavailable`, never `KeyError`: a proxy before the API server
may answer with a page of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, TypeAlias

from pyflannel.core.errors import StoreError, StoreUnavailable
from pyflannel.core.kube import annotations as names
from pyflannel.core.kube.nodes import KubeNode
from pyflannel.records import dataclass
from pyflannel.store.kubernetes.failures import failure

Json: TypeAlias = Mapping[str, object]

MERGE: Final = "application/strategic-merge-patch+json"
"""Merges conditions by their type. A plain merge patch would replace the whole list, `Ready`
too."""
END_OF_LIST: Final = "k8s.io/initial-events-end"
UNAVAILABLE: Final = "NetworkUnavailable"
IS_UP: Final = "False/FlannelIsUp"
"""Status and reason of that condition when all is well, as upstream writes them."""
MAX_LINE_BYTES: Final = 4 << 20
"""Longest event: etcd takes objects of 1.5 MiB, and their JSON may be longer."""
MANAGER: Final = "pyflannel"
"""Our name in `managedFields`."""


@dataclass(frozen=True, slots=True)
class Names:
    """Identifies our annotations and our node."""

    prefix: str
    """As `normal_prefix` gives it."""
    own: str
    """This node's name. Of other nodes only the annotations are read."""

    def full(self, annotation: str) -> str:
        """An annotation with its prefix."""
        return f"{self.prefix}{annotation}"


@dataclass(frozen=True, slots=True)
class Changed:
    """A node was added or has changed."""

    node: KubeNode


@dataclass(frozen=True, slots=True)
class Deleted:
    """A node was deleted."""

    name: str
    version: str


@dataclass(frozen=True, slots=True)
class Bookmark:
    """Nothing happened up to this version."""

    version: str
    ends_list: bool


Event = Changed | Deleted | Bookmark


def parse_object(text: bytes) -> Json:
    """A JSON object.

    Raises:
        StoreUnavailable: it is not one.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise StoreUnavailable("the answer is not JSON: no API server", kind="not JSON") from None
    if not isinstance(value, dict):
        raise StoreUnavailable("the answer is no JSON object: no API server", kind="not JSON")
    return value


def parse_node(value: Json, ours: Names) -> KubeNode:
    """The fields of a node object that matter to us.

    Raises:
        StoreUnavailable: it is not one.
    """
    metadata = _object(value, "metadata")
    name, uid = _text(metadata, "name"), _text(metadata, "uid")
    if not name:
        raise StoreUnavailable("the answer has a node without a name: no API server")
    every = _object(metadata, "annotations")
    annotations = {
        short: text
        for short in names.NAMES
        if isinstance(text := every.get(ours.prefix + short), str)
    }
    spec = _object(value, "spec")
    listed = spec.get("podCIDRs")
    cidrs = tuple(map(str, listed)) if isinstance(listed, list) else ()
    if not cidrs and (single := _text(spec, "podCIDR")):
        cidrs = (single,)
    is_own = name == ours.own
    return KubeNode(
        name=name,
        uid=uid,
        version=_text(metadata, "resourceVersion"),
        created=_text(metadata, "creationTimestamp"),
        pod_cidrs=cidrs,
        annotations=annotations,
        network_unavailable=_condition(_object(value, "status")) if is_own else "",
        writer=_writer(metadata, ours) if is_own else "",
    )


def parse_list(body: bytes, ours: Names) -> tuple[list[KubeNode], str, str]:
    """A page of a list: its nodes, the list's version, and the token of the next page."""
    value = parse_object(body)
    items = value.get("items")
    metadata = _object(value, "metadata")
    nodes = [
        parse_node(item, ours)
        for item in (items if isinstance(items, list) else ())
        if isinstance(item, dict)
    ]
    return nodes, _text(metadata, "resourceVersion"), _text(metadata, "continue")


def parse_event(line: bytes, ours: Names) -> Event:
    """One line of a watch.

    Raises:
        StoreError: it is an error (see `failure`), even as the first line of a good answer.
        StoreUnavailable: it is not an event.
    """
    event = parse_object(line)
    kind, value = event.get("type"), _object(event, "object")
    if kind in {"ADDED", "MODIFIED"}:
        return Changed(parse_node(value, ours))
    metadata = _object(value, "metadata")
    if kind == "DELETED":
        return Deleted(_text(metadata, "name"), _text(metadata, "resourceVersion"))
    if kind == "BOOKMARK":
        marks = _object(metadata, "annotations")
        return Bookmark(_text(metadata, "resourceVersion"), marks.get(END_OF_LIST) == "true")
    if kind == "ERROR":
        raise _stream_failure(value)
    raise StoreUnavailable(f"the watch has an event of the unknown type {str(kind)[:40]!r}")


def _stream_failure(status: Json) -> StoreError:
    code = status.get("code")
    details = _object(status, "details").get("retryAfterSeconds")
    return failure(
        code if isinstance(code, int) else 500,
        _text(status, "message"),
        "watch nodes",
        float(details) if isinstance(details, int) else 0.0,
    )


def annotations_patch(uid: str, changes: Mapping[str, str | None], ours: Names) -> bytes:
    """Sets and removes annotations of the object with this uid, and of no other."""
    values = {ours.full(name): value for name, value in sorted(changes.items())}
    return _encode({"metadata": {"annotations": values, "uid": uid}})


def condition_patch(uid: str, now: float) -> bytes:
    """Says that the network of the node is up, as upstream does.

    Args:
        uid: of the node object.
        now: seconds since the epoch.
    """
    stamp = datetime.fromtimestamp(now, tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    condition = {
        "type": UNAVAILABLE,
        "status": "False",
        "lastHeartbeatTime": stamp,
        "lastTransitionTime": stamp,
        "reason": "FlannelIsUp",
        "message": "Flannel is running on this node",
    }
    return _encode({"metadata": {"uid": uid}, "status": {"conditions": [condition]}})


def _encode(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def pod_node(body: bytes) -> str:
    """The node that a pod runs on."""
    return _text(_object(parse_object(body), "spec"), "nodeName")


def _condition(status: Json) -> str:
    conditions = status.get("conditions")
    for condition in conditions if isinstance(conditions, list) else ():
        if isinstance(condition, dict) and condition.get("type") == UNAVAILABLE:
            return f"{condition.get('status', '')}/{condition.get('reason', '')}"
    return ""


def _writer(metadata: Json, ours: Names) -> str:
    """The last other client that wrote one of the annotations that this node publishes."""
    wanted = {f"f:{ours.full(name)}" for name in names.PUBLISHED}
    fields = metadata.get("managedFields")
    found: list[tuple[str, str]] = []
    for entry in fields if isinstance(fields, Sequence) and not isinstance(fields, str) else ():
        if not isinstance(entry, dict) or entry.get("manager") == MANAGER:
            continue
        owned = _object(_object(_object(entry, "fieldsV1"), "f:metadata"), "f:annotations")
        if wanted & owned.keys():
            found.append((_text(entry, "time"), _text(entry, "manager")))
    return max(found)[1] if found else ""


def _object(value: Json, name: str) -> Json:
    inner = value.get(name)
    return inner if isinstance(inner, dict) else {}


def _text(value: Json, name: str) -> str:
    inner = value.get(name)
    return inner if isinstance(inner, str) else ""
