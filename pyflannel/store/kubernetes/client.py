"""The requests to the API server: one node, all nodes, their changes, and two patches of ours.

Every write goes to `nodes/<name>/status` and names the object's uid, because a node may be deleted
and registered again under the same name at any time.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Final
from urllib.parse import quote

from pyflannel.core.kube.nodes import KubeNode
from pyflannel.store.kubernetes import wire
from pyflannel.store.kubernetes.base import Reply, Request, Stream, Transport
from pyflannel.store.kubernetes.failures import FORBIDDEN, NodeMissing, failure, message_of
from pyflannel.store.kubernetes.wire import Names

NODES: Final = "/api/v1/nodes"
PAGE: Final = 500
"""Nodes of a page: 4 MB as kubelets make them."""
WATCH_S: Final = (300, 600)
"""A watch ends after a random time in this range, as client-go's do. So connections spread again
over all API servers after one of them was away."""
OK: Final = range(200, 300)


class NodeClient:
    """Requests about nodes.

    Args:
        transport: carries them.
        ours: which annotations and which node are ours.
        rng: source of random numbers.
    """

    def __init__(
        self, transport: Transport, ours: Names, *, rng: random.Random | None = None
    ) -> None:
        self.transport = transport
        self.ours = ours
        self._rng = rng if rng is not None else random.Random()  # noqa: S311 - spreads load only
        self.requests: dict[str, int] = {}
        """Number of requests so far, by kind."""

    async def pod_node(self, namespace: str, pod: str) -> str:
        """The node that a pod runs on; empty if it has none yet.

        Raises:
            StoreError: the server failed or refused.
        """
        path = f"/api/v1/namespaces/{quote(namespace)}/pods/{quote(pod)}"
        return wire.pod_node(await self._ask("get pod", "GET", path))

    async def node(self, *, cached: bool = False) -> KubeNode:
        """Our own node.

        Args:
            cached: whether to accept an answer that may be old; it costs the server less.

        Raises:
            NodeMissing: it is not registered.
            StoreError: the server failed or refused.
        """
        return await self._get(self.ours.own, "0" if cached else "")

    async def version_of(self, name: str, *, at_least: str) -> str:
        """The version of a node; empty if there is no such node.

        Args:
            name: of any node.
            at_least: a version that the server must have reached; it waits 3 s for it.

        Raises:
            NotReached: the server has not reached it.
            StoreError: the server failed or refused.
        """
        try:
            return (await self._get(name, at_least)).version
        except NodeMissing:
            return ""

    async def _get(self, name: str, at_least: str) -> KubeNode:
        query = {"resourceVersion": at_least} if at_least else {}
        reply = await self._reply("get node", "GET", f"{NODES}/{quote(name)}", query)
        if reply.status == FORBIDDEN:
            # A role that may only list and watch.
            selector = {"fieldSelector": f"metadata.name={name}", **query}
            body = await self._ask("list nodes", "GET", NODES, selector)
            nodes, _, _ = wire.parse_list(body, self.ours)
            if not nodes:
                raise NodeMissing(f"get node {name}: there is none", kind="get node 404")
            return nodes[0]
        return wire.parse_node(wire.parse_object(_good(reply, "get node")), self.ours)

    async def page(self, after: str = "") -> tuple[list[KubeNode], str, str]:
        """A page of all nodes: nodes, the list's version, where the next page begins.

        Never with `resourceVersion=0`: an old cache would return nodes that are deleted.

        Raises:
            Expired: the list has become too old; begin again.
            StoreError: the server failed or refused.
        """
        query = {"limit": str(PAGE), **({"continue": after} if after else {})}
        body = await self._ask("list nodes", "GET", NODES, query)
        return wire.parse_list(body, self.ours)

    async def watch(self, version: str) -> Stream:
        """The changes of all nodes since a version.

        Raises:
            StoreError: the server failed or refused.
        """
        return await self._watch("watch nodes", {"resourceVersion": version})

    async def watch_all(self) -> Stream:
        """All nodes as they are, an end mark, and then their changes.

        Raises:
            StoreError: the server failed, refused, or does not do that.
        """
        more = {
            "resourceVersion": "",
            "resourceVersionMatch": "NotOlderThan",
            "sendInitialEvents": "true",
        }
        return await self._watch("list nodes in a watch", more)

    async def annotate(self, uid: str, changes: Mapping[str, str | None]) -> KubeNode:
        """Writes annotations of our own node; the node after that.

        Raises:
            NodeMissing, NodeReplaced: the object of this uid is gone.
            StoreError: the server failed or refused.
        """
        return await self._patch(wire.annotations_patch(uid, changes, self.ours))

    async def say_network_up(self, uid: str, now: float) -> KubeNode:
        """Clears the condition NetworkUnavailable of our own node; the node after that.

        Raises:
            As `annotate`.
        """
        return await self._patch(wire.condition_patch(uid, now))

    def _own(self) -> str:
        return f"{NODES}/{quote(self.ours.own)}"

    async def _patch(self, body: bytes) -> KubeNode:
        path = f"{self._own()}/status"
        query = {"fieldManager": wire.MANAGER}
        answer = await self._ask("patch nodes/status", "PATCH", path, query, body)
        return wire.parse_node(wire.parse_object(answer), self.ours)

    async def _watch(self, operation: str, more: Mapping[str, str]) -> Stream:
        self._count(operation)
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(self._rng.randint(*WATCH_S)),
            **more,
        }
        answer = await self.transport.stream(Request(method="GET", path=NODES, query=query))
        if isinstance(answer, Reply):
            raise failure(answer.status, message_of(answer.body), operation, answer.retry_after_s)
        return answer

    async def _ask(
        self,
        operation: str,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> bytes:
        return _good(await self._reply(operation, method, path, query or {}, body), operation)

    async def _reply(
        self, operation: str, method: str, path: str, query: Mapping[str, str], body: bytes = b""
    ) -> Reply:
        self._count(operation)
        return await self.transport.ask(
            Request(
                method=method,
                path=path,
                query=query,
                body=body,
                content_type=wire.MERGE if body else "",
            )
        )

    def _count(self, operation: str) -> None:
        self.requests[operation] = self.requests.get(operation, 0) + 1


def _good(reply: Reply, operation: str) -> bytes:
    if reply.status not in OK:
        raise failure(reply.status, message_of(reply.body), operation, reply.retry_after_s)
    return reply.body
