"""Stores of etcd that a test opens, and that are closed with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

from pyflannel.store.etcd.base import Store
from pyflannel.store.etcd.connections import Connections

S = TypeVar("S", bound=Store)


@asynccontextmanager
async def closing(store: S, *, within: float) -> AsyncIterator[S]:
    """The store, for so many seconds at most; closed in any case."""
    try:
        async with asyncio.timeout(within):
            yield store
    finally:
        await store.close()


def answered_by(answer):
    """What an `EtcdStore` connects with, if `answer` gives what etcd would answer.

    Args:
        answer: a coroutine function of endpoint, path, body and token.
    """

    class Answered(Connections):
        async def post(self, endpoint, path, body, token, more_s=0.0):
            return await answer(endpoint, path, body, token)

    return Answered
