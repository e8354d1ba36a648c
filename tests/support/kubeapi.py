"""A Kubernetes API server in memory, as far as nodes and one pod go; honest where it matters.

Versions rise by one with each change of an object, a patch that changes nothing is no event, a
watch gives each change once and in order, history can be compacted, a uid or version in a patch is
a condition, and only `nodes/<name>/status` may be patched with the role of flannel. What the real
one answers was seen with kube-apiserver 1.34 and 1.36.

`KubeCluster` is the server; `DirectTransport` asks it without a socket, `tests.support.kubeserver`
over HTTP.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
import json
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from pyflannel.core.errors import StoreUnavailable
from pyflannel.core.ip import IPAddress
from pyflannel.store.kubernetes.base import Reply, Request

PREFIX = "flannel.alpha.coreos.com/"
ADMIN = "admin"
FLANNEL = "system:serviceaccount:kube-flannel:flannel"
ROLE = frozenset(
    {
        ("get", "pods"),
        ("get", "nodes"),
        ("list", "nodes"),
        ("watch", "nodes"),
        ("patch", "nodes/status"),
    }
)
"""flannel's cluster role, as upstream's manifest has it."""
MOST_ANNOTATIONS = 256 << 10
_uids = itertools.count(1)

Json = dict[str, Any]


def status(code: int, reason: str, message: str) -> Json:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code,
    }


class ApiError(Exception):
    def __init__(self, code: int, reason: str, message: str, retry_after: int = 0) -> None:
        super().__init__(message)
        self.code, self.retry_after = code, retry_after
        self.body = json.dumps(status(code, reason, message)).encode()


@dataclass(eq=False)
class Watch:
    """One watch, as the server writes it and a client reads it."""

    bookmarks: bool
    after: int = 0
    """It has changes after this version, even if that lies in the future."""
    queue: asyncio.Queue[bytes | None] = field(default_factory=asyncio.Queue)
    """`None` is the end."""
    closed: bool = False
    error: Exception | None = None

    def send(self, kind: str, value: Json) -> None:
        self.queue.put_nowait(json.dumps({"type": kind, "object": value}).encode() + b"\n")

    def bookmark(self, version: int, *, end: bool = False) -> None:
        metadata: Json = {"resourceVersion": str(version), "creationTimestamp": None}
        if end:
            metadata["annotations"] = {"k8s.io/initial-events-end": "true"}
        self.send("BOOKMARK", {"kind": "Node", "apiVersion": "v1", "metadata": metadata})

    # What `Stream` asks for.

    async def chunk(self) -> bytes:
        item = await self.queue.get()
        if self.error is not None:
            raise self.error
        if item is None:
            self.queue.put_nowait(None)  # it stays so
            return b""
        return item

    def abort(self, error: Exception) -> None:
        self.error = error
        self.close()

    def close(self) -> None:
        self.closed = True
        self.queue.put_nowait(None)


class KubeCluster:
    """The server and what it holds."""

    def __init__(self) -> None:
        self.nodes: dict[str, Json] = {}
        self.pods: dict[tuple[str, str], Json] = {}
        self.version = 100
        self.history: list[tuple[int, str, Json]] = []
        self.floor = 100
        self.users = {"admin-token": ADMIN, "flannel-token": FLANNEL}
        self.anonymous = FLANNEL
        """Who asks without a token; empty for no user."""
        self.role = set(ROLE)
        self.streaming = "yes"
        """`yes`; `etcd-3.5`: an ERROR as the first line; `refused`: 422; `ignored`: as a server
        that does not know the parameter."""
        self.gone_as_status = False
        """410 as the status of the answer, instead of a line in a good one."""
        self.down = False
        self.frozen = False
        self.watches: list[Watch] = []
        self.log: list[str] = []
        """`verb resource`, and for patches what they changed."""
        self.patches: list[Json] = []
        self.injected: dict[str, deque[ApiError]] = {}
        self._woken: asyncio.Event | None = None

    # What others do to it

    def create(self, name: str, pod_cidr: str = "", **more: Any) -> Json:
        """A node as a kubelet registers it; the controller manager may have given it a range."""
        cidrs = [pod_cidr, *more.pop("cidrs", [])] if pod_cidr else []
        made: Json = {
            "kind": "Node",
            "apiVersion": "v1",
            "metadata": {
                "name": name,
                "uid": f"uid-{next(_uids)}",
                "creationTimestamp": f"2026-11-26T00:00:{self.version % 60:02}Z",
                "labels": {"kubernetes.io/hostname": name},
                "annotations": {
                    "node.alpha.kubernetes.io/ttl": "0",
                    **{PREFIX + k: v for k, v in more.pop("annotations", {}).items()},
                },
            },
            "spec": {"podCIDR": cidrs[0], "podCIDRs": cidrs} if cidrs else {},
            "status": {
                "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
                "images": [{"names": [f"example/image:{n}"]} for n in range(3)],
            },
        }
        assert not more, more
        assert name not in self.nodes
        return self._store("ADDED", made)

    def populate(self, first: int, last: int, images: int = 45) -> None:
        """Nodes with these numbers as peers of a vxlan, as large as kubelets make them (8 KB)."""
        listed = [
            {"names": [f"example/some/image-{n}@sha256:{'0123456789abcdef' * 4}"], "sizeBytes": n}
            for n in range(images)
        ]
        for number in range(first, last + 1):
            high, low = divmod(number, 256)
            made = self.create(f"n{number}", f"10.{high}.{low}.0/24")
            made["status"]["images"] = listed
            self.annotate(
                f"n{number}",
                kube_subnet_manager="true",
                backend_type="vxlan",
                backend_data=f'{{"VNI":1,"VtepMAC":"02:00:00:00:{high:02x}:{low:02x}"}}',
                public_ip=f"192.0.2.{number % 200 + 3}",
            )

    def beat(self, count: int) -> None:
        """A heartbeat of each of the first nodes, no more than there are."""
        for name in list(self.nodes)[:count]:
            self.heartbeat(name)

    def annotate(self, name: str, manager: str = "kubectl", **values: str | None) -> None:
        """Sets flannel's annotations, `_` for `-`; `None` removes one."""
        changes = {PREFIX + k.replace("_", "-"): v for k, v in values.items()}
        self._patch_node(name, {"metadata": {"annotations": changes}}, manager)

    def assign(self, name: str, *cidrs: str) -> None:
        """What the controller manager does."""
        node = copy.deepcopy(self.nodes[name])
        assert not node["spec"].get("podCIDR"), "podCIDRs are immutable once set"
        node["spec"] |= {"podCIDR": cidrs[0], "podCIDRs": list(cidrs)}
        self._store("MODIFIED", node)

    def heartbeat(self, name: str) -> None:
        node = copy.deepcopy(self.nodes[name])
        hours, seconds = divmod(self.version % 86_400, 3600)
        stamp = f"2026-11-27T{hours:02}:{seconds // 60:02}:{seconds % 60:02}Z"
        node["status"]["conditions"][0]["lastHeartbeatTime"] = stamp
        self._store("MODIFIED", node)

    def delete(self, name: str) -> None:
        node = copy.deepcopy(self.nodes.pop(name))
        self._store("DELETED", node)

    def annotations(self, name: str) -> dict[str, str]:
        """flannel's, without the prefix."""
        every = self.nodes[name]["metadata"]["annotations"]
        return {k.removeprefix(PREFIX): v for k, v in every.items() if k.startswith(PREFIX)}

    def compact(self) -> None:
        """History so far is no longer there."""
        self.floor = self.version
        self.history.clear()

    def restore(self, nodes: Mapping[str, Json], version: int) -> None:
        """etcd is put back to an earlier state; its API server is restarted with it."""
        self.nodes = copy.deepcopy(dict(nodes))
        self.version = self.floor = version
        self.history.clear()
        self.cut()

    def bookmark(self) -> None:
        for watch in self._live():
            if watch.bookmarks and self.version >= watch.after:
                watch.bookmark(self.version)

    def cut(self) -> None:
        """Breaks all connections."""
        for watch in self._live():
            watch.abort(StoreUnavailable("connection reset by peer"))
        self.watches.clear()

    def end(self) -> None:
        """Ends all watches in good order."""
        for watch in self._live():
            watch.close()
        self.watches.clear()

    def say(self, code: int, message: str) -> None:
        """An ERROR line into every watch."""
        for watch in self._live():
            watch.send("ERROR", status(code, "", message))
            watch.close()
        self.watches.clear()

    def stop(self) -> None:
        self.down = True
        self.cut()

    def start(self) -> None:
        self.down = self.frozen = False
        if self._woken is not None:
            self._woken.set()
            self._woken = None

    def freeze(self) -> None:
        """It stands still: connections stay, nothing is answered and nothing said."""
        self.frozen = True
        self.watches.clear()

    def forbid(self, verb: str, resource: str) -> None:
        """Takes a right away from flannel's role, for its next request."""
        self.role.discard((verb, resource))
        self.end()

    def allow(self, verb: str, resource: str) -> None:
        """Gives it back."""
        self.role.add((verb, resource))

    def inject(self, verb: str, code: int, message: str = "", retry_after: int = 0) -> None:
        """The next request of this kind (`list nodes`) is answered so."""
        error = ApiError(code, "", message or f"injected {code}", retry_after)
        self.injected.setdefault(verb, deque()).append(error)

    def count(self, what: str) -> int:
        return sum(line.startswith(what) for line in self.log)

    # What it answers

    async def answer(self, request: Request, token: str) -> Reply | Watch:
        """One request; a `Watch` goes on."""
        if self.down:
            raise StoreUnavailable("connection refused")
        if self.frozen:
            if self._woken is None:
                self._woken = asyncio.Event()
            await self._woken.wait()
        try:
            return self._answer(request, token)
        except ApiError as error:
            return Reply(status=error.code, body=error.body, retry_after_s=float(error.retry_after))

    def _answer(self, request: Request, token: str) -> Reply | Watch:
        parts = [unquote(part) for part in request.path.strip("/").split("/")]
        query = dict(request.query)
        if parts[:2] != ["api", "v1"]:
            raise ApiError(404, "NotFound", "the server could not find the requested resource")
        user = self._user(token)
        match request.method, parts[2:]:
            case "GET", ["namespaces", namespace, "pods", name]:
                self._allow(user, "get", "pods", name)
                if (namespace, name) not in self.pods:
                    raise ApiError(404, "NotFound", f'pods "{name}" not found')
                return _ok(self.pods[namespace, name])
            case "GET", ["nodes"]:
                watching = query.get("watch") in {"true", "1"}
                self._allow(user, "watch" if watching else "list", "nodes", "")
                return self._watch(query) if watching else self._list(query)
            case "GET", ["nodes", name]:
                self._allow(user, "get", "nodes", name)
                self._reach(query)
                return _ok(self._node(name))
            case "PATCH", ["nodes", name, *sub] if sub in ([], ["status"]):
                self._allow(user, "patch", "/".join(["nodes", *sub]), name)
                kinds = {"application/strategic-merge-patch+json", "application/merge-patch+json"}
                if request.content_type not in kinds:
                    raise ApiError(415, "UnsupportedMediaType", "patch of an unknown kind")
                patch = json.loads(request.body)
                self.patches.append(patch)
                merge = request.content_type == "application/merge-patch+json"
                manager = query.get("fieldManager", "unknown")
                return _ok(self._patch_node(name, patch, manager, replace_lists=merge))
            case "POST", ["nodes"]:
                self._allow(user, "create", "nodes", "")
                node = json.loads(request.body)
                name = node["metadata"]["name"]
                if name in self.nodes:
                    raise ApiError(409, "AlreadyExists", f'nodes "{name}" already exists')
                self.create(name)
                made = self.nodes[name]
                made["metadata"]["annotations"] |= node["metadata"].get("annotations", {})
                if node.get("spec", {}).get("podCIDR"):
                    cidrs = node["spec"].get("podCIDRs") or [node["spec"]["podCIDR"]]
                    self.assign(name, *cidrs)
                return _ok(self.nodes[name], 201)
            case "DELETE", ["nodes", name]:
                self._allow(user, "delete", "nodes", name)
                self._node(name)
                self.delete(name)
                return _ok(status(200, "", ""))
        raise ApiError(405, "MethodNotAllowed", "the server does not allow this method")

    def _user(self, token: str) -> str:
        user = self.users.get(token, "") if token else self.anonymous
        if not user:
            raise ApiError(401, "Unauthorized", "Unauthorized")
        return user

    def _allow(self, user: str, verb: str, resource: str, name: str) -> None:
        self.log.append(f"{verb} {resource}")
        queue = self.injected.get(f"{verb} {resource}")
        if queue:
            raise queue.popleft()
        if user != ADMIN and (verb, resource) not in self.role:
            shown = f' "{name}"' if name else ""
            message = (
                f'{resource}{shown} is forbidden: User "{user}" cannot {verb} resource '
                f'"{resource}" in API group "" at the cluster scope'
            )
            raise ApiError(403, "Forbidden", message)

    def _node(self, name: str) -> Json:
        if name not in self.nodes:
            raise ApiError(404, "NotFound", f'nodes "{name}" not found')
        return self.nodes[name]

    def _reach(self, query: Mapping[str, str]) -> None:
        """The real one waits for it for 3 s before it refuses."""
        wanted = int(query.get("resourceVersion") or 0)
        if wanted > self.version:
            text = f"Timeout: Too large resource version: {wanted}, current: {self.version}"
            raise ApiError(504, "Timeout", text, retry_after=1)

    def _list(self, query: Mapping[str, str]) -> Reply:
        self._reach(query)
        names = sorted(self.nodes)
        selector = query.get("fieldSelector", "")
        if selector:
            key, _, value = selector.partition("=")
            if key != "metadata.name":
                raise ApiError(400, "BadRequest", f"field label not supported: {key}")
            names = [name for name in names if name == value]
        version, start = self.version, 0
        if after := query.get("continue", ""):
            given, _, last = after.partition(":")
            version = int(given)
            if version < self.floor:
                raise ApiError(410, "Expired", "The provided continue parameter is too old")
            start = sum(name <= last for name in names)
        limit = int(query.get("limit", "0"))
        if query.get("resourceVersion") == "0":
            limit = 0  # the cache does not know limits
        page = names[start : start + limit] if limit else names[start:]
        metadata = {"resourceVersion": str(version)}
        if limit and start + limit < len(names):
            metadata["continue"] = f"{version}:{page[-1]}"
        items = [self.nodes[name] for name in page]
        return _ok({"kind": "NodeList", "apiVersion": "v1", "metadata": metadata, "items": items})

    def _watch(self, query: Mapping[str, str]) -> Watch:
        watch = Watch(bookmarks=query.get("allowWatchBookmarks") == "true")
        given = query.get("resourceVersion", "")
        initial = query.get("sendInitialEvents") == "true" and self.streaming != "ignored"
        if initial and self.streaming == "refused":
            raise ApiError(422, "Invalid", "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled")  # fmt: skip # noqa: E501
        if initial and self.streaming == "etcd-3.5":
            message = "etcdserver: storage feature RequestWatchProgress is disabled"
            watch.send("ERROR", status(500, "InternalError", message))
            watch.close()
            return watch
        if given in {"", "0"}:
            for name in sorted(self.nodes):
                watch.send("ADDED", self.nodes[name])
            if initial:
                watch.bookmark(self.version, end=True)
        elif int(given) < self.floor:
            message = f"too old resource version: {given} ({self.floor})"
            if self.gone_as_status:
                raise ApiError(410, "Expired", message)
            watch.send("ERROR", status(410, "Expired", message))
            watch.close()
            return watch
        else:
            watch.after = int(given)
            for version, kind, value in self.history:
                if version > watch.after:
                    watch.send(kind, value)
        self.watches.append(watch)
        return watch

    def _live(self) -> list[Watch]:
        self.watches = [watch for watch in self.watches if not watch.closed]
        return self.watches

    # Changes

    def _store(self, kind: str, value: Json) -> Json:
        self.version += 1
        value["metadata"]["resourceVersion"] = str(self.version)
        if kind != "DELETED":
            self.nodes[value["metadata"]["name"]] = value
        kept = copy.deepcopy(value)
        self.history.append((self.version, kind, kept))
        for watch in self._live():
            if self.version > watch.after:
                watch.send(kind, kept)
        return value

    def _patch_node(
        self, name: str, patch: Json, manager: str, *, replace_lists: bool = False
    ) -> Json:
        former = self._node(name)
        node = copy.deepcopy(former)
        changes = patch.get("metadata", {})
        if "uid" in changes and changes["uid"] != node["metadata"]["uid"]:
            text = f'Node "{name}" is invalid: metadata.uid: Invalid value: "{changes["uid"]}": field is immutable'  # noqa: E501
            raise ApiError(422, "Invalid", text)
        version = changes.get("resourceVersion")
        if version not in {None, node["metadata"]["resourceVersion"]}:
            text = "the object has been modified; please apply your changes to the latest version"
            raise ApiError(
                409, "Conflict", f'Operation cannot be fulfilled on nodes "{name}": {text}'
            )
        for part in ("annotations", "labels"):
            for key, value in changes.get(part, {}).items():
                if value is None:
                    node["metadata"][part].pop(key, None)
                else:
                    assert isinstance(value, str), (key, value)
                    node["metadata"][part][key] = value
        size = sum(len(k) + len(v) for k, v in node["metadata"]["annotations"].items())
        if size > MOST_ANNOTATIONS:
            raise ApiError(422, "Invalid", "metadata.annotations: Too long")
        conditions = patch.get("status", {}).get("conditions")
        if conditions is not None:
            there = {} if replace_lists else {c["type"]: c for c in node["status"]["conditions"]}
            for condition in conditions:
                there[condition["type"]] = {**there.get(condition["type"], {}), **condition}
            node["status"]["conditions"] = list(there.values())
        if node == former:
            return former
        self._note_manager(node, changes.get("annotations", {}), manager)
        return self._store("MODIFIED", node)

    def _note_manager(self, node: Json, annotations: Json, manager: str) -> None:
        if not annotations:
            return
        fields = node["metadata"].setdefault("managedFields", [])
        fields[:] = [entry for entry in fields if entry["manager"] != manager]
        owned = {f"f:{key}": {} for key in annotations}
        fields.append(
            {
                "manager": manager,
                "operation": "Update",
                "time": f"2026-11-26T00:00:00.{self.version:06}Z",
                "fieldsV1": {"f:metadata": {"f:annotations": owned}},
            }
        )


def _ok(value: Json, code: int = 200) -> Reply:
    return Reply(status=code, body=json.dumps(value).encode())


class DirectTransport:
    """A `Transport` to a cluster in the same process, without sockets.

    Args:
        cluster: the server.
        token: who asks; empty for no user in particular.
    """

    def __init__(self, cluster: KubeCluster, token: str = "") -> None:
        self.cluster = cluster
        self.token = token
        self.dropped: list[str] = []
        self._streams: list[Watch] = []
        self._closed = False

    async def ask(self, request: Request) -> Reply:
        answer = await self.stream(request)
        assert isinstance(answer, Reply)
        return answer

    async def stream(self, request: Request) -> Watch | Reply:
        if self._closed:
            raise StoreUnavailable("the store is closed")
        await asyncio.sleep(0)
        answer = await self.cluster.answer(request, self.token)
        if isinstance(answer, Watch):
            self._streams.append(answer)
        return answer

    def drop(self, error: Exception) -> None:
        self.dropped.append(str(error))
        for stream in self._streams:
            stream.abort(error)
        self._streams.clear()

    def addresses(self) -> Collection[IPAddress]:
        return ()

    def describe(self) -> str:
        return "https://kube.test:6443"

    async def close(self) -> None:
        self._closed = True
        self.drop(StoreUnavailable("the store is closed"))
