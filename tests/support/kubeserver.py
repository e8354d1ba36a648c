"""The API server of `kubeapi` over HTTP: in a thread of a test, or a process of a namespace.

    python -m tests.support.kubeserver ADDRESS PORT

Answers of a watch are sent in pieces that respect no line, as a network may deliver them. What a
test wants done beside the API is posted to `/control`: `{"call": "delete", "args": ["n2"]}`; it is
a method of `KubeCluster`, and the answer is what the cluster holds afterwards.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import sys
import threading
from http import HTTPStatus
from typing import Self

from aiohttp import web

from pyflannel.core.errors import StoreUnavailable
from pyflannel.store.kubernetes.base import Reply, Request
from tests.support.kubeapi import KubeCluster

PIECE = int(os.environ.get("KUBESERVER_PIECE", "700"))
"""Bytes of a piece: less than one event, except in measurements."""


def application(cluster: KubeCluster) -> web.Application:
    async def handle(request: web.Request) -> web.StreamResponse:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        asked = Request(
            method=request.method,
            path=request.path,
            query=dict(request.query),
            body=await request.read(),
            content_type=request.content_type if request.body_exists else "",
        )
        try:
            answer = await cluster.answer(asked, token)
        except StoreUnavailable:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if isinstance(answer, Reply):
            headers = {"Content-Type": "application/json"}
            if answer.retry_after_s:
                headers["Retry-After"] = f"{answer.retry_after_s:.0f}"
            if answer.status == HTTPStatus.TEMPORARY_REDIRECT:
                headers["Location"] = "/api/v1/nodes"
            return web.Response(status=answer.status, body=answer.body, headers=headers)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        try:
            while chunk := await answer.chunk():
                for start in range(0, len(chunk), PIECE):
                    await response.write(chunk[start : start + PIECE])
        except StoreUnavailable:
            assert request.transport is not None
            request.transport.abort()
        finally:
            answer.close()
        return response

    async def control(request: web.Request) -> web.Response:
        order = await request.json()
        if call := order.get("call"):
            getattr(cluster, call)(*order.get("args", ()), **order.get("kwargs", {}))
        if order.get("brief"):
            return web.json_response({})
        state = {
            "annotations": {name: cluster.annotations(name) for name in cluster.nodes},
            "log": cluster.log,
            "nodes": cluster.nodes,
            "patches": cluster.patches,
        }
        return web.json_response(state)

    app = web.Application(client_max_size=64 << 20)
    app.router.add_post("/control", control)
    app.router.add_route("*", "/{path:.*}", handle)
    return app


class KubeServer:
    """The server in a thread of its own, on loopback; all calls to the cluster go through `do`."""

    def __init__(self, cluster: KubeCluster, context: ssl.SSLContext | None = None) -> None:
        self.cluster = cluster
        self._context = context
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.port = 0

    @property
    def url(self) -> str:
        return f"{'https' if self._context else 'http'}://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        return self

    def __exit__(self, *exc: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _start(self) -> None:
        self._runner = web.AppRunner(application(self.cluster), shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=self._context)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def _stop(self) -> None:
        self.cluster.end()
        self.cluster.start()
        await self._runner.cleanup()

    def restart(self, context: ssl.SSLContext) -> None:
        """With another certificate, on the same port."""
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)
        self._context = context
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)

    def do(self, call: str, *args: object, **kwargs: object) -> object:
        """Calls a method of the cluster in its thread."""

        async def run() -> object:
            return getattr(self.cluster, call)(*args, **kwargs)

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(10)


if __name__ == "__main__":
    web.run_app(
        application(KubeCluster()),
        host=sys.argv[1],
        port=int(sys.argv[2]),
        print=lambda *_: None,
        handler_cancellation=True,
        shutdown_timeout=0.2,
    )
