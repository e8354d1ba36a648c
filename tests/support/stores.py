"""Stores of etcd that a test opens, and that are closed with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

from pyflannel.store.etcd.base import Store

S = TypeVar("S", bound=Store)


@asynccontextmanager
async def closing(store: S, *, within: float) -> AsyncIterator[S]:
    """The store, for so many seconds at most; closed in any case."""
    try:
        async with asyncio.timeout(within):
            yield store
    finally:
        await store.close()
