"""A listing of many keys, page by page, so that no answer is too large to be read or waited for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Final

from pyflannel.aio.heap import pass_over
from pyflannel.core.errors import StoreCompacted, StoreError, StoreUnavailable
from pyflannel.store.etcd import gateway
from pyflannel.store.etcd.base import MAX_VALUE_BYTES, Header, KeyValue, RangeResult
from pyflannel.store.etcd.failures import AnswerTooLong, Refused

FIRST_PAGE: Final = 32
"""Keys asked for at first in a listing, when it is not known yet how large the values are: of 1.5
MiB each, which is the most by default, they are 48 MiB, which a gateway is silent for half a second
to write."""
MOST_KEYS: Final = 1024
"""Keys asked for at once: some 400 KB, 8 ms to decode."""
PAGE_BYTES: Final = 2 * 1024 * 1024
"""What a page is meant to have at most; a quarter of what is read of an answer."""
KEY_BYTES: Final = 200
"""Of a key besides its value, roughly."""
PAGE_SHRINKS: Final = 8
"""By how much a page whose answer is too long is made smaller: 32 keys, four, one."""


Page = tuple[RangeResult, bool]
"""What a request gave, and whether there is more."""


async def list_prefix(
    what: str, prefix: bytes, ask: Callable[[gateway.Message], Awaitable[Page]]
) -> RangeResult:
    """All keys that begin with `prefix`, as they were at one revision.

    Args:
        what: for errors.
        ask: sends one range request.

    Raises:
        StoreCompacted: the revision of the first page was compacted away, or another cluster
            answered.
        StoreError: as `ask`.
    """
    first, end = prefix, gateway.prefix_end(prefix)
    header: Header | None = None
    kvs: list[KeyValue] = []
    limit, keys_only = FIRST_PAGE, False
    while True:
        request = gateway.page_request(
            first,
            end,
            limit=limit,
            revision=header.revision if header is not None else 0,
            keys_only=keys_only,
        )
        try:
            page, more = await ask(request)
        except StoreUnavailable as error:
            too_long = isinstance(error.__cause__, AnswerTooLong)
            # The gateway says nothing until it has put the whole answer into JSON.
            if not too_long and (not error.silent or limit == 1):
                raise
            # A value that is too long on its own is passed over with its key alone.
            keys_only = too_long and limit == 1
            limit = max(1, limit // PAGE_SHRINKS)
            continue
        except StoreError as error:
            if isinstance(error.__cause__, Refused) and error.__cause__.is_compacted:
                raise StoreCompacted(str(error), 0) from error
            raise
        header = header or page.header
        if page.header.cluster_id != header.cluster_id:
            raise StoreCompacted(f"{what}: another cluster answers the second page", 0)
        if keys_only:
            page = replace(
                page, kvs=tuple(replace(kv, left_out=MAX_VALUE_BYTES + 1) for kv in page.kvs)
            )
        kvs += page.kvs
        if not more or not page.kvs:
            return RangeResult(header=header, kvs=tuple(kvs))
        # What was read stays for as long as the listing is used, and looking through it in
        # search of garbage takes longer with each page: 50 ms at 100,000 keys.
        pass_over()
        first, keys_only = page.kvs[-1].key + b"\0", False
        limit = next_page(limit, page.kvs)


def next_page(limit: int, kvs: Sequence[KeyValue]) -> int:
    """How many keys to ask for, after a page of `limit` gave these: as many as fit `PAGE_BYTES`."""
    size = sum(KEY_BYTES + max(len(kv.value), kv.left_out) for kv in kvs)
    fit = PAGE_BYTES * len(kvs) // size
    return max(1, min(MOST_KEYS, 4 * limit, fit))
