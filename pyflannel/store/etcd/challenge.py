"""Whether the holder of a lease is alive: its key is written again, with the very same content.

A live pyflannel sees a write to its key that it did not make, and answers with one of its own. An
answer means that the lease is in use; silence for `CHALLENGE_S` means that the holder is gone, or
is upstream's daemon, which never answers.
"""

from __future__ import annotations

import enum
from typing import Final, NamedTuple

from pyflannel.aio.clock import Clock
from pyflannel.store.etcd.base import KeyValue, Store

CHALLENGE_S: Final = 1.0
"""How long the holder of a lease with our public IP has to show that it is alive. It answers from
its watch within milliseconds; a second covers a busy node, and is paid only when in doubt."""
CHALLENGE_POLL_S: Final = 0.1
ANSWER_INTERVAL_S: Final = 0.3
"""Least time between two answers to a challenge, so that two nodes which both own a lease by
mistake do not echo each other without end; well below the second that a challenger waits. A
challenger therefore leaves that time after the last write it has seen: a holder that has just
answered another one would not answer it."""


class Reply(enum.Enum):
    """What came of the question."""

    SILENCE = enum.auto()
    ANSWER = enum.auto()
    GONE = enum.auto()
    """The key vanished meanwhile."""


class Asked(NamedTuple):
    """A question that was put."""

    reply: Reply
    revision: int
    """Of our write; the key stands at it after silence."""


async def challenge(store: Store, kv: KeyValue, clock: Clock) -> Asked:
    """Puts the question to the holder of a key that was just read, and waits for the reply.

    Raises:
        StoreConflict: the key was written or deleted since it was read.
        StoreError: etcd failed.
    """
    await clock.sleep(ANSWER_INTERVAL_S + CHALLENGE_POLL_S)
    ours = await store.put(kv.key, kv.value, lease=kv.lease, if_mod_revision=kv.mod_revision)
    deadline = clock.monotonic() + CHALLENGE_S
    while clock.monotonic() < deadline:
        await clock.sleep(CHALLENGE_POLL_S)
        now = await store.get(kv.key)
        if not now.kvs:
            return Asked(Reply.GONE, ours.revision)
        if now.kvs[0].mod_revision != ours.revision:
            return Asked(Reply.ANSWER, ours.revision)
    return Asked(Reply.SILENCE, ours.revision)
