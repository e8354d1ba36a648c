"""Follows all nodes without gaps: a list, then every change after it. Until cancelled.

The list comes as the beginning of a watch (`sendInitialEvents`), which saves both sides a copy of
all objects. A server without that is listed in pages, and watched from the list's version.

The end of a watch decides what comes next:

| end | next |
|---|---|
| the server closes it (every 5 to 10 min) | a watch from the last version |
| the connection breaks, or a probe has no answer | a watch from the last version |
| ... and the server does not answer at once | a list: it may have been restored meanwhile |
| 410, in any form: status, first line, later line | a list |
| the server does not know what we have seen | a list: its etcd was restored |
| no byte for `SILENT_S`, bookmarks included | a list: its version may lie in the server's future |

A server whose etcd was restored from a backup accepts a watch from our last version all the same.
It is silent until it gets there, and then says nothing of what is different before. So where a
watch goes on from a version, the server is asked for the node that changed last, at that version
or a later one. It must be there by the very write that we know, or the watch must show its change.

Versions are opaque: they are only compared for equality. A list is a snapshot and is never merged
with the nodes known before. After every failure it tries again, with back-off, jitter, and the
server's `Retry-After`.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from pyflannel.aio.backoff import Backoff
from pyflannel.aio.clock import Clock
from pyflannel.core.errors import StoreConfigError, StoreDenied, StoreError, StoreUnavailable
from pyflannel.core.kube.nodes import KubeNode
from pyflannel.core.trouble import Occasion, TroubleLog
from pyflannel.logs import get_logger
from pyflannel.records import dataclass
from pyflannel.report.model import StoreFault
from pyflannel.store.kubernetes import wire
from pyflannel.store.kubernetes.base import Stream
from pyflannel.store.kubernetes.client import NodeClient
from pyflannel.store.kubernetes.failures import Busy, Expired, NotOffered, NotReached, Stale
from pyflannel.store.kubernetes.trouble import fault_of
from pyflannel.store.lines import LineSplitter

log = get_logger(__name__)

PROBE_S: Final = 30.0
"""After this much silence a small request checks that the server still answers."""
SILENT_S: Final = 240.0
"""A watch that is silent for longer is taken for dead. On a quiet cluster the first bookmark comes
after two minutes (measured with 1.34 and 1.36)."""
LIST_SILENT_S: Final = 10.0
"""Longest silence within a list."""
LIST_S: Final = 120.0
"""Time for a list in a watch up to its end mark. Servers that do not know the parameter never send
that mark."""
FIRST_CEILING_S: Final = 1.0
"""Longest pause before the first list: a node must be ready within 2 s of the repair."""
CEILING_S: Final = 5.0
MOST_RETRY_AFTER_S: Final = 60.0
REFUSALS: Final = 2
"""A server that has not reached our version is believed when it says so again, for one of several
may lag. It takes 3 s each time."""
SHOWN_S: Final = 5.0
"""A change that the server has is in the watch after this time. It takes milliseconds."""
FRUITLESS_S: Final = 1.0
"""A watch that ends sooner without an event is followed by a pause."""
GIVE_WAY: Final = 100
"""Events between two turns for other tasks."""


class Taker(Protocol):
    """Receives the nodes. Its methods do not block."""

    def listed(self, nodes: Sequence[KubeNode]) -> None:
        """All nodes there are."""
        ...

    def changed(self, node: KubeNode) -> None:
        """One node, as it is now."""
        ...

    def deleted(self, name: str) -> None:
        """A node is gone."""
        ...


@dataclass(frozen=True, slots=True)
class _Known:
    """What was seen last, for a server to confirm."""

    version: str
    """Up to which all changes are known."""
    node: str
    """The node that changed last; empty if none has since the list."""
    of_node: str
    """Its version; empty if it was deleted."""


class NodeFeed:
    """The nodes of one cluster.

    Args:
        client: asks the server.
        clock: the time.
        taker: receives the nodes.
        rng: source of chance.
        moved: called when `connected` or `reason` has changed.
    """

    def __init__(
        self,
        client: NodeClient,
        clock: Clock,
        taker: Taker,
        *,
        rng: random.Random | None = None,
        moved: Callable[[], None] = lambda: None,
    ) -> None:
        self._client = client
        self._clock = clock
        self._taker = taker
        self._moved = moved
        self._rng = rng
        self._backoff = Backoff(ceiling=FIRST_CEILING_S, rng=rng)
        self._fruitless = Backoff(ceiling=CEILING_S, rng=rng)
        self._trouble = TroubleLog()
        self._version = ""
        self._offers_streaming = True
        self._newest = ("", "")
        """Name and version of the node that changed last."""
        self._unconfirmed: _Known | None = None
        """What the server has not confirmed yet, since a watch was opened again."""
        self._shown: set[str] = set()
        """The versions of its node that the watch has shown since then."""
        self._heard = 0.0
        self._listing = False
        self.connected: bool | None = None
        """As in `StoreReport`."""
        self.since: float | None = None
        self.fault = StoreFault.NONE
        """As in `StoreReport`."""
        self.snapshots = 0
        self.reconnects = 0

    @property
    def reason(self) -> str:
        """Why the nodes are not being watched; empty if they are."""
        return self._trouble.present.reason if self._trouble.present is not None else ""

    async def run(self) -> None:
        """Follows them until cancelled."""
        while True:
            try:
                await self._once()
            except NotOffered as error:
                log.info("the API server does not list in a watch, listing in pages", reason=error)
                self._listing = self._offers_streaming = False
            except (Expired, Stale) as error:
                log.debug("listing all nodes again", reason=error)
                self._listing, self._version = False, ""
                await self._clock.sleep(self._backoff.next())
            except StoreError as error:
                await self._failed(error)
            else:
                self.reconnects += 1

    async def _once(self) -> None:
        """One watch, with a list before it if one is needed."""
        begun = self._clock.monotonic()
        if self._version and self._unconfirmed is None:
            self._unconfirmed = _Known(self._version, *self._newest)
            self._shown.clear()
        stream = await self._begin()
        self._heard = self._clock.monotonic()
        guard = asyncio.create_task(self._guard(stream), name="watch of the nodes: guard")
        try:
            fruitful = await self._follow(stream)
        finally:
            guard.cancel()
            stream.close()
            with contextlib.suppress(asyncio.CancelledError):
                await guard
        if fruitful or self._clock.monotonic() - begun >= FRUITLESS_S:
            self._fruitless.reset()
        else:
            await self._clock.sleep(self._fruitless.next())

    async def _begin(self) -> Stream:
        if self._version:
            try:
                return await self._client.watch(self._version)
            except Busy:
                raise
            except StoreUnavailable:
                self._version = ""
                raise
        if self._offers_streaming:
            self._listing = True
            try:
                return await self._client.watch_all()
            except (Busy, StoreDenied, StoreUnavailable, StoreConfigError):
                raise
            except StoreError as error:
                raise NotOffered(str(error)) from error
        await self._pages()
        return await self._client.watch(self._version)

    async def _pages(self) -> None:
        nodes: list[KubeNode] = []
        after = ""
        while True:
            some, version, after = await self._client.page(after)
            nodes += some
            if not after:
                break
        self._listed(nodes, version)

    async def _follow(self, stream: Stream) -> bool:
        """Reads a watch to its end; whether it had any event."""
        splitter = LineSplitter(wire.MAX_LINE_BYTES, StoreUnavailable)
        lines: deque[bytes] = deque()
        nodes: dict[str, KubeNode] = {}
        fruitful, count = False, 0
        if not self._listing:
            self._recovered()
        while True:
            while not lines:
                chunk = await stream.chunk()
                self._heard = self._clock.monotonic()
                if not chunk:
                    return fruitful
                lines.extend(splitter.feed(chunk))
            line = lines.popleft()
            fruitful = True
            if self._listing:
                self._collect(line, nodes)
            else:
                self._take(wire.parse_event(line, self._client.ours))
            count += 1
            if count % GIVE_WAY == 0:
                await asyncio.sleep(0)

    def _collect(self, line: bytes, nodes: dict[str, KubeNode]) -> None:
        """Takes a line of a list in a watch.

        Raises:
            NotOffered: the server does not support it; one reason is an etcd before 3.6 behind it.
        """
        try:
            event = wire.parse_event(line, self._client.ours)
        except (Busy, StoreDenied, Expired):
            raise
        except StoreError as error:
            raise NotOffered(str(error)) from error
        if isinstance(event, wire.Changed):
            nodes[event.node.name] = event.node
        elif isinstance(event, wire.Deleted):
            nodes.pop(event.name, None)
        elif event.ends_list:
            self._listing = False
            self._listed(list(nodes.values()), event.version)
            nodes.clear()

    def _take(self, event: wire.Event) -> None:
        if isinstance(event, wire.Changed):
            self._version = event.node.version
            self._saw(event.node.name, event.node.version)
            self._taker.changed(event.node)
        elif isinstance(event, wire.Deleted):
            self._version = event.version
            self._saw(event.name, "")
            self._taker.deleted(event.name)
        else:
            self._version = event.version

    def _saw(self, name: str, version: str) -> None:
        self._newest = (name, version)
        if self._unconfirmed is not None and self._unconfirmed.node == name:
            self._shown.add(version)

    def _listed(self, nodes: Sequence[KubeNode], version: str) -> None:
        self._version = version
        self._newest, self._unconfirmed = ("", ""), None
        self.snapshots += 1
        self._recovered()
        self._taker.listed(nodes)

    async def _guard(self, stream: Stream) -> None:
        """Aborts a watch that looks dead, or goes on from what the server does not know."""
        begun = self._clock.monotonic()
        known = self._unconfirmed if not self._listing else None
        if known is not None and (reason := await self._doubt(stream, known)):
            log.warning(
                "the API server does not know what we have seen: its etcd was restored; listing all"
                " nodes again",
                server=self._client.transport.describe(),
                reason=reason,
            )
            stream.abort(Stale(reason, kind="restored"))
            return
        while True:
            await self._clock.sleep(LIST_SILENT_S if self._listing else PROBE_S)
            now = self._clock.monotonic()
            silent = now - self._heard
            if self._listing:
                if silent >= LIST_SILENT_S or now - begun >= LIST_S:
                    stream.abort(NotOffered("it does not end a list in a watch"))
                    return
            elif silent >= SILENT_S:
                text = f"the watch has been silent for {silent:.0f} s, without a bookmark"
                stream.abort(Stale(text, kind="silent"))
                return
            elif silent >= PROBE_S:
                await self._probe(stream)

    async def _doubt(self, stream: Stream, known: _Known) -> str:
        """Why the server cannot be the one that told us what we know; empty if it can."""
        refusals = 0
        name = known.node or self._client.ours.own
        while True:
            try:
                version = await self._client.version_of(name, at_least=known.version)
            except Busy as error:
                if isinstance(error, NotReached):
                    refusals += 1
                    if refusals == REFUSALS:
                        return str(error)
                await self._clock.sleep(max(1.0, min(error.retry_after_s, MOST_RETRY_AFTER_S)))
            except StoreUnavailable as error:
                stream.abort(error)
                return ""
            except StoreError:
                self._unconfirmed = None  # it answers, and nothing else can be asked
                return ""
            else:
                break
        if known.node and version != known.of_node and version not in self._shown:
            await self._clock.sleep(SHOWN_S)
        if not known.node or version == known.of_node or version in self._shown:
            self._unconfirmed = None
            return ""
        return (
            f"node {name} is at version {version or 'none'}, and was at {known.of_node or 'none'}"
        )

    async def _probe(self, stream: Stream) -> None:
        try:
            await self._client.node(cached=True)
        except StoreUnavailable as error:
            if isinstance(error, Busy):
                return
            stream.abort(error)
        except StoreError:
            return  # it answers

    async def _failed(self, error: StoreError) -> None:
        if self._listing:
            self._version = ""
        self._listing = False
        self.reconnects += 1
        text = str(error)
        self.fault = fault_of(error)
        occasion = self._trouble.failed(self._clock.monotonic(), error.kind, text)
        if occasion is not None:
            log.warning(_LOST[occasion], server=self._client.transport.describe(), error=text)
        self._note(connected=False)
        pause = self._backoff.next()
        if isinstance(error, Busy):
            pause = max(pause, min(error.retry_after_s, MOST_RETRY_AFTER_S))
        await self._clock.sleep(pause)

    def _recovered(self) -> None:
        self._backoff = Backoff(ceiling=CEILING_S, rng=self._rng)
        self.fault = StoreFault.NONE
        lasted = self._trouble.over(self._clock.monotonic())
        if lasted is not None:
            log.info(
                "the nodes are followed again",
                server=self._client.transport.describe(),
                after_s=round(lasted, 1),
            )
        self._note(connected=True)

    def _note(self, *, connected: bool) -> None:
        if connected is not self.connected:
            self.connected = connected
            self.since = self._clock.time()
        self._moved()


_LOST: Final = {
    Occasion.BEGINS: "the nodes are not followed, retrying; traffic goes on",
    Occasion.CHANGED: "the nodes are not followed for another reason now; traffic goes on",
    Occasion.LASTS: "the nodes are still not followed; traffic goes on",
}
